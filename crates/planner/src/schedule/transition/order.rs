//! The row in which each move finds room when its turn comes.

use super::room::{Room, Seats};
use super::{Act, Move, Stuck, Transition, Why};
use drover_model::Bytes;
use drover_model::placement::Scope;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Hosts with most room that a vm is tried on to let others pass, before all are.
const NEAR_TRIES: usize = 32;
/// More vms than any host has; one that must be alone takes as many places.
const ALONE: u64 = 1 << 32;
/// Figures of a host: those of `Load`, and how many vms it has.
const FIGURES: usize = 7;

pub(super) struct Row {
    pub act: Act,
    pub after: Vec<usize>,
    /// Those of `after` that no other order could do without.
    pub inherent: Vec<usize>,
}

pub(super) struct Ordered {
    pub steps: Vec<Row>,
    pub stuck: Vec<Stuck>,
    /// Whether anything passes through a third host.
    pub passes: bool,
}

/// Without `left_out`; those in `first` take precedence.
pub(super) fn order(
    wanted: &Transition,
    may_pass: &dyn Fn(usize, usize) -> bool,
    left_out: &[Stuck],
    first: &[usize],
) -> Ordered {
    let mut ordering = Ordering::new(wanted, first);
    for stuck in left_out {
        ordering.leave_out(stuck.of, stuck.why);
    }
    for of in 0..wanted.moves.len() {
        if let Some(why) = never(wanted, of).filter(|_| !ordering.is_over(of)) {
            ordering.leave_out(of, why);
        }
    }
    ordering.ready = (0..wanted.moves.len()).filter(|of| !ordering.is_over(*of)).map(|of| ordering.key(of)).collect();
    ordering.go_on();
    while ordering.let_pass(may_pass, true) || ordering.let_pass(may_pass, false) {}
    for of in 0..wanted.moves.len() {
        if !ordering.is_over(of) {
            let why = ordering.obstacle(of, wanted.moves[of].to).unwrap_or(Why::NoRoom { host: wanted.moves[of].to });
            ordering.leave_out(of, why);
        }
    }
    let passes = ordering.passed.contains(&true);
    Ordered { steps: ordering.steps, stuck: ordering.stuck, passes }
}

/// Adds the steps that switch off; returns the hosts that would not be empty.
pub(super) fn switch_off(wanted: &Transition, ordered: &mut Ordered) -> Vec<usize> {
    let mut leave = vec![Vec::new(); wanted.hosts.len()];
    let mut vms: Vec<i64> = wanted.hosts.iter().map(|host| i64::from(host.vms)).collect();
    for (step, row) in ordered.steps.iter().enumerate() {
        if let Act::Move { from, to, .. } = row.act {
            leave[from].push(step);
            vms[from] -= 1;
            vms[to] += 1;
        }
    }
    let (empty, kept_on) = wanted.off.iter().partition(|host| vms.get(**host) == Some(&0));
    let empty: Vec<usize> = empty;
    for host in empty {
        let after = std::mem::take(&mut leave[host]);
        ordered.steps.push(Row { act: Act::Off { host }, inherent: after.clone(), after });
    }
    kept_on
}

/// What is wrong with the move whatever else happens.
fn never(wanted: &Transition, of: usize) -> Option<Why> {
    let Move { from, to, apart, hosts_max, .. } = &wanted.moves[of];
    let (Some(source), Some(destination)) = (wanted.hosts.get(*from), wanted.hosts.get(*to)) else {
        return Some(Why::NoSuch);
    };
    let sets =
        apart.iter().all(|set| *set < wanted.apart.len()) && hosts_max.iter().all(|set| *set < wanted.hosts_max.len());
    if from == to || !sets {
        Some(Why::NoSuch)
    } else if !destination.up && !wanted.on.contains(to) {
        Some(Why::NotUp { host: *to })
    } else if source.link.out == Bytes::ZERO {
        Some(Why::NoBandwidth { host: *from })
    } else if destination.link.into == Bytes::ZERO {
        Some(Why::NoBandwidth { host: *to })
    } else {
        None
    }
}

