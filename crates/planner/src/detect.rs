//! Detection: which hosts are hot or cold, and which pattern the pool shows.
//!
//! A host is hot when enough of its last samples passed the line *and* the forecast does: one spike moves nothing,
//! and neither does a load that is going away. What the pattern is depends on what can be done about it, so the
//! tactics of the search are tried here, on a draft that is thrown away.

use crate::plan::few;
use crate::problem::{Problem, State};
use crate::search::relieve::{self, still_hot};
use crate::search::{Draft, consolidate, exchange, repair, wake};
use drover_model::load::HostSample;
use drover_model::plan::{Evidence, Findings, Heat, HostFinding, Resource, Scenario};
use drover_model::policy::KOfN;
use drover_model::world::{HostState, World};
use drover_model::{Bytes, CpuMillis, HostId, Ratio};

/// Hot hosts on which each tactic is tried to tell what pattern this is.
const TRIES_MAX: usize = 8;
/// Sentences in one `why`.
const SENTENCES_MAX: usize = 8;
/// Candidates judged for it.
const EVALUATIONS: u64 = 4_000_000;

/// Finds hot and cold hosts, and names the scenario.
pub fn detect(world: &World) -> Findings {
    let problem = Problem::new(world);
    let state = State::new(&problem);
    let changed_at = problem.changed_at();
    let hosts = (0..problem.hosts.len())
        .map(|host| (problem.hosts[host].id.clone(), host_finding(&problem, &state, host, changed_at)))
        .collect();
    let mut findings = Findings { at: world.now, scenario: Scenario::Balanced, why: String::new(), hosts };
    (findings.scenario, findings.why) = scenario(&problem, state, &findings);
    findings
}

/// Hot hosts by index, the one that asks for most of itself first.
pub(crate) fn hot_hosts(problem: &Problem<'_>, state: &State, heat: &[Heat]) -> Vec<usize> {
    let mut hot: Vec<usize> = (0..heat.len())
        .filter(|h| heat[*h] == Heat::Hot && problem.hosts[*h].load_known && !problem.hosts[*h].view.maintenance)
        .collect();
    hot.sort_by_key(|h| (std::cmp::Reverse(problem.fullness(*h, &state.sums[*h])), *h));
    hot
}

/// Those of the hot hosts that moving vms may help. Not a host whose only vm has just come there: nobody else had
/// more for it.
pub(crate) fn relievable(problem: &Problem<'_>, state: &State, hot: &[usize]) -> Vec<usize> {
    let settled = |h: &usize| !matches!(state.on[*h].as_slice(), [vm] if problem.vms[*vm].cooldown.is_some());
    hot.iter().copied().filter(settled).collect()
}

/// One resource of one host as the evidence rules see it.
struct Series<'a> {
    resource: Resource,
    /// Newest first, as shares of the capacity.
    shares: Vec<(drover_model::TimeMs, f64)>,
    forecast: Ratio,
    problem: &'a Problem<'a>,
}

impl Series<'_> {
    fn evidence(&self, threshold: Ratio, needed: KOfN, hit: impl Fn(f64) -> bool) -> Evidence {
        let recent = self.shares.iter().take(needed.n as usize);
        Evidence {
            resource: self.resource,
            threshold,
            hits: recent.filter(|(_, share)| hit(*share)).count() as u32,
            needed,
            last: Ratio(self.shares.first().map_or(0.0, |(_, share)| *share)),
            forecast: self.forecast,
        }
    }

    fn hot(&self) -> (bool, Evidence) {
        let policy = self.problem.policy();
        let above = policy.hot_above;
        let evidence = self.evidence(above, policy.hot_evidence, |share| share > above.0);
        (evidence.hits >= evidence.needed.k && self.forecast.0 > above.0, evidence)
    }
}

fn host_finding(problem: &Problem<'_>, state: &State, host: usize, changed_at: drover_model::TimeMs) -> HostFinding {
    let (row, sums) = (&problem.hosts[host], &state.sums[host]);
    if !row.load_known || row.cpu == 0 || row.memory == 0 {
        return HostFinding { heat: Heat::Unknown, evidence: None, cpu_forecast: None, memory_forecast: None };
    }
    let share = |value: u64, whole: u64| value as f64 / whole as f64;
    let shares = |value: fn(&HostSample) -> u64, whole: u64| -> Vec<_> {
        row.evidence(problem.world.now).map(|(at, sample)| (*at, share(value(sample), whole))).collect()
    };
    let measured = problem.at_quantile(sums);
    let used = sums.resident.unsigned_abs();
    let mut cpu = Series {
        resource: Resource::Cpu,
        shares: shares(|sample| sample.cpu_wanted.0, row.cpu),
        forecast: Ratio(share(measured, row.cpu)),
        problem,
    };
    let memory = Series {
        resource: Resource::Memory,
        shares: shares(|sample| sample.memory_used.0, row.memory),
        forecast: Ratio(share(used, row.memory)),
        problem,
    };
    let finding = |heat, evidence| HostFinding {
        heat,
        evidence: Some(evidence),
        cpu_forecast: Some(CpuMillis(measured)),
        memory_forecast: Some(Bytes(used)),
    };
    let (cpu_hot, cpu_evidence) = cpu.hot();
    let (memory_hot, memory_evidence) = memory.hot();
    if cpu_hot {
        return finding(Heat::Hot, cpu_evidence);
    }
    if memory_hot {
        return finding(Heat::Hot, memory_evidence);
    }
    // New vms are counted in before a host is called cold, and only what was measured since the pool last changed
    // counts.
    let policy = problem.policy();
    let below = policy.cold_below;
    cpu.forecast = Ratio(share(problem.load(sums), row.cpu));
    cpu.shares.retain(|(at, _)| *at > changed_at);
    let cold = cpu.evidence(below, policy.cold_evidence, |share| share < below.0);
    if cold.hits >= cold.needed.k && cpu.forecast.0 < below.0 {
        return finding(Heat::Cold, cold);
    }
    let nearest = if cpu_evidence.forecast >= memory_evidence.forecast { cpu_evidence } else { memory_evidence };
    finding(Heat::Warm, nearest)
}

