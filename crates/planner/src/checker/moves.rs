//! Who may be moved at all, how often, and whether it pays. Vms that must leave where they are (`Replay::is_pressed`)
//! are moved regardless.

use super::replay::{Move, Replay};
use super::{Violation, found};
use drover_model::plan::Plan;
use drover_model::world::HostState;
use drover_model::{MicroMoney, Millis};

const HOUR: Millis = Millis::secs(3_600);

pub(super) fn cooldowns_are_kept(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    let (now, policy) = (replay.world.now, &replay.world.policy);
    // Where it is brought by this plan itself it only passes through.
    for m in replay.moves.iter().filter(|m| m.first) {
        let rests = m.view.moved().is_some_and(|(at, _)| now.since(*at) < policy.vm_cooldown);
        if rests && !replay.is_pressed(m) {
            let from = replay.host_id(m.from);
            found(violations, m.step, format!("{} moved recently and nothing presses it to leave {from}", m.id));
        }
    }
}

/// Whether a pressed vm could have gone elsewhere is not asked here.
pub(super) fn nobody_returns_too_early(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    let (now, within) = (replay.world.now, replay.world.policy.return_after);
    for m in &replay.moves {
        let to = replay.host_id(m.to);
        let left = m.view.left.iter().rev().find(|(_, from)| from == to).map(|(at, _)| now.since(*at));
        if let Some(left) = left.filter(|left| *left < within && !replay.is_pressed(m)) {
            found(violations, m.step, format!("{} left {to} only {left} ago and nothing presses it to return", m.id));
        }
    }
}

pub(super) fn vms_do_not_move_too_often(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    let (now, max) = (replay.world.now, replay.world.policy.moves.vm_hour_max);
    let mut moves: Vec<&Move<'_>> = replay.moves.iter().collect();
    moves.sort_by_key(|m| (m.vm, m.step));
    for of_vm in moves.chunk_by(|a, b| a.vm == b.vm).filter(|_| max > 0) {
        let last = of_vm[of_vm.len() - 1];
        let recent = last.view.left.iter().filter(|(at, _)| now.since(*at) < HOUR).count();
        let all = recent + of_vm.len();
        if all > max as usize && !replay.is_pressed(last) {
            found(violations, last.step, format!("{} would move {all} times within an hour and may {max}", last.id));
        }
    }
}

pub(super) fn hosts_do_not_change_too_often(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    let max = replay.world.policy.moves.host_hour_max;
    if max == 0 {
        return;
    }
    let mut counts = vec![0_u32; replay.hosts.len()];
    for m in &replay.moves {
        for host in [m.from, m.to] {
            counts[host] += 1;
        }
    }
    let over: Vec<usize> =
        (0..counts.len()).filter(|host| counts[*host] > 0 && recent(replay, *host) + counts[*host] > max).collect();
    for host in over {
        let free = |m: &&Move<'_>| (m.from == host || m.to == host) && !replay.is_pressed(m);
        let voluntary: Vec<&Move<'_>> = replay.moves.iter().filter(free).collect();
        let all = recent(replay, host) as usize + voluntary.len();
        if let Some(last) = voluntary.last().filter(|_| all > max as usize) {
            let id = replay.host_id(host);
            found(violations, last.step, format!("{all} vms would move from or to {id} within an hour and {max} may"));
        }
    }
}

fn recent(replay: &Replay<'_>, host: usize) -> u32 {
    replay.host_view(host).moves_recent
}

pub(super) fn a_plan_does_not_move_too_much(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    let (max, count) = (replay.world.policy.moves.plan_max as usize, replay.moves.len());
    if max > 0 && count > max {
        let problem = format!("{count} moves are too many: a plan may make {max}");
        violations.push(Violation { step: None, problem });
    }
}

pub(super) fn prediction_adds_up(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    let mut wrong = |problem: String| violations.push(Violation { step: None, problem });
    let (predicted, policy) = (&replay.plan.predicted, &replay.world.policy);
    let saved = (predicted.rate_before - predicted.rate_after).over(policy.money.horizon);
    if predicted.gain != saved - predicted.moving_cost {
        wrong("the predicted gain is not what the predicted rates and costs make".to_owned());
    }
    if replay.plan.rejected.len() > Plan::REJECTED_MAX {
        wrong(format!("{} rejected alternatives are too many", replay.plan.rejected.len()));
    }
    let mut touched = replay.moves.iter().flat_map(|m| [m.from, m.to]);
    if let Some(host) = touched.find(|host| !predicted.hosts.contains_key(replay.host_id(*host))) {
        wrong(format!("nothing is predicted for {}", replay.host_id(host)));
    }
    // Who must leave is moved at any price, and a host is woken for what is to come.
    let forced = replay.moves.iter().any(|m| replay.is_pressed(m)) || !replay.switched_on.is_empty();
    let degraded = replay.hosts.iter().any(|(_, host)| matches!(host.state, HostState::Waking));
    let needed = policy.gain_min.max(MicroMoney::ZERO);
    if !replay.plan.steps.is_empty() && !forced && !degraded && predicted.gain < needed {
        wrong(format!("nothing presses, and it gains {} of {needed} that it must", predicted.gain));
    }
}
