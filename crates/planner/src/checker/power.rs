//! Switching hosts on and off, and what must be there afterwards.

use super::replay::Replay;
use super::{Violation, found};
use drover_model::world::{HostState, HostView};
use drover_model::{Bytes, CpuMillis};
use std::collections::BTreeSet;

pub(super) fn switched_on_hosts_slept(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    let mut seen = BTreeSet::new();
    for (step, host) in &replay.switched_on {
        let view = replay.host_view(*host);
        if view.state != HostState::Asleep || !view.power_managed || view.maintenance || !seen.insert(*host) {
            let id = replay.host_id(*host);
            found(violations, *step, format!("{id} is not asleep, or not for drover to wake"));
        }
    }
}

pub(super) fn switched_off_hosts_are_empty_and_spare(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    let trouble = || (0..replay.hosts.len()).find(|host| troubled(replay, *host));
    let Some(troubled) = replay.switched_off.first().map(|_| trouble()) else { return };
    let mut seen = BTreeSet::new();
    for (step, host) in &replay.switched_off {
        let (id, view) = replay.hosts[*host];
        if view.state != HostState::Up || !view.power_managed || !seen.insert(*host) {
            found(violations, *step, format!("{id} is not up, or not for drover to switch off"));
        }
        if !replay.world.policy.aim.saves_power() {
            found(violations, *step, format!("{id} would be switched off though power saving is not wanted"));
        }
        let stays = replay.stays_on(*host).iter();
        if let Some(stay) = stays.clone().find(|stay| !replay.reach.done(stay.leaves, *step)) {
            let vm = replay.vm_id(stay.vm);
            found(violations, *step, format!("{vm} may still be on {id} when it is switched off"));
        }
        if let Some(other) = troubled {
            let other = replay.host_id(other);
            found(violations, *step, format!("{id} would be switched off though {other} is lost, unknown or drained"));
        }
    }
}

fn troubled(replay: &Replay<'_>, host: usize) -> bool {
    let view = replay.host_view(host);
    match view.state {
        HostState::Suspect | HostState::Down | HostState::Unknown => true,
        HostState::Up => view.maintenance && replay.stays_on(host).iter().any(|stay| stay.arrives.is_none()),
        HostState::Asleep | HostState::Waking | HostState::FallingAsleep => false,
    }
}

/// By step that switches off: the hosts that serve once all of them are done, and no more are awake than must be.
fn left_serving<T: std::iter::Sum>(replay: &Replay<'_>, step: usize, of: impl Fn(&HostView) -> T) -> T {
    let off: BTreeSet<usize> = replay.switched_off.iter().map(|(_, host)| *host).collect();
    let woken = replay.switched_on.iter().filter(|(on, _)| replay.reach.done(Some(*on), step));
    let woken: BTreeSet<usize> = woken.map(|(_, host)| *host).collect();
    let serves = |host: &usize| {
        let view = replay.host_view(*host);
        !view.maintenance && !off.contains(host) && (view.state == HostState::Up || woken.contains(host))
    };
    (0..replay.hosts.len()).filter(serves).map(|host| of(replay.host_view(host))).sum()
}

/// One of those steps for which fewest hosts are awake for certain; each of them may be the last.
fn last_off(replay: &Replay<'_>) -> Option<usize> {
    let woken = |step: usize| replay.switched_on.iter().filter(|(on, _)| replay.reach.done(Some(*on), step)).count();
    replay.switched_off.iter().map(|(step, _)| *step).min_by_key(|step| woken(*step))
}

pub(super) fn hosts_up_min_is_kept(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    let Some(step) = last_off(replay) else { return };
    let (left, min): (u32, u32) = (left_serving(replay, step, |_| 1), replay.world.policy.hosts_up_min);
    if left < min {
        found(violations, step, format!("{left} hosts would be up and at least {min} must stay up"));
    }
}

pub(super) fn pools_have_what_they_are_promised(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    let Some(step) = last_off(replay).filter(|_| !replay.world.pools.is_empty()) else { return };
    // A pool whose parent is not there answers to nobody.
    let pools = &replay.world.pools;
    let is_root = |parent: &Option<_>| parent.as_ref().is_none_or(|parent| !pools.contains_key(parent));
    let roots = || pools.values().filter(|pool| is_root(&pool.parent));
    let cpu: CpuMillis = left_serving(replay, step, |host| host.capacity.map_or(CpuMillis::ZERO, |has| has.cpu));
    let memory: Bytes = left_serving(replay, step, |host| host.capacity.map_or(Bytes::ZERO, |has| has.memory));
    let promised: CpuMillis = roots().map(|pool| pool.cpu_reserved).sum();
    if promised > cpu {
        found(violations, step, format!("pools are promised {promised} and the hosts left have {cpu}"));
    }
    let promised: Bytes = roots().map(|pool| pool.memory_reserved).sum();
    if promised > memory {
        found(violations, step, format!("pools are promised {promised} of memory and the hosts left have {memory}"));
    }
}
