//! The course of one replay.

use super::recording::{Point, Recording};
use super::report::{Moment, Move, Report};
use drover_model::load::{DailyPattern, HostSample, VmSample, Window};
use drover_model::plan::{Action, Plan, Step};
use drover_model::policy::PowerCurve;
use drover_model::world::{HostState, HostView, Movable, VmView, World};
use drover_model::{Bytes, CpuMillis, HostId, MicroMoney, Millis, Ratio, TimeMs, VmId};
use drover_planner as planner;
use drover_planner::pattern::Learner;
use drover_planner::predict::Predictor;
use std::collections::BTreeMap;

/// A host that was switched off draws power for this long.
const FALLING_ASLEEP: Millis = Millis::secs(15);
/// After a plan that the checker objects to, as in `control`.
const AFTER_FAILURE: Millis = Millis::secs(10);
const HOUR: Millis = Millis::secs(3_600);

pub struct Replay<'r> {
    world: World,
    recording: &'r Recording,
    /// What vms want now, and what those without a recording want all the time.
    wants: BTreeMap<VmId, Point>,
    /// Of the daily patterns, as the server learns them.
    learners: BTreeMap<VmId, Learner>,
    predictor: Predictor,
    /// Steps of the recording that have begun.
    begun: usize,
    work: Option<Work>,
    /// No plan is made before.
    quiet_until: TimeMs,
    report: Report,
}

/// A plan that is carried out.
struct Work {
    plan: Plan,
    steps: Vec<Stage>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    Running { since: TimeMs, until: TimeMs },
    Done,
    Failed,
}

/// What a host is asked for and gives.
struct Flow {
    on: bool,
    up: bool,
    capacity: CpuMillis,
    wanted: CpuMillis,
    watts: f64,
}

impl<'r> Replay<'r> {
    /// `world` says where the vms are at the beginning; its policy is the one that is tried. What is under way in it is
    /// taken for done, and its load for what vms that are not in the recording want all the time.
    pub fn new(world: &World, recording: &'r Recording) -> Self {
        let mut world = world.clone();
        begin_at(&mut world, recording.start);
        world.sample_every = recording.step;
        let mut wants = BTreeMap::new();
        for (id, vm) in &mut world.vms {
            let newest = vm.load.last().map(|(_, sample)| *sample);
            let point = newest.map(|sample| Point { cpu: sample.cpu_wanted, memory: sample.memory_used });
            wants.insert(id.clone(), point.unwrap_or(Point { cpu: CpuMillis::ZERO, memory: vm.memory.scale(0.5) }));
            vm.load.clear();
        }
        Self {
            world,
            recording,
            wants,
            learners: BTreeMap::new(),
            predictor: Predictor::new(),
            begun: 0,
            work: None,
            quiet_until: TimeMs::ZERO,
            report: Report::default(),
        }
    }

    pub fn world(&self) -> &World {
        &self.world
    }

    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Lets one step of the recording pass. False when there is none left.
    pub fn step(&mut self) -> bool {
        if self.begun >= self.recording.len() {
            return false;
        }
        self.world.now = self.recording.at(self.begun);
        self.progress();
        self.measure();
        self.round();
        self.begun += 1;
        let end = self.world.now.plus(self.recording.step);
        self.report.timeline.push(Moment { at: self.world.now, ..Moment::default() });
        while self.world.now < end {
            let next = self.work.as_ref().and_then(Work::next_end).map_or(end, |next| next.min(end));
            self.pass(next.since(self.world.now));
            self.world.now = next;
            if next < end {
                self.progress();
            }
        }
        true
    }

    /// What it came to so far.
    pub fn finish(mut self) -> Report {
        self.world.now = self.recording.at(self.begun);
        self.progress();
        self.report
    }

