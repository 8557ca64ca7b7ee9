//! Room for the vms of hosts that may be lost.
//!
//! By memory, of vms that are not pinned: whatever else a planner demands of a new home, it can't be more lenient. Each
//! host in turn is taken away (for several hosts, those with most on them together), and its vms are packed into what
//! the others have left: best fit, largest first; where that fails, by search. What can't be decided within
//! [`WORK_MAX`] counts as room, so nothing is objected to that could be all right.

use super::Violation;
use super::replay::{Replay, Stay};
use drover_model::HostId;
use drover_model::world::HostState;
use std::cmp::Reverse;
use std::collections::BTreeSet;

/// Hosts looked at by the search, in all of one check.
const WORK_MAX: usize = 4_000_000;
/// Losses named in the objection.
const NAMED_MAX: usize = 4;

pub(super) fn hosts_can_be_lost(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    let count = replay.world.policy.spare_hosts as usize;
    if count == 0 || replay.plan.steps.is_empty() {
        return;
    }
    let woken: BTreeSet<usize> = replay.switched_on.iter().map(|(_, host)| *host).collect();
    let off: BTreeSet<usize> = replay.switched_off.iter().map(|(_, host)| *host).collect();
    let is_up = |host: usize| replay.host_view(host).state == HostState::Up;
    let after = Pool::new(replay, &|host| (is_up(host) || woken.contains(&host)) && !off.contains(&host), &|stay| {
        stay.leaves.is_none()
    });
    let lost = after.fatal_losses(count);
    if lost.is_empty() {
        return;
    }
    let before = Pool::new(replay, &is_up, &|stay| stay.arrives.is_none()).fatal_losses(count);
    if lost.len() <= before.len() {
        return;
    }
    let new = lost.iter().filter(|hosts| !before.contains(hosts)).take(NAMED_MAX);
    for hosts in new {
        let names: Vec<&str> = hosts.iter().map(|host| HostId::as_str(replay.host_id(*host))).collect();
        let problem = format!("if {} failed afterwards, its vms would find no room", names.join(" and "));
        violations.push(Violation { step: None, problem });
    }
}

struct Pool {
    /// Hosts that are up, those with least room first.
    rows: Vec<Row>,
}

struct Row {
    host: usize,
    free: u64,
    /// Memory of vms that need another home if it is lost, largest first.
    homeless: Vec<u64>,
}

impl Pool {
    fn new(replay: &Replay<'_>, is_up: &dyn Fn(usize) -> bool, counts: &dyn Fn(&Stay) -> bool) -> Self {
        let row = |host: usize| {
            let here = || replay.stays_on(host).iter().filter(|stay| counts(stay)).map(|stay| replay.vm_view(stay.vm));
            let used: u64 = here().map(|vm| vm.memory.0).sum();
            let view = replay.host_view(host);
            let has = view.capacity.filter(|_| !view.maintenance).map_or(0, |capacity| capacity.memory.0);
            let mut homeless: Vec<u64> = here().filter(|vm| vm.pinned_to.is_empty()).map(|vm| vm.memory.0).collect();
            homeless.sort_unstable_by_key(|memory| Reverse(*memory));
            Row { host, free: has.saturating_sub(used), homeless }
        };
        let mut rows: Vec<Row> = (0..replay.hosts.len()).filter(|host| is_up(*host)).map(row).collect();
        rows.sort_by_key(|row| (row.free, row.host));
        Self { rows }
    }

    /// Sets of `count` hosts whose vms would find no room: each host alone, or those with most on them.
    fn fatal_losses(&self, count: usize) -> Vec<Vec<usize>> {
        let (mut tree, mut work) = (Tree::new(&self.rows), WORK_MAX);
        let sets: Vec<Vec<usize>> = if count == 1 {
            (0..self.rows.len()).map(|row| vec![row]).collect()
        } else {
            let mut all: Vec<usize> = (0..self.rows.len()).collect();
            all.sort_by_key(|row| (Reverse(self.rows[*row].homeless.iter().sum::<u64>()), *row));
            all.truncate(count);
            vec![all]
        };
        let fatal = |lost: &Vec<usize>| !self.survives(lost, &mut tree, &mut work);
        let names = |lost: Vec<usize>| lost.into_iter().map(|row| self.rows[row].host).collect();
        sets.into_iter().filter(fatal).map(names).collect()
    }

    fn survives(&self, lost: &[usize], tree: &mut Tree, work: &mut usize) -> bool {
        let mut homeless: Vec<u64> = lost.iter().flat_map(|row| &self.rows[*row].homeless).copied().collect();
        homeless.sort_unstable_by_key(|memory| Reverse(*memory));
        let mut changed: Vec<(usize, u64)> = lost.iter().map(|row| (*row, self.rows[*row].free)).collect();
        for row in lost {
            tree.set(*row, 0);
        }
        let fits = homeless.iter().all(|memory| {
            let Some(row) = tree.first_with(*memory) else { return *memory == 0 };
            changed.push((row, tree.free(row)));
            tree.set(row, tree.free(row) - memory);
            true
        });
        for (row, free) in changed.into_iter().rev() {
            tree.set(row, free);
        }
        if fits {
            return true;
        }
        let least = homeless.iter().copied().filter(|memory| *memory > 0).min().unwrap_or(0);
        let rows = self.rows.iter().enumerate().filter(|(row, _)| !lost.contains(row)).map(|(_, row)| row.free);
        let mut free: Vec<u64> = rows.filter(|free| *free >= least).collect();
        homeless.retain(|memory| *memory > 0);
        pack(&homeless, &mut free, work)
    }
}

