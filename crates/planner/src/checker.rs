//! The independent checker: holds a plan against every hard rule, in every state that its `after` lists allow.
//!
//! It shares nothing with the planner, not even the forecast: by load it goes by what was measured (the median of a
//! vm's last samples), which the planner's pessimistic figures never undercut. A move counts at both ends from its
//! start until its end, so a host's worst state is the one in which as many arrivals as possible
//! have started and as few departures as possible are done. Which those are is a choice of steps closed
//! under `after`, the maximum closure of Picard (Management Science 22(11), 1976), found by a maximum flow.
//!
//! One function per constraint; [`CONSTRAINTS`] lists them.

mod flow;

use drover_model::load::Window;
use drover_model::plan::{Action, Plan, Step};
use drover_model::policy::KOfN;
use drover_model::world::{HostState, HostView, Movable, VmView, World};
use drover_model::{Bytes, CpuMillis, Generation, HostId, Millis, TimeMs, VmId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Older telemetry says nothing; a hole of this length begins a series anew.
const FRESH_WITHIN: Millis = Millis::secs(10);
const SAMPLES_MIN: usize = 3;
const SAMPLES: usize = 5;

/// A hard rule that a plan breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Index of the step in the plan; `None` where the plan as a whole is wrong.
    pub step: Option<usize>,
    pub problem: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.step {
            Some(step) => write!(f, "step {step}: {}", self.problem),
            None => f.write_str(&self.problem),
        }
    }
}

/// Everything that is wrong with the plan in this world; empty if it may be carried out.
pub fn check(world: &World, plan: &Plan) -> Vec<Violation> {
    let (replay, mut violations) = Replay::new(world, plan);
    for constraint in CONSTRAINTS {
        constraint(&replay, &mut violations);
    }
    violations
}

type Constraint = fn(&Replay<'_>, &mut Vec<Violation>);

const CONSTRAINTS: [Constraint; 16] = [
    destinations_take_vms,
    sources_are_up,
    vms_are_movable,
    pins_are_kept,
    networks_are_attached,
    hosts_can_take_over,
    anti_affinity_holds,
    memory_suffices,
    processors_are_not_overrun,
    load_is_known,
    cooldowns_are_kept,
    switched_on_hosts_slept,
    switched_off_hosts_are_empty_and_spare,
    hosts_up_min_is_kept,
    spare_host_is_kept,
    prediction_adds_up,
];

/// A vm's time on a host. `None`: since before the plan, or beyond it.
struct Stay<'a> {
    vm: &'a VmId,
    view: &'a VmView,
    arrives: Option<usize>,
    leaves: Option<usize>,
}

struct Move<'a> {
    step: usize,
    vm: &'a VmId,
    view: &'a VmView,
    from: &'a HostId,
    source: &'a HostView,
    to: &'a HostId,
    destination: &'a HostView,
}

struct Replay<'a> {
    world: &'a World,
    plan: &'a Plan,
    /// By step: all steps that are done for certain when it starts.
    done_before: Vec<BTreeSet<usize>>,
    moves: Vec<Move<'a>>,
    stays: BTreeMap<&'a HostId, Vec<Stay<'a>>>,
}

fn found(violations: &mut Vec<Violation>, step: usize, problem: String) {
    violations.push(Violation { step: Some(step), problem });
}

