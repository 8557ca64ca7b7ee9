//! Room for the loss of hosts: would the vms of any `spare_hosts` hosts that fail find room on the others?
//!
//! What is guaranteed. For one host: each host's vms that may be elsewhere at all, largest first, were given room by their
//! full memory on another host that takes vms and that their pins, networks and rules of hosts allow (first fit: if it
//! finds room there is room; where it finds none there might still be some, and no plan relies on it). For several hosts
//! the same for those whose vms hold most memory, lost at once; nothing is claimed of other sets.

use crate::problem::{HostIx, Problem, State, VmIx};
use std::cmp::Reverse;

/// Hosts tried for one vm beyond the first with enough memory; what is not found by then counts as not there.
const TRIES_MAX: usize = 256;

/// Free memory by host with the largest of each subtree, so that a host with enough is found in logarithmic time.
struct Free {
    tree: Vec<u64>,
    leaves: usize,
}

impl Free {
    fn new(free: &[u64]) -> Self {
        let leaves = free.len().next_power_of_two().max(1);
        let mut tree = vec![0; 2 * leaves];
        tree[leaves..leaves + free.len()].copy_from_slice(free);
        for at in (1..leaves).rev() {
            tree[at] = tree[2 * at].max(tree[2 * at + 1]);
        }
        Self { tree, leaves }
    }

    fn get(&self, host: HostIx) -> u64 {
        self.tree[self.leaves + host]
    }

    fn set(&mut self, host: HostIx, free: u64) {
        let mut at = self.leaves + host;
        self.tree[at] = free;
        while at > 1 {
            at /= 2;
            self.tree[at] = self.tree[2 * at].max(self.tree[2 * at + 1]);
        }
    }

    /// The first host from `start` on with at least that much.
    fn first(&self, start: HostIx, needed: u64) -> Option<HostIx> {
        if start >= self.leaves || needed > self.tree[1] {
            return None;
        }
        let mut at = self.leaves + start;
        while self.tree[at] < needed {
            // Up until there is a right neighbour, then into it.
            while at % 2 == 1 {
                at /= 2;
                if at <= 1 {
                    return None;
                }
            }
            at += 1;
        }
        while at < self.leaves {
            at = if self.tree[2 * at] >= needed { 2 * at } else { 2 * at + 1 };
        }
        Some(at - self.leaves)
    }
}

/// Losses that could not be taken: each lost host, or set of hosts by its first, and the vm that would find no room.
pub(crate) fn homeless(problem: &Problem<'_>, state: &State) -> Vec<(HostIx, VmIx)> {
    let k = problem.policy().spare_hosts as usize;
    if k == 0 {
        return Vec::new();
    }
    let takes = |host: HostIx| state.up[host] && !problem.hosts[host].view.maintenance;
    let free = |host: HostIx| match takes(host) {
        true => problem.hosts[host].memory.saturating_sub(state.sums[host].memory),
        false => 0,
    };
    let mut free = Free::new(&(0..problem.hosts.len()).map(free).collect::<Vec<_>>());
    let up: Vec<HostIx> = (0..problem.hosts.len()).filter(|host| state.up[*host]).collect();
    let single = up.iter().filter_map(|host| lost(problem, state, &mut free, &[*host]).map(|vm| (*host, vm)));
    let mut homeless: Vec<(HostIx, VmIx)> = single.collect();
    if k > 1 {
        let mut heaviest = up;
        heaviest.sort_by_key(|host| (Reverse(state.sums[*host].memory), *host));
        heaviest.truncate(k);
        homeless.extend(lost(problem, state, &mut free, &heaviest).map(|vm| (heaviest[0], vm)));
    }
    homeless
}

/// The first vm that finds no room if these hosts fail together. `free` is left as it was.
fn lost(problem: &Problem<'_>, state: &State, free: &mut Free, hosts: &[HostIx]) -> Option<VmIx> {
    let mut undo: Vec<(HostIx, u64)> = hosts.iter().map(|host| (*host, free.get(*host))).collect();
    for host in hosts {
        free.set(*host, 0);
    }
    let pinned = |vm: &VmIx| !problem.vms[*vm].view.pinned_to.is_empty();
    let mut vms: Vec<VmIx> = hosts.iter().flat_map(|host| state.on[*host].iter().copied()).collect();
    vms.retain(|vm| !pinned(vm));
    vms.sort_by_key(|vm| (Reverse(problem.vms[*vm].wants.memory), *vm));
    let mut without = None;
    for vm in vms {
        let needed = problem.vms[vm].wants.memory.max(1);
        let mut start = 0;
        let home = (0..TRIES_MAX).find_map(|_| {
            let host = free.first(start, needed)?;
            start = host + 1;
            (!hosts.contains(&host) && problem.placement.allows(vm, host)).then_some(host)
        });
        let Some(home) = home else {
            without = Some(vm);
            break;
        };
        undo.push((home, free.get(home)));
        free.set(home, free.get(home) - needed);
    }
    for (host, before) in undo.into_iter().rev() {
        free.set(host, before);
    }
    without
}

/// Why the state keeps too little room, compared with losses that could not be taken before; `None` if it is no worse.
pub(crate) fn worse(problem: &Problem<'_>, state: &State, before: &[(HostIx, VmIx)]) -> Option<String> {
    let new = homeless(problem, state).into_iter().find(|(host, _)| !before.iter().any(|(known, _)| known == host))?;
    Some(format!("if {} failed, {} would find no room", problem.hosts[new.0].id, problem.vms[new.1].id))
}

#[cfg(test)]
mod tests {
    use super::Free;

    #[test]
    fn the_first_host_with_enough_is_found() {
        let free = [3, 0, 7, 5, 7, 1];
        let tree = Free::new(&free);
        for start in 0..8 {
            for needed in 1..9 {
                let expected = (start..free.len()).find(|host| free[*host] >= needed);
                assert_eq!(tree.first(start, needed), expected, "from {start}, {needed}");
            }
        }
    }
}