/// Whether the items, largest first, can be packed; true, too, if `work` runs out.
fn pack(items: &[u64], free: &mut [u64], work: &mut usize) -> bool {
    let Some((first, rest)) = items.split_first() else { return true };
    let (needed, there) = (items.iter().map(|item| u128::from(*item)), free.iter().map(|free| u128::from(*free)));
    if needed.sum::<u128>() > there.sum::<u128>() {
        return false;
    }
    let mut tried = BTreeSet::new();
    for bin in 0..free.len() {
        if *work == 0 {
            return true;
        }
        *work -= 1;
        if free[bin] < *first || !tried.insert(free[bin]) {
            continue;
        }
        free[bin] -= first;
        let packed = pack(rest, free, work);
        free[bin] += first;
        if packed {
            return true;
        }
    }
    false
}

/// The most that any host of a range has free; ranges are halves of halves.
struct Tree {
    width: usize,
    most: Vec<u64>,
}

impl Tree {
    fn new(rows: &[Row]) -> Self {
        let width = rows.len().next_power_of_two();
        let mut most = vec![0; 2 * width];
        for (row, place) in rows.iter().zip(&mut most[width..]) {
            *place = row.free;
        }
        for node in (1..width).rev() {
            most[node] = most[2 * node].max(most[2 * node + 1]);
        }
        Self { width, most }
    }

    fn free(&self, row: usize) -> u64 {
        self.most[self.width + row]
    }

    fn set(&mut self, row: usize, free: u64) {
        let mut node = self.width + row;
        self.most[node] = free;
        while node > 1 {
            node /= 2;
            self.most[node] = self.most[2 * node].max(self.most[2 * node + 1]);
        }
    }

    /// The first in order of what was free at the beginning; `None`, too, for what needs nothing.
    fn first_with(&self, memory: u64) -> Option<usize> {
        if memory == 0 || self.most[1] < memory {
            return None;
        }
        let mut node = 1;
        while node < self.width {
            node = if self.most[2 * node] >= memory { 2 * node } else { 2 * node + 1 };
        }
        Some(node - self.width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pool(rows: &[(u64, &[u64])]) -> Pool {
        let row = |(host, (free, vms)): (usize, &(u64, &[u64]))| Row { host, free: *free, homeless: vms.to_vec() };
        let mut rows: Vec<Row> = rows.iter().enumerate().map(row).collect();
        rows.sort_by_key(|row| (row.free, row.host));
        Pool { rows }
    }

    #[test]
    fn a_packing_that_best_fit_misses_is_found() {
        // 4 into 5 would leave 3 + 3 nowhere; 4 + 2 and 3 + 3 fill both.
        let vms: &[u64] = &[4, 3, 3, 2];
        assert!(pool(&[(0, vms), (6, &[]), (6, &[])]).fatal_losses(1).is_empty());
        assert_eq!(pool(&[(0, vms), (6, &[]), (5, &[])]).fatal_losses(1), [[0]]);
        assert!(pool(&[(0, &[5, 4, 3, 3, 3]), (9, &[]), (9, &[])]).fatal_losses(1).is_empty());
    }

    #[test]
    fn several_are_lost_at_once() {
        let rows: [(u64, &[u64]); 4] = [(2, &[4]), (2, &[4]), (4, &[2]), (4, &[2])];
        assert!(pool(&rows).fatal_losses(1).is_empty());
        assert!(pool(&rows).fatal_losses(2).is_empty());
        assert_eq!(pool(&rows).fatal_losses(3), [[0, 1, 2]]);
    }

    proptest! {
        #[test]
        fn losses_are_judged_as_by_trying_everything(
            vms in prop::collection::vec(1_u64..9, 0..6),
            free in prop::collection::vec(0_u64..12, 1..4),
        ) {
            let mut vms = vms;
            vms.sort_unstable_by_key(|memory| Reverse(*memory));
            let all = (free.len() as u64).pow(vms.len() as u32);
            let fits = (0..all).any(|mut code| {
                let mut left = free.clone();
                vms.iter().all(|memory| {
                    let bin = &mut left[(code % free.len() as u64) as usize];
                    code /= free.len() as u64;
                    *memory <= *bin && { *bin -= memory; true }
                })
            });
            let mut rows: Vec<(u64, &[u64])> = vec![(0, &vms)];
            rows.extend(free.iter().map(|free| (*free, &[][..])));
            prop_assert_eq!(pool(&rows).fatal_losses(1).is_empty(), fits);
        }
    }
}
