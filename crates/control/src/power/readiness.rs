//! Whether hosts that sleep can be counted on to wake.
//!
//! A host that can't be woken is no spare room. Two things are looked at: the power driver of each sleeping host is asked
//! every [`ASK_EVERY`] how the host stands, which shows a dead management controller; and a host that has slept for
//! `policy.wake_trial_every` is woken, one at a time and in calm times, which shows a dead host. Where either fails a person
//! is told, and the planner is told that the host can't be switched on. Its first word takes that back.

use super::{TRIES_MAX, TRY_AGAIN_AFTER, wake};
use crate::Control;
use crate::interface::{Effect, PowerOp, PowerStatus};
use drover_model::event::Severity;
use drover_model::intent::{Host, PowerIntent};
use drover_model::policy::Mode;
use drover_model::world::HostState;
use drover_model::{HostId, Millis, TimeMs};
use std::collections::{BTreeMap, BTreeSet};

const ASK_EVERY: Millis = Millis::secs(300);
/// A driver that has said nothing for so long won't.
const ANSWER_WITHIN: Millis = Millis::secs(300);
/// Between two trials: the first host is needed again, or asleep again, by then.
const TRIAL_EVERY: Millis = Millis::secs(1_800);

#[derive(Debug, Default)]
pub struct Readiness {
    checks: BTreeMap<HostId, Check>,
    trial_at: Option<TimeMs>,
}

/// Of one sleeping host.
#[derive(Debug)]
struct Check {
    /// When its driver is asked next; while it is being asked, when that is given up.
    due: TimeMs,
    asked: bool,
    /// In a row.
    failures: u32,
    /// Why it does not count as one that can be woken.
    problem: Option<String>,
}

impl Readiness {
    pub fn forget(&mut self, host: &HostId) {
        self.checks.remove(host);
    }
}

impl Control {
    /// Why a host is not counted on to wake, though it has a power driver.
    pub(crate) fn wake_problem<'a>(&'a self, host: &'a Host) -> Option<&'a str> {
        let unanswered = || self.power.readiness.checks.get(&host.id)?.problem.as_deref();
        host.wake_failed.as_deref().or_else(unanswered)
    }
}

pub fn turn(control: &mut Control, now: TimeMs) {
    let asleep: BTreeSet<HostId> =
        control.hosts().filter(|host| sleeps(control, host)).map(|host| host.id.clone()).collect();
    control.power.readiness.checks.retain(|host, _| asleep.contains(host));
    for host in &asleep {
        // Those that slept when the server started have just been asked.
        let first = Check { due: now.plus(ASK_EVERY), asked: false, failures: 0, problem: None };
        let check = control.power.readiness.checks.entry(host.clone()).or_insert(first);
        if now < check.due {
            continue;
        }
        if check.asked {
            failed(control, now, host, format!("it has not answered within {ANSWER_WITHIN}"));
        } else {
            (check.asked, check.due) = (true, now.plus(ANSWER_WITHIN));
            control.live.effects.push(Effect::Power { host: host.clone(), op: PowerOp::Status });
        }
    }
    try_out(control, now);
}

/// Put to sleep by drover, with nothing under way on it.
fn sleeps(control: &Control, host: &Host) -> bool {
    host.power == PowerIntent::Asleep
        && control.settings.power_managed.contains(&host.id)
        && control.live.state(&host.id) == HostState::Asleep
        && !control.power.hosts.contains_key(&host.id)
}

/// The driver of a sleeping host has answered. That it says the host is on changes nothing: somebody may just have
/// switched it on, and its agent will say so.
pub fn answered(control: &mut Control, now: TimeMs, host: &HostId, result: Result<PowerStatus, String>) {
    if !control.power.readiness.checks.get(host).is_some_and(|check| check.asked) {
        return;
    }
    match result {
        Err(why) => failed(control, now, host, why),
        Ok(_) => {
            let Some(check) = control.power.readiness.checks.get_mut(host) else { return };
            (check.asked, check.due, check.failures) = (false, now.plus(ASK_EVERY), 0);
            if check.problem.take().is_some() {
                let text = format!("the power driver of {host} answers again: it is counted on to wake");
                control.tables.event(now, Severity::Info, format!("host/{host}"), None, "host-wakeable", text);
            }
        }
    }
}

fn failed(control: &mut Control, now: TimeMs, host: &HostId, why: String) {
    let Some(check) = control.power.readiness.checks.get_mut(host) else { return };
    (check.asked, check.failures) = (false, check.failures.saturating_add(1));
    if check.failures < TRIES_MAX {
        check.due = now.plus(TRY_AGAIN_AFTER);
        return;
    }
    check.due = now.plus(ASK_EVERY);
    let text = format!(
        "{host} sleeps and its power driver does not answer: {why}. It is not counted on to wake until it does; check \
         its management controller and [hosts.{host}.power] in the server's configuration"
    );
    if check.problem.replace(text.clone()).is_none() {
        control.tables.event(now, Severity::Escalation, format!("host/{host}"), None, "host-not-wakeable", text);
    }
}

/// Wakes the one that has slept the longest, if it is time and the cluster has nothing else to do.
fn try_out(control: &mut Control, now: TimeMs) {
    let every = control.policy().wake_trial_every;
    let lately = control.power.readiness.trial_at.is_some_and(|at| now.since(at) < TRIAL_EVERY);
    if every == Millis::ZERO || lately || control.policy().mode != Mode::Act {
        return;
    }
    if !control.power.hosts.is_empty() || !control.is_calm() {
        return;
    }
    let slept = |host: &Host| now.since(host.off_since.unwrap_or(now));
    let due = |host: &&Host| sleeps(control, host) && control.wake_problem(host).is_none() && slept(host) >= every;
    let longest = control.hosts().filter(due).max_by_key(|host| slept(host)).map(|host| (host.id.clone(), slept(host)));
    if let Some((host, slept)) = longest {
        control.power.readiness.trial_at = Some(now);
        wake(control, now, &host, &format!("it has slept for {slept}: this tries out whether it still wakes"));
    }
}