struct Ordering<'t> {
    wanted: &'t Transition,
    /// By host.
    rooms: Vec<[Room; FIGURES]>,
    /// By set and host, rack or zone.
    apart: BTreeMap<(usize, usize), Room>,
    seats: Vec<Seats>,
    /// By move: where its vm is, the step that brought it there, and whether it stopped over once.
    at: Vec<usize>,
    brought: Vec<Option<usize>>,
    passed: Vec<bool>,
    over: Vec<bool>,
    /// By host: the step that switches it on.
    on: Vec<Option<usize>>,
    /// Moves to try next: those that stand in most others' way first.
    ready: BTreeSet<Key>,
    /// By host, then set: moves that wait for something to leave it.
    waiting: Vec<Vec<usize>>,
    rank: Vec<(bool, Reverse<usize>)>,
    steps: Vec<Row>,
    stuck: Vec<Stuck>,
}

type Key = (bool, Reverse<usize>, usize);

impl<'t> Ordering<'t> {
    fn new(wanted: &'t Transition, first: &[usize]) -> Self {
        let (hosts, count) = (wanted.hosts.len(), wanted.moves.len());
        let mut awaited = vec![0; hosts];
        for to in wanted.moves.iter().map(|a_move| a_move.to).filter(|to| *to < hosts) {
            awaited[to] += 1;
        }
        let mut rank: Vec<(bool, Reverse<usize>)> =
            wanted.moves.iter().map(|a_move| (true, Reverse(awaited.get(a_move.from).copied().unwrap_or(0)))).collect();
        for of in first {
            rank[*of].0 = false;
        }
        let mut ordering = Self {
            wanted,
            rooms: wanted.hosts.iter().map(rooms).collect(),
            apart: BTreeMap::new(),
            seats: Vec::new(),
            at: wanted.moves.iter().map(|a_move| a_move.from).collect(),
            brought: vec![None; count],
            passed: vec![false; count],
            over: vec![false; count],
            on: vec![None; hosts],
            ready: BTreeSet::new(),
            waiting: vec![Vec::new(); hosts + wanted.apart.len() + wanted.hosts_max.len()],
            rank,
            steps: Vec::new(),
            stuck: Vec::new(),
        };
        ordering.fill_sets();
        for host in wanted.on.iter().copied().filter(|host| *host < hosts) {
            ordering.on[host] = Some(ordering.steps.len());
            ordering.steps.push(Row { act: Act::On { host }, after: Vec::new(), inherent: Vec::new() });
        }
        ordering
    }

    fn fill_sets(&mut self) {
        let wanted = self.wanted;
        let mut apart: Vec<Vec<usize>> = wanted.apart.iter().map(|set| set.staying.clone()).collect();
        let mut seated: Vec<Vec<usize>> = wanted.hosts_max.iter().map(|set| set.staying.clone()).collect();
        for a_move in &wanted.moves {
            for (sets, members) in [(&mut apart, &a_move.apart), (&mut seated, &a_move.hosts_max)] {
                for set in members {
                    if let Some(set) = sets.get_mut(*set) {
                        set.push(a_move.from);
                    }
                }
            }
        }
        for (set, members) in apart.iter().enumerate() {
            let mut carried: BTreeMap<usize, u64> = BTreeMap::new();
            for host in members.iter().filter(|host| **host < wanted.hosts.len()) {
                *carried.entry(self.domain(set, *host)).or_default() += 1;
            }
            self.apart.extend(carried.into_iter().map(|(domain, count)| ((set, domain), Room::no_worse(1, count))));
        }
        let rows = wanted.hosts_max.iter().zip(seated);
        self.seats = rows.map(|(set, members)| Seats::new(set.count as usize, members.into_iter())).collect();
    }

    fn domain(&self, set: usize, host: usize) -> usize {
        match self.wanted.apart[set].within {
            Scope::Host => host,
            Scope::Rack => self.wanted.hosts[host].rack as usize,
            Scope::Zone => self.wanted.hosts[host].zone as usize,
        }
    }

    fn key(&self, of: usize) -> Key {
        let (later, awaited) = self.rank[of];
        (later, awaited, of)
    }

    fn is_over(&self, of: usize) -> bool {
        self.over[of]
    }

