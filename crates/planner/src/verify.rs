//! After a plan: what was measured against what it predicted.

use crate::detect::detect;
use crate::forecast::stale_after;
use drover_model::plan::{Action, Heat, HostOutcome, Plan, Verification};
use drover_model::world::{HostState, HostView, World};
use drover_model::{HostId, Ratio};
use std::collections::BTreeMap;

/// Samples whose median is taken as measured.
const SAMPLES: usize = 5;

/// Holds the world, once the effect has settled, against the plan's prediction.
pub fn verify(plan: &Plan, world_now: &World) -> Verification {
    let findings = detect(world_now);
    let mut hosts = BTreeMap::new();
    let mut misses = undone(plan, world_now);
    for (id, predicted) in &plan.predicted.hosts {
        let Some(measured) = world_now.hosts.get(id).and_then(|view| measured(world_now, view)) else {
            misses.push(format!("the load of {id} is not known"));
            continue;
        };
        let off = Ratio((measured.0 - predicted.cpu_after.0).abs());
        if off > Verification::TOLERANCE {
            misses.push(format!(
                "{id} is asked for {measured} of its processor and {} was predicted",
                predicted.cpu_after
            ));
        }
        if findings.hosts.get(id).is_some_and(|finding| finding.heat == Heat::Hot) {
            misses.push(format!("{id} is hot"));
        }
        hosts.insert(id.clone(), HostOutcome { cpu_predicted: predicted.cpu_after, cpu_measured: measured });
    }
    let summary = if misses.is_empty() {
        let shown: Vec<String> = hosts
            .iter()
            .map(|(id, outcome)| format!("{id} at {} ({} predicted)", outcome.cpu_measured, outcome.cpu_predicted))
            .collect();
        if shown.is_empty() { "as predicted".to_owned() } else { format!("as predicted: {}", shown.join(", ")) }
    } else {
        format!("not as predicted: {}", misses.join("; "))
    };
    Verification { at: world_now.now, kept: misses.is_empty(), hosts, summary }
}

/// Vms and hosts that are not where, or as, the plan wanted them.
fn undone(plan: &Plan, world: &World) -> Vec<String> {
    let mut destinations = BTreeMap::new();
    let mut misses = Vec::new();
    let state = |host: &HostId| world.hosts.get(host).map(|view| view.state);
    for step in &plan.steps {
        match &step.action {
            Action::Migrate { vm, to, .. } => {
                destinations.insert(vm, to);
            }
            Action::PowerOn { host } if state(host) != Some(HostState::Up) => {
                misses.push(format!("{host} is not up"));
            }
            Action::PowerOff { host } if !matches!(state(host), Some(HostState::Asleep | HostState::FallingAsleep)) => {
                misses.push(format!("{host} is not asleep"));
            }
            Action::PowerOn { .. } | Action::PowerOff { .. } => {}
        }
    }
    for (vm, to) in destinations {
        // A vm that its owner removed meanwhile is no miss.
        if world.vms.get(vm).is_some_and(|view| view.host.as_ref() != Some(to)) {
            misses.push(format!("{vm} is not on {to}"));
        }
    }
    misses
}

/// Demand over capacity; a host that sleeps is asked for nothing.
fn measured(world: &World, view: &HostView) -> Option<Ratio> {
    match view.state {
        HostState::Asleep | HostState::FallingAsleep => return Some(Ratio(0.0)),
        HostState::Up => {}
        HostState::Unknown | HostState::Suspect | HostState::Down | HostState::Waking => return None,
    }
    let (newest_at, _) = view.load.last()?;
    if world.now.since(*newest_at) > stale_after(world) {
        return None;
    }
    let capacity = view.capacity?;
    let newest = view.load.iter().rev().take(SAMPLES);
    let mut wanted: Vec<_> = newest.map(|(_, sample)| sample.cpu_wanted).collect();
    wanted.sort_unstable();
    Some(wanted.get(wanted.len() / 2)?.ratio_of(capacity.cpu))
}
