//! Which hosts are worth a look for a vm: all of them in a small cluster, else a short list by how full they are.
//!
//! Hosts that may take vms lie in buckets of fullness (forecast demand over capacity); a change moves two of them, in
//! constant time. Where rules leave a vm few hosts, those are looked at instead.

use super::Draft;
use crate::problem::{HostIx, Problem, State, VmIx};
use crate::rules::{self, Room};

/// With no more hosts than this, each is looked at.
const EXACT_MAX: usize = 128;
/// Hosts with room that are enough to choose from.
const SHORTLIST: usize = 24;
/// Hosts looked at to find them.
const LOOKS_MAX: usize = 2_048;
/// Buckets to 100 %, and beyond.
const BUCKETS_FULL: u64 = 96;
const BUCKETS: usize = 128;
const CLOSED: u8 = u8::MAX;

/// From which side hosts are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seek {
    /// To spread.
    Emptiest,
    /// To leave others empty.
    Fullest,
}

pub(crate) struct Targets {
    bucket: Vec<u8>,
    /// By host: where in its bucket.
    place: Vec<u32>,
    buckets: Vec<Vec<u32>>,
    /// Of the largest host.
    cpu_max: u64,
}

impl Targets {
    pub fn new(problem: &Problem<'_>, state: &State) -> Self {
        let count = problem.hosts.len();
        let mut targets = Self {
            bucket: vec![CLOSED; count],
            place: vec![0; count],
            buckets: vec![Vec::new(); BUCKETS],
            cpu_max: problem.hosts.iter().map(|host| host.cpu).max().unwrap_or(0).max(1),
        };
        for host in 0..count {
            targets.refresh(problem, state, host);
        }
        targets
    }

    /// After a change of the host.
    pub fn refresh(&mut self, problem: &Problem<'_>, state: &State, host: HostIx) {
        let now = match state.open[host] {
            true => {
                let full = problem.load(&state.sums[host]) * BUCKETS_FULL / problem.hosts[host].cpu.max(1);
                full.min(BUCKETS as u64 - 1) as u8
            }
            false => CLOSED,
        };
        let before = self.bucket[host];
        if now == before {
            return;
        }
        if before != CLOSED {
            let at = self.place[host] as usize;
            let list = &mut self.buckets[before as usize];
            list.swap_remove(at);
            if let Some(moved) = list.get(at) {
                self.place[*moved as usize] = at as u32;
            }
        }
        if now != CLOSED {
            let list = &mut self.buckets[now as usize];
            self.place[host] = list.len() as u32;
            list.push(host as u32);
        }
        self.bucket[host] = now;
    }
}

impl Draft<'_, '_> {
    /// Hosts other than its own that have room for the vm: all of them, or the first enough from that side.
    pub fn targets(&mut self, vm: VmIx, room: Room, seek: Seek) -> Vec<HostIx> {
        let (problem, state) = (self.problem, &self.state);
        let own = state.at[vm];
        let fits = |host: &HostIx| Some(*host) != own && rules::fits(problem, state, vm, *host, room);
        let class = problem.placement.class(vm);
        let (found, looked) = if problem.hosts.len() <= EXACT_MAX {
            ((0..problem.hosts.len()).filter(fits).collect(), problem.hosts.len())
        } else if class.count <= EXACT_MAX {
            (class.allowed.iter().filter(fits).collect(), class.count)
        } else {
            self.shortlist(vm, room, seek, fits)
        };
        self.spend(looked);
        found
    }

    /// The least full host that may take vms.
    pub fn emptiest(&self) -> Option<HostIx> {
        self.targets.buckets.iter().find_map(|hosts| hosts.iter().min()).map(|host| *host as usize)
    }

    fn shortlist(&self, vm: VmIx, room: Room, seek: Seek, fits: impl Fn(&HostIx) -> bool) -> (Vec<HostIx>, usize) {
        let targets = &self.targets;
        // Fuller than this not even the largest host has room.
        let wants = self.problem.vms[vm].wants.expected() * BUCKETS_FULL / targets.cpu_max;
        let most = (room.cpu.0 * BUCKETS_FULL as f64) as usize;
        let last = if room.alone { BUCKETS - 1 } else { most.saturating_sub(wants as usize).min(BUCKETS - 1) };
        let hosts = |bucket: usize| targets.buckets[bucket].iter().map(|host| *host as usize);
        let (mut found, mut looked) = (Vec::with_capacity(SHORTLIST), 0);
        for step in 0..=last {
            let bucket = if seek == Seek::Emptiest { step } else { last - step };
            for host in hosts(bucket) {
                looked += 1;
                if fits(&host) {
                    found.push(host);
                }
                if found.len() == SHORTLIST || looked == LOOKS_MAX {
                    return (found, looked);
                }
            }
        }
        (found, looked)
    }
}
