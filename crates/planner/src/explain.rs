//! Answers to "why": why a host is on or off, why a vm stays where it is. Worked out from the world as it is, with the
//! same rules and prices that plans are made by; nothing is kept for it. Each answer has one sentence for people, and
//! what it rests on for programs.

use crate::cost;
use crate::detect::detect;
use crate::predict::Predictor;
use crate::problem::{HostIx, Problem, State, VmIx};
use crate::rules::{self, Room};
use crate::search::consolidate::{self, Sleep};
use crate::search::{Draft, is_up, wake};
use drover_model::plan::{Heat, Objection};
use drover_model::policy::KOfN;
use drover_model::world::{HostState, World};
use drover_model::{CpuMillis, HostId, MicroMoney, Ratio, VmId};
use serde::{Deserialize, Serialize};

/// Vms or hosts listed in one answer.
pub const LISTED_MAX: usize = 16;
/// Candidates judged for one answer.
const EVALUATIONS: u64 = 4_000_000;

/// Why a host is on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WhyOn {
    pub host: HostId,
    pub sentence: String,
    /// Rules that keep it on, most fundamental first.
    pub rules: Vec<Objection>,
    /// Its vms that could go nowhere, and what forbids the host nearest to taking each; at most [`LISTED_MAX`].
    pub stuck: Vec<Stuck>,
    /// What its sleep would save within the horizon, and what emptying and switching it would cost, if it could be emptied.
    pub saved: Option<MicroMoney>,
    pub cost: Option<MicroMoney>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stuck {
    pub vm: VmId,
    pub because: Objection,
}

/// Why a host is off.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WhyOff {
    pub host: HostId,
    pub sentence: String,
    /// Forecast demand over capacity of the hosts that are up, by the time it could be there, and what it is woken above.
    pub asked: Ratio,
    pub wake_above: Ratio,
    /// What it would cost within the horizon to have it on and idle, with its share of wear.
    pub cost: MicroMoney,
}

