//! Many migrations at once: who goes when, and at what rate, so that the last ends early.
//!
//! A migration that shares its link takes longer and sends more, because its guest writes meanwhile. So a few go at
//! full rate, and others wait: a move begins when both hosts have a place for it and their links have a fair part of
//! what it could use. When one ends, the others speed up. `course` plays that through for a given order; this
//! module looks for a good order; `bound` says how short any schedule must be at least.
//!
//! The same function plans an evacuation and keeps it up to date: called at every change with what runs and what
//! waits, it says who starts now, at what rate everybody goes, and when each will be done.
//!
//! [`transition`] comes before that: it says which moves, in which order, lead from one placement to another.

mod bound;
mod course;
pub mod transition;

use crate::predict::{Features, SET_UP_S};
use bound::Chains;
use course::{Course, Order, Task};
use drover_model::migration::{Prediction, Priority};
use drover_model::{Bytes, HostId, Millis};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Orders that are played through at most, and moves in all of them together.
const ORDERS_MAX: usize = 48;
const PLAYED_MAX: usize = 3_000;
/// With more, sorting them at each moment takes too long.
const SORTED_MAX: usize = 400;
/// Nothing is tried any more at this many times the bound.
const NEAR_ENOUGH: f64 = 1.005;

/// One migration that runs or waits.
#[derive(Debug, Clone, PartialEq)]
pub struct Move {
    pub from: HostId,
    pub to: HostId,
    pub work: Work,
    pub priority: Priority,
    /// Indices of moves that must have finished first, because they make the room.
    pub after: Vec<usize>,
    pub standing: Standing,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Standing {
    Waiting,
    /// `done`: share of its work, 0 to 1.
    Running {
        done: f64,
    },
    /// Keeps its place and sends nothing.
    Paused {
        done: f64,
    },
}

/// What a migration takes, as a function of the rate it may send at: `fixed + bytes / (rate - dirtied)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Time in which it does not send.
    pub fixed: Millis,
    /// To be sent, if the guest wrote nothing new.
    pub bytes: Bytes,
    /// What the guest dirties for the first time, per second.
    pub dirtied: Bytes,
}

impl Work {
    /// The work that takes as long as predicted, at the bandwidth of the prediction.
    pub fn of(features: &Features, prediction: &Prediction) -> Self {
        let fixed = Millis((SET_UP_S * 1000.0) as u64).min(prediction.total.expected);
        let dirtied = features.writing.map_or(Bytes::ZERO, |writing| writing.rate);
        let copy_s = (prediction.total.expected - fixed).as_secs();
        let speed = course::speed(prediction.basis.bandwidth.0 as f64, dirtied.0 as f64);
        Self { fixed, bytes: Bytes((copy_s * speed).round() as u64), dirtied }
    }

    /// Alone at `rate` bytes per second; `None` at 0.
    pub fn duration(&self, rate: Bytes) -> Option<Millis> {
        let copy_s = self.bytes.0 as f64 / course::speed(rate.0 as f64, self.dirtied.0 as f64);
        // Bytes are whole ones: what that adds to a millisecond is less than a microsecond.
        (rate > Bytes::ZERO).then(|| self.fixed + Millis((copy_s * 1000.0 - 1e-3).ceil().max(0.0) as u64))
    }
}

/// What a host's link carries for migrations, in bytes per second each way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    pub out: Bytes,
    pub into: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Links {
    pub hosts: BTreeMap<HostId, Link>,
    /// Of hosts that are not listed.
    pub default: Link,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Migrations at once from or to one host.
    pub per_host: u32,
    pub at_once: u32,
    /// Bytes per second of one migration; 0 is no limit.
    pub rate_max: Bytes,
}

/// When each move goes, at which rate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// As many as there are moves, in their order.
    pub slots: Vec<Slot>,
    /// When the last of those that end has ended, from now.
    pub makespan: Millis,
    /// No schedule of them is shorter.
    pub bound: Millis,
}

/// All times are from now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Slot {
    /// 0 of what runs. `None`: not while things stay as they are (after a paused one, or after itself, or no bandwidth).
    pub start: Option<Millis>,
    pub finish: Option<Millis>,
    /// From when on it sends at which rate, per second.
    pub rates: Vec<(Millis, Bytes)>,
    /// Why it does not start now.
    pub waits_for: Option<Wait>,
}

