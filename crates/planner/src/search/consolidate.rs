//! Consolidation: empty one cold host onto the others and switch it off. One host a plan, so that each is
//! verified before the next.

use super::{Act, Draft};
use crate::cost;
use crate::problem::{HostIx, Problem, State, VmIx};
use crate::rules::{self, Room};
use drover_model::plan::{Heat, Objection};
use drover_model::world::HostState;
use drover_model::{CpuMillis, MicroMoney, Ratio};
use std::cmp::Reverse;

/// Cold hosts tried, cheapest to empty first.
const TRIES_MAX: usize = 32;
/// Share of `wake_above` that the pool may reach by switching a host off: at the line itself it would be woken again
/// at once.
const SLEEP_MARGIN: f64 = 0.9;

/// Empties the host whose sleep gains most. False, with nothing changed, if none is worth it.
pub(crate) fn consolidate(draft: &mut Draft<'_, '_>, heat: &[Heat]) -> bool {
    let problem = draft.problem;
    if !problem.policy().aim.saves_power() || !all_known(problem) {
        return false;
    }
    let mark = draft.len();
    let mut cold: Vec<HostIx> = (0..problem.hosts.len()).filter(|host| may_sleep(problem, heat, *host)).collect();
    cold.sort_by_key(|host| (draft.state.sums[*host].resident, *host));
    let mut tried: Vec<(MicroMoney, HostIx)> = Vec::new();
    for host in cold.into_iter().take(TRIES_MAX) {
        match empty(draft, host) {
            Ok(()) => tried.push((draft.gain_since(mark), host)),
            Err((act, objection)) => draft.reject(act, objection),
        }
        draft.roll_back(mark);
    }
    tried.sort_by_key(|(gain, host)| (Reverse(*gain), *host));
    let Some((best, host)) = tried.first().copied() else { return false };
    let needed = best.max(problem.policy().gain_min);
    for (gain, lost) in &tried {
        if *lost != host || best < problem.policy().gain_min {
            draft.reject(Act::PowerOff { host: *lost }, Objection::Money { gain: *gain, needed });
        }
    }
    best >= problem.policy().gain_min && empty(draft, host).is_ok()
}

/// Every host is up with known load, or asleep: nothing hides.
fn all_known(problem: &Problem<'_>) -> bool {
    problem.hosts.iter().all(|host| match host.view.state {
        HostState::Up => host.load_known,
        HostState::Asleep => true,
        HostState::Unknown | HostState::Suspect | HostState::Down | HostState::Waking | HostState::FallingAsleep => {
            false
        }
    })
}

fn may_sleep(problem: &Problem<'_>, heat: &[Heat], host: HostIx) -> bool {
    let row = &problem.hosts[host];
    heat[host] == Heat::Cold && row.view.power_managed && row.view.takes_vms() && row.load_known
}

/// Moves all vms of the host away and switches it off. On error the draft is left half done.
fn empty(draft: &mut Draft<'_, '_>, host: HostIx) -> Result<(), (Act, Objection)> {
    let problem = draft.problem;
    let off = Act::PowerOff { host };
    let (up, min) = (problem.up_count(&draft.state), problem.policy().hosts_up_min);
    if up <= min {
        return Err((off, Objection::HostsUpMin { up, min }));
    }
    let mut vms = draft.state.on[host].clone();
    vms.sort_by_key(|vm| (Reverse(problem.vms[*vm].memory), Reverse(problem.vms[*vm].demand.mean), *vm));
    let whole = draft.state.sums[host];
    for vm in vms {
        let to = receiver(draft, vm, host)?;
        let used = Ratio(problem.load(&whole) as f64 / problem.hosts[host].cpu.max(1) as f64);
        let reason = format!(
            "{} is asked for {used} of its processor only, {} has room, and the empty host can be switched off",
            problem.hosts[host].id, problem.hosts[to].id
        );
        draft.migrate(vm, to, reason);
    }
    draft.power_off(host, "it is empty, and the others carry everything with room to spare".to_owned());
    let (demand, capacity) = problem.pool(&draft.state);
    let room_for = CpuMillis(capacity).scale(problem.policy().wake_above.0 * SLEEP_MARGIN);
    if CpuMillis(demand) > room_for {
        return Err((off, Objection::Pool { demand: CpuMillis(demand), room_for }));
    }
    if problem.policy().spare_hosts > 0 {
        survives_loss(problem, &draft.state).map_err(|why| (off, Objection::SpareHost { why }))?;
    }
    Ok(())
}

/// The fullest host that still has room: others stay empty, and can sleep later.
fn receiver(draft: &Draft<'_, '_>, vm: VmIx, from: HostIx) -> Result<HostIx, (Act, Objection)> {
    let problem = draft.problem;
    let room = Room::filled(problem);
    let off = Act::PowerOff { host: from };
    if let Some(barrier) = rules::rests(problem, vm) {
        return Err((off, barrier.objection(problem)));
    }
    let (mut best, mut barrier) = (None, None);
    for to in (0..problem.hosts.len()).filter(|to| *to != from && draft.state.up[*to]) {
        let forbidden = rules::forbids(problem, &draft.state, vm, to, room);
        if forbidden.is_some() {
            barrier = barrier.or(forbidden);
            continue;
        }
        let gain = cost::gain_of_move(problem, &draft.state, vm, to);
        let load = problem.load(&draft.state.sums[to].with(&problem.vms[vm]));
        let key = (Reverse(gain), Reverse(load * 1000 / problem.hosts[to].cpu.max(1)), to);
        if best.is_none_or(|least| key < least) {
            best = Some(key);
        }
    }
    match (best, barrier) {
        (Some((_, _, to)), _) => Ok(to),
        (None, Some(barrier)) => Err((off, barrier.objection(problem))),
        (None, None) => Err((off, Objection::SpareHost { why: "no other host is up".to_owned() })),
    }
}

/// Whether the vms of any one host would fit on the others, as full as those can be. Pinned vms can't be helped.
fn survives_loss(problem: &Problem<'_>, state: &State) -> Result<(), String> {
    for lost in (0..problem.hosts.len()).filter(|host| state.up[*host]) {
        let mut rest = state.clone();
        rest.up[lost] = false;
        let mut vms = state.on[lost].clone();
        vms.sort_by_key(|vm| (Reverse(problem.vms[*vm].memory), *vm));
        for vm in vms.into_iter().filter(|vm| problem.vms[*vm].view.pinned_to.is_empty()) {
            let mut others = 0..problem.hosts.len();
            match others.find(|to| rules::forbids(problem, &rest, vm, *to, Room::PASSING).is_none()) {
                Some(to) => rest.shift(problem, vm, to),
                None => {
                    return Err(format!(
                        "if {} failed, {} would find no room",
                        problem.hosts[lost].id, problem.vms[vm].id
                    ));
                }
            }
        }
    }
    Ok(())
}
