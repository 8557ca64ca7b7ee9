//! A drained host on its way to being empty: how far it is, when it will be done, and whether that is kept.

use super::Entry;
use crate::Control;
use drover_model::event::Severity;
use drover_model::intent::Vm;
use drover_model::migration::{MigrationPhase, MigrationRecord};
use drover_model::{HostId, Millis, TimeMs};
use drover_planner::schedule::Schedule;
use std::collections::BTreeMap;

/// A forecast that is missed by less is kept.
const SLIP_MIN: Millis = Millis::secs(5);
/// Of the time from the promise to the promised end.
const SLIP_SHARE: f64 = 0.2;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evacuation {
    pub since: TimeMs,
    /// Vms that were there when it began, or came to be since.
    pub total: usize,
    pub done: usize,
    pub moving: usize,
    pub waiting: usize,
    /// Of those that wait: nobody knows yet where they could go.
    pub stuck: usize,
    /// When the last will have left; `None` while some are stuck or held.
    pub eta_at: Option<TimeMs>,
    /// What was first said; anew after each slip.
    pub promised_at: Option<TimeMs>,
    /// When the promise was made.
    promise_made_at: Option<TimeMs>,
    /// How often what was promised could not be kept.
    pub slips: u32,
    pub finished_at: Option<TimeMs>,
}

impl Evacuation {
    /// In one sentence.
    pub fn say(&self, now: TimeMs) -> String {
        let Self { total, done, moving, waiting, stuck, .. } = self;
        let eta = match (self.finished_at, self.eta_at) {
            (Some(at), _) => format!("it took {}", at.since(self.since)),
            (None, Some(at)) => format!("the last in {}", at.since(now)),
            (None, None) if *stuck > 0 => format!("for {stuck} of them there is no place yet"),
            (None, None) => "nobody knows how long it takes".to_owned(),
        };
        format!("{done} of {total} vms have left, {moving} move, {waiting} wait; {eta}")
    }
}

pub(super) fn turn(control: &mut Control, now: TimeMs, entries: &[Entry], schedule: &Schedule) {
    let drained: Vec<HostId> = control.hosts().filter(|host| host.maintenance).map(|host| host.id.clone()).collect();
    let mut evacuations = BTreeMap::new();
    for host in drained {
        let before = control.transfers.evacuations.remove(&host);
        let known = before.is_some();
        let mut next = look(control, now, &host, before, entries, schedule);
        if next.total == 0 {
            continue;
        }
        if known || next.finished_at.is_none() {
            tell(control, now, &host, &mut next);
        }
        evacuations.insert(host, next);
    }
    control.transfers.evacuations = evacuations;
}

fn look(
    control: &Control,
    now: TimeMs,
    host: &HostId,
    before: Option<Evacuation>,
    entries: &[Entry],
    schedule: &Schedule,
) -> Evacuation {
    let since = before.as_ref().map(|e| e.since).or_else(|| control.host(host)?.drained_at).unwrap_or(now);
    let left = |m: &&MigrationRecord| {
        m.from == *host && m.phase == MigrationPhase::Done && m.finished_at.is_some_and(|at| at >= since)
    };
    let done = control.migrations().filter(left).count();
    let open = |vm: &Vm| vm.migration.and_then(|id| control.migration(id)).filter(|m| m.from == *host);
    // Past the commit it is the destination's already, and still here.
    let here: Vec<&Vm> = control
        .vms()
        .filter(|vm| open(vm).is_some() || (vm.host.as_ref() == Some(host) && control.takes_room(vm)))
        .collect();
    let (mut moving, mut stuck) = (0, 0);
    let mut eta: Option<Millis> = Some(Millis::ZERO);
    for vm in &here {
        let place = match open(vm) {
            Some(record) => {
                moving += usize::from(record.phase != MigrationPhase::Queued);
                entries.iter().position(|entry| entry.record.as_ref().is_some_and(|m| m.id == record.id))
            }
            None => entries.iter().position(|entry| entry.is_step_of(&vm.id)),
        };
        stuck += usize::from(place.is_none() && open(vm).is_none());
        let finish = place.and_then(|place| schedule.slots.get(place)?.finish);
        eta = eta.zip(finish).map(|(eta, finish)| eta.max(finish));
    }
    let finished_at = match &before {
        _ if !here.is_empty() => None,
        Some(before) => before.finished_at.or(Some(now)),
        None => Some(now),
    };
    Evacuation {
        since,
        total: done + here.len(),
        done,
        moving,
        waiting: here.len() - moving,
        stuck,
        eta_at: eta.filter(|_| !here.is_empty()).map(|span| now.plus(span)),
        promised_at: before.as_ref().and_then(|e| e.promised_at),
        promise_made_at: before.as_ref().and_then(|e| e.promise_made_at),
        slips: before.as_ref().map_or(0, |e| e.slips),
        finished_at: finished_at.map(|at| before.and_then(|e| e.finished_at).unwrap_or(at)),
    }
}

/// Says when it slips, and when it is done.
fn tell(control: &mut Control, now: TimeMs, host: &HostId, evacuation: &mut Evacuation) {
    let object = format!("host/{host}");
    if evacuation.finished_at == Some(now) {
        let took = now.since(evacuation.since);
        let text = format!("{host} is empty: {} vms left it within {took}", evacuation.done);
        return control.tables.event(now, Severity::Info, object, None, "evacuation-done", text);
    }
    let Some(eta) = evacuation.eta_at else { return };
    let (Some(promised), Some(made_at)) = (evacuation.promised_at, evacuation.promise_made_at) else {
        (evacuation.promised_at, evacuation.promise_made_at) = (Some(eta), Some(now));
        return;
    };
    let allowed = Millis((promised.since(made_at).0 as f64 * SLIP_SHARE) as u64).max(SLIP_MIN);
    if eta <= promised.plus(allowed) {
        return;
    }
    evacuation.slips += 1;
    (evacuation.promised_at, evacuation.promise_made_at) = (Some(eta), Some(now));
    let text = format!(
        "{host} will be empty in {}, {} later than was said: {} of {} vms have left, {} move, {} wait",
        eta.since(now),
        eta.since(promised),
        evacuation.done,
        evacuation.total,
        evacuation.moving,
        evacuation.waiting
    );
    control.tables.event(now, Severity::Warning, object, None, "evacuation-slips", text);
}
