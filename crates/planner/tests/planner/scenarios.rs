//! Each file of `tests/scenarios` is a cluster (`cluster.rs` has the format), a line `---`, and what
//! the planner makes of it. `UPDATE=1 cargo test -p drover-planner` writes the second part anew.

use crate::cluster::{Cluster, parse};
use drover_model::plan::{Action, Findings, Plan};
use drover_planner::predict::Predictor;
use drover_planner::{apply, check, detect, place, plan};
use std::fmt::Write;
use std::path::Path;

const REJECTED_SHOWN: usize = 6;

#[test]
fn every_scenario_is_judged_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 60, "scenarios are missing");
    let wrong: Vec<String> = files.iter().filter_map(|file| check_file(file)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn check_file(file: &Path) -> Option<String> {
    let text = std::fs::read_to_string(file).unwrap();
    let (cluster, expected) = text.split_once("---\n").unwrap_or((&text, ""));
    let judged = judge(&parse(cluster));
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(file, format!("{}\n---\n{judged}", cluster.trim_end())).unwrap();
        return None;
    }
    (judged != expected).then(|| format!("{}\nexpected:\n{expected}\ngot:\n{judged}", file.display()))
}

fn judge(cluster: &Cluster) -> String {
    let world = &cluster.world;
    let findings = detect(world);
    let plan = plan(world, &findings, &Predictor::new());
    let mut out = String::new();
    write_findings(&mut out, &findings);
    write_plan(&mut out, &plan);
    for violation in check(world, &plan) {
        writeln!(out, "VIOLATION {violation}").unwrap();
    }
    let after = apply(world, &plan);
    let again = drover_planner::plan(&after, &detect(&after), &Predictor::new());
    for step in &again.steps {
        writeln!(out, "NOT SETTLED {}", shown(&step.action)).unwrap();
    }
    for vm in &cluster.places {
        match place(world, vm) {
            Ok(placement) => writeln!(out, "place {vm} on {} because {}", placement.host, placement.why).unwrap(),
            Err(refusal) => writeln!(out, "place {vm}: {refusal}").unwrap(),
        }
    }
    out
}

fn write_findings(out: &mut String, findings: &Findings) {
    writeln!(out, "{}: {}", findings.scenario, findings.why).unwrap();
    for (host, finding) in &findings.hosts {
        let heat = format!("{:?}", finding.heat).to_lowercase();
        write!(out, "  {host} {heat}").unwrap();
        if let Some(e) = &finding.evidence {
            let (k, n) = (e.needed.k, e.needed.n);
            write!(
                out,
                ", {} {}, forecast {}, {} of {n} past {} ({k} needed)",
                e.resource, e.last, e.forecast, e.hits, e.threshold
            )
            .unwrap();
        }
        out.push('\n');
    }
}

fn write_plan(out: &mut String, plan: &Plan) {
    writeln!(out, "plan: {}", plan.why).unwrap();
    for (n, step) in plan.steps.iter().enumerate() {
        let after: Vec<_> = step.after.iter().map(usize::to_string).collect();
        let after = if after.is_empty() { String::new() } else { format!(" after {}", after.join(", ")) };
        writeln!(out, "  {n}{after}: {} because {}", shown(&step.action), step.reason).unwrap();
        writeln!(out, "     gain {}, cost {}, {}", step.gain, step.cost, step.duration).unwrap();
    }
    if !plan.steps.is_empty() {
        let p = &plan.predicted;
        writeln!(out, "predicted: {} -> {}, moving {}, gain {}", p.rate_before, p.rate_after, p.moving_cost, p.gain)
            .unwrap();
    }
    for (host, p) in &plan.predicted.hosts {
        let (cpu, memory) = ((p.cpu_before, p.cpu_after), (p.memory_before, p.memory_after));
        writeln!(out, "  {host} cpu {} -> {}, memory {} -> {}", cpu.0, cpu.1, memory.0, memory.1).unwrap();
    }
    for rejected in plan.rejected.iter().take(REJECTED_SHOWN) {
        writeln!(out, "not {}: {}", shown(&rejected.action), rejected.because).unwrap();
    }
    if plan.rejected.len() > REJECTED_SHOWN {
        writeln!(out, "and {} more", plan.rejected.len() - REJECTED_SHOWN).unwrap();
    }
}

fn shown(action: &Action) -> String {
    match action {
        Action::Migrate { vm, generation, from, to } => format!("migrate {vm}@{generation} {from} -> {to}"),
        Action::PowerOn { host } => format!("power on {host}"),
        Action::PowerOff { host } => format!("power off {host}"),
    }
}
