//! Consolidation: cold hosts are emptied onto the others and switched off, those whose sleep gains most first, as many as
//! the evidence and the rules allow.

use super::{Act, Draft, Reason, Seek, evacuate, spare, wake};
use crate::cost;
use crate::problem::{HostIx, Problem, VmIx};
use crate::rules::{self, Room};
use drover_model::plan::{Heat, Objection};
use drover_model::world::HostState;
use drover_model::{CpuMillis, MicroMoney, Ratio};
use std::cmp::Reverse;

/// With no more cold hosts than this the best next one is found by trying each.
const EXACT_MAX: usize = 32;
/// Share of `wake_above` that the pool may reach by switching a host off: at the line itself it would be woken again
/// at once.
const SLEEP_MARGIN: f64 = 0.9;

type Refused = (Act, Objection);

/// Empties up to `most` hosts. False, with nothing changed, if none is worth it.
pub(crate) fn consolidate(draft: &mut Draft<'_, '_>, heat: &[Heat], most: usize) -> bool {
    let problem = draft.problem;
    if !problem.policy().aim.saves_power() || !all_known(problem) {
        return false;
    }
    let mark = draft.len();
    let mut pool = Pool::new(draft);
    let mut cold: Vec<HostIx> = (0..problem.hosts.len()).filter(|host| may_sleep(problem, heat, *host)).collect();
    cold.sort_by_key(|host| (draft.state.sums[*host].resident, *host));
    // Where a host ends after each one that was emptied: what may have to be taken back.
    let mut ends = Vec::new();
    if cold.len() <= EXACT_MAX {
        while ends.len() < most && !draft.tired() && draft.in_time() {
            let Some(host) = best(draft, &mut pool, &cold) else { break };
            cold.retain(|other| *other != host);
            ends.push(draft.len());
        }
        return !ends.is_empty();
    }
    for host in cold {
        if ends.len() == most || draft.tired() || !draft.in_time() {
            break;
        }
        let before = draft.len();
        match empty(draft, &mut pool, host) {
            Ok(()) if pays_since(draft, before) => {
                pool.capacity -= problem.hosts[host].cpu;
                pool.up -= 1;
                ends.push(draft.len());
            }
            Ok(()) => draft.roll_back(before),
            Err((act, objection)) => {
                draft.roll_back(before);
                draft.reject(act, objection);
            }
        }
    }
    keep_spare(draft, mark, ends)
}

/// Takes back as many of the emptied hosts as leave too little spare room, the last ones first. Whether any are left.
fn keep_spare(draft: &mut Draft<'_, '_>, mark: usize, mut ends: Vec<usize>) -> bool {
    while let Some(end) = ends.last() {
        draft.roll_back(*end);
        if spare::worse(draft.problem, &draft.state, &[]).is_none() {
            return true;
        }
        let kept = ends.len() / 2;
        ends.truncate(kept);
    }
    draft.roll_back(mark);
    false
}

/// Empties the host whose sleep gains most.
fn best(draft: &mut Draft<'_, '_>, pool: &mut Pool, cold: &[HostIx]) -> Option<HostIx> {
    let problem = draft.problem;
    let mark = draft.len();
    let mut tried: Vec<(MicroMoney, HostIx, bool)> = Vec::new();
    for host in cold.iter().copied() {
        let spare = |draft: &Draft<'_, '_>| match spare::worse(problem, &draft.state, &[]) {
            Some(why) => Err((Act::PowerOff { host }, Objection::SpareHost { why })),
            None => Ok(()),
        };
        match empty(draft, pool, host).and_then(|()| spare(draft)) {
            Ok(()) => tried.push((draft.gain_since(mark), host, pays_since(draft, mark))),
            Err((act, objection)) => draft.reject(act, objection),
        }
        draft.roll_back(mark);
    }
    tried.sort_by_key(|(gain, host, pays)| (!*pays, Reverse(*gain), *host));
    let (best, host, pays) = tried.first().copied()?;
    let needed = if pays { best } else { needed_gain(draft, best) };
    for (gain, lost, _) in &tried {
        if *lost != host || !pays {
            draft.reject(Act::PowerOff { host: *lost }, Objection::Money { gain: *gain, needed });
        }
    }
    (pays && empty(draft, pool, host).is_ok()).then(|| {
        pool.capacity -= problem.hosts[host].cpu;
        pool.up -= 1;
        host
    })
}

/// What the policy would have had it gain.
fn needed_gain(draft: &Draft<'_, '_>, gain: MicroMoney) -> MicroMoney {
    gain.max(draft.problem.policy().gain_min) + MicroMoney(1)
}

fn pays_since(draft: &Draft<'_, '_>, mark: usize) -> bool {
    cost::pays(draft.problem, draft.saved_since(mark), draft.cost_since(mark))
}