    /// Takes the samples of this moment.
    fn measure(&mut self) {
        let now = self.world.now;
        for (id, vm) in &self.world.vms {
            if let Some(point) = self.recording.point(id, self.begun) {
                let most = CpuMillis(u64::from(vm.vcpus) * CpuMillis::CORE.0);
                self.wants.insert(id.clone(), Point { cpu: point.cpu.min(most), memory: point.memory.min(vm.memory) });
            }
        }
        let flows = self.flows();
        let at_slot_end = now.0 % DailyPattern::SLOT.0 < self.recording.step.0;
        let mut sums: BTreeMap<HostId, HostSample> = BTreeMap::new();
        for (id, vm) in &mut self.world.vms {
            let Some((host, flow)) = vm.host.as_ref().and_then(|host| Some((host, flows.get(host)?))) else { continue };
            let want = self.wants[id];
            let share = if flow.wanted > flow.capacity { flow.capacity.ratio_of(flow.wanted).0 } else { 1.0 };
            let sample = VmSample {
                cpu_used: want.cpu.scale(share),
                cpu_wanted: want.cpu,
                memory_used: want.memory,
                net_rx: Bytes::ZERO,
                net_tx: Bytes::ZERO,
                disk_latency_us: 0,
                dirty_rate: None,
            };
            vm.load.push(now, sample);
            let learner = self.learners.entry(id.clone()).or_default();
            learner.take(now, want.cpu);
            // Until a day has been seen, what the world came with stands.
            if at_slot_end && learner.explained().is_some() {
                vm.pattern = learner.pattern();
            }
            let sum = sums.entry(host.clone()).or_insert(NOTHING);
            sum.cpu_used += sample.cpu_used;
            sum.cpu_wanted += sample.cpu_wanted;
            sum.memory_used += sample.memory_used;
        }
        let hour_ago = TimeMs(now.0.saturating_sub(HOUR.0));
        for (id, host) in &mut self.world.hosts {
            if host.state == HostState::Up {
                host.load.push(now, sums.get(id).copied().unwrap_or(NOTHING));
            }
            let recent = self.report.moves.iter().rev().take_while(|done| done.ended >= hour_ago);
            let concerned = recent.filter(|done| done.from == *id || done.to == *id).count();
            host.moves_recent = u32::try_from(concerned).unwrap_or(u32::MAX);
        }
    }

    /// Makes a plan, if nothing is under way.
    fn round(&mut self) {
        if self.work.is_some() || self.world.now < self.quiet_until {
            return;
        }
        let findings = planner::detect(&self.world);
        let plan = planner::plan(&self.world, &findings, &self.predictor);
        if plan.steps.is_empty() {
            return;
        }
        if let Some(violation) = planner::check(&self.world, &plan).first() {
            self.report.plans_unsound += 1;
            self.report.objection.get_or_insert_with(|| violation.to_string());
            self.quiet_until = self.world.now.plus(AFTER_FAILURE);
            return;
        }
        self.report.plans += 1;
        self.work = Some(Work { steps: vec![Stage::Waiting; plan.steps.len()], plan });
        self.progress();
    }

    /// Ends what is due and starts what can start.
    fn progress(&mut self) {
        let Some(mut work) = self.work.take() else { return };
        loop {
            let before = work.steps.clone();
            for ix in 0..work.steps.len() {
                work.steps[ix] = self.advance(&work, ix);
            }
            if work.steps == before {
                break;
            }
        }
        if work.steps.iter().all(|stage| matches!(stage, Stage::Done | Stage::Failed)) {
            self.quiet_until = self.world.now.plus(self.world.policy.settle);
        } else {
            self.work = Some(work);
        }
    }

    fn advance(&mut self, work: &Work, ix: usize) -> Stage {
        let (step, now) = (&work.plan.steps[ix], self.world.now);
        match work.steps[ix] {
            Stage::Running { since, until } if until <= now => {
                self.end(step, since, until);
                Stage::Done
            }
            Stage::Waiting if step.after.iter().any(|before| work.steps[*before] == Stage::Failed) => Stage::Failed,
            Stage::Waiting if step.after.iter().all(|before| work.steps[*before] == Stage::Done) => {
                if self.has_turn(work, step) { self.start(step) } else { Stage::Waiting }
            }
            stage @ (Stage::Waiting | Stage::Running { .. } | Stage::Done | Stage::Failed) => stage,
        }
    }

