//! Room for the loss of hosts: would the vms of any `spare_hosts` hosts that fail find room on the others?
//!
//! Asked twice. *By memory alone*, of vms that are not pinned: best fit, largest first, and where that fails by search.
//! *By rules*: each vm that may be elsewhere at all gets room on a host that its networks, kind and rules of hosts allow,
//! first fit, largest first. What is guaranteed of a plan: no host that could be lost before, by either, can't be lost
//! after it; and when hosts are switched off, every host can be lost by both. Where fitting finds room there is room; where
//! it finds none there might still be some, and no plan relies on it. For several hosts at once the same holds for those
//! whose vms hold most memory; nothing is claimed of other sets.

use crate::problem::{HostIx, Problem, State, VmIx};
use std::cmp::Reverse;

/// Hosts looked at by the search for one loss; what is not found by then counts as not there.
const WORK_MAX: usize = 20_000;

/// A loss that could not be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Loss {
    /// Or the first of several lost together.
    host: HostIx,
    together: bool,
    by_rules: bool,
    /// It would find no room.
    vm: VmIx,
}

/// Free memory with the largest of each subtree, so that one with enough is found in logarithmic time.
struct Free {
    tree: Vec<u64>,
    leaves: usize,
}

impl Free {
    fn new(free: &[(u64, HostIx)]) -> Self {
        let leaves = free.len().next_power_of_two().max(1);
        let mut tree = vec![0; 2 * leaves];
        for (place, (free, _)) in free.iter().enumerate() {
            tree[leaves + place] = *free;
        }
        for at in (1..leaves).rev() {
            tree[at] = tree[2 * at].max(tree[2 * at + 1]);
        }
        Self { tree, leaves }
    }

    fn get(&self, place: usize) -> u64 {
        self.tree[self.leaves + place]
    }

    fn set(&mut self, place: usize, free: u64) {
        let mut at = self.leaves + place;
        self.tree[at] = free;
        while at > 1 {
            at /= 2;
            self.tree[at] = self.tree[2 * at].max(self.tree[2 * at + 1]);
        }
    }

    /// The first with at least that much.
    fn first(&self, needed: u64) -> Option<usize> {
        if needed > self.tree[1] {
            return None;
        }
        let mut at = 1;
        while at < self.leaves {
            at = if self.tree[2 * at] >= needed { 2 * at } else { 2 * at + 1 };
        }
        Some(at - self.leaves)
    }
}

/// Losses that could not be taken.
pub(crate) fn homeless(problem: &Problem<'_>, state: &State) -> Vec<Loss> {
    let k = problem.policy().spare_hosts as usize;
    if k == 0 {
        return Vec::new();
    }
    let takes = |host: HostIx| state.up[host] && !problem.hosts[host].view.maintenance;
    let free = |host: HostIx| match takes(host) {
        true => problem.hosts[host].memory.saturating_sub(state.sums[host].memory),
        false => 0,
    };
    let mut by_free: Vec<(u64, HostIx)> = (0..problem.hosts.len()).map(|host| (free(host), host)).collect();
    by_free.sort_unstable();
    let mut room = Room {
        free: Free::new(&by_free),
        order: by_free.iter().map(|(_, host)| *host).collect(),
        place: vec![0; by_free.len()],
    };
    for (place, host) in room.order.iter().enumerate() {
        room.place[*host] = place;
    }
    let up: Vec<HostIx> = (0..problem.hosts.len()).filter(|host| state.up[*host]).collect();
    let mut homeless = Vec::new();
    let mut heaviest = up.clone();
    let unpinned = |host: HostIx| state.on[host].iter().filter(|vm| !is_pinned(problem, **vm));
    let weight = |host: HostIx| unpinned(host).map(|vm| problem.vms[*vm].wants.memory).sum::<u64>();
    heaviest.sort_by_cached_key(|host| (Reverse(weight(*host)), *host));
    heaviest.truncate(k);
    for by_rules in [false, true] {
        for host in up.iter().copied() {
            let lost = lost(problem, state, &mut room, &[host], by_rules);
            homeless.extend(lost.map(|vm| Loss { host, together: false, by_rules, vm }));
        }
        if k > 1 {
            let lost = lost(problem, state, &mut room, &heaviest, by_rules);
            homeless.extend(lost.map(|vm| Loss { host: heaviest[0], together: true, by_rules, vm }));
        }
    }
    homeless
}

/// Free memory, the hosts with least first.
struct Room {
    free: Free,
    /// By place: the host; by host: its place.
    order: Vec<HostIx>,
    place: Vec<usize>,
}

