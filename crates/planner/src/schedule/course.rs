//! One order played through: at each moment who starts, who has which rate, and what happens next.

use super::{Move, Problem, Slot, Standing, Wait, Work, seconds_up};
use drover_model::migration::Priority;
use drover_model::{Bytes, Millis};

/// A move starts when its links leave it this share of the rate it could have alone. Less would drag it out.
const SHARE_MIN: f64 = 0.25;
/// And this many times what its guest dirties.
const OVER_DIRTIED: f64 = 2.0;
/// Of its rate, dirty pages take at most this share: guests that write more are moved by post-copy, which sends once.
const DIRTIED_SHARE_MAX: f64 = 0.5;
/// Shorter than this is the same moment; seconds.
const INSTANT_S: f64 = 1e-9;
/// A rate below this is none; bytes per second.
const RATE_MIN: f64 = 1.0;

/// Bytes of first-time work done per second at a rate, by a guest that dirties so much.
pub(super) fn speed(rate: f64, dirtied: f64) -> f64 {
    rate - dirtied.min(DIRTIED_SHARE_MAX * rate)
}

pub(super) struct Task {
    pub from: usize,
    pub to: usize,
    pub priority: Priority,
    pub after: Vec<usize>,
    pub waits: bool,
    pub paused: bool,
    /// Otherwise it is something that takes time and no link.
    pub is_move: bool,
    /// Left of the time in which it does not send, seconds.
    pub fixed_s: f64,
    /// Left to send.
    bytes: f64,
    dirtied: f64,
    /// The rate it has alone.
    pub best: f64,
}

impl Task {
    pub fn new(a_move: &Move, from: usize, to: usize, best: f64) -> Self {
        let whole = Self::whole(&a_move.work, from, to, best);
        let (waits, paused, done) = match a_move.standing {
            Standing::Waiting => (true, false, 0.0),
            Standing::Running { done } => (false, false, done),
            Standing::Paused { done } => (false, true, done),
        };
        Self {
            priority: a_move.priority,
            after: a_move.after.clone(),
            waits,
            paused,
            fixed_s: if done > 0.0 { 0.0 } else { whole.fixed_s },
            bytes: whole.bytes * (1.0 - done.clamp(0.0, 1.0)),
            ..whole
        }
    }

    /// A move that has not begun and waits for nothing.
    pub fn whole(work: &Work, from: usize, to: usize, best: f64) -> Self {
        Self {
            from,
            to,
            priority: Priority::Normal,
            after: Vec::new(),
            waits: true,
            paused: false,
            is_move: true,
            fixed_s: work.fixed.as_secs(),
            bytes: work.bytes.0 as f64,
            dirtied: work.dirtied.0 as f64,
            best: if best >= RATE_MIN { best } else { 0.0 },
        }
    }

    /// Of a host: it takes so long, and no link.
    pub fn switch(takes: Millis) -> Self {
        let work = Work { fixed: takes, bytes: Bytes::ZERO, dirtied: Bytes::ZERO };
        Self { is_move: false, ..Self::whole(&work, 0, 0, RATE_MIN) }
    }

    /// What it needs at least, per second, to be worth starting.
    fn need(&self) -> f64 {
        (SHARE_MIN * self.best).max(OVER_DIRTIED * self.dirtied).min(self.best)
    }

    /// Alone, at its best; seconds.
    pub fn shortest_s(&self) -> f64 {
        if self.best == 0.0 { f64::INFINITY } else { self.fixed_s + self.bytes / speed(self.best, self.dirtied) }
    }

    /// What it sends at its best, in bytes: the least there is.
    pub fn wire_min(&self) -> f64 {
        self.best * self.bytes / speed(self.best, self.dirtied)
    }
}

/// What is left of a task that runs, in the played course.
#[derive(Clone, Copy, Default)]
struct Left {
    fixed_s: f64,
    bytes: f64,
    /// What it sends at now.
    rate: f64,
    /// What it would send at now if its set-up were over.
    planned: f64,
}

pub(super) struct Course {
    start: Vec<Option<f64>>,
    finish: Vec<Option<f64>>,
    rates: Vec<Vec<(f64, f64)>>,
    waits_for: Vec<Option<Wait<usize>>>,
    pub makespan_s: f64,
    unfinished: usize,
    sum_s: f64,
}