impl<'a> Replay<'a> {
    /// Follows the steps in their order; what doesn't even hold together is a violation already.
    fn new(world: &'a World, plan: &'a Plan) -> (Self, Vec<Violation>) {
        let mut violations = Vec::new();
        let done_before = closure(&plan.steps, &mut violations);
        let mut replay = Self { world, plan, done_before, moves: Vec::new(), stays: BTreeMap::new() };
        for (vm, view) in &world.vms {
            let mut stay = |host: &'a HostId| {
                replay.stays.entry(host).or_default().push(Stay { vm, view, arrives: None, leaves: None });
            };
            if let Some(host) = &view.host {
                stay(host);
            }
            if let Movable::Moving { to } = &view.movable
                && view.host.as_ref() != Some(to)
            {
                stay(to);
            }
        }
        let mut at: BTreeMap<&VmId, (Option<&HostId>, Generation, Option<usize>)> =
            world.vms.iter().map(|(vm, view)| (vm, (view.host.as_ref(), view.generation, None))).collect();
        for (step, Step { action, .. }) in plan.steps.iter().enumerate() {
            let Action::Migrate { vm, generation, from, to } = action else { continue };
            if let Err(problem) = replay.follow(step, (vm, *generation, from, to), &mut at) {
                found(&mut violations, step, problem);
            }
        }
        (replay, violations)
    }

    fn follow(
        &mut self,
        step: usize,
        (vm, generation, from, to): (&'a VmId, Generation, &'a HostId, &'a HostId),
        at: &mut BTreeMap<&'a VmId, (Option<&'a HostId>, Generation, Option<usize>)>,
    ) -> Result<(), String> {
        let view = self.world.vms.get(vm).ok_or_else(|| format!("there is no vm {vm}"))?;
        let host = |id: &'a HostId| self.world.hosts.get(id).ok_or_else(|| format!("there is no host {id}"));
        let (source, destination) = (host(from)?, host(to)?);
        let now = at.get_mut(vm).ok_or_else(|| format!("there is no vm {vm}"))?;
        if now.0 != Some(from) || from == to {
            return Err(format!("{vm} can't go from {from} to {to}: it is on {:?} by then", now.0));
        }
        if now.1 != generation {
            return Err(format!("{vm} is at generation {} by then, not {generation}", now.1));
        }
        if now.2.is_some_and(|earlier| !self.done_before[step].contains(&earlier)) {
            return Err(format!("{vm} may still be under way by an earlier step"));
        }
        *now = (Some(to), generation.next(), Some(step));
        if let Some(stay) = self.stays.entry(from).or_default().iter_mut().rev().find(|stay| stay.vm == vm) {
            stay.leaves = Some(step);
        }
        self.stays.entry(to).or_default().push(Stay { vm, view, arrives: Some(step), leaves: None });
        self.moves.push(Move { step, vm, view, from, source, to, destination });
        Ok(())
    }

    fn stays_on(&self, host: &HostId) -> &[Stay<'a>] {
        self.stays.get(host).map_or(&[], Vec::as_slice)
    }

    /// Whether the step is done for certain when `by` starts.
    fn done(&self, step: Option<usize>, by: usize) -> bool {
        step.is_some_and(|step| self.done_before[by].contains(&step))
    }

    fn switched(&self, wanted: impl Fn(&Action) -> Option<&HostId>) -> Vec<(usize, &'a HostId)> {
        let steps = self.plan.steps.iter().enumerate();
        let hosts = steps.filter_map(|(step, s)| wanted(&s.action).map(|host| (step, host)));
        hosts.filter_map(|(step, host)| self.world.hosts.get_key_value(host).map(|(id, _)| (step, id))).collect()
    }

    fn switched_on(&self) -> Vec<(usize, &'a HostId)> {
        self.switched(|action| if let Action::PowerOn { host } = action { Some(host) } else { None })
    }

    fn switched_off(&self) -> Vec<(usize, &'a HostId)> {
        self.switched(|action| if let Action::PowerOff { host } = action { Some(host) } else { None })
    }

    /// The most that the host may carry at any moment from the start of `arrival` on.
    fn peak(&self, host: &HostId, arrival: usize, weight: fn(&World, &Stay<'_>) -> u64) -> u64 {
        let stays = self.stays_on(host);
        let started = |stay: &Stay<'_>| stay.arrives.is_none_or(|at| at == arrival || self.done(Some(at), arrival));
        let (mut certain, mut gains, mut losses) = (0, Vec::new(), Vec::new());
        for stay in stays.iter().filter(|stay| !self.done(stay.leaves, arrival)) {
            let carried = weight(self.world, stay);
            match stay.arrives {
                Some(at) if !started(stay) => gains.push((at, carried)),
                _ => certain += carried,
            }
            if let Some(leaves) = stay.leaves {
                losses.push((leaves, carried));
            }
        }
        let needs = |gain: usize, loss: usize| self.done_before[gains[gain].0].contains(&losses[loss].0);
        let edges: Vec<Vec<bool>> =
            (0..gains.len()).map(|g| (0..losses.len()).map(|l| needs(g, l)).collect()).collect();
        let profits: Vec<u64> = gains.iter().map(|(_, carried)| *carried).collect();
        let costs: Vec<u64> = losses.iter().map(|(_, carried)| *carried).collect();
        certain + flow::maximum_closure(&profits, &costs, &edges)
    }
}