/// What must be left when hosts are switched off, kept as it changes.
struct Pool {
    demand: u64,
    capacity: u64,
    up: u32,
    /// Processor and memory of the hosts that serve.
    cpu: u64,
    memory: u64,
}

impl Pool {
    fn new(draft: &Draft<'_, '_>) -> Self {
        let (problem, state) = (draft.problem, &draft.state);
        let (demand, capacity) = state.pool(problem);
        // A host that is put to sleep takes as long to come back as it boots: what is coming until then must fit, too.
        let managed: Vec<HostIx> = (0..problem.hosts.len()).filter(|h| problem.hosts[*h].view.power_managed).collect();
        let lead = wake::lead(problem, &managed);
        let later = if lead > problem.policy().forecast_ahead { problem.demand_ahead(lead) } else { 0 };
        let serving = || problem.hosts.iter().enumerate().filter(|(h, row)| state.up[*h] && !row.view.maintenance);
        Self {
            demand: demand.max(later),
            capacity,
            up: state.up_count(problem),
            cpu: serving().map(|(_, row)| row.cpu).sum(),
            memory: serving().map(|(_, row)| row.memory).sum(),
        }
    }

    fn without(&self, problem: &Problem<'_>, host: HostIx) -> Result<(), Refused> {
        let off = Act::PowerOff { host };
        let min = problem.policy().hosts_up_min;
        if self.up <= min {
            return Err((off, Objection::HostsUpMin { up: self.up, min }));
        }
        let row = &problem.hosts[host];
        let room_for = CpuMillis(self.capacity - row.cpu).scale(problem.policy().wake_above.0 * SLEEP_MARGIN);
        if CpuMillis(self.demand) > room_for {
            return Err((off, Objection::Pool { demand: CpuMillis(self.demand), room_for }));
        }
        let promised = &problem.promised;
        let (cpu, memory) = (self.capacity.min(self.cpu) - row.cpu, self.memory.saturating_sub(row.memory));
        if promised.reserved > cpu || promised.memory > memory {
            let why = format!(
                "they are promised {} and {}, and the other hosts have {} and {}",
                CpuMillis(promised.reserved),
                drover_model::Bytes(promised.memory),
                CpuMillis(cpu),
                drover_model::Bytes(memory)
            );
            return Err((off, Objection::PoolReservation { why }));
        }
        Ok(())
    }
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
fn empty(draft: &mut Draft<'_, '_>, pool: &mut Pool, host: HostIx) -> Result<(), Refused> {
    let problem = draft.problem;
    pool.without(problem, host)?;
    let mut vms = draft.state.on[host].clone();
    vms.sort_by_key(|vm| {
        let wants = &problem.vms[*vm].wants;
        (Reverse(wants.memory), Reverse(wants.expected()), *vm)
    });
    let used = Ratio(problem.load(&draft.state.sums[host]) as f64 / problem.hosts[host].cpu.max(1) as f64);
    let reason = |to| Reason::Emptied { from: host, used, to };
    for vm in vms {
        if draft.state.at[vm] != Some(host) {
            continue;
        }
        if !problem.placement.inseparable(vm).is_empty()
            && evacuate::together(draft, vm, host, Room::filled(problem), reason)
        {
            continue;
        }
        let to = receiver(draft, vm, host)?;
        draft.migrate(vm, to, reason(to));
    }
    draft.power_off(host);
    Ok(())
}

/// The fullest host that still has room: others stay empty, and can sleep later.
fn receiver(draft: &mut Draft<'_, '_>, vm: VmIx, from: HostIx) -> Result<HostIx, Refused> {
    let problem = draft.problem;
    let room = Room::filled(problem);
    let off = Act::PowerOff { host: from };
    if let Some(barrier) = rules::rests(problem, vm) {
        return Err((off, barrier.objection(problem)));
    }
    if !draft.may_move() {
        let why = format!("a plan moves {} vms at most", problem.policy().moves.plan_max);
        return Err((off, Objection::MovesMax { why }));
    }
    let open = draft.targets(vm, room, Seek::Fullest);
    let home = problem.vms[vm].host;
    let allowed = |to: &HostIx| home == Some(*to) || draft.unpressed(vm, from, *to).is_none();
    let best = open.into_iter().filter(allowed).min_by_key(|to| {
        let gain = cost::gain_of_move(problem, &draft.state, vm, *to);
        let load = problem.fullness(*to, &draft.state.sums[*to].with(&problem.vms[vm].wants));
        (Reverse(gain), Reverse(load), *to)
    });
    best.ok_or_else(|| {
        let others = (0..problem.hosts.len()).filter(|to| *to != from && draft.state.up[*to]);
        let barrier = others.filter_map(|to| {
            rules::forbids(problem, &draft.state, vm, to, room).or_else(|| draft.unpressed(vm, from, to))
        });
        let because = barrier.map(|barrier| barrier.objection(problem)).next();
        (off, because.unwrap_or(Objection::SpareHost { why: "no other host is up".to_owned() }))
    })
}
