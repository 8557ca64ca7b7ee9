//! Rules that name vms: who may be where, and beside whom. A rule that is broken already may stay so, but no step may
//! break it further.

use super::flow;
use super::peak::{Presence, excess};
use super::replay::{Domain, Replay, Stay, are_alike};
use super::{Violation, found};
use drover_model::placement::{RuleKind, Scope};
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn anti_affinity_holds(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    let mut seen = BTreeSet::new();
    for m in &replay.moves {
        let Some(group) = &m.view.anti_affinity else { continue };
        if !seen.insert((m.to, &m.view.tenant, group)) {
            continue;
        }
        let there: Vec<Stay> =
            replay.stays_on(m.to).iter().filter(|stay| are_alike(replay.vm_view(stay.vm), m.view)).copied().collect();
        if let Some((step, one, other)) = meeting(replay, &there) {
            let to = replay.host_id(m.to);
            found(violations, step, format!("{one} and {other} of one anti-affinity group may meet on {to}"));
        }
    }
}

/// Only there, and never there. Strict: where a vm must not be it does not come, wherever it was.
pub(super) fn vms_are_only_where_they_may(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    for m in &replay.moves {
        for (rule, _) in replay.rules_of(m.vm) {
            let allowed = match &rule.kind {
                RuleKind::On { hosts } => replay.is_in(m.to, hosts),
                RuleKind::NotOn { hosts } => !replay.is_in(m.to, hosts),
                RuleKind::Apart { .. } | RuleKind::Together { .. } | RuleKind::HostsMax { .. } => true,
            };
            if !allowed {
                found(violations, m.step, format!("rule {} keeps {} from {}", rule.id, m.id, replay.host_id(m.to)));
            }
        }
    }
}

pub(super) fn vms_stay_apart(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    for (rule, members) in &replay.rules {
        let RuleKind::Apart { within } = rule.kind else { continue };
        let mut places: BTreeMap<Domain<'_>, Vec<Stay>> = BTreeMap::new();
        for vm in members {
            for (domain, stay) in by_domain(replay, *vm, within) {
                places.entry(domain).or_default().push(stay);
            }
        }
        for there in places.values() {
            if let Some((step, one, other)) = meeting(replay, there) {
                found(
                    violations,
                    step,
                    format!("{one} and {other} may meet in one {within}, against rule {}", rule.id),
                );
            }
        }
    }
}

/// A group goes from where it was to where it will be, and on its way is in both, which no order could avoid; never
/// anywhere else. In the end it is together, or in no more places than before.
pub(super) fn vms_stay_together(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    for (rule, members) in &replay.rules {
        let RuleKind::Together { within } = rule.kind else { continue };
        let (mut before, mut after, mut between) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        for (domain, stay) in members.iter().flat_map(|vm| by_domain(replay, *vm, within)) {
            if stay.arrives.is_none() {
                before.insert(domain);
            }
            match (stay.arrives, stay.leaves) {
                (_, None) => {
                    after.insert(domain);
                }
                (Some(step), Some(_)) => between.push((step, domain, stay.vm)),
                (None, Some(_)) => {}
            }
        }
        if after.len() > before.len().max(1) {
            let problem = format!("the vms of rule {} would not be together in one {within}", rule.id);
            violations.push(Violation { step: None, problem });
        }
        for (step, _, vm) in between.iter().filter(|(_, domain, _)| !before.contains(domain) && !after.contains(domain))
        {
            let id = replay.vm_id(*vm);
            found(violations, *step, format!("{id} would be away from all others of rule {} for a while", rule.id));
        }
    }
}

/// A host counts from the first that comes until the last has left. One that is left and comes into use again counts
/// all the time.
pub(super) fn hosts_of_a_set_are_not_too_many(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    for (rule, members) in &replay.rules {
        let RuleKind::HostsMax { count } = rule.kind else { continue };
        let mut used: BTreeMap<usize, Vec<Stay>> = BTreeMap::new();
        for (host, stay) in members.iter().flat_map(|vm| replay.journey(*vm)) {
            used.entry(host).or_default().push(stay);
        }
        let is_new = |stays: &Vec<Stay>| stays.iter().all(|stay| stay.arrives.is_some());
        let before = used.values().filter(|stays| !is_new(stays)).count() as u64;
        // By host that comes into use, its arrivals; by one that falls out of use, its departures.
        let arrivals = |stays: &Vec<Stay>| stays.iter().filter_map(|stay| stay.arrives).collect::<Vec<usize>>();
        let gains: Vec<Vec<usize>> = used.values().filter(|stays| is_new(stays)).map(arrivals).collect();
        let departures = |stays: &Vec<Stay>| stays.iter().map(|stay| stay.leaves).collect::<Option<Vec<usize>>>();
        let losses: Vec<Vec<usize>> = used.values().filter_map(departures).collect();
        let brings = |gain: &Vec<usize>, loss: &Vec<usize>| {
            gain.iter().all(|by| loss.iter().all(|step| replay.reach.done(Some(*step), *by)))
        };
        let needs: Vec<Vec<bool>> =
            gains.iter().map(|gain| losses.iter().map(|loss| brings(gain, loss)).collect()).collect();
        let enough = u64::from(count).max(before) - before;
        let over = flow::closure_above(&vec![1; gains.len()], &vec![1; losses.len()], &needs, enough);
        let Some((more, taken)) = over else { continue };
        if let Some(step) = taken.iter().filter_map(|gain| gains[*gain].iter().min()).max() {
            let most = before + more;
            let problem = format!("the vms of rule {} may be on {most} hosts and at most {count} are allowed", rule.id);
            found(violations, *step, problem);
        }
    }
}

/// The vm's stays, those that follow each other in one domain as one.
fn by_domain<'a>(replay: &Replay<'a>, vm: usize, scope: Scope) -> Vec<(Domain<'a>, Stay)> {
    let mut merged: Vec<(Domain<'a>, Stay)> = Vec::new();
    for (host, stay) in replay.journey(vm) {
        let domain = replay.domain(host, scope);
        match merged.last_mut().filter(|(last, _)| *last == domain) {
            Some((_, last)) => last.leaves = stay.leaves,
            None => merged.push((domain, stay)),
        }
    }
    merged
}

/// The arrival that brings two vms together, and who they are, unless as many were there before.
fn meeting<'a>(replay: &Replay<'a>, there: &[Stay]) -> Option<(usize, &'a drover_model::VmId, &'a drover_model::VmId)> {
    let presence = |stay: &Stay| Presence { arrives: stay.arrives, leaves: stay.leaves, weight: 1 };
    let presences: Vec<Presence> = there.iter().map(presence).collect();
    let before = there.iter().filter(|stay| stay.arrives.is_none()).count() as u64;
    let step = excess(&replay.reach, &presences, before.max(1))?.step;
    let own = there.iter().find(|stay| stay.arrives == Some(step))?;
    let parted = |other: &&Stay| {
        replay.reach.done(other.leaves, step) || other.arrives.is_some_and(|at| replay.reach.done(own.leaves, at))
    };
    let other = there.iter().filter(|other| other.vm != own.vm).find(|other| !parted(other))?;
    Some((step, replay.vm_id(own.vm), replay.vm_id(other.vm)))
}