/// By step: everything that `after` puts before it.
fn closure(steps: &[Step], violations: &mut Vec<Violation>) -> Vec<BTreeSet<usize>> {
    let mut done: Vec<BTreeSet<usize>> = Vec::with_capacity(steps.len());
    for (step, Step { after, .. }) in steps.iter().enumerate() {
        let mut before = BTreeSet::new();
        for &earlier in after {
            if earlier >= step {
                found(violations, step, format!("it waits for step {earlier}, which does not come before it"));
                continue;
            }
            before.insert(earlier);
            before.extend(done[earlier].iter().copied());
        }
        done.push(before);
    }
    done
}

fn destinations_take_vms(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    let woken = replay.switched_on();
    for m in &replay.moves {
        let up = m.destination.state == HostState::Up
            || woken.iter().any(|(step, host)| *host == m.to && replay.done(Some(*step), m.step));
        if !up {
            found(violations, m.step, format!("{} is {:?} when {} is to come", m.to, m.destination.state, m.vm));
        }
        if m.destination.maintenance {
            found(violations, m.step, format!("{} is in maintenance and takes no vms", m.to));
        }
        if m.destination.capacity.is_none() {
            found(violations, m.step, format!("the capacity of {} is not known", m.to));
        }
    }
}

fn sources_are_up(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    let woken: BTreeSet<&HostId> = replay.switched_on().into_iter().map(|(_, host)| host).collect();
    for m in replay.moves.iter().filter(|m| m.source.state != HostState::Up && !woken.contains(m.from)) {
        found(violations, m.step, format!("{} is {:?}: nothing can be moved off it", m.from, m.source.state));
    }
}

fn vms_are_movable(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    for m in &replay.moves {
        match &m.view.movable {
            Movable::Yes => {}
            Movable::Moving { to } => found(violations, m.step, format!("{} is on its way to {to} already", m.vm)),
            Movable::No { why } => found(violations, m.step, format!("{} can't be moved because {why}", m.vm)),
        }
    }
}

fn pins_are_kept(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    for m in replay.moves.iter().filter(|m| !m.view.pinned_to.is_empty() && !m.view.pinned_to.contains(m.to)) {
        found(violations, m.step, format!("{} is not pinned to {}", m.vm, m.to));
    }
}

fn networks_are_attached(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    for m in &replay.moves {
        if let Some(network) = m.view.network.as_ref().filter(|network| !m.destination.networks.contains(*network)) {
            found(violations, m.step, format!("{} is not attached to network {network} of {}", m.to, m.vm));
        }
    }
}

fn hosts_can_take_over(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    for m in replay.moves.iter().filter(|m| m.destination.refuses.contains(&m.source.kind)) {
        found(violations, m.step, format!("{} can't go on running on {}, a host of another kind", m.vm, m.to));
    }
}

fn anti_affinity_holds(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    for m in replay.moves.iter().filter(|m| m.view.anti_affinity.is_some()) {
        let stays = replay.stays_on(m.to);
        let Some(own) = stays.iter().find(|stay| stay.arrives == Some(m.step)) else { continue };
        let apart = |other: &&Stay<'_>| {
            let other_left = replay.done(other.leaves, m.step);
            let own_left = other.arrives.is_some_and(|at| replay.done(own.leaves, at));
            other.vm == m.vm || other_left || own_left
        };
        let same =
            |other: &&Stay<'_>| other.view.anti_affinity == m.view.anti_affinity && other.view.tenant == m.view.tenant;
        if let Some(other) = stays.iter().filter(same).find(|other| !apart(other)) {
            found(
                violations,
                m.step,
                format!("{} and {} of one anti-affinity group may meet on {}", m.vm, other.vm, m.to),
            );
        }
    }
}

fn memory_suffices(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    for m in &replay.moves {
        let Some(capacity) = m.destination.capacity else { continue };
        let peak = Bytes(replay.peak(m.to, m.step, |_, stay| stay.view.memory.0));
        if peak > capacity.memory {
            found(violations, m.step, format!("{} may need {peak} of memory and has {}", m.to, capacity.memory));
        }
    }
}