impl Slot {
    /// Whether it runs, or may be started now.
    pub fn starts_now(&self) -> bool {
        self.start == Some(Millis::ZERO)
    }

    /// What it may send at, per second, now or as soon as it can.
    pub fn rate(&self) -> Bytes {
        self.rates.iter().map(|(_, rate)| *rate).find(|rate| *rate > Bytes::ZERO).unwrap_or(Bytes::ZERO)
    }
}

/// What a move waits for. Displayed, it completes "because ...".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait<H = HostId> {
    /// The move at this index makes room first.
    After(usize),
    /// As many run as the cluster may have at once.
    AtOnce,
    /// As many run from or to this host as may.
    Host(H),
    /// Others fill this host's link.
    Link(H),
    /// One of higher priority waits for this host.
    Priority(H),
    /// The host's link may carry nothing.
    NoBandwidth(H),
}

impl Wait<usize> {
    fn named(self, hosts: &[HostId]) -> Wait {
        match self {
            Self::After(first) => Wait::After(first),
            Self::AtOnce => Wait::AtOnce,
            Self::Host(host) => Wait::Host(hosts[host].clone()),
            Self::Link(host) => Wait::Link(hosts[host].clone()),
            Self::Priority(host) => Wait::Priority(hosts[host].clone()),
            Self::NoBandwidth(host) => Wait::NoBandwidth(hosts[host].clone()),
        }
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::After(_) => write!(f, "another migration has to make room first"),
            Self::AtOnce => write!(f, "as many migrations run as may at once"),
            Self::Host(host) => write!(f, "as many migrations from or to {host} run as may at once"),
            Self::Link(host) => write!(f, "other migrations fill the link of {host}"),
            Self::Priority(host) => write!(f, "a migration of higher priority waits for {host}"),
            Self::NoBandwidth(host) => {
                write!(f, "the link of {host} may carry no migration: raise host_bandwidth_max, or set 0 for no limit")
            }
        }
    }
}

/// Plans what waits around what runs. Moves of higher priority never wait for lower ones that have not begun. Equal
/// input gives equal output. Indices in `after` that name no move are ignored.
pub fn schedule(moves: &[Move], links: &Links, limits: &Limits) -> Schedule {
    let problem = Problem::new(moves, links, limits);
    let chains = Chains::new(&problem);
    let best = search(&problem, &chains);
    let makespan = seconds_up(best.makespan_s);
    let bound = Millis((bound::bound(&problem, &chains, &|ix| best.ends(ix)) * 1000.0).floor() as u64);
    Schedule { slots: best.slots(&problem), makespan, bound }
}

fn seconds_up(seconds: f64) -> Millis {
    // What a rounding error lies above a whole millisecond is that millisecond.
    Millis((seconds * 1000.0 - 1e-6).ceil().max(0.0) as u64)
}

/// The input by index, in seconds and bytes.
struct Problem {
    tasks: Vec<Task>,
    /// By name, where somebody is told who waits for whom.
    hosts: Vec<HostId>,
    /// By host: bytes per second out and in.
    out: Vec<f64>,
    into: Vec<f64>,
    per_host: usize,
    at_once: usize,
}

impl Problem {
    fn new(moves: &[Move], links: &Links, limits: &Limits) -> Self {
        let mut index = BTreeMap::new();
        for a_move in moves {
            for host in [&a_move.from, &a_move.to] {
                index.entry(host.clone()).or_insert(0);
            }
        }
        index.values_mut().enumerate().for_each(|(ix, value)| *value = ix);
        let link = |host: &HostId| links.hosts.get(host).copied().unwrap_or(links.default);
        let out: Vec<f64> = index.keys().map(|host| link(host).out.0 as f64).collect();
        let into: Vec<f64> = index.keys().map(|host| link(host).into.0 as f64).collect();
        let rate_max = if limits.rate_max == Bytes::ZERO { f64::INFINITY } else { limits.rate_max.0 as f64 };
        let task = |a_move: &Move| {
            let (from, to) = (index[&a_move.from], index[&a_move.to]);
            let mut task = Task::new(a_move, from, to, out[from].min(into[to]).min(rate_max));
            task.after.retain(|first| *first < moves.len());
            task
        };
        Self {
            tasks: moves.iter().map(task).collect(),
            hosts: index.keys().cloned().collect(),
            per_host: limits.per_host.max(1) as usize,
            at_once: limits.at_once.max(1) as usize,
            out,
            into,
        }
    }