/// Who is served first of those that wait and may start.
pub(super) enum Order<'o> {
    /// As listed.
    Fixed(&'o [usize]),
    /// Higher priority, then the link with the most still to carry, as it is at each moment. Costs a sort each time.
    BusiestLink { tail_s: &'o [f64] },
}

impl Course {
    pub fn play(problem: &Problem, order: &Order<'_>) -> Self {
        Player::new(problem, order).play()
    }

    /// The tasks that waited, as they started.
    pub fn order(&self, problem: &Problem) -> Vec<usize> {
        let mut order: Vec<usize> = (0..problem.tasks.len()).filter(|ix| problem.tasks[*ix].waits).collect();
        let key = |ix: usize| self.start[ix].unwrap_or(f64::INFINITY);
        order.sort_by(|a, b| key(*a).total_cmp(&key(*b)).then(a.cmp(b)));
        order
    }

    pub fn finish_or_never(&self, ix: usize) -> f64 {
        self.finish[ix].unwrap_or(f64::INFINITY)
    }

    pub fn ends(&self, ix: usize) -> bool {
        self.finish[ix].is_some()
    }

    pub fn is_better_than(&self, other: &Self) -> bool {
        let key = |course: &Self| (course.unfinished, course.makespan_s, course.sum_s);
        let (a, b) = (key(self), key(other));
        a.0 < b.0 || (a.0 == b.0 && (a.1 < b.1 - INSTANT_S || (a.1 <= b.1 + INSTANT_S && a.2 < b.2 - INSTANT_S)))
    }

    pub fn slots(self, problem: &Problem) -> Vec<Slot> {
        let rounded = |seconds: Option<f64>| seconds.map(seconds_up);
        let waits_for = self.waits_for;
        (0..problem.tasks.len())
            .map(|ix| {
                let mut rates: Vec<(Millis, Bytes)> = Vec::new();
                for (at, rate) in &self.rates[ix] {
                    let (at, rate) = (seconds_up(*at), Bytes(rate.floor() as u64));
                    // Of several within one millisecond the last one holds.
                    rates.pop_if(|(before, _)| *before == at);
                    rates.push((at, rate));
                }
                Slot {
                    start: rounded(self.start[ix]),
                    finish: rounded(self.finish[ix]),
                    rates,
                    waits_for: waits_for[ix].map(|wait| wait.named(&problem.hosts)),
                }
            })
            .collect()
    }
}

/// What links have left, by host. Entries of hosts that nobody uses hold anything: clusters are large, and few move.
struct Free {
    out: Vec<f64>,
    into: Vec<f64>,
}

struct Player<'p> {
    problem: &'p Problem,
    free: Free,
    now_s: f64,
    /// By priority, then in the order they began.
    running: Vec<usize>,
    /// By task; of those that run.
    left: Vec<Left>,
    waiting: Vec<usize>,
    order: &'p Order<'p>,
    /// By host: how long what has not ended keeps its link busy, out and in; seconds.
    busy_s: (Vec<f64>, Vec<f64>),
    /// By host: what runs from or to it.
    at_host: Vec<Vec<usize>>,
    course: Course,
}

/// What the next event may change.
#[derive(Clone, Copy, PartialEq)]
enum Event {
    /// A set-up is over: rates.
    Sends,
    /// Something ended, or will so soon that the next may begin its set-up: what runs, too.
    Room,
}

impl<'p> Player<'p> {
    fn new(problem: &'p Problem, order: &'p Order<'p>) -> Self {
        let (count, hosts) = (problem.tasks.len(), problem.hosts.len());
        let waiting = match order {
            Order::Fixed(order) => order.to_vec(),
            Order::BusiestLink { .. } => (0..count).filter(|ix| problem.tasks[*ix].waits).collect(),
        };
        let mut player = Self {
            problem,
            free: Free { out: vec![0.0; hosts], into: vec![0.0; hosts] },
            now_s: 0.0,
            running: Vec::new(),
            left: vec![Left::default(); count],
            waiting,
            order,
            busy_s: problem.busy_s(),
            at_host: vec![Vec::new(); hosts],
            course: Course {
                start: vec![None; count],
                finish: vec![None; count],
                rates: vec![Vec::new(); count],
                waits_for: vec![None; count],
                makespan_s: 0.0,
                unfinished: 0,
                sum_s: 0.0,
            },
        };
        for (ix, task) in problem.tasks.iter().enumerate() {
            if !task.waits {
                player.begin(ix);
            }
        }
        player.plan();
        player
    }

    fn play(mut self) -> Course {
        self.admit(true);
        self.share();
        while let Some((step_s, event)) = self.next() {
            let ended = self.advance(step_s);
            if ended || event == Event::Room {
                self.plan();
                self.admit(false);
            }
            self.share();
        }
        let course = &mut self.course;
        course.unfinished = course.finish.iter().filter(|finish| finish.is_none()).count();
        course.makespan_s = course.finish.iter().flatten().fold(0.0, |most, finish| f64::max(most, *finish));
        course.sum_s = course.finish.iter().flatten().sum();
        self.course
    }

