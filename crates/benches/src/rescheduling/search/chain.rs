//! One chain: what it tries, and what it takes.

use super::{Budget, Found};
use crate::rescheduling::input::Place;
use crate::rescheduling::order::order;
use crate::rescheduling::state::{BLOCK, Site, State};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::time::Instant;

/// At the beginning and at the end of a chain, in blocks.
const HEAT: (f64, f64) = (0.1, 0.025);
/// Tries between looks at the clock.
const STRETCH: u64 = 4096;
/// Nodes looked at for a vm to go to.
const LOOKS: usize = 8;

pub struct Chain<'a> {
    start: State<'a>,
    state: State<'a>,
    limit: usize,
    chance: StdRng,
    /// Vms that are not at their origin, in no order, and each vm's index among them.
    away: Vec<usize>,
    away_index: Vec<Option<usize>>,
    movable: Vec<usize>,
    /// What has been put for the try that is under way: the vm and where it was.
    tried: Vec<(usize, Place)>,
    /// Room for those that leave a node together.
    leave: Vec<usize>,
    move_cost: f64,
    worth: f64,
    best: Found,
}

impl<'a> Chain<'a> {
    pub fn new(site: &'a Site, limit: usize, move_cost: f64, seed: u64) -> Self {
        let start = State::new(site);
        Self {
            state: start.clone(),
            start,
            limit,
            chance: StdRng::seed_from_u64(seed),
            away: Vec::new(),
            away_index: vec![None; site.vms.len()],
            movable: (0..site.vms.len()).filter(|&vm| site.vms[vm].movable).collect(),
            tried: Vec::new(),
            leave: Vec::new(),
            move_cost,
            worth: 0.0,
            best: Found::default(),
        }
    }

    pub fn run(mut self, budget: &Budget) -> Found {
        if self.movable.is_empty() || self.limit == 0 {
            return self.best;
        }
        let cooling = (HEAT.1 / HEAT.0).ln() / budget.tries as f64;
        while self.best.tries < budget.tries {
            if Instant::now() >= budget.until {
                self.best.cut = true;
                break;
            }
            let heat = HEAT.0 * (cooling * self.best.tries as f64).exp();
            let stretch = STRETCH.min(budget.tries - self.best.tries);
            for _ in 0..stretch {
                self.attempt(heat);
            }
            self.best.tries += stretch;
        }
        self.best
    }

    fn attempt(&mut self, heat: f64) {
        self.tried.clear();
        let before = self.worth;
        let possible = match self.below(16) {
            0..4 => self.drain(),
            4..6 => self.refill(),
            6..11 => self.refill() && self.drain(),
            11 => self.another_place(),
            12 => self.back() && self.another_place(),
            13..15 => self.elsewhere(),
            _ => self.exchange(),
        };
        let keeps = possible && self.away.len() <= self.limit && {
            let loss = before - self.worth;
            loss <= 0.0 || self.chance.random_range(0.0..1.0) < (-loss / heat).exp()
        };
        if keeps {
            self.note_best();
        } else {
            while let Some((vm, from)) = self.tried.pop() {
                self.put(vm, from);
            }
            self.worth = before;
        }
    }

    /// A vm to a node with room.
    fn another_place(&mut self) -> bool {
        let Some(vm) = self.some_vm() else { return false };
        let cluster = self.state.site.cluster_of(self.state.place(vm).host);
        let Some(node) = self.some_roomy(cluster) else { return false };
        let to = self.place_on(vm, node);
        self.put_if_admitted(vm, to)
    }

    fn back(&mut self) -> bool {
        let Some(vm) = self.some_away() else { return false };
        self.put_if_admitted(vm, self.state.site.vms[vm].origin)
    }

    fn put_if_admitted(&mut self, vm: usize, to: Place) -> bool {
        let admitted = self.state.admits(vm, to);
        if admitted {
            self.try_put(vm, to);
        }
        admitted
    }

    /// So many vms leave a node that it has a block more, into fragments of other nodes.
    fn drain(&mut self) -> bool {
        let Some(node) = self.some_node() else { return false };
        let mut leave = std::mem::take(&mut self.leave);
        leave.clear();
        let mut possible = self.choose_leavers(node, &mut leave);
        for &vm in &leave {
            possible = possible && self.move_into_fragment(vm);
        }
        self.leave = leave;
        possible
    }

    /// Half of the time one that has free cores already.
    fn some_node(&mut self) -> Option<usize> {
        let site = self.state.site;
        if self.below(2) == 0 {
            return Some(self.below(2 * site.hosts()));
        }
        let cluster = self.below(site.clusters);
        self.some_roomy(cluster)
    }

    fn some_roomy(&mut self, cluster: usize) -> Option<usize> {
        let roomy = self.state.roomy(cluster).len();
        if roomy == 0 {
            return None;
        }
        let ix = self.below(roomy);
        Some(self.state.roomy(cluster)[ix])
    }