fn scenario(problem: &Problem<'_>, state: State, findings: &Findings) -> (Scenario, String) {
    let heat = problem.heat(findings);
    let hot = hot_hosts(problem, &state, &heat);
    if let Some(why) = degraded(problem, &state) {
        return (Scenario::Degraded, why);
    }
    if !hot.is_empty() {
        return hot_scenario(problem, state, findings, &hot);
    }
    let mut draft = Draft::new(problem, state, hot, EVALUATIONS);
    if let Some(why) = filling_up(problem, &draft.state) {
        return (Scenario::Saturated, why);
    }
    let cold: Vec<_> = (0..heat.len()).filter(|h| heat[*h] == Heat::Cold).map(|h| problem.hosts[h].id).collect();
    if consolidate::consolidate(&mut draft, &heat, 1) {
        return (
            Scenario::Underused,
            format!("{} cold, and at least one host can be emptied and switched off", are(&cold)),
        );
    }
    let why = if heat.iter().all(|heat| *heat == Heat::Unknown) {
        "no host's load is known".to_owned()
    } else if cold.is_empty() {
        "no host is hot and none is cold".to_owned()
    } else {
        format!("no host is hot, and though {} cold there is nothing to save", are(&cold))
    };
    (Scenario::Balanced, why)
}

fn degraded(problem: &Problem<'_>, state: &State) -> Option<String> {
    let mut troubles = Vec::new();
    for (ix, host) in problem.hosts.iter().enumerate() {
        match host.view.state {
            HostState::Suspect => troubles.push(format!("{} has not been heard of lately", host.id)),
            HostState::Down => troubles.push(format!("{} is down", host.id)),
            HostState::Up if problem.drains(state, ix) => {
                troubles.push(format!("{} is drained and still runs {} vms", host.id, state.on[ix].len()));
            }
            HostState::Up | HostState::Unknown | HostState::Asleep | HostState::Waking | HostState::FallingAsleep => {}
        }
    }
    troubles.extend(repair::broken(problem, state).iter().map(|broken| broken.text(problem, state)));
    (!troubles.is_empty()).then(|| shortened(troubles))
}

/// Hot hosts: which tactic helps decides what the pattern is called.
fn hot_scenario(problem: &Problem<'_>, state: State, findings: &Findings, hot: &[usize]) -> (Scenario, String) {
    let line = problem.policy().hot_above;
    let what = shortened(hot.iter().map(|h| described(problem.hosts[*h].id, findings)).collect());
    let hot = relievable(problem, &state, hot);
    let mut draft = Draft::new(problem, state, hot.clone(), EVALUATIONS);
    let tried = || hot.iter().take(TRIES_MAX);
    if tried().any(|h| relieve::relieve(&mut draft, *h, line) && !still_hot(problem, &draft.state, *h)) {
        return (Scenario::Hotspot, format!("{what}; others have room"));
    }
    if tried().any(|h| exchange::relieve(&mut draft, *h, line)) {
        return (Scenario::Mixed, format!("{what}; no host has room for a vm of it, but an exchange fits"));
    }
    (Scenario::Saturated, format!("{what}; no host that is up has room"))
}

/// The first of the sentences, and how many more there are.
fn shortened(mut sentences: Vec<String>) -> String {
    let more = sentences.len().saturating_sub(SENTENCES_MAX);
    sentences.truncate(SENTENCES_MAX);
    if more > 0 {
        sentences.push(format!("{more} more"));
    }
    sentences.join("; ")
}

fn described(host: &HostId, findings: &Findings) -> String {
    match findings.hosts.get(host).and_then(|finding| finding.evidence.as_ref()) {
        Some(Evidence { resource, hits, needed, forecast, threshold, .. }) => format!(
            "{host} is hot: {hits} of its last {} samples and the forecast ({forecast}) are above {threshold} of its {resource}",
            needed.n
        ),
        None => format!("{host} is hot"),
    }
}

/// Nobody is hot yet, but the pool as a whole is near it.
fn filling_up(problem: &Problem<'_>, state: &State) -> Option<String> {
    let policy = problem.policy();
    let (demand, capacity) = wake::pool_ahead(problem, state);
    let asked = CpuMillis(demand).ratio_of(CpuMillis(capacity));
    let exceeds = |share: Ratio| demand as f64 > capacity as f64 * share.0;
    if wake::candidates(problem, state).is_empty() {
        exceeds(policy.fill_to).then(|| {
            format!("the hosts that are up are asked for {asked} of their processors, and none is left to wake")
        })
    } else {
        exceeds(policy.wake_above).then(|| {
            format!(
                "the hosts that are up will be asked for {asked} of their processors, above {}, before they are hot",
                policy.wake_above
            )
        })
    }
}

fn are(hosts: &[&HostId]) -> String {
    match hosts {
        [one] => format!("{one} is"),
        many => format!("{} are", few(many.iter().map(ToString::to_string))),
    }
}
