//! Placement of a vm that has no host yet, or is started anew.

use crate::problem::{HostIx, Problem, State, VmIx};
use crate::rules::{self, Barrier, Room};
use crate::search::wake;
use drover_model::plan::Objection;
use drover_model::world::{HostState, World};
use drover_model::{HostId, Ratio, VmId};

/// Where a vm without a host goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    pub host: HostId,
    /// Completes "because ...".
    pub why: String,
}

/// Why a vm can't be placed now.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// Nobody awake has room and this host, asleep or already waking, will have: wake it, then ask again.
    #[error("no host that is up has room; it waits for {host} to wake")]
    WakeFirst { host: HostId },
    /// No host has room now, but one could have later.
    #[error("no host has room: {}; free some, add a host, or ask for a smaller vm", listed(objections))]
    NoRoom { objections: Vec<Objection> },
    /// No host of this cluster could ever run it as it is defined.
    #[error("{why}")]
    NeverFits { why: String },
}

/// Objections named in a refusal's text.
const OBJECTIONS_SHOWN_MAX: usize = 3;

fn listed(objections: &[Objection]) -> String {
    let mut texts: Vec<String> = objections.iter().take(OBJECTIONS_SHOWN_MAX).map(Objection::to_string).collect();
    if objections.len() > OBJECTIONS_SHOWN_MAX {
        texts.push(format!("and {} more", objections.len() - OBJECTIONS_SHOWN_MAX));
    }
    if texts.is_empty() {
        texts.push("there is no host".to_owned());
    }
    texts.join(", ")
}

/// Finds a host for `vm`, as if it ran nowhere now.
///
/// Memory is never given twice. By processor a host is open while what was *measured* there, with what was measured
/// of the vm itself, stays within `fill_to`; demand that is only assumed (new vms) decides which host is taken, not
/// whether one is. A host without vms takes any.
pub fn place(world: &World, vm: &VmId) -> Result<Placement, Refusal> {
    let problem = Problem::new(world);
    let Ok(vm) = problem.vms.binary_search_by_key(&vm, |row| row.id) else {
        return Err(Refusal::NeverFits { why: format!("there is no vm {vm}") });
    };
    let mut state = State::new(&problem);
    state.take(&problem, vm);
    let mut objections = Vec::new();
    let mut open = Vec::new();
    for host in 0..problem.hosts.len() {
        match closed(&problem, &state, vm, host) {
            Some(barrier) => objections.push(barrier),
            None => open.push(host),
        }
    }
    if let Some(host) = open.into_iter().min_by_key(|host| preference(&problem, &state, vm, *host)) {
        return Ok(Placement { host: problem.hosts[host].id.clone(), why: why(&problem, &state, vm, host) });
    }
    if let Some(why) = never_fits(&problem, vm) {
        return Err(Refusal::NeverFits { why });
    }
    if let Some(host) = to_wake(&problem, &mut state, vm) {
        return Err(Refusal::WakeFirst { host: problem.hosts[host].id.clone() });
    }
    Err(Refusal::NoRoom { objections: objections.into_iter().map(|barrier| barrier.objection(&problem)).collect() })
}

/// The hard rule, if any, that forbids a person to move `vm` to `to` as things stand. Load is not one: who moves a vm
/// by hand may fill a host more than the planner would.
pub fn objection(world: &World, vm: &VmId, to: &HostId) -> Option<Objection> {
    let problem = Problem::new(world);
    let state = State::new(&problem);
    let vm = problem.vms.binary_search_by_key(&vm, |row| row.id).ok()?;
    let host = problem.hosts.binary_search_by_key(&to, |row| row.id).ok()?;
    rules::not_movable(&problem, vm)
        .or_else(|| rules::not_taking(&problem, &state, host))
        .or_else(|| rules::never_on(&problem, vm, host))
        .or_else(|| rules::not_beside(&problem, &state, vm, host, None))
        .map(|barrier| barrier.objection(&problem))
}

fn closed(problem: &Problem<'_>, state: &State, vm: VmIx, host: HostIx) -> Option<Barrier> {
    rules::not_taking(problem, state, host)
        .or_else(|| rules::never_on(problem, vm, host))
        .or_else(|| rules::not_beside(problem, state, vm, host, None))
        .or_else(|| too_busy(problem, state, vm, host))
}