    fn leave_out(&mut self, of: usize, why: Why) {
        self.over[of] = true;
        self.stuck.push(Stuck { of, why });
    }

    /// What the vm takes of a host that it is brought to.
    fn weighs(&self, of: usize, host: usize) -> [u64; FIGURES] {
        let host = &self.wanted.hosts[host];
        let (mut figures, most) = (figures(&self.wanted.moves[of]), host.capacity.cpu.max(host.carries.cpu));
        if figures[0] > most {
            (figures[0], figures[FIGURES - 1]) = (most, ALONE);
        }
        figures
    }

    /// What the vm gives back where it is.
    fn gives_back(&self, of: usize) -> [u64; FIGURES] {
        match self.brought[of] {
            Some(_) => self.weighs(of, self.at[of]),
            None => figures(&self.wanted.moves[of]),
        }
    }

    /// What keeps the vm from going to the host as things are.
    fn obstacle(&self, of: usize, to: usize) -> Option<Why> {
        let room = self.rooms[to].iter().zip(self.weighs(of, to)).all(|(room, weighs)| room.has(weighs));
        if !room {
            return Some(Why::NoRoom { host: to });
        }
        let a_move = &self.wanted.moves[of];
        for set in a_move.apart.iter().copied() {
            let (here, there) = (self.domain(set, self.at[of]), self.domain(set, to));
            if here != there && self.apart.get(&(set, there)).is_some_and(|room| !room.has(1)) {
                return Some(Why::Apart { set });
            }
        }
        let full = a_move.hosts_max.iter().copied().find(|set| !self.seats[*set].has(to));
        full.map(|set| Why::HostsMax { set })
    }

    fn waits_at(&self, why: Why) -> Option<usize> {
        let hosts = self.wanted.hosts.len();
        match why {
            Why::NoRoom { host } => Some(host),
            Why::Apart { set } => Some(hosts + set),
            Why::HostsMax { set } => Some(hosts + self.wanted.apart.len() + set),
            Why::NoBandwidth { .. } | Why::NotUp { .. } | Why::NoSuch => None,
        }
    }

