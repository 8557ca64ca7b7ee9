//! The search for a placement. A [`Draft`] is a state and the changes that led there; each tactic makes changes, and takes
//! them back if they come to nothing. What is left in the end is compared with the beginning: one step for each vm that
//! is elsewhere and each host that is switched. In which order they can be made is `sequence`'s business.
//!
//! ```text
//!  repair ─▶ evacuate ─▶ relieve ─▶ exchange ─▶ wake ─▶ consolidate ─▶ improve ─▶ sequence
//!  └─ must be, whatever it costs ─┘└── nobody waits ──┘└── pays, or is not done ──┘
//! ```
//! Any tactic may stop when the effort is spent: what there is then is a plan.

pub(crate) mod consolidate;
pub(crate) mod evacuate;
pub(crate) mod exchange;
pub(crate) mod improve;
mod reason;
pub(crate) mod relieve;
pub(crate) mod repair;
mod sequence;
pub(crate) mod spare;
mod targets;
pub(crate) mod wake;

pub(crate) use reason::{Asked, Reason};
pub(crate) use targets::Seek;

use crate::cost::{self, Rates};
use crate::problem::{HostIx, Problem, State, VmIx};
use crate::rules::{self, Barrier};
use drover_model::plan::{Action, Objection, Plan, Rejected, Step, Timing};
use drover_model::{MicroMoney, Millis};
use targets::Targets;

/// Of the horizon, what voluntary moves may take.
const HORIZON_SHARE: f64 = 0.5;

/// One step, by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Migrate { vm: VmIx, from: HostIx, to: HostIx },
    PowerOn { host: HostIx },
    PowerOff { host: HostIx },
}

/// A change of the draft, and what it was made for.
#[derive(Debug, Clone)]
struct Change {
    act: Act,
    reason: Reason,
    saved: Rates,
    cost: MicroMoney,
    alternatives: Vec<Rejected>,
}

pub(crate) struct Draft<'p, 'w> {
    pub problem: &'p Problem<'w>,
    pub state: State,
    /// Hosts found hot, the hottest first.
    pub hot: Vec<HostIx>,
    is_hot: Vec<bool>,
    /// By host: moves from and to it that nothing pressed for.
    free_moves: Vec<u32>,
    /// What those take, one after the other.
    busy: Millis,
    changes: Vec<Change>,
    targets: Targets,
    rejected: Vec<Rejected>,
    /// Candidates that may still be judged.
    left: u64,
    moves: usize,
}

/// A draft in steps.
pub(crate) struct Finished {
    pub steps: Vec<Step>,
    pub rejected: Vec<Rejected>,
    pub moving_cost: MicroMoney,
    pub timing: Timing,
    /// After the steps.
    pub state: State,
}

impl<'p, 'w> Draft<'p, 'w> {
    pub fn new(problem: &'p Problem<'w>, state: State, hot: Vec<HostIx>, evaluations: u64) -> Self {
        let targets = Targets::new(problem, &state);
        let (changes, rejected) = (Vec::new(), Vec::new());
        let mut is_hot = vec![false; problem.hosts.len()];
        for host in &hot {
            is_hot[*host] = true;
        }
        let free_moves = vec![0; problem.hosts.len()];
        Self {
            problem,
            state,
            hot,
            is_hot,
            free_moves,
            busy: Millis::ZERO,
            changes,
            targets,
            rejected,
            left: evaluations,
            moves: 0,
        }
    }

