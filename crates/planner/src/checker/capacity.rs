//! What hosts have and what they are asked for, at every moment.

use super::peak::{Excess, Presence, excess};
use super::replay::Replay;
use super::{Violation, found, measured};
use drover_model::world::{VmView, World};
use drover_model::{Bytes, CpuMillis};

pub(super) fn memory_suffices(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    for host in replay.destinations() {
        let Some(capacity) = replay.host_view(host).capacity else { continue };
        if let Some(Excess { most, step }) = beyond(replay, host, capacity.memory.0, |vm| vm.memory.0) {
            let (id, has) = (replay.host_id(host), capacity.memory);
            found(violations, step, format!("{id} may need {} of memory and has {has}", Bytes(most)));
        }
    }
}

pub(super) fn disks_suffice(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    for host in replay.destinations() {
        let Some(has) = replay.host_view(host).disk else { continue };
        if let Some(Excess { most, step }) = beyond(replay, host, has.0, |vm| vm.disk.0) {
            let id = replay.host_id(host);
            found(violations, step, format!("{id} may need {} of disk and has {has}", Bytes(most)));
        }
    }
}

pub(super) fn promises_can_be_kept(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    for host in replay.destinations() {
        let Some(capacity) = replay.host_view(host).capacity else { continue };
        if let Some(Excess { most, step }) = beyond(replay, host, capacity.cpu.0, |vm| vm.cpu_reserved.0) {
            let (id, has) = (replay.host_id(host), capacity.cpu);
            found(violations, step, format!("{id} may have promised {} and has {has}", CpuMillis(most)));
        }
    }
}

/// While moves are under way a host may be filled to the brim, after the plan it must not be hot; or, in both
/// cases, be no worse off than before. A vm alone on a host may want any amount.
pub(super) fn processors_are_not_overrun(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    for host in replay.destinations() {
        let Some(capacity) = replay.host_view(host).capacity else { continue };
        let there = replay.presences(host, |vm| measured::cpu(replay.world, vm));
        let (id, before) = (replay.host_id(host), sum(&there, |presence| presence.arrives.is_none()));
        if let Some(Excess { most, step }) = excess(&replay.reach, &there, capacity.cpu.0.max(before))
            && beyond(replay, host, 1, |_| 1).is_some()
        {
            let most = CpuMillis(most);
            found(violations, step, format!("{id} may be asked for {most} and has {}", capacity.cpu));
        }
        let stays = |presence: &Presence| presence.leaves.is_none();
        let (after, hot_above) = (sum(&there, stays), capacity.cpu.scale(replay.world.policy.hot_above.0));
        let last = there.iter().filter_map(|presence| presence.arrives).max();
        if let Some(step) = last.filter(|_| after > hot_above.0.max(before))
            && there.iter().filter(|presence| stays(presence)).count() > 1
        {
            let after = CpuMillis(after);
            found(violations, step, format!("{id} would be asked for {after} and is hot above {hot_above}"));
        }
    }
}

/// What vms receive and send by their host's link; no worse than before, at least.
pub(super) fn links_are_not_overrun(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    for host in replay.destinations() {
        let Some(has) = replay.host_view(host).link else { continue };
        for (way, weight) in WAYS {
            let there = replay.presences(host, |vm| weight(replay.world, vm));
            let before = sum(&there, |presence| presence.arrives.is_none());
            if let Some(Excess { most, step }) = excess(&replay.reach, &there, has.0.max(before)) {
                let (id, most) = (replay.host_id(host), Bytes(most));
                found(violations, step, format!("the vms of {id} may {way} {most}/s and its link carries {has}/s"));
            }
        }
    }
}

type Weight = fn(&World, &VmView) -> u64;
const WAYS: [(&str, Weight); 2] = [("receive", measured::received), ("send", measured::sent)];

fn beyond(replay: &Replay<'_>, host: usize, allowed: u64, weight: fn(&VmView) -> u64) -> Option<Excess> {
    excess(&replay.reach, &replay.presences(host, weight), allowed)
}

fn sum(there: &[Presence], counts: impl Fn(&Presence) -> bool) -> u64 {
    there.iter().filter(|presence| counts(presence)).map(|presence| presence.weight).sum()
}