    /// Where others may wait for the vm to leave.
    fn in_the_way_at(&self, of: usize) -> impl Iterator<Item = usize> + use<'t> {
        let (hosts, sets) = (self.wanted.hosts.len(), self.wanted.apart.len());
        let a_move = &self.wanted.moves[of];
        let apart = a_move.apart.iter().map(move |set| hosts + set);
        let seats = a_move.hosts_max.iter().map(move |set| hosts + sets + set);
        std::iter::once(self.at[of]).chain(apart).chain(seats)
    }

    /// Makes every move that finds room.
    fn go_on(&mut self) {
        while let Some((.., of)) = self.ready.pop_first() {
            let to = self.wanted.moves[of].to;
            match self.obstacle(of, to) {
                None => self.make(of, to, false),
                Some(why) => {
                    if let Some(at) = self.waits_at(why) {
                        self.waiting[at].push(of);
                    }
                }
            }
        }
    }

    fn make(&mut self, of: usize, to: usize, passes: bool) {
        let (step, from, wanted) = (self.steps.len(), self.at[of], self.wanted);
        let inherent: Vec<usize> = self.brought[of].into_iter().chain(self.on[to]).collect();
        let mut after = inherent.clone();
        let (takes, gives) = (self.weighs(of, to), self.gives_back(of));
        for (room, amount) in self.rooms[to].iter_mut().zip(takes) {
            room.take(amount, &mut after);
        }
        for (room, amount) in self.rooms[from].iter_mut().zip(gives) {
            room.make(amount, step);
        }
        for set in wanted.moves[of].apart.iter().copied() {
            let (here, there) = (self.domain(set, from), self.domain(set, to));
            if here != there {
                self.apart.entry((set, there)).or_insert_with(|| Room::new(1, 0)).take(1, &mut after);
                self.apart.entry((set, here)).or_insert_with(|| Room::new(1, 1)).make(1, step);
            }
        }
        for set in wanted.moves[of].hosts_max.iter().copied() {
            self.seats[set].take(to, &mut after);
            self.seats[set].leave(from, step);
        }
        after.sort_unstable();
        after.dedup();
        let freed: Vec<usize> = self.in_the_way_at(of).collect();
        self.steps.push(Row { act: Act::Move { of, from, to, passes }, after, inherent });
        (self.at[of], self.brought[of]) = (to, Some(step));
        if passes {
            self.passed[of] = true;
            self.ready.insert(self.key(of));
        } else {
            self.over[of] = true;
        }
        for at in freed {
            let woken = std::mem::take(&mut self.waiting[at]);
            let keys: Vec<Key> = woken.into_iter().filter(|of| !self.over[*of]).map(|of| self.key(of)).collect();
            self.ready.extend(keys);
        }
    }

    /// Brings vms that stand in others' way to third hosts, those with least to send first, and goes on after each.
    /// `helps`: only where that makes room for somebody at once; otherwise one, in the hope that more follow. Whether
    /// there was one.
    fn let_pass(&mut self, may_pass: &dyn Fn(usize, usize) -> bool, helps: bool) -> bool {
        let wanted = self.wanted;
        let blocks = |of: &usize| {
            !self.over[*of] && !self.passed[*of] && self.in_the_way_at(*of).any(|at| !self.waiting[at].is_empty())
        };
        let mut candidates: Vec<usize> = (0..wanted.moves.len()).filter(blocks).collect();
        if candidates.is_empty() {
            return false;
        }
        candidates.sort_by_key(|of| (wanted.moves[*of].work.bytes, *of));
        let receives = |host: &usize| {
            let row = &wanted.hosts[*host];
            row.receives && (row.up || self.on[*host].is_some()) && !wanted.off.contains(host)
        };
        let mut thirds: Vec<usize> = (0..wanted.hosts.len()).filter(receives).collect();
        thirds.sort_by_key(|host| (Reverse(self.rooms[*host][1].free()), *host));
        let mut any = 0;
        for of in candidates {
            if self.over[of] || (helps && !self.makes_room(of)) {
                continue;
            }
            let suits = |host: usize| {
                let a_move = &wanted.moves[of];
                let link = wanted.hosts[host].link;
                host != a_move.from
                    && host != a_move.to
                    && link.out > Bytes::ZERO
                    && link.into > Bytes::ZERO
                    && self.obstacle(of, host).is_none()
                    && may_pass(of, host)
            };
            // Each begins at another host, so that they do not wait for each other there.
            let near = thirds.len().min(NEAR_TRIES);
            let mut turned = (0..near).map(|n| thirds[(any + n) % near]).chain(thirds[near..].iter().copied());
            if let Some(third) = turned.find(|host| suits(*host)) {
                self.make(of, third, true);
                self.go_on();
                any += 1;
                if !helps {
                    break;
                }
            }
        }
        any > 0
    }

    /// Whether somebody could go on if the vm left.
    fn makes_room(&self, of: usize) -> bool {
        let (here, gives) = (self.at[of], self.gives_back(of));
        self.in_the_way_at(of).flat_map(|at| &self.waiting[at]).any(|waiter| {
            let to = self.wanted.moves[*waiter].to;
            match (self.over[*waiter], self.obstacle(*waiter, to)) {
                (true, _) => false,
                (false, Some(Why::NoRoom { host })) if host == here => {
                    let rooms = self.rooms[here].iter().zip(gives).zip(self.weighs(*waiter, here));
                    rooms.into_iter().all(|((room, gives), weighs)| room.free().saturating_add(gives) >= weighs)
                }
                (false, why) => !matches!(why, Some(Why::NoRoom { .. })),
            }
        })
    }
}

fn figures(a_move: &Move) -> [u64; FIGURES] {
    let load = a_move.load;
    [load.cpu, load.memory, load.disk, load.rx, load.tx, load.reserved, 1]
}

fn rooms(host: &super::Host) -> [Room; FIGURES] {
    let (has, carries) = (host.capacity, host.carries);
    [
        Room::no_worse(has.cpu, carries.cpu),
        Room::new(has.memory, carries.memory),
        Room::new(has.disk, carries.disk),
        Room::no_worse(has.rx, carries.rx),
        Room::no_worse(has.tx, carries.tx),
        Room::new(has.reserved, carries.reserved),
        Room::new(ALONE, u64::from(host.vms)),
    ]
}