    fn begin(&mut self, ix: usize) {
        let task = &self.problem.tasks[ix];
        self.at_host[task.from].push(ix);
        self.at_host[task.to].push(ix);
        self.course.start[ix] = Some(self.now_s);
        let at = self.running.partition_point(|other| self.problem.tasks[*other].priority >= task.priority);
        self.running.insert(at, ix);
        self.left[ix] = Left { fixed_s: task.fixed_s, bytes: task.bytes, rate: 0.0, planned: 0.0 };
    }

    /// Until the task is done, if it goes on as it is planned; seconds.
    fn left_s(&self, ix: usize) -> f64 {
        let (task, left) = (&self.problem.tasks[ix], &self.left[ix]);
        let rate = if left.rate > 0.0 { left.rate } else { left.planned };
        if task.paused || (rate < RATE_MIN && left.bytes > 0.0) {
            return f64::INFINITY;
        }
        if left.bytes <= 0.0 { left.fixed_s } else { left.fixed_s + left.bytes / speed(rate, task.dirtied) }
    }

    /// Starts what may start, in order. The first time it notes why others don't.
    fn admit(&mut self, note: bool) {
        // What waits for a host, or for all, keeps those of lower priority from it.
        let mut held: Vec<Option<Priority>> = vec![None; self.problem.hosts.len()];
        let mut all_held = None;
        let mut left = Vec::with_capacity(self.waiting.len());
        self.sort_waiting();
        for ix in std::mem::take(&mut self.waiting) {
            let task = &self.problem.tasks[ix];
            let wait = if all_held.is_some_and(|by| by > task.priority) {
                Some(Wait::AtOnce)
            } else if let Some(host) = [task.from, task.to].into_iter().find(|h| held[*h] > Some(task.priority)) {
                Some(Wait::Priority(host))
            } else {
                self.objection(task)
            };
            match wait {
                None => {
                    self.begin(ix);
                    self.plan();
                    continue;
                }
                Some(Wait::AtOnce) => all_held = all_held.max(Some(task.priority)),
                Some(Wait::Host(_) | Wait::Link(_) | Wait::Priority(_)) => {
                    for host in [task.from, task.to] {
                        held[host] = held[host].max(Some(task.priority));
                    }
                }
                Some(Wait::After(_) | Wait::NoBandwidth(_)) => {}
            }
            left.push(ix);
            if note {
                self.course.waits_for[ix] = wait;
            }
        }
        self.waiting = left;
    }

    fn sort_waiting(&mut self) {
        let Order::BusiestLink { tail_s } = self.order else { return };
        let (tasks, busy_s) = (&self.problem.tasks, &self.busy_s);
        let busy_s =
            |ix: usize| busy_s.0[tasks[ix].from].max(busy_s.1[tasks[ix].to]) + tail_s[ix] + tasks[ix].shortest_s();
        self.waiting.sort_by(|a, b| {
            tasks[*b].priority.cmp(&tasks[*a].priority).then(busy_s(*b).total_cmp(&busy_s(*a))).then(a.cmp(b))
        });
    }

    fn objection(&self, task: &Task) -> Option<Wait<usize>> {
        let problem = self.problem;
        if let Some(first) = task.after.iter().find(|first| self.course.finish[**first].is_none()) {
            return Some(Wait::After(*first));
        }
        if task.best == 0.0 {
            return Some(Wait::NoBandwidth(if problem.out[task.from] < RATE_MIN { task.from } else { task.to }));
        }
        if self.running.len() >= problem.at_once {
            return Some(Wait::AtOnce);
        }
        if let Some(host) = [task.from, task.to].into_iter().find(|host| self.at_host[*host].len() >= problem.per_host)
        {
            return Some(Wait::Host(host));
        }
        self.full(task).map(Wait::Link)
    }

    /// The host whose link would not leave `task` what it needs once it begins to send. Of those of lower priority
    /// only what they need counts: they make way.
    fn full(&self, task: &Task) -> Option<usize> {
        let problem = self.problem;
        let claim = |ix: usize| {
            let other = &problem.tasks[ix];
            let over_by_then = !other.paused && self.left_s(ix) <= task.fixed_s + INSTANT_S;
            let planned = self.left[ix].planned;
            if over_by_then {
                0.0
            } else if other.priority < task.priority {
                planned.min(other.need())
            } else {
                planned
            }
        };
        let leave = self.at_host[task.from].iter().filter(|ix| problem.tasks[**ix].from == task.from);
        let come = self.at_host[task.to].iter().filter(|ix| problem.tasks[**ix].to == task.to);
        let need = task.need() - RATE_MIN;
        if problem.out[task.from] - leave.map(|ix| claim(*ix)).sum::<f64>() < need {
            Some(task.from)
        } else if problem.into[task.to] - come.map(|ix| claim(*ix)).sum::<f64>() < need {
            Some(task.to)
        } else {
            None
        }
    }

