//! `drover plan --from`: what the planner makes of a cluster in a file. Needs no server.

use super::output::{Columns, Output, cell, properties, state_cell};
use super::show::{self, or_nothing};
use super::{Failure, input, plan, values};
use clap::{Args, ValueEnum};
use drover_api::v1::PlanView;
use drover_model::plan::{Action, Findings, Plan as Decision, PlanRecord, PlanState, Rejected};
use drover_model::policy::Policy;
use drover_model::world::World;
use drover_model::{Bytes, HostId, PlanId, VmId};
use drover_planner as planner;
use drover_planner::text::{ganeti, native};
use planner::predict::Predictor;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub const AFTER_HELP: &str = "\
With --from no server is asked, and the exit code is
  0  judged, whether or not there is anything to do
  1  the checker objects to the plan: a defect of the planner
  2  the file, or a key of the policy, makes no sense

Examples:
  drover plan ls
  drover plan export > cluster.txt && drover plan --from cluster.txt --set aim=save --set spare_hosts=1
  drover plan --from cluster.data --format ganeti --load cluster.load -o json";

#[derive(Debug, Args)]
pub struct Plan {
    #[command(flatten)]
    pub what_if: WhatIf,
    #[command(subcommand)]
    pub verb: Option<plan::Verb>,
}