/// While moves are under way a host may be filled to the brim, after the plan it must not be hot; or, in both
/// cases, be no worse off than before. A vm alone on a host may want any amount.
fn processors_are_not_overrun(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    for m in &replay.moves {
        let (Some(capacity), stays) = (m.destination.capacity, replay.stays_on(m.to)) else { continue };
        if replay.peak(m.to, m.step, |_, _| 1) == 1 {
            continue;
        }
        let sum =
            |stays: &mut dyn Iterator<Item = &Stay<'_>>| stays.map(|stay| wanted(replay.world, stay)).sum::<u64>();
        let before = sum(&mut stays.iter().filter(|stay| stay.arrives.is_none()));
        let peak = replay.peak(m.to, m.step, wanted);
        if peak > capacity.cpu.0.max(before) {
            let (peak, has) = (CpuMillis(peak), capacity.cpu);
            found(violations, m.step, format!("{} may be asked for {peak} and has {has}", m.to));
        }
        let after = sum(&mut stays.iter().filter(|stay| stay.leaves.is_none()));
        let hot_above = capacity.cpu.scale(replay.world.policy.hot_above.0).0;
        if after > hot_above.max(before) && stays.iter().filter(|stay| stay.leaves.is_none()).count() > 1 {
            let (after, hot_above) = (CpuMillis(after), CpuMillis(hot_above));
            found(violations, m.step, format!("{} would be asked for {after} and is hot above {hot_above}", m.to));
        }
    }
}

/// Balancing neither takes from nor gives to a host in the dark; evacuation may take.
fn load_is_known(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    let known =
        |host: &HostView| host.state != HostState::Up || fresh(replay.world.now, &host.load).len() >= SAMPLES_MIN;
    for m in &replay.moves {
        if !known(m.destination) {
            found(violations, m.step, format!("the load of {} is not known", m.to));
        }
        if !known(m.source) && !m.source.maintenance {
            found(violations, m.step, format!("the load of {} is not known", m.from));
        }
    }
}

fn cooldowns_are_kept(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    let (now, policy) = (replay.world.now, &replay.world.policy);
    for m in &replay.moves {
        let rests = m.view.moved().is_some_and(|(at, _)| now.since(*at) < policy.vm_cooldown);
        // Where it is brought by this plan itself it only passes through.
        let first = m.view.host.as_ref() == Some(m.from);
        if rests && first && !m.source.maintenance && !measured_hot(replay.world, m.source) {
            found(violations, m.step, format!("{} moved recently and nothing presses it to leave {}", m.vm, m.from));
        }
    }
}

fn switched_on_hosts_slept(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    let mut seen = BTreeSet::new();
    for (step, host) in replay.switched_on() {
        let view = &replay.world.hosts[host];
        if view.state != HostState::Asleep || !view.power_managed || view.maintenance || !seen.insert(host) {
            found(violations, step, format!("{host} is not asleep, or not for drover to wake"));
        }
    }
    for (step, Step { action, .. }) in replay.plan.steps.iter().enumerate() {
        if let Action::PowerOn { host } | Action::PowerOff { host } = action
            && !replay.world.hosts.contains_key(host)
        {
            found(violations, step, format!("there is no host {host}"));
        }
    }
}

fn switched_off_hosts_are_empty_and_spare(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    let mut seen = BTreeSet::new();
    for (step, host) in replay.switched_off() {
        let view = &replay.world.hosts[host];
        if view.state != HostState::Up || !view.power_managed || !seen.insert(host) {
            found(violations, step, format!("{host} is not up, or not for drover to switch off"));
        }
        if !replay.world.policy.aim.saves_power() {
            found(violations, step, format!("{host} would be switched off though power saving is not wanted"));
        }
        if let Some(stay) = replay.stays_on(host).iter().find(|stay| !replay.done(stay.leaves, step)) {
            found(violations, step, format!("{} may still be on {host} when it is switched off", stay.vm));
        }
        if let Some((id, _)) = replay.world.hosts.iter().find(|(id, other)| troubled(replay, id, other)) {
            found(violations, step, format!("{host} would be switched off though {id} is lost, unknown or drained"));
        }
    }
}

fn troubled(replay: &Replay<'_>, id: &HostId, host: &HostView) -> bool {
    let runs_vms = replay.stays_on(id).iter().any(|stay| stay.arrives.is_none());
    match host.state {
        HostState::Suspect | HostState::Down | HostState::Unknown => true,
        HostState::Up => host.maintenance && runs_vms,
        HostState::Asleep | HostState::Waking | HostState::FallingAsleep => false,
    }
}

fn hosts_up_min_is_kept(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    let off = replay.switched_off();
    let serving = replay.world.hosts.values().filter(|host| host.state == HostState::Up && !host.maintenance).count();
    for (step, host) in &off {
        let woken = replay.switched_on().iter().filter(|(on, _)| replay.done(Some(*on), *step)).count();
        let left = (serving + woken).saturating_sub(off.len());
        let min = replay.world.policy.hosts_up_min;
        if left < min as usize {
            found(violations, *step, format!("without {host} {left} hosts are up and at least {min} must stay up"));
        }
    }
}