    /// Whether the policy's limits of moves at once allow one more between these hosts.
    fn has_turn(&self, work: &Work, step: &Step) -> bool {
        let Action::Migrate { from, to, .. } = &step.action else { return true };
        let (mut all, mut here) = (0, [0, 0]);
        for (other, stage) in work.plan.steps.iter().zip(&work.steps) {
            let Action::Migrate { from: f, to: t, .. } = &other.action else { continue };
            if matches!(stage, Stage::Running { .. }) {
                all += 1;
                for (count, host) in here.iter_mut().zip([from, to]) {
                    *count += u32::from(f == host || t == host);
                }
            }
        }
        let policy = &self.world.policy;
        all < policy.migrations_at_once_max && here.iter().all(|count| *count < policy.migration.per_host_max)
    }

    fn start(&mut self, step: &Step) -> Stage {
        let (now, world) = (self.world.now, &mut self.world);
        let takes = match &step.action {
            Action::Migrate { vm, generation, from, to } => world
                .vms
                .get_mut(vm)
                .filter(|view| view.host.as_ref() == Some(from) && view.generation == *generation)
                .map(|view| {
                    view.movable = Movable::Moving { to: to.clone() };
                    step.duration
                }),
            Action::PowerOn { host } => {
                world.hosts.get_mut(host).filter(|view| view.state == HostState::Asleep).map(|view| {
                    set_state(view, HostState::Waking, now);
                    view.boot_time
                })
            }
            Action::PowerOff { host } => {
                let empty = !world.vms.values().any(|vm| vm.host.as_ref() == Some(host));
                world.hosts.get_mut(host).filter(|view| empty && view.state == HostState::Up).map(|view| {
                    set_state(view, HostState::FallingAsleep, now);
                    FALLING_ASLEEP
                })
            }
        };
        match takes {
            Some(takes) => Stage::Running { since: now, until: now.plus(takes) },
            None => {
                self.report.steps_failed += 1;
                Stage::Failed
            }
        }
    }

    fn end(&mut self, step: &Step, started: TimeMs, ended: TimeMs) {
        let world = &mut self.world;
        match &step.action {
            Action::Migrate { vm, from, to, .. } => {
                let Some(view) = world.vms.get_mut(vm) else { return };
                let left = view.left.iter().rev().find(|(_, host)| host == to);
                let returned_after = left.map(|(at, _)| started.since(*at)).filter(|after| *after <= VmView::LEFT_KEPT);
                view.host = Some(to.clone());
                view.generation = view.generation.next();
                view.movable = Movable::Yes;
                remember(&mut view.left, ended, from);
                self.report.bill.moving += step.cost;
                self.report.moves.push(Move {
                    vm: vm.clone(),
                    from: from.clone(),
                    to: to.clone(),
                    started,
                    ended,
                    returned_after,
                    reason: step.reason.clone(),
                });
            }
            Action::PowerOn { host } => {
                let price = world.policy.money.power_cycle_price;
                let Some(view) = world.hosts.get_mut(host) else { return };
                set_state(view, HostState::Up, ended);
                self.report.wakes += 1;
                self.report.bill.wear += view.power_cycle_price.unwrap_or(price);
            }
            Action::PowerOff { host } => {
                let Some(view) = world.hosts.get_mut(host) else { return };
                set_state(view, HostState::Asleep, ended);
                self.report.sleeps += 1;
            }
        }
    }

    fn flows(&self) -> BTreeMap<HostId, Flow> {
        let money = &self.world.policy.money;
        let any_host = PowerCurve::linear(money.host_idle_watts, money.host_busy_watts);
        let mut flows: BTreeMap<HostId, Flow> = BTreeMap::new();
        for (id, host) in &self.world.hosts {
            let on = match host.state {
                HostState::Up
                | HostState::Unknown
                | HostState::Suspect
                | HostState::Waking
                | HostState::FallingAsleep => true,
                HostState::Down | HostState::Asleep => false,
            };
            let up = host.state == HostState::Up;
            let capacity = host.capacity.filter(|_| up).map_or(CpuMillis::ZERO, |capacity| capacity.cpu);
            flows.insert(id.clone(), Flow { on, up, capacity, wanted: CpuMillis::ZERO, watts: 0.0 });
        }
        for (id, vm) in &self.world.vms {
            if let Some(flow) = vm.host.as_ref().and_then(|host| flows.get_mut(host)) {
                flow.wanted += self.wants[id].cpu;
            }
        }
        for (flow, host) in flows.values_mut().zip(self.world.hosts.values()).filter(|(flow, _)| flow.on) {
            let used = flow.wanted.min(flow.capacity).ratio_of(flow.capacity);
            flow.watts = host.power.as_ref().unwrap_or(&any_host).watts(used.0);
        }
        flows
    }