    /// For each host and direction, how long all its tasks keep it busy at full rate.
    fn busy_s(&self) -> (Vec<f64>, Vec<f64>) {
        let (mut out, mut into) = (vec![0.0; self.hosts.len()], vec![0.0; self.hosts.len()]);
        for task in self.tasks.iter().filter(|task| !task.paused && task.best > 0.0) {
            out[task.from] += task.wire_min() / self.out[task.from];
            into[task.to] += task.wire_min() / self.into[task.to];
        }
        (out, into)
    }
}

/// Tries orders: the links with the most to carry first, the longest chains first, as given; then brings forward what ended last.
fn search(problem: &Problem, chains: &Chains) -> Course {
    let waiting: Vec<usize> = (0..problem.tasks.len()).filter(|ix| problem.tasks[*ix].waits).collect();
    let by = |key: &dyn Fn(usize) -> f64| {
        let mut order = waiting.clone();
        order.sort_by(|a, b| key(*b).total_cmp(&key(*a)).then(a.cmp(b)));
        order
    };
    let (out, into) = problem.busy_s();
    let chain = |ix: usize| problem.tasks[ix].shortest_s() + chains.tail_s[ix];
    let busiest = |ix: usize| out[problem.tasks[ix].from].max(into[problem.tasks[ix].to]);
    let mut search = Search { problem, best: None, tried: 0 };
    if problem.tasks.len() <= SORTED_MAX {
        let course = Course::play(problem, &Order::BusiestLink { tail_s: &chains.tail_s });
        search.best = Some((course.order(problem), course));
    }
    for order in [by(&|ix| busiest(ix) + chain(ix)), by(&chain), waiting.clone()] {
        if search.is_near(chains) {
            break;
        }
        search.consider(order);
    }
    let orders_max = ORDERS_MAX.min(PLAYED_MAX / problem.tasks.len().max(1));
    let mut next = 0;
    while search.tried < orders_max && !search.is_near(chains) {
        let Some((order, course)) = &search.best else { break };
        // The one that ended last, then, while that does not help, the one before it.
        let mut late = order.clone();
        late.sort_by(|a, b| course.finish_or_never(*b).total_cmp(&course.finish_or_never(*a)).then(a.cmp(b)));
        let Some(last) = late.get(next) else { break };
        let forward = with_what_comes_before(problem, *last);
        let (first, rest): (Vec<usize>, Vec<usize>) = order.iter().partition(|ix| forward.contains(ix));
        next = if search.consider([first, rest].concat()) { 0 } else { next + 1 };
    }
    match search.best {
        Some((_, course)) => course,
        None => Course::play(problem, &Order::Fixed(&waiting)),
    }
}

/// The task and all that it has to wait for.
fn with_what_comes_before(problem: &Problem, task: usize) -> BTreeSet<usize> {
    let (mut found, mut ahead) = (BTreeSet::new(), vec![task]);
    while let Some(ix) = ahead.pop() {
        if found.insert(ix) {
            ahead.extend(&problem.tasks[ix].after);
        }
    }
    found
}

struct Search<'p> {
    problem: &'p Problem,
    best: Option<(Vec<usize>, Course)>,
    tried: usize,
}

impl Search<'_> {
    fn is_near(&self, chains: &Chains) -> bool {
        let near = |course: &Course| {
            course.makespan_s <= bound::bound(self.problem, chains, &|ix| course.ends(ix)) * NEAR_ENOUGH
        };
        self.best.as_ref().is_some_and(|(_, course)| near(course))
    }

    /// Plays the order through, by priority first, and keeps it if it is the best so far.
    fn consider(&mut self, mut order: Vec<usize>) -> bool {
        order.sort_by_key(|ix| Reverse(self.problem.tasks[*ix].priority));
        self.tried += 1;
        let course = Course::play(self.problem, &Order::Fixed(&order));
        let better = self.best.as_ref().is_none_or(|(_, kept)| course.is_better_than(kept));
        if better {
            self.best = Some((order, course));
        }
        better
    }
}