fn too_busy(problem: &Problem<'_>, state: &State, vm: VmIx, host: HostIx) -> Option<Barrier> {
    if state.on[host].is_empty() {
        return None;
    }
    let sums = if problem.vms[vm].measured { state.sums[host].with(&problem.vms[vm].wants) } else { state.sums[host] };
    let demand = sums.now;
    let room_for = problem.cpu_share(host, problem.policy().fill_to);
    (demand > room_for).then_some(Barrier::Cpu { host, demand, room_for })
}

/// Smaller is better: known load first, then within `fill_to`, then the most room left in the scarcer resource.
fn preference(problem: &Problem<'_>, state: &State, vm: VmIx, host: HostIx) -> (bool, bool, u64, HostIx) {
    let full = rules::too_full(problem, state, vm, host, None, Room::filled(problem)).is_some();
    let (cpu, memory) = filled(problem, state, vm, host);
    let fullness = (cpu.0.max(memory.0) * 1000.0) as u64;
    (!problem.hosts[host].load_known, full, fullness, host)
}

/// Shares of processor and memory in use once the vm is there.
fn filled(problem: &Problem<'_>, state: &State, vm: VmIx, host: HostIx) -> (Ratio, Ratio) {
    let (sums, row) = (state.sums[host].with(&problem.vms[vm].wants), &problem.hosts[host]);
    let share = |part: u64, whole: u64| Ratio(part as f64 / whole.max(1) as f64);
    // What is wanted now, not the forecast: for as long as it remembers how the last vm booted here, it would send the next
    // to a host that is fuller.
    (share(sums.now + sums.assumed, row.cpu), share(sums.memory, row.memory))
}

fn why(problem: &Problem<'_>, state: &State, vm: VmIx, host: HostIx) -> String {
    let (cpu, memory) = filled(problem, state, vm, host);
    format!(
        "{} has the most room: {cpu} of its processor and {memory} of its memory will be spoken for",
        problem.hosts[host].id
    )
}

/// What is wrong on every host, whatever runs there; `None` if some host could take the vm one day.
fn never_fits(problem: &Problem<'_>, vm: VmIx) -> Option<String> {
    let row = &problem.vms[vm];
    let mut largest = None;
    let (mut networks, mut memory, mut ruled) = (0, 0, None);
    for host in 0..problem.hosts.len() {
        match rules::never_on(problem, vm, host)? {
            Barrier::Network { .. } => networks += 1,
            Barrier::Rule { rule, .. } => ruled = ruled.or(Some(rule)),
            Barrier::Memory { room_for, .. } => {
                memory += 1;
                largest = largest.max(Some(room_for));
            }
            _ => {}
        }
    }
    let pinned = &row.view.pinned_to;
    let exists = |host: &&HostId| problem.world.hosts.contains_key(*host);
    if let Some(unknown) = pinned.first().filter(|_| !pinned.iter().any(|host| exists(&host))) {
        return Some(format!("it is pinned to {unknown}, and there is no such host: pin it to one that exists"));
    }
    let among = if pinned.is_empty() { "no host" } else { "no host it is pinned to" };
    Some(match (largest, &row.view.network) {
        (Some(most), _) if memory >= networks => format!(
            "{among} has {} of memory, the largest has {}: ask for less memory",
            row.view.memory,
            drover_model::Bytes(most)
        ),
        (_, Some(network)) if networks > 0 => {
            format!("{among} is attached to network {network}: use another network, or attach a host to it")
        }
        _ => match ruled.and_then(|rule| problem.placement.rules[rule].id) {
            Some(id) => format!("rule {id} leaves it no host: change the rule, or take the vm out of it"),
            None => "the cluster has no host: join one".to_owned(),
        },
    })
}

/// A host that is asleep and may be woken, or is waking already, and would take the vm.
fn to_wake(problem: &Problem<'_>, state: &mut State, vm: VmIx) -> Option<HostIx> {
    let waking = |host: &HostIx| problem.hosts[*host].view.state == HostState::Waking;
    let mut hosts: Vec<HostIx> = (0..problem.hosts.len()).filter(waking).collect();
    hosts.extend(wake::candidates(problem, state));
    hosts.into_iter().find(|host| {
        state.switch(problem, *host, true);
        let fits = closed(problem, state, vm, *host).is_none();
        state.switch(problem, *host, false);
        fits
    })
}