    /// Counts what `span` costs as things stand.
    fn pass(&mut self, span: Millis) {
        let hours = span.as_secs() / 3_600.0;
        let part = span.0 as f64 / self.recording.step.0 as f64;
        let (mut watts, mut on, mut wanted, mut missed, mut capacity) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for flow in self.flows().values() {
            watts += flow.watts;
            on += f64::from(u8::from(flow.on));
            wanted += flow.wanted.cores();
            // A host that is not up, or not known, is not drover's to judge.
            missed += if flow.up { flow.wanted.saturating_sub(flow.capacity).cores() } else { 0.0 };
            capacity += flow.capacity.cores();
        }
        let money = &self.world.policy.money;
        let price = |per_unit: MicroMoney, units: f64| MicroMoney((per_unit.0 as f64 * units).round() as i64);
        let report = &mut self.report;
        report.span += span;
        report.energy_kwh += watts / 1000.0 * hours;
        report.wanted_core_h += wanted * hours;
        report.missed_core_h += missed * hours;
        report.host_on_h += on * hours;
        report.bill.energy = price(money.energy_price, report.energy_kwh);
        report.bill.slowness = price(money.slowness_price, report.missed_core_h);
        if let Some(moment) = report.timeline.last_mut() {
            moment.hosts_on += on * part;
            moment.watts += watts * part;
            moment.wanted += CpuMillis::CORE.scale(wanted * part);
            moment.missed += CpuMillis::CORE.scale(missed * part);
            moment.capacity += CpuMillis::CORE.scale(capacity * part);
        }
    }
}

impl Work {
    fn next_end(&self) -> Option<TimeMs> {
        let ends = self.steps.iter().filter_map(|stage| match stage {
            Stage::Running { until, .. } => Some(*until),
            Stage::Waiting | Stage::Done | Stage::Failed => None,
        });
        ends.min()
    }
}

const NOTHING: HostSample = HostSample {
    cpu_used: CpuMillis::ZERO,
    cpu_wanted: CpuMillis::ZERO,
    memory_used: Bytes::ZERO,
    memory_pressure: Ratio(0.0),
    net_rx: Bytes::ZERO,
    net_tx: Bytes::ZERO,
    disk_latency_us: 0,
};

fn set_state(host: &mut HostView, state: HostState, now: TimeMs) {
    (host.state, host.since, host.load) = (state, now, Window::default());
}

/// Those of the last [`VmView::LEFT_KEPT`], at most [`VmView::LEFT_MAX`].
fn remember(left: &mut Vec<(TimeMs, HostId)>, at: TimeMs, from: &HostId) {
    left.retain(|(then, _)| at.since(*then) <= VmView::LEFT_KEPT);
    if left.len() == VmView::LEFT_MAX {
        left.remove(0);
    }
    left.push((at, from.clone()));
}

/// As if the world had been written at `start`, with nothing under way and no load known.
fn begin_at(world: &mut World, start: TimeMs) {
    let was = world.now;
    let shifted = |at: TimeMs| TimeMs(start.0.saturating_sub(was.since(at).0));
    for host in world.hosts.values_mut() {
        host.since = shifted(host.since);
        host.state = match host.state {
            HostState::Waking => HostState::Up,
            HostState::FallingAsleep => HostState::Asleep,
            state @ (HostState::Unknown | HostState::Up | HostState::Suspect | HostState::Down | HostState::Asleep) => {
                state
            }
        };
        host.load.clear();
    }
    for vm in world.vms.values_mut() {
        for (at, _) in &mut vm.left {
            *at = shifted(*at);
        }
        if let Movable::Moving { to } = &vm.movable {
            (vm.host, vm.movable) = (Some(to.clone()), Movable::Yes);
        }
    }
    world.now = start;
}