fn is_pinned(problem: &Problem<'_>, vm: VmIx) -> bool {
    !problem.vms[vm].view.pinned_to.is_empty()
}

/// The first vm that finds no room if these hosts fail together. `room` is left as it was.
fn lost(problem: &Problem<'_>, state: &State, room: &mut Room, hosts: &[HostIx], by_rules: bool) -> Option<VmIx> {
    let Room { free, place, .. } = room;
    let mut undo: Vec<(usize, u64)> = hosts.iter().map(|host| (place[*host], free.get(place[*host]))).collect();
    for host in hosts {
        free.set(place[*host], 0);
    }
    let class = |vm: VmIx| problem.placement.class(vm);
    let needed = |vm: VmIx| problem.vms[vm].wants.memory.max(1);
    let mut vms: Vec<VmIx> = hosts.iter().flat_map(|host| state.on[*host].iter().copied()).collect();
    vms.retain(|vm| !is_pinned(problem, *vm) && !(by_rules && class(*vm).count <= 1));
    vms.sort_by_key(|vm| (Reverse(needed(*vm)), *vm));
    let mut without = None;
    for vm in vms.iter().copied() {
        let home = if by_rules && class(vm).count < problem.hosts.len() {
            let open = |host: &HostIx| free.get(place[*host]) >= needed(vm);
            class(vm).allowed.iter().find(open).map(|host| place[host])
        } else {
            free.first(needed(vm))
        };
        let Some(home) = home else {
            without = Some(vm);
            break;
        };
        undo.push((home, free.get(home)));
        free.set(home, free.get(home) - needed(vm));
    }
    for (home, before) in undo.into_iter().rev() {
        free.set(home, before);
    }
    if without.is_some() && !by_rules {
        let rest = (0..room.order.len()).filter(|place| !hosts.contains(&room.order[*place]));
        let items: Vec<u64> = vms.iter().map(|vm| needed(*vm)).collect();
        let least = items.last().copied().unwrap_or(0);
        let mut bins: Vec<u64> = rest.map(|place| room.free.get(place)).filter(|free| *free >= least).collect();
        return without.filter(|_| !packs(&items, &mut bins, &mut { WORK_MAX }));
    }
    without
}

/// Whether the items, largest first, were seen to fit. Bins of equal room are one choice.
fn packs(items: &[u64], bins: &mut [u64], work: &mut usize) -> bool {
    let Some((first, rest)) = items.split_first() else { return true };
    if items.iter().map(|item| u128::from(*item)).sum::<u128>() > bins.iter().map(|bin| u128::from(*bin)).sum::<u128>()
    {
        return false;
    }
    let mut tried = Vec::new();
    for bin in 0..bins.len() {
        if *work == 0 {
            return false;
        }
        *work -= 1;
        let room = bins[bin];
        if room < *first || tried.contains(&room) {
            continue;
        }
        tried.push(room);
        bins[bin] = room - first;
        let fits = packs(rest, bins, work);
        bins[bin] = room;
        if fits {
            return true;
        }
    }
    false
}

/// Why the state keeps too little room, compared with losses that could not be taken before; `None` if it is no worse.
pub(crate) fn worse(problem: &Problem<'_>, state: &State, before: &[Loss]) -> Option<String> {
    let known = |new: &Loss| {
        before.iter().any(|old| (old.host, old.together, old.by_rules) == (new.host, new.together, new.by_rules))
    };
    let new = homeless(problem, state).into_iter().find(|loss| !known(loss))?;
    let others = if new.together { format!(" and {} more", problem.policy().spare_hosts - 1) } else { String::new() };
    Some(format!("if {}{others} failed, {} would find no room", problem.hosts[new.host].id, problem.vms[new.vm].id))
}

#[cfg(test)]
mod tests {
    use super::{Free, packs};

    #[test]
    fn the_first_with_enough_is_found() {
        let free = [3, 0, 7, 5, 7, 1];
        let tree = Free::new(&free.map(|free| (free, 0)));
        for needed in 1..9 {
            assert_eq!(tree.first(needed), free.iter().position(|free| *free >= needed), "{needed}");
        }
    }

    #[test]
    fn a_packing_that_best_fit_misses_is_found() {
        assert!(packs(&[4, 3, 3, 2], &mut [6, 6], &mut 1_000));
        assert!(!packs(&[4, 3, 3, 2], &mut [6, 5], &mut 1_000));
        assert!(!packs(&[4, 3, 3, 2], &mut [6, 6], &mut 2), "what is not found in time is not there");
    }
}