/// Necessary conditions only: the memory of the vms of any one host, together and one by one, is free elsewhere.
fn spare_host_is_kept(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    let off = replay.switched_off();
    let Some((step, _)) = off.first().filter(|_| replay.world.policy.spare_hosts > 0) else { return };
    let woken: BTreeSet<&HostId> = replay.switched_on().into_iter().map(|(_, host)| host).collect();
    let stays_up = |id: &HostId, host: &HostView| {
        (host.state == HostState::Up || woken.contains(id)) && !off.iter().any(|(_, gone)| *gone == id)
    };
    let kept = |id: &HostId| replay.stays_on(id).iter().filter(|stay| stay.leaves.is_none());
    let up: Vec<_> = replay.world.hosts.iter().filter(|(id, host)| stays_up(id, host)).collect();
    let free = |id: &HostId, host: &HostView| {
        let used: u64 = kept(id).map(|stay| stay.view.memory.0).sum();
        let capacity = host.capacity.filter(|_| !host.maintenance).map_or(0, |capacity| capacity.memory.0);
        capacity.saturating_sub(used)
    };
    for (lost, _) in &up {
        let others: Vec<u64> = up.iter().filter(|(id, _)| id != lost).map(|(id, host)| free(id, host)).collect();
        let homeless: Vec<u64> =
            kept(lost).filter(|stay| stay.view.pinned_to.is_empty()).map(|stay| stay.view.memory.0).collect();
        let largest = homeless.iter().max().copied().unwrap_or(0);
        let room = others.iter().sum::<u64>() >= homeless.iter().sum::<u64>()
            && (largest == 0 || others.iter().any(|free| *free >= largest));
        if !room {
            found(violations, *step, format!("if {lost} failed afterwards, its vms would find no room"));
        }
    }
}

fn prediction_adds_up(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    let mut wrong = |problem: String| violations.push(Violation { step: None, problem });
    let predicted = &replay.plan.predicted;
    let saved = (predicted.rate_before - predicted.rate_after).over(replay.world.policy.money.horizon);
    if predicted.gain != saved - predicted.moving_cost {
        wrong("the predicted gain is not what the predicted rates and costs make".to_owned());
    }
    if replay.plan.rejected.len() > Plan::REJECTED_MAX {
        wrong(format!("{} rejected alternatives are too many", replay.plan.rejected.len()));
    }
    let touched = replay.moves.iter().flat_map(|m| [m.from, m.to]);
    if let Some(host) = touched.into_iter().find(|host| !predicted.hosts.contains_key(*host)) {
        wrong(format!("nothing is predicted for {host}"));
    }
}

/// Samples in a row up to now, newest first.
fn fresh<T>(now: TimeMs, window: &Window<T>) -> Vec<&T> {
    let mut samples = Vec::new();
    let mut next = now;
    for (at, sample) in window.iter().rev() {
        if next.since(*at) > FRESH_WITHIN {
            break;
        }
        samples.push(sample);
        next = *at;
    }
    samples
}

/// Thousandths of a core, as measured; nothing is claimed of a vm nobody has measured.
fn wanted(world: &World, stay: &Stay<'_>) -> u64 {
    let samples = fresh(world.now, &stay.view.load);
    let mut last: Vec<u64> = samples.iter().take(SAMPLES).map(|sample| sample.cpu_wanted.0).collect();
    if last.len() < SAMPLES_MIN {
        return 0;
    }
    last.sort_unstable();
    last[last.len() / 2].min(u64::from(stay.view.vcpus) * CpuMillis::CORE.0)
}

/// Enough of the last samples above the line, by processor or by memory.
fn measured_hot(world: &World, host: &HostView) -> bool {
    let (Some(capacity), KOfN { k, n }) = (host.capacity, world.policy.hot_evidence) else { return false };
    let samples = fresh(world.now, &host.load);
    let line = world.policy.hot_above;
    let last = || samples.iter().take(n as usize);
    let cpu = last().filter(|sample| sample.cpu_wanted.ratio_of(capacity.cpu) > line).count();
    let memory = last().filter(|sample| sample.memory_used.ratio_of(capacity.memory) > line).count();
    cpu.max(memory) >= k as usize
}
