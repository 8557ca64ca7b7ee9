//! The search for steps. A [`Draft`] is a state and the steps that led there; each tactic adds steps to it, and
//! takes them back if they come to nothing.

pub(crate) mod consolidate;
pub(crate) mod evacuate;
pub(crate) mod exchange;
mod order;
pub(crate) mod relieve;
pub(crate) mod wake;

use crate::cost::{self, MoveCost};
use crate::problem::{HostIx, Problem, State, VmIx};
use crate::rules::Barrier;
use drover_model::plan::{Action, Objection, Plan, Rejected, Step};
use drover_model::{Bytes, MicroMoney, Millis};

/// One step, by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Migrate { vm: VmIx, from: HostIx, to: HostIx },
    PowerOn { host: HostIx },
    PowerOff { host: HostIx },
}

#[derive(Debug, Clone)]
struct DraftStep {
    act: Act,
    reason: String,
    gain: MicroMoney,
    cost: MicroMoney,
    duration: Millis,
}

pub(crate) struct Draft<'p, 'w> {
    pub problem: &'p Problem<'w>,
    pub state: State,
    /// Hosts found hot, the hottest first.
    pub hot: Vec<HostIx>,
    steps: Vec<DraftStep>,
    rejected: Vec<Rejected>,
}

impl<'p, 'w> Draft<'p, 'w> {
    pub fn new(problem: &'p Problem<'w>, hot: Vec<HostIx>) -> Self {
        Self { problem, state: State::new(problem), hot, steps: Vec::new(), rejected: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.steps.len()
    }

    pub fn acts(&self) -> impl DoubleEndedIterator<Item = Act> {
        self.steps.iter().map(|step| step.act)
    }

    pub fn has_moved(&self, vm: VmIx) -> bool {
        self.acts().any(|act| matches!(act, Act::Migrate { vm: moved, .. } if moved == vm))
    }

    /// What the steps from `mark` on gain together.
    pub fn gain_since(&self, mark: usize) -> MicroMoney {
        self.steps[mark..].iter().map(|step| step.gain).sum()
    }

    pub fn cost(&self) -> MicroMoney {
        self.steps.iter().map(|step| step.cost).sum()
    }

    pub fn migrate(&mut self, vm: VmIx, to: HostIx, reason: String) {
        let Some(from) = self.state.at[vm] else { return };
        let gain = cost::gain_of_move(self.problem, &self.state, vm, to);
        let MoveCost { duration, cost } = cost::of_move(self.problem, vm, to);
        self.state.shift(self.problem, vm, to);
        self.steps.push(DraftStep { act: Act::Migrate { vm, from, to }, reason, gain, cost, duration });
    }

    pub fn power_on(&mut self, host: HostIx, reason: String) {
        let cost = self.problem.policy().money.power_cycle_price;
        let gain = MicroMoney::ZERO - self.powered(host) - cost;
        let duration = self.problem.hosts[host].view.boot_time;
        self.state.up[host] = true;
        self.steps.push(DraftStep { act: Act::PowerOn { host }, reason, gain, cost, duration });
    }

    pub fn power_off(&mut self, host: HostIx, reason: String) {
        let cost = self.problem.policy().money.power_cycle_price;
        let gain = self.powered(host) - cost;
        self.state.up[host] = false;
        // How long a shutdown takes nobody measures; nothing waits for it.
        self.steps.push(DraftStep { act: Act::PowerOff { host }, reason, gain, cost, duration: Millis::ZERO });
    }

    /// What it costs over the horizon that the host is on, as it is filled now.
    fn powered(&self, host: HostIx) -> MicroMoney {
        cost::host_rate(self.problem, host, &self.state.sums[host]).over(self.problem.policy().money.horizon)
    }

    /// Takes back all steps from `mark` on.
    pub fn roll_back(&mut self, mark: usize) {
        for step in self.steps.drain(mark..).rev() {
            match step.act {
                Act::Migrate { vm, from, .. } => self.state.shift(self.problem, vm, from),
                Act::PowerOn { host } => self.state.up[host] = false,
                Act::PowerOff { host } => self.state.up[host] = true,
            }
        }
    }

    /// Notes an alternative that lost; what comes after the first [`Plan::REJECTED_MAX`] is dropped.
    pub fn reject(&mut self, act: Act, because: Objection) {
        if self.rejected.len() < Plan::REJECTED_MAX {
            let action = self.action(act, 0);
            if !self.rejected.iter().any(|rejected| rejected.action == action) {
                self.rejected.push(Rejected { action, because });
            }
        }
    }

    pub fn reject_for(&mut self, act: Act, barrier: Barrier) {
        if self.rejected.len() < Plan::REJECTED_MAX {
            self.reject(act, barrier.objection(self.problem));
        }
    }

    /// The steps with what each must wait for, and the alternatives that lost.
    pub fn finish(mut self) -> (Vec<Step>, Vec<Rejected>) {
        let acts: Vec<Act> = self.acts().collect();
        let mut after = order::after(self.problem, &acts);
        let mut steps = Vec::with_capacity(acts.len());
        for (n, step) in self.steps.iter().enumerate() {
            let earlier = acts[..n].iter().filter(|act| is_move_of(**act, step.act)).count();
            steps.push(Step {
                after: std::mem::take(&mut after[n]),
                action: self.action(step.act, earlier),
                reason: step.reason.clone(),
                gain: step.gain,
                cost: step.cost,
                duration: step.duration,
                start: Millis::ZERO,
                bandwidth: Bytes::ZERO,
                alternatives: Vec::new(),
            });
        }
        // An alternative that was taken later on did not lose.
        self.rejected.retain(|rejected| !steps.iter().any(|step| step.action == rejected.action));
        (steps, self.rejected)
    }

    fn action(&self, act: Act, earlier_moves: usize) -> Action {
        let host_id = |host: HostIx| self.problem.hosts[host].id.clone();
        match act {
            Act::Migrate { vm, from, to } => Action::Migrate {
                vm: self.problem.vms[vm].id.clone(),
                generation: (0..earlier_moves).fold(self.problem.vms[vm].view.generation, |g, _| g.next()),
                from: host_id(from),
                to: host_id(to),
            },
            Act::PowerOn { host } => Action::PowerOn { host: host_id(host) },
            Act::PowerOff { host } => Action::PowerOff { host: host_id(host) },
        }
    }
}

fn is_move_of(earlier: Act, this: Act) -> bool {
    matches!((earlier, this), (Act::Migrate { vm: a, .. }, Act::Migrate { vm: b, .. }) if a == b)
}