    /// Vms with less than a block, from anywhere in the node's list, either way, until they make one; three times out
    /// of four without any that is more than lacks.
    fn choose_leavers(&mut self, node: usize, leave: &mut Vec<usize>) -> bool {
        let mut lacks = BLOCK - self.state.cores(node).rem_euclid(BLOCK);
        let count = self.state.residents(node / 2).len();
        if count == 0 {
            return false;
        }
        let (first, backwards, exact) = (self.below(count), self.below(2) == 0, self.below(4) != 0);
        for turn in 0..count {
            let turn = if backwards { count - turn } else { turn };
            let vm = self.state.residents(node / 2)[(first + turn) % count];
            let cores = self.state.cores_on(vm, node);
            if cores > 0 && cores < BLOCK && (cores <= lacks || !exact) {
                leave.push(vm);
                lacks -= cores;
                if lacks <= 0 {
                    return true;
                }
            }
        }
        false
    }

    /// To that of a few nodes looked at where the vm costs no block and leaves the least.
    fn move_into_fragment(&mut self, vm: usize) -> bool {
        let from = self.state.place(vm).host;
        let cluster = self.state.site.cluster_of(from);
        let mut best = None;
        for _ in 0..LOOKS {
            let Some(node) = self.some_roomy(cluster) else { return false };
            let to = self.place_on(vm, node);
            if to.host != from
                && let Some(left) = self.state.fragment_left(vm, to)
                && best.is_none_or(|(least, _)| left < least)
                && self.state.admits(vm, to)
            {
                best = Some((left, to));
            }
        }
        let Some((_, to)) = best else { return false };
        self.try_put(vm, to);
        true
    }

    /// All that left a node come back.
    fn refill(&mut self) -> bool {
        let Some(vm) = self.some_away() else { return false };
        let site = self.state.site;
        let home = site.vms[vm].origin;
        let mut leave = std::mem::take(&mut self.leave);
        leave.clear();
        leave.extend(self.away.iter().copied().filter(|&vm| site.vms[vm].origin == home));
        let possible = leave.iter().all(|&vm| self.put_if_admitted(vm, home));
        self.leave = leave;
        possible
    }

    /// One that is away goes to another node's fragment.
    fn elsewhere(&mut self) -> bool {
        let Some(vm) = self.some_away() else { return false };
        self.move_into_fragment(vm)
    }

    fn some_away(&mut self) -> Option<usize> {
        if self.away.is_empty() {
            return None;
        }
        let ix = self.below(self.away.len());
        Some(self.away[ix])
    }

    /// Two vms of a cluster change places.
    fn exchange(&mut self) -> bool {
        let (Some(a), Some(b)) = (self.some_vm(), self.some_vm()) else { return false };
        let (from, to) = (self.state.place(a), self.state.place(b));
        let site = self.state.site;
        if from == to || site.cluster_of(from.host) != site.cluster_of(to.host) {
            return false;
        }
        let (to, from) = (self.place_on(a, 2 * to.host + to.node), self.place_on(b, 2 * from.host + from.node));
        if !self.state.lawful(a, to) {
            return false;
        }
        self.try_put(a, to);
        if !self.state.lawful(b, from) {
            return false;
        }
        self.try_put(b, from);
        self.state.holds(to.host) && self.state.holds(from.host)
    }

    /// Half of the time one on a host that has free cores already.
    fn some_vm(&mut self) -> Option<usize> {
        if self.below(2) == 0 {
            let ix = self.below(self.movable.len());
            return Some(self.movable[ix]);
        }
        let cluster = self.below(self.state.site.clusters);
        let host = self.some_roomy(cluster)? / 2;
        let count = self.state.residents(host).len();
        if count == 0 {
            return None;
        }
        let ix = self.below(count);
        Some(self.state.residents(host)[ix])
    }

    fn place_on(&self, vm: usize, node: usize) -> Place {
        Place { host: node / 2, node: if self.state.site.on_both(vm) { 0 } else { node % 2 } }
    }

    fn try_put(&mut self, vm: usize, to: Place) {
        self.tried.push((vm, self.state.place(vm)));
        let (blocks, away) = (self.state.blocks(), self.away.len());
        self.put(vm, to);
        self.worth += f64::from(self.state.blocks() - blocks) - self.move_cost * (self.away.len() as f64 - away as f64);
    }

    fn put(&mut self, vm: usize, to: Place) {
        self.state.put(vm, to);
        let home = to == self.state.site.vms[vm].origin;
        match self.away_index[vm] {
            None if !home => {
                self.away_index[vm] = Some(self.away.len());
                self.away.push(vm);
            }
            Some(gone) if home => {
                self.away.swap_remove(gone);
                if let Some(&fills) = self.away.get(gone) {
                    self.away_index[fills] = Some(gone);
                }
                self.away_index[vm] = None;
            }
            Some(_) | None => {}
        }
    }

    fn note_best(&mut self) {
        let gained = self.state.blocks() - self.start.blocks();
        let fewer = gained == self.best.blocks_gained && self.away.len() < self.best.moves.len();
        if gained > self.best.blocks_gained || fewer {
            let changes: Vec<(usize, Place)> = self.away.iter().map(|&vm| (vm, self.state.place(vm))).collect();
            if let Some(moves) = order(&self.start, &changes, self.limit)
                && (gained > self.best.blocks_gained || moves.len() < self.best.moves.len())
            {
                self.best = Found { blocks_gained: gained, moves, ..self.best };
            }
        }
    }

    fn below(&mut self, limit: usize) -> usize {
        self.chance.random_range(0..limit)
    }
}
