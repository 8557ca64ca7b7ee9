//! The times that the plan gives its steps: possible, in order, and within the limits of links and hosts.

use super::replay::Replay;
use super::{Violation, found};
use drover_model::plan::Step;
use drover_model::{Bytes, Millis};

fn end(step: &Step) -> Millis {
    Millis(step.start.0.saturating_add(step.duration.0))
}

pub(super) fn starts_follow_ends(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    let steps = &replay.plan.steps;
    for (ix, step) in steps.iter().enumerate() {
        let early = |first: &&usize| **first < ix && end(&steps[**first]) > step.start;
        if let Some(first) = step.after.iter().find(early) {
            let (start, end) = (step.start, end(&steps[*first]));
            found(violations, ix, format!("it starts at {start}, and step {first} before it ends at {end}"));
        }
    }
}

/// No migration takes no time, and nobody boots faster than it can.
pub(super) fn durations_are_possible(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    for m in replay.moves.iter().filter(|m| replay.plan.steps[m.step].duration == Millis::ZERO) {
        found(violations, m.step, format!("{} can't move in no time", m.id));
    }
    for (step, host) in &replay.switched_on {
        let (takes, boot) = (replay.plan.steps[*step].duration, replay.host_view(*host).boot_time);
        if takes < boot {
            found(violations, *step, format!("{} boots in {boot}, not in {takes}", replay.host_id(*host)));
        }
    }
}

/// What one host has under way.
#[derive(Clone, Copy, Default)]
struct Busy {
    places: u32,
    out: u128,
    into: u128,
}

pub(super) fn links_and_hosts_are_within_limits(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    let policy = &replay.world.policy;
    let (per_host, at_once) = (policy.migration.per_host_max.max(1), policy.migrations_at_once_max.max(1));
    // What ends at a moment makes room for what starts then.
    let mut events: Vec<(Millis, bool, usize)> = Vec::with_capacity(2 * replay.moves.len());
    for (ix, m) in replay.moves.iter().enumerate() {
        let step = &replay.plan.steps[m.step];
        if end(step) > step.start {
            events.extend([(step.start, true, ix), (end(step), false, ix)]);
        }
        let most = policy.migration.bandwidth_max;
        if most > Bytes::ZERO && step.bandwidth > most {
            found(violations, m.step, format!("{} would be sent at {}/s and may at {most}/s", m.id, step.bandwidth));
        }
    }
    events.sort_unstable();
    let (mut busy, mut running) = (vec![Busy::default(); replay.hosts.len()], 0_u32);
    for (at, starts, ix) in events {
        let m = &replay.moves[ix];
        let rate = u128::from(replay.plan.steps[m.step].bandwidth.0);
        if !starts {
            running -= 1;
            busy[m.from].out -= rate;
            busy[m.to].into -= rate;
            for host in [m.from, m.to] {
                busy[host].places -= 1;
            }
            continue;
        }
        running += 1;
        busy[m.from].out += rate;
        busy[m.to].into += rate;
        for host in [m.from, m.to] {
            busy[host].places += 1;
        }
        if running > at_once {
            found(violations, m.step, format!("{running} migrations run at {at} and {at_once} may"));
        }
        for (host, carries) in [(m.from, busy[m.from].out), (m.to, busy[m.to].into)] {
            let (id, places) = (replay.host_id(host), busy[host].places);
            if places > per_host {
                found(violations, m.step, format!("{id} has {places} migrations at {at} and {per_host} may run"));
            }
            if let Some(most) = budget(replay, host).filter(|most| carries > u128::from(most.0)) {
                let carries = Bytes(u64::try_from(carries).unwrap_or(u64::MAX));
                found(
                    violations,
                    m.step,
                    format!("at {at} the link of {id} carries {carries}/s of {most}/s for moves"),
                );
            }
        }
    }
}

/// What the host's link may carry for migrations each way, if that is known.
fn budget(replay: &Replay<'_>, host: usize) -> Option<Bytes> {
    let max = replay.world.policy.migration.host_bandwidth_max;
    replay.host_view(host).link.into_iter().chain((max > Bytes::ZERO).then_some(max)).min()
}

pub(super) fn makespan_adds_up(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    let last = replay.plan.steps.iter().map(end).max().unwrap_or(Millis::ZERO);
    let timing = replay.plan.timing;
    if timing.makespan != last {
        let problem = format!("the plan says it takes {}, and its last step ends after {last}", timing.makespan);
        violations.push(Violation { step: None, problem });
    }
    if timing.bound > timing.makespan {
        let problem = format!("the plan takes {} and says that nothing under {} can be", timing.makespan, timing.bound);
        violations.push(Violation { step: None, problem });
    }
}