/// Why a vm stays where it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WhyStays {
    pub vm: VmId,
    pub host: Option<HostId>,
    pub sentence: String,
    /// What keeps it from moving at all, if anything does.
    pub rests: Option<Objection>,
    /// The best host that could take it, and what the move would gain there over what it must.
    pub best: Option<Elsewhere>,
    /// Hosts that could not, by id; at most [`LISTED_MAX`].
    pub forbidden: Vec<Forbidden>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Elsewhere {
    pub host: HostId,
    /// After the cost of moving, at the less favourable of expected and pessimistic demand.
    pub gain: MicroMoney,
    pub needed: MicroMoney,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Forbidden {
    pub host: HostId,
    pub because: Objection,
}

/// `None` if there is no such host, or it is not up.
pub fn why_on(world: &World, predictor: &Predictor, host: &HostId) -> Option<WhyOn> {
    let problem = Problem::with(world, predictor);
    let ix = position(&problem, host)?;
    let (row, policy) = (&problem.hosts[ix], problem.policy());
    if !is_up(&problem, ix) {
        return None;
    }
    let mut answer = WhyOn {
        host: host.clone(),
        sentence: String::new(),
        rules: Vec::new(),
        stuck: Vec::new(),
        saved: None,
        cost: None,
    };
    let heat = detect(world).hosts.get(host).map_or(Heat::Unknown, |finding| finding.heat);
    let mut draft = Draft::new(&problem, State::new(&problem), Vec::new(), EVALUATIONS);
    let asked = Ratio(problem.load(&draft.state.sums[ix]) as f64 / row.cpu.max(1) as f64);
    let Sleep { rules, stuck, saved, cost, pays } = consolidate::sleep_of(&mut draft, ix);
    answer.rules = rules;
    let name = |(vm, because): (VmIx, Objection)| Stuck { vm: problem.vms[vm].id.clone(), because };
    let stuck_count = stuck.len();
    answer.stuck = stuck.into_iter().take(LISTED_MAX).map(name).collect();
    if stuck_count == 0 {
        (answer.saved, answer.cost) = (Some(saved), Some(cost));
    }
    let because = if !policy.aim.saves_power() {
        "the policy's aim is balance: all hosts stay on".to_owned()
    } else if !row.view.power_managed {
        "drover may not switch it".to_owned()
    } else if row.view.maintenance {
        "it is in maintenance, and its power is for whoever maintains it".to_owned()
    } else if !row.load_known {
        "its load is not known".to_owned()
    } else if let Some(first) = answer.stuck.first() {
        let more = if stuck_count > 1 { format!(", and {} more", stuck_count - 1) } else { String::new() };
        format!("{} could go nowhere: {}{more}", first.vm, first.because)
    } else if let Some(rule) = answer.rules.first() {
        rule.to_string()
    } else if !pays {
        format!("its sleep would save {saved} and cost {cost} within {}", policy.money.horizon)
    } else if heat != Heat::Cold {
        let KOfN { k, n } = policy.cold_evidence;
        format!(
            "it is asked for {asked} of its processor, and was not below {} in {k} of {n} samples since the last change",
            policy.cold_below
        )
    } else {
        format!("nothing keeps it on: a plan may switch it off, which would save {saved} and cost {cost}")
    };
    answer.sentence = format!("{host} is on because {because}");
    if heat == Heat::Cold && pays && answer.rules.is_empty() && stuck_count == 0 && policy.aim.saves_power() {
        answer.sentence = format!("{host} is on, though {because}");
    }
    Some(answer)
}

/// `None` if there is no such host, or it is up.
pub fn why_off(world: &World, predictor: &Predictor, host: &HostId) -> Option<WhyOff> {
    let problem = Problem::with(world, predictor);
    let ix = position(&problem, host)?;
    let (row, policy) = (&problem.hosts[ix], problem.policy());
    if is_up(&problem, ix) {
        return None;
    }
    let state = State::new(&problem);
    let (demand, capacity) = wake::pool_ahead(&problem, &state);
    let asked = CpuMillis(demand).ratio_of(CpuMillis(capacity));
    let cost = state.rates[ix].over(&problem) + row.cycle_price;
    let because = match row.view.state {
        HostState::Down => "it is down: it was not heard of for too long".to_owned(),
        HostState::Suspect => "it has not been heard of lately".to_owned(),
        HostState::Unknown => "it has not been heard of since the server started".to_owned(),
        HostState::Waking => "it is waking".to_owned(),
        HostState::FallingAsleep => "it was emptied, and falls asleep".to_owned(),
        HostState::Up | HostState::Asleep if !row.view.power_managed => "drover may not switch it".to_owned(),
        HostState::Up | HostState::Asleep if row.view.maintenance => "it is in maintenance".to_owned(),
        HostState::Up | HostState::Asleep => format!(
            "the hosts that are up are asked for {asked} of their processors, and above {} one is woken; on and idle it \
             would cost {cost} within {}",
            policy.wake_above, policy.money.horizon
        ),
    };
    let (sentence, wake_above) = (format!("{host} is off because {because}"), policy.wake_above);
    Some(WhyOff { host: host.clone(), sentence, asked, wake_above, cost })
}

/// `None` if there is no such vm.
pub fn why_stays(world: &World, predictor: &Predictor, vm: &VmId) -> Option<WhyStays> {
    let problem = Problem::with(world, predictor);
    let ix = problem.vms.binary_search_by_key(&vm, |row| row.id).ok()?;
    let state = State::new(&problem);
    let draft = Draft::new(&problem, State::new(&problem), Vec::new(), EVALUATIONS);
    let from = state.at[ix];
    let mut answer = WhyStays {
        vm: vm.clone(),
        host: from.map(|host| problem.hosts[host].id.clone()),
        sentence: format!("{vm} has no host"),
        rests: rules::rests(&problem, ix).map(|barrier| barrier.objection(&problem)),
        best: None,
        forbidden: Vec::new(),
    };
    let Some(from) = from else { return Some(answer) };
    let room = Room::filled(&problem);
    let mut best: Option<(MicroMoney, HostIx)> = None;
    for to in (0..problem.hosts.len()).filter(|to| *to != from) {
        let barrier = rules::forbids(&problem, &state, ix, to, room).or_else(|| draft.unpressed(ix, from, to));
        if let Some(barrier) = barrier {
            if answer.forbidden.len() < LISTED_MAX {
                let because = barrier.objection(&problem);
                answer.forbidden.push(Forbidden { host: problem.hosts[to].id.clone(), because });
            }
            continue;
        }
        let gain = cost::saved_by(&problem, &state, ix, to).surely(&problem) - cost::of_move(&problem, ix, to).cost;
        if best.is_none_or(|(most, _)| gain > most) {
            best = Some((gain, to));
        }
    }
    answer.best = best.map(|(gain, to)| Elsewhere {
        host: problem.hosts[to].id.clone(),
        gain,
        needed: needed(&problem, cost::of_move(&problem, ix, to).cost),
    });
    let here = problem.hosts[from].id;
    answer.sentence = match (&answer.rests, &answer.best) {
        (Some(rests), _) => format!("{vm} stays on {here} because {rests}"),
        (None, Some(best)) if problem.policy().eagerness.payback().is_none() => format!(
            "{vm} stays on {here} because at eagerness 1 nothing moves that need not; {} would gain {}",
            best.host, best.gain
        ),
        (None, Some(best)) => format!(
            "{vm} stays on {here} because the best other host, {}, would gain {} and a move must gain {}",
            best.host, best.gain, best.needed
        ),
        (None, None) => match answer.forbidden.first() {
            Some(first) => format!("{vm} stays on {here} because no other host can take it: {}", first.because),
            None => format!("{vm} stays on {here} because there is no other host"),
        },
    };
    Some(answer)
}

/// What a voluntary move that costs so much must gain, the cost subtracted.
fn needed(problem: &Problem<'_>, cost: MicroMoney) -> MicroMoney {
    let payback = problem.policy().eagerness.payback().unwrap_or(1.0);
    problem.policy().gain_min.max(MicroMoney(((payback - 1.0) * cost.0 as f64).ceil() as i64))
}

fn position(problem: &Problem<'_>, host: &HostId) -> Option<HostIx> {
    problem.hosts.binary_search_by_key(&host, |row| row.id).ok()
}