    /// Rates as if all that run sent already.
    fn plan(&mut self) {
        let sends = |ix: usize| !self.problem.tasks[ix].paused;
        for (ix, rate) in allocate(self.problem, &mut self.free, &self.running, sends) {
            self.left[ix].planned = rate;
        }
    }

    /// Gives what sends its rates.
    fn share(&mut self) {
        let (tasks, left) = (&self.problem.tasks, &self.left);
        let sends = |ix: usize| left[ix].fixed_s <= INSTANT_S && !tasks[ix].paused;
        for (ix, rate) in allocate(self.problem, &mut self.free, &self.running, sends) {
            if self.course.rates[ix].last().is_none_or(|(_, before)| (*before - rate).abs() >= RATE_MIN) {
                self.course.rates[ix].push((self.now_s, rate));
            }
            self.left[ix].rate = rate;
        }
    }

    /// How long until something changes, and what; `None` when nothing will.
    fn next(&self) -> Option<(f64, Event)> {
        // A link is used without a gap when the next begins its set-up before the last has ended.
        let ahead_s = self.waiting.iter().map(|ix| self.problem.tasks[*ix].fixed_s).fold(0.0, f64::max);
        let mut next = (f64::INFINITY, Event::Sends);
        for ix in self.running.iter().copied().filter(|ix| !self.problem.tasks[*ix].paused) {
            let (until_s, event) = if self.left[ix].fixed_s > INSTANT_S {
                (self.left[ix].fixed_s, Event::Sends)
            } else {
                let left_s = self.left_s(ix);
                let early_s = left_s - ahead_s;
                (if ahead_s > 0.0 && early_s > INSTANT_S { early_s } else { left_s }, Event::Room)
            };
            if until_s < next.0 {
                next = (until_s, event);
            }
        }
        next.0.is_finite().then_some(next)
    }

    /// Whether something ended.
    fn advance(&mut self, step_s: f64) -> bool {
        let tasks = &self.problem.tasks;
        self.now_s += step_s;
        let mut ended = Vec::new();
        for ix in self.running.iter().copied().filter(|ix| !tasks[*ix].paused) {
            let left = &mut self.left[ix];
            if left.fixed_s > INSTANT_S {
                left.fixed_s = (left.fixed_s - step_s).max(0.0);
            } else {
                left.bytes -= speed(left.rate, tasks[ix].dirtied) * step_s;
            }
            // Less than a byte is nothing but the error of the arithmetic.
            if left.fixed_s <= INSTANT_S && left.bytes < 0.5 {
                ended.push(ix);
            }
        }
        for ix in &ended {
            let task = &tasks[*ix];
            self.course.finish[*ix] = Some(self.now_s);
            self.running.retain(|other| other != ix);
            self.at_host[task.from].retain(|other| other != ix);
            self.at_host[task.to].retain(|other| other != ix);
            self.busy_s.0[task.from] -= task.wire_min() / self.problem.out[task.from];
            self.busy_s.1[task.to] -= task.wire_min() / self.problem.into[task.to];
        }
        !ended.is_empty()
    }
}

/// Rates of all that run, in their order: of those that send first what each needs, then as much as there is.
fn allocate(problem: &Problem, free: &mut Free, running: &[usize], sends: impl Fn(usize) -> bool) -> Vec<(usize, f64)> {
    let Free { out, into } = free;
    for task in running.iter().map(|ix| &problem.tasks[*ix]) {
        (out[task.from], into[task.to]) = (problem.out[task.from], problem.into[task.to]);
    }
    let mut rates: Vec<(usize, f64)> = running.iter().map(|ix| (*ix, 0.0)).collect();
    for needed in [true, false] {
        for (ix, rate) in rates.iter_mut().filter(|(ix, _)| sends(*ix)) {
            let task = &problem.tasks[*ix];
            let most = if needed { task.need() } else { task.best };
            let more = (most - *rate).min(out[task.from]).min(into[task.to]).max(0.0);
            *rate += more;
            out[task.from] -= more;
            into[task.to] -= more;
        }
    }
    rates
}
