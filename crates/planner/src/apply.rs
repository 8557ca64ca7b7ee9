//! The world as a plan predicts it: for what-if questions, and to see that a plan leaves nothing to do.

use crate::problem::{Problem, VmRow};
use drover_model::load::{HostSample, VmSample, Window};
use drover_model::plan::{Action, Plan};
use drover_model::world::{HostState, World};
use drover_model::{Bytes, CpuMillis, HostId, Ratio, TimeMs, VmId};
use std::collections::BTreeMap;

/// `world` with every step of `plan` carried out at once: vms on their new hosts, hosts in their new states, and the
/// hosts' load windows as if it had always been so. A step that names what the world does not have changes nothing.
pub fn apply(world: &World, plan: &Plan) -> World {
    let figures = figures(world);
    let mut after = world.clone();
    for step in &plan.steps {
        match &step.action {
            Action::Migrate { vm, from, to, .. } => {
                let Some(view) = after.vms.get_mut(vm) else { continue };
                view.host = Some(to.clone());
                view.generation = view.generation.next();
                view.left.push((world.now, from.clone()));
                let Some(&Figure { cpu, memory, dark }) = figures.get(vm) else { continue };
                if dark {
                    view.load = assumed_load(world, cpu, memory);
                }
                shift_load(&mut after, from, |sample| {
                    sample.cpu_wanted = sample.cpu_wanted.saturating_sub(cpu);
                    sample.cpu_used = sample.cpu_used.saturating_sub(cpu);
                    sample.memory_used = sample.memory_used.saturating_sub(memory);
                });
                shift_load(&mut after, to, |sample| {
                    sample.cpu_wanted += cpu;
                    sample.cpu_used += cpu;
                    sample.memory_used += memory;
                });
            }
            Action::PowerOn { host } => set_power(&mut after, host, true),
            Action::PowerOff { host } => set_power(&mut after, host, false),
        }
    }
    after
}

/// What a vm is counted as.
#[derive(Debug, Clone, Copy)]
struct Figure {
    cpu: CpuMillis,
    memory: Bytes,
    /// Its host was in the dark, and its demand is taken as the most it can be.
    dark: bool,
}

fn figures(world: &World) -> BTreeMap<VmId, Figure> {
    let problem = Problem::new(world);
    let figure = |row: &VmRow<'_>| Figure {
        // A guess is not in the hosts' samples.
        cpu: if row.measured { CpuMillis(row.wants.mean) } else { CpuMillis::ZERO },
        memory: Bytes(row.wants.resident.unsigned_abs()),
        dark: row.measured && row.samples == 0,
    };
    problem.vms.iter().map(|row| (row.id.clone(), figure(row))).collect()
}

/// What a vm is taken for, as if it had been measured.
fn assumed_load(world: &World, cpu: CpuMillis, memory: Bytes) -> Window<VmSample> {
    let sample = VmSample {
        cpu_used: cpu,
        cpu_wanted: cpu,
        memory_used: memory,
        net_rx: Bytes::ZERO,
        net_tx: Bytes::ZERO,
        disk_latency_us: 0,
        dirty_rate: None,
    };
    sampled(world).map(|at| (at, sample)).collect()
}

/// As far back as windows reach, oldest first.
fn sampled(world: &World) -> impl Iterator<Item = TimeMs> + use<> {
    let (now, every) = (world.now, world.sample_every.0.max(1));
    let count = Window::<()>::SAMPLES_MAX as u64;
    (0..count).rev().map(move |ago| TimeMs(now.0.saturating_sub(ago * every)))
}

fn shift_load(world: &mut World, host: &HostId, change: impl Fn(&mut HostSample)) {
    let Some(view) = world.hosts.get_mut(host) else { return };
    view.load = view
        .load
        .iter()
        .map(|(at, sample)| {
            let mut sample = *sample;
            change(&mut sample);
            (*at, sample)
        })
        .collect();
}

fn set_power(world: &mut World, host: &HostId, on: bool) {
    let (now, times) = (world.now, sampled(world));
    let Some(view) = world.hosts.get_mut(host) else { return };
    view.since = now;
    if !on {
        (view.state, view.load) = (HostState::Asleep, Window::default());
        return;
    }
    let idle = HostSample {
        cpu_used: CpuMillis::ZERO,
        cpu_wanted: CpuMillis::ZERO,
        memory_used: Bytes::ZERO,
        memory_pressure: Ratio(0.0),
        net_rx: Bytes::ZERO,
        net_tx: Bytes::ZERO,
        disk_latency_us: 0,
    };
    view.state = HostState::Up;
    view.load = times.map(|at| (at, idle)).collect();
}