#[derive(Debug, Args)]
pub struct WhatIf {
    /// A cluster as text (docs/planner.md), may be compressed; - is standard input
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    #[arg(long, value_enum, requires = "from")]
    format: Option<ClusterFormat>,
    /// Load of Ganeti's instances (`hbal -U`): instance, cpu in cores, memory as a share, disk, network
    #[arg(long, value_name = "FILE", requires = "from")]
    load: Option<PathBuf>,
    /// A key of the policy, as `drover policy set` takes it; again for more
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = values::key_value, requires = "from")]
    changes: Vec<(String, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum ClusterFormat {
    #[default]
    Native,
    Ganeti,
}

/// What is printed. The plan is as on the wire.
#[derive(Debug, Serialize)]
struct Judgement {
    /// What was found, in a sentence.
    findings: String,
    plan: PlanView,
    /// What the independent checker objects to.
    violations: Vec<String>,
    /// Where vms without a host would go.
    placements: Vec<Placed>,
}

#[derive(Debug, Serialize)]
struct Placed {
    vm: VmId,
    host: Option<HostId>,
    /// Why there, or why nowhere.
    why: String,
}

impl WhatIf {
    /// Verbs ask the server; a file beside them would be passed over.
    pub fn refuse(&self) -> Result<(), Failure> {
        match &self.from {
            Some(_) => Err(Failure::Usage("--from goes without a verb: drover plan --from FILE".to_owned())),
            None => Ok(()),
        }
    }

    pub fn run(self, output: Output) -> Result<(), Failure> {
        let Some(path) = &self.from else {
            let what = "name a verb, e.g. drover plan ls, or a cluster: drover plan --from FILE";
            return Err(Failure::Usage(what.to_owned()));
        };
        let mut world = self.world(path, output)?;
        change_policy(&mut world.policy, &self.changes)?;
        let findings = planner::detect(&world);
        let decision = planner::plan(&world, &findings, &Predictor::new());
        let judgement = Judgement {
            findings: findings.why.clone(),
            plan: view(&decision, &findings),
            violations: planner::check(&world, &decision).iter().map(ToString::to_string).collect(),
            placements: placements(&world),
        };
        output.emit(&judgement, |judgement| describe(judgement, &decision, &findings, output))?;
        match judgement.violations.first() {
            None => Ok(()),
            Some(first) => Err(Failure::Failed(format!(
                "the checker objects to this plan: {first}. This is a defect of the planner: report it with the file"
            ))),
        }
    }

    fn world(&self, path: &Path, output: Output) -> Result<World, Failure> {
        match (self.format.unwrap_or_default(), &self.load) {
            (ClusterFormat::Native, Some(_)) => {
                Err(Failure::Usage("--load goes with --format ganeti; a native file holds its load itself".to_owned()))
            }
            (ClusterFormat::Native, None) => native_world(path, output),
            (ClusterFormat::Ganeti, load) => ganeti_world(path, load.as_deref(), output),
        }
    }
}

fn bad_text(path: &Path, error: impl std::fmt::Display) -> Failure {
    Failure::Usage(format!("{}: {error}", path.display()))
}

/// The cluster that a file describes. What rules name and the file does not have is remarked upon.
pub fn native_world(path: &Path, output: Output) -> Result<World, Failure> {
    let world = native::parse(&input::text(path)?).map_err(|error| bad_text(path, error))?;
    for rule in &world.rules {
        let gone: Vec<&str> = rule.vms.iter().filter(|vm| !world.vms.contains_key(vm)).map(VmId::as_str).collect();
        if !gone.is_empty() {
            output.say(&format!("rule {} names vms that are not in the file: {}", rule.id, gone.join(", ")));
        }
    }
    Ok(world)
}

fn ganeti_world(path: &Path, load: Option<&Path>, output: Output) -> Result<World, Failure> {
    let cluster: ganeti::Cluster = input::text(path)?.parse().map_err(|error| bad_text(path, error))?;
    let loads = match load {
        Some(path) => ganeti::parse_load(&input::text(path)?).map_err(|error| bad_text(path, error))?,
        None => Default::default(),
    };
    let imported = ganeti::import(&cluster, &loads).map_err(|error| bad_text(path, error))?;
    for remark in &imported.remarks {
        output.say(remark);
    }
    Ok(imported.world)
}

/// Each change, then the policy as a whole must be sound.
pub fn change_policy(policy: &mut Policy, changes: &[(String, String)]) -> Result<(), Failure> {
    let mut seen = BTreeSet::new();
    for (key, value) in changes {
        native::set_policy(policy, key, value)
            .map_err(|expected| Failure::Usage(format!("{key}={value}, but expected {expected}")))?;
        if !seen.insert(key) {
            return Err(Failure::Usage(format!("{key} is given twice")));
        }
    }
    policy.check().map_err(|bad| Failure::Usage(format!("the policy makes no sense: {bad}")))
}

/// As a proposal that nobody keeps.
fn view(decision: &Decision, findings: &Findings) -> PlanView {
    let record = PlanRecord {
        id: PlanId(0),
        plan: decision.clone(),
        findings: findings.clone(),
        state: PlanState::Proposed,
        steps: Vec::new(),
        finished_at: None,
        verification: None,
    };
    PlanView::new(&record, decision.parent)
}

fn placements(world: &World) -> Vec<Placed> {
    let homeless = world.vms.iter().filter(|(_, vm)| vm.host.is_none());
    homeless
        .map(|(vm, _)| match planner::place(world, vm) {
            Ok(placement) => Placed { vm: vm.clone(), host: Some(placement.host), why: placement.why },
            Err(refusal) => Placed { vm: vm.clone(), host: None, why: refusal.to_string() },
        })
        .collect()
}

fn action(action: &Action) -> String {
    match action {
        Action::Migrate { vm, from, to, .. } => format!("migrate {vm} from {from} to {to}"),
        Action::PowerOn { host } => format!("power {host} on"),
        Action::PowerOff { host } => format!("power {host} off"),
    }
}

fn rejected(rejected: &Rejected) -> String {
    format!("{}: {}\n", action(&rejected.action), rejected.because)
}

fn describe(judgement: &Judgement, plan: &Decision, findings: &Findings, output: Output) -> String {
    let predicted = &plan.predicted;
    let bound = predicted.rate_bound.map(|bound| format!("; no placement costs less than {bound}")).unwrap_or_default();
    let mut pairs = vec![
        ("scenario", format!("{}: {}", findings.scenario, findings.why)),
        ("plan", plan.why.clone()),
        ("cost rate", format!("{} now, {} after{bound}", predicted.rate_before, predicted.rate_after)),
    ];
    if !plan.steps.is_empty() {
        pairs.push((
            "gain",
            format!("{} within the horizon, after {} for moving", predicted.gain, predicted.moving_cost),
        ));
        pairs.push(("time", format!("{}; no order takes less than {}", plan.timing.makespan, plan.timing.bound)));
    }
    pairs.push((
        "checked",
        match judgement.violations.as_slice() {
            [] => "the independent checker finds nothing wrong".to_owned(),
            violations => violations.join("; "),
        },
    ));
    let mut text = properties(pairs);
    if !plan.steps.is_empty() {
        text.push_str("\nSteps\n");
        text.push_str(&steps(plan, output));
    }
    text.push_str("\nHosts\n");
    text.push_str(&hosts(plan, findings, output));
    let alternatives = |(number, step): (usize, &drover_model::plan::Step)| {
        let lost: Vec<String> =
            step.alternatives.iter().map(|lost| format!("  {}: {}", number + 1, rejected(lost))).collect();
        lost.concat()
    };
    let alternatives: String = plan.steps.iter().enumerate().map(alternatives).collect();
    if !alternatives.is_empty() {
        text.push_str("\nInstead of a step, and lost\n");
        text.push_str(&alternatives);
    }
    if !plan.rejected.is_empty() {
        text.push_str("\nRejected\n");
        text.extend(plan.rejected.iter().map(|lost| format!("  {}", rejected(lost))));
    }
    if !judgement.placements.is_empty() {
        text.push_str("\nVms without a host\n");
        for Placed { vm, host, why } in &judgement.placements {
            match host {
                Some(host) => text.push_str(&format!("  {vm} goes to {host} because {why}\n")),
                None => text.push_str(&format!("  {vm} goes nowhere: {why}\n")),
            }
        }
    }
    text
}

fn steps(plan: &Decision, output: Output) -> String {
    let names = [">STEP", "AFTER", ">START", ">TAKES", ">PER SECOND", "ACTION", ">COST", ">GAIN", "BECAUSE"];
    let mut columns = Columns::new(output, &names);
    for (number, step) in plan.steps.iter().enumerate() {
        let after: Vec<String> = step.after.iter().map(|step| (step + 1).to_string()).collect();
        columns.row([
            cell(number + 1),
            cell(if after.is_empty() { show::NOTHING.to_owned() } else { after.join(",") }),
            cell(step.start),
            cell(step.duration),
            cell(or_nothing((step.bandwidth > Bytes::ZERO).then_some(step.bandwidth))),
            cell(action(&step.action)),
            cell(step.cost),
            cell(step.gain),
            cell(&step.reason),
        ]);
    }
    columns.text()
}

fn hosts(plan: &Decision, findings: &Findings, output: Output) -> String {
    let mut columns =
        Columns::new(output, &["HOST", "HEAT", ">CPU FORECAST", ">CPU AFTER", ">MEMORY NOW", ">MEMORY AFTER"]);
    for (host, finding) in &findings.hosts {
        let predicted = plan.predicted.hosts.get(host);
        columns.row([
            cell(host),
            state_cell(show::word(&finding.heat)),
            cell(or_nothing(finding.cpu_forecast)),
            cell(or_nothing(predicted.map(|host| host.cpu_after))),
            cell(or_nothing(predicted.map(|host| host.memory_before))),
            cell(or_nothing(predicted.map(|host| host.memory_after))),
        ]);
    }
    columns.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Exit;
    use crate::cli::tests::PLAIN;
    use drover_api::v1::Policy as WirePolicy;

    const HOT: &str = "\
host h1 cpu=4 mem=8192
host h2 cpu=4 mem=8192
vm a vcpus=2 mem=1024 on=h1 load=1.5
vm b vcpus=2 mem=1024 on=h1 load=1.5
vm c vcpus=2 mem=1024 on=h1 load=1.4
vm new vcpus=1 mem=512
";

    fn what_if(from: &Path, changes: &[(&str, &str)]) -> WhatIf {
        let changes = changes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        WhatIf { from: Some(from.to_owned()), format: None, load: None, changes }
    }

    #[test]
    fn the_keys_of_a_policy_are_those_of_the_api() {
        let wire = serde_json::to_value(WirePolicy::default()).unwrap();
        let wire: BTreeSet<&str> = wire.as_object().unwrap().keys().map(String::as_str).collect();
        let text: BTreeSet<&str> = native::policy_keys(&Policy::default()).map(|(key, _)| key).collect();
        assert_eq!(text, wire);
    }

    #[test]
    fn a_cluster_is_judged_for_people_to_read() {
        let world = native::parse(HOT).unwrap();
        let findings = planner::detect(&world);
        let decision = planner::plan(&world, &findings, &Predictor::new());
        let plan = view(&decision, &findings);
        let judgement =
            Judgement { findings: String::new(), plan, violations: Vec::new(), placements: placements(&world) };
        let text = describe(&judgement, &decision, &findings, PLAIN);
        for part in [
            "scenario   hotspot: h1 is hot",
            "Steps\nSTEP  AFTER",
            "from h1 to h2",
            "Hosts\nHOST",
            "new goes to h2 because",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_bad_usage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster.txt");
        std::fs::write(&path, HOT).unwrap();
        let failure = |changes: &[(&str, &str)]| what_if(&path, changes).run(PLAIN).unwrap_err();
        for (changes, message) in [
            (&[("aim", "fast")][..], "aim=fast, but expected balance, save or auto"),
            (&[("aims", "auto")], "aims=auto, but expected a key of the policy"),
            (&[("fill_to", "0.9")], "the policy makes no sense: fill_to: must be below hot_above"),
            (&[("aim", "auto"), ("aim", "save")], "aim is given twice"),
        ] {
            let failure = failure(changes);
            assert_eq!(failure.exit(), Exit::Usage, "{failure}");
            assert!(failure.to_string().starts_with(message), "{failure}");
        }
        std::fs::write(&path, "host h1 cpu=x").unwrap();
        let bad = failure(&[]);
        assert!(bad.line().ends_with("cluster.txt: line 1: cpu=x, but expected cores, e.g. 4 or 0.5"), "{bad}");
        assert_eq!(bad.exit(), Exit::Usage);
        assert!(what_if(&path, &[]).refuse().is_err(), "a verb asks the server");
    }
}