    /// How many changes were made; [`Draft::roll_back`] takes it.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    pub fn acts_since(&self, mark: usize) -> impl DoubleEndedIterator<Item = Act> {
        self.changes[mark..].iter().map(|change| change.act)
    }

    /// Found hot before anything was changed.
    pub fn was_hot(&self, host: HostIx) -> bool {
        self.is_hot[host]
    }

    pub fn has_moved(&self, vm: VmIx) -> bool {
        self.state.at[vm] != self.problem.vms[vm].host
    }

    /// Hosts that the draft has switched on, lowest first.
    pub fn woken(&self) -> Vec<HostIx> {
        let on = |h: &HostIx| self.state.up[*h] && !is_up(self.problem, *h);
        (0..self.problem.hosts.len()).filter(on).collect()
    }

    /// Whether a further vm may move at all.
    pub fn may_move(&self) -> bool {
        let most = self.problem.policy().moves.plan_max as usize;
        most == 0 || self.moves < most
    }

    /// Whether what nobody presses for would end while its gain still counts. A plan is made anew after the last one: what
    /// takes longer than a good part of the horizon is better left to the next.
    pub fn in_time(&self) -> bool {
        let policy = self.problem.policy();
        let at_once = u64::from(policy.migrations_at_once_max.max(1));
        (self.busy.0 / at_once) as f64 <= policy.money.horizon.0 as f64 * HORIZON_SHARE
    }

    /// Counts `candidates` as judged.
    pub fn spend(&mut self, candidates: usize) {
        self.left = self.left.saturating_sub(candidates as u64);
    }

    /// Whether the effort is spent.
    pub fn tired(&self) -> bool {
        self.left == 0
    }

    pub fn saved_since(&self, mark: usize) -> Rates {
        self.changes[mark..].iter().fold(Rates::default(), |sum, change| sum + change.saved)
    }

    pub fn cost_since(&self, mark: usize) -> MicroMoney {
        self.changes[mark..].iter().map(|change| change.cost).sum()
    }

    /// What the changes from `mark` on gain together, at the pessimistic demand.
    pub fn gain_since(&self, mark: usize) -> MicroMoney {
        self.saved_since(mark).over(self.problem) - self.cost_since(mark)
    }

    pub fn migrate(&mut self, vm: VmIx, to: HostIx, reason: Reason) {
        self.migrate_rather(vm, to, reason, Vec::new());
    }

    /// With the alternatives that lost, best first.
    pub fn migrate_rather(&mut self, vm: VmIx, to: HostIx, reason: Reason, alternatives: Vec<Rejected>) {
        let Some(from) = self.state.at[vm] else { return };
        // A vm that moves on within the plan is sent once only, and one that comes back not at all.
        let sent = |at: HostIx| {
            let home = self.problem.vms[vm].host == Some(at);
            if home { MicroMoney::ZERO } else { cost::of_move(self.problem, vm, at).cost }
        };
        let cost = sent(to) - sent(from);
        let saved = cost::saved_by(self.problem, &self.state, vm, to);
        self.count_free(reason, vm, (from, to), 1);
        self.shift(vm, from, to);
        self.changes.push(Change { act: Act::Migrate { vm, from, to }, reason, saved, cost, alternatives });
    }

    /// What keeps a move that nobody presses for from going there; the plan's own such moves count.
    pub fn unpressed(&self, vm: VmIx, from: HostIx, to: HostIx) -> Option<Barrier> {
        let most = self.problem.policy().moves.host_hour_max;
        let recent = |host: HostIx| self.problem.hosts[host].view.moves_recent + self.free_moves[host];
        let busy = [from, to].into_iter().find(|host| most > 0 && recent(*host) >= most);
        rules::returns(self.problem, vm, to).or(busy.map(|host| Barrier::HostMoves { host }))
    }

    fn shift(&mut self, vm: VmIx, from: HostIx, to: HostIx) {
        self.moves -= usize::from(self.has_moved(vm));
        self.state.shift(self.problem, vm, to);
        self.moves += usize::from(self.has_moved(vm));
        self.targets.refresh(self.problem, &self.state, from);
        self.targets.refresh(self.problem, &self.state, to);
    }

    fn count_free(&mut self, reason: Reason, vm: VmIx, (from, to): (HostIx, HostIx), by: i32) {
        if reason.is_free() {
            let duration = cost::of_move(self.problem, vm, to).duration;
            self.busy = if by > 0 { self.busy + duration } else { self.busy.saturating_sub(duration) };
            for host in [from, to] {
                self.free_moves[host] = self.free_moves[host].saturating_add_signed(by);
            }
        }
    }

    pub fn power_on(&mut self, host: HostIx, reason: Reason) {
        let saved = Rates::default() - self.state.rates[host];
        self.switch(host, true);
        let cost = self.problem.hosts[host].cycle_price;
        self.changes.push(Change { act: Act::PowerOn { host }, reason, saved, cost, alternatives: Vec::new() });
    }

    pub fn power_off(&mut self, host: HostIx) {
        let saved = self.state.rates[host];
        self.switch(host, false);
        let (cost, reason) = (self.problem.hosts[host].cycle_price, Reason::Empty);
        self.changes.push(Change { act: Act::PowerOff { host }, reason, saved, cost, alternatives: Vec::new() });
    }

    fn switch(&mut self, host: HostIx, on: bool) {
        self.state.switch(self.problem, host, on);
        self.targets.refresh(self.problem, &self.state, host);
    }

    /// Takes back all changes from `mark` on.
    pub fn roll_back(&mut self, mark: usize) {
        while self.changes.len() > mark {
            let Some(change) = self.changes.pop() else { return };
            match change.act {
                Act::Migrate { vm, from, to } => {
                    self.count_free(change.reason, vm, (from, to), -1);
                    self.shift(vm, to, from);
                }
                Act::PowerOn { host } => self.switch(host, false),
                Act::PowerOff { host } => self.switch(host, true),
            }
        }
    }

    /// Notes an alternative that lost; what comes after the first [`Plan::REJECTED_MAX`] is dropped.
    pub fn reject(&mut self, act: Act, because: Objection) {
        if self.notes_rejected() {
            let action = action(self.problem, act, 0);
            if !self.rejected.iter().any(|rejected| rejected.action == action) {
                self.rejected.push(Rejected { action, because });
            }
        }
    }

    pub fn reject_for(&mut self, act: Act, barrier: Barrier) {
        if self.notes_rejected() {
            self.reject(act, barrier.objection(self.problem));
        }
    }

    pub fn notes_rejected(&self) -> bool {
        self.rejected.len() < Plan::REJECTED_MAX
    }

    /// As an alternative of a step.
    pub fn lost(&self, act: Act, because: Objection) -> Rejected {
        Rejected { action: action(self.problem, act, 0), because }
    }

    /// The steps in an order in which they can be made, and the alternatives that lost.
    pub fn finish(mut self, before: &State) -> Finished {
        let ordered = sequence::order(self.problem, before, &self.state, &self.acts());
        for act in &ordered.dropped {
            match *act {
                Act::Migrate { vm, from, to } => self.shift(vm, to, from),
                Act::PowerOn { host } => self.switch(host, false),
                Act::PowerOff { host } => self.switch(host, true),
            }
        }
        let mut steps = Vec::with_capacity(ordered.steps.len());
        let mut moving_cost = MicroMoney::ZERO;
        let (moved, switched) = self.by_object();
        let mut made = vec![0_usize; self.problem.vms.len()];
        for step in ordered.steps {
            let totals = match step.act {
                Act::Migrate { vm, .. } => moved[vm].filter(|_| !step.passes),
                Act::PowerOn { host } | Act::PowerOff { host } => switched[host],
            };
            let change = totals.map(|(last, _)| &self.changes[last]);
            let earlier = match step.act {
                Act::Migrate { vm, .. } => {
                    made[vm] += 1;
                    made[vm] - 1
                }
                Act::PowerOn { .. } | Act::PowerOff { .. } => 0,
            };
            let cost = self.cost_of(step.act);
            moving_cost += cost;
            let saved = totals.map_or(Rates::default(), |(_, saved)| saved);
            steps.push(Step {
                after: step.after,
                action: action(self.problem, step.act, earlier),
                reason: change.map_or(Reason::Pass, |change| change.reason).text(self.problem),
                gain: saved.over(self.problem) - cost,
                cost,
                duration: step.duration,
                start: step.start,
                bandwidth: step.bandwidth,
                alternatives: change.map_or_else(Vec::new, |change| change.alternatives.clone()),
            });
        }
        // An alternative that was taken later on did not lose.
        self.rejected.retain(|rejected| !steps.iter().any(|step| step.action == rejected.action));
        Finished { steps, rejected: self.rejected, moving_cost, timing: ordered.timing, state: self.state }
    }

    /// What is different in the end, in the order in which it came about.
    fn acts(&self) -> Vec<Act> {
        let mut acts = Vec::new();
        let (mut vms, mut hosts) = (vec![false; self.problem.vms.len()], vec![false; self.problem.hosts.len()]);
        for change in self.changes.iter().rev() {
            match change.act {
                Act::Migrate { vm, to, .. } => {
                    if !std::mem::replace(&mut vms[vm], true)
                        && let Some(from) = self.problem.vms[vm].host.filter(|from| *from != to)
                    {
                        acts.push(Act::Migrate { vm, from, to });
                    }
                }
                Act::PowerOn { host } | Act::PowerOff { host } => {
                    if !std::mem::replace(&mut hosts[host], true) && self.state.up[host] != is_up(self.problem, host) {
                        acts.push(change.act);
                    }
                }
            }
        }
        acts.reverse();
        acts
    }

    fn cost_of(&self, act: Act) -> MicroMoney {
        match act {
            Act::Migrate { vm, to, .. } => cost::of_move(self.problem, vm, to).cost,
            Act::PowerOn { host } | Act::PowerOff { host } => self.problem.hosts[host].cycle_price,
        }
    }

    /// By vm and by host: the last change, and what all of them saved.
    fn by_object(&self) -> (Vec<Total>, Vec<Total>) {
        let (mut moved, mut switched) = (vec![None; self.problem.vms.len()], vec![None; self.problem.hosts.len()]);
        for (ix, change) in self.changes.iter().enumerate() {
            let total: &mut Total = match change.act {
                Act::Migrate { vm, .. } => &mut moved[vm],
                Act::PowerOn { host } | Act::PowerOff { host } => &mut switched[host],
            };
            *total = Some((ix, total.map_or(Rates::default(), |(_, saved)| saved) + change.saved));
        }
        (moved, switched)
    }
}

/// Index of the last change of a vm or host, and what all its changes saved.
type Total = Option<(usize, Rates)>;

pub(crate) fn is_up(problem: &Problem<'_>, host: HostIx) -> bool {
    problem.hosts[host].view.state == drover_model::world::HostState::Up
}

pub(crate) fn action(problem: &Problem<'_>, act: Act, earlier_moves: usize) -> Action {
    let host_id = |host: HostIx| problem.hosts[host].id.clone();
    match act {
        Act::Migrate { vm, from, to } => Action::Migrate {
            vm: problem.vms[vm].id.clone(),
            generation: (0..earlier_moves).fold(problem.vms[vm].view.generation, |g, _| g.next()),
            from: host_id(from),
            to: host_id(to),
        },
        Act::PowerOn { host } => Action::PowerOn { host: host_id(host) },
        Act::PowerOff { host } => Action::PowerOff { host: host_id(host) },
    }
}
