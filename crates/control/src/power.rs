//! Switching hosts off and on through the operator's power driver.
//!
//! The intent is committed before the driver is asked. A server that restarts in between asks the drivers how the
//! hosts stand and goes on from there. Every operation is tried [`TRIES_MAX`] times; then a person has to look.
//! Whether hosts that sleep can be counted on is [`readiness`]'s business.

mod readiness;

use crate::Control;
use crate::interface::{Effect, PowerOp, PowerStatus, Refusal};
use drover_model::event::Severity;
use drover_model::intent::{Host, PowerIntent};
use drover_model::{HostId, Millis, TimeMs};
use std::collections::BTreeMap;

const TRIES_MAX: u32 = 3;
const TRY_AGAIN_AFTER: Millis = Millis(5_000);
/// From power-on to the agent's first word. A large server's memory test takes minutes.
const BOOT_MAX: Millis = Millis::secs(900);
/// From the driver's word that a host is off to the end of its agent's connection.
const GOODBYE_MAX: Millis = Millis::secs(60);
/// After the server's start, how long a host that should be on may be silent before its driver is asked.
const SILENT_AFTER_START: Millis = Millis::secs(20);

#[derive(Debug, Default)]
pub struct Power {
    hosts: BTreeMap<HostId, Work>,
    readiness: readiness::Readiness,
}

/// What is under way on one host.
#[derive(Debug)]
struct Work {
    op: PowerOp,
    since: TimeMs,
    tries: u32,
    /// The driver is running.
    busy: bool,
    /// The driver said it is done.
    driver_done: bool,
    try_at: TimeMs,
}

impl Power {
    pub fn is_waking(&self, host: &HostId) -> bool {
        self.hosts.get(host).is_some_and(|work| work.op == PowerOp::On)
    }

    /// Being switched off, or, of a host that should be off, being looked whether it is.
    pub fn is_switching_off(&self, host: &HostId) -> bool {
        self.hosts.get(host).is_some_and(|work| work.op != PowerOp::On && !work.driver_done)
    }

    /// What a predecessor may have left half-done: every host that drover can switch is asked about, at once if it
    /// should be off, and otherwise if it stays silent.
    pub fn resume<'a>(now: TimeMs, managed: impl Iterator<Item = &'a Host>) -> Self {
        let mut power = Self::default();
        for row in managed {
            let wait = if row.power == PowerIntent::On { SILENT_AFTER_START } else { Millis::ZERO };
            power.begin(now.plus(wait), &row.id, PowerOp::Status);
        }
        power
    }

    fn begin(&mut self, at: TimeMs, host: &HostId, op: PowerOp) {
        let work = Work { op, since: at, tries: 0, busy: false, driver_done: false, try_at: at };
        self.hosts.insert(host.clone(), work);
    }
}

/// Switches a host on, if it is off and drover may. Repeating it changes nothing.
pub fn wake(control: &mut Control, now: TimeMs, host: &HostId, why: &str) {
    let off = control.host(host).is_some_and(|row| row.power != PowerIntent::On);
    if !off || !control.settings.power_managed.contains(host) {
        return;
    }
    control.tables.change::<Host>(host, |row| row.power = PowerIntent::On);
    control.power.readiness.forget(host);
    control.power.begin(now, host, PowerOp::On);
    let text = format!("{host} is woken: {why}");
    control.tables.event(now, Severity::Info, format!("host/{host}"), None, "host-wake", text);
}

/// Switches an empty host off. `intent`: asleep (drover may wake it) or off (only a person may).
pub fn switch_off(
    control: &mut Control,
    now: TimeMs,
    host: &HostId,
    intent: PowerIntent,
    why: &str,
) -> Result<(), Refusal> {
    if !control.settings.power_managed.contains(host) {
        return Err(Refusal::conflict(format!(
            "{host} has no power driver: give it one in the server's configuration, [hosts.{host}.power]"
        )));
    }
    let vms = control.holds_vms(host);
    if vms > 0 {
        return Err(Refusal::conflict(format!("{host} still holds {vms} vms: `drover host drain {host}` first")));
    }
    control.tables.change::<Host>(host, |row| {
        row.power = intent;
        row.off_since = Some(now);
    });
    control.power.begin(now, host, PowerOp::Off);
    let text = format!("{host} is powered off: {why}");
    control.tables.event(now, Severity::Info, format!("host/{host}"), None, "host-power-off", text);
    Ok(())
}

pub fn turn(control: &mut Control, now: TimeMs) {
    readiness::turn(control, now);
    let hosts: Vec<HostId> = control.power.hosts.keys().cloned().collect();
    for host in hosts {
        let Some(work) = control.power.hosts.get_mut(&host) else { continue };
        if work.op == PowerOp::On && now.since(work.since) >= BOOT_MAX {
            let text =
                format!("{host} was switched on {BOOT_MAX} ago and its agent has not said a word: look at its console");
            give_up(control, now, &host, text);
        } else if !work.busy && !work.driver_done && now >= work.try_at {
            work.busy = true;
            work.tries += 1;
            let op = work.op;
            control.live.effects.push(Effect::Power { host, op });
        } else if work.op == PowerOp::Off && work.driver_done {
            let connected = control.live.hosts.get(&host).is_some_and(|live| live.connection.is_some());
            if !connected {
                control.power.hosts.remove(&host);
            } else if now.since(work.since) >= GOODBYE_MAX {
                let text =
                    format!("the power driver of {host} says it is off, and its agent still answers: check the driver");
                give_up(control, now, &host, text);
            }
        }
    }
}

/// The driver has answered.
pub fn finished(control: &mut Control, now: TimeMs, host: &HostId, op: PowerOp, result: Result<PowerStatus, String>) {
    let Some(work) = control.power.hosts.get_mut(host).filter(|work| work.op == op) else {
        if op == PowerOp::Status {
            readiness::answered(control, now, host, result);
        }
        return;
    };
    work.busy = false;
    match result {
        Ok(status) if op == PowerOp::Status => resumed(control, now, host, status),
        Ok(_) => {
            work.driver_done = true;
            if op == PowerOp::Off {
                control.tables.change::<Host>(host, |row| row.power_cycles = row.power_cycles.saturating_add(1));
            }
        }
        Err(why) if work.tries < TRIES_MAX => {
            work.try_at = now.plus(TRY_AGAIN_AFTER);
            let text = format!("the power driver of {host} failed and is tried again: {why}");
            control.tables.event(now, Severity::Warning, format!("host/{host}"), None, "host-power-retry", text);
        }
        Err(why) if op == PowerOp::Status => {
            control.power.hosts.remove(host);
            let text = format!("the power driver of {host} can't say whether it is on: {why}. Check its configuration");
            control.tables.event(now, Severity::Warning, format!("host/{host}"), None, "host-power-unknown", text);
        }
        Err(why) => {
            let text = format!("the power driver of {host} failed {TRIES_MAX} times: {why}. Check its configuration");
            give_up(control, now, host, text);
        }
    }
}

/// The server has restarted and the driver says how the host stands: where that is not what was intended, it goes on.
fn resumed(control: &mut Control, now: TimeMs, host: &HostId, status: PowerStatus) {
    control.power.hosts.remove(host);
    let Some(intent) = control.host(host).map(|row| row.power) else { return };
    let (op, kind, text) = match (intent, status) {
        (PowerIntent::On, PowerStatus::On) | (PowerIntent::Asleep | PowerIntent::Off, PowerStatus::Off) => return,
        (PowerIntent::On, PowerStatus::Off) => {
            (PowerOp::On, "host-wake", format!("{host} is off and should be on: it is switched on"))
        }
        (PowerIntent::Asleep | PowerIntent::Off, PowerStatus::On) => {
            (PowerOp::Off, "host-power-off", format!("{host} is on and should be off: it is switched off"))
        }
    };
    control.power.begin(now, host, op);
    control.tables.event(now, Severity::Info, format!("host/{host}"), None, kind, text);
}

/// A host that could not be switched either way is taken for on: its heartbeats say the rest.
fn give_up(control: &mut Control, now: TimeMs, host: &HostId, text: String) {
    let waking = control.power.is_waking(host);
    control.power.hosts.remove(host);
    control.tables.change::<Host>(host, |row| {
        row.power = PowerIntent::On;
        row.off_since = None;
        if waking {
            row.wake_failed = Some(text.clone());
        }
    });
    control.tables.event(now, Severity::Escalation, format!("host/{host}"), None, "host-power-failed", text);
}

/// The host's agent has connected: a wake is over, or somebody switched a sleeping host on by hand.
pub fn connected(control: &mut Control, now: TimeMs, host: &HostId) {
    if control.host(host).is_some_and(|row| row.wake_failed.is_some()) {
        control.tables.change::<Host>(host, |row| row.wake_failed = None);
    }
    control.power.readiness.forget(host);
    if let Some(work) = control.power.hosts.get(host).filter(|work| work.op == PowerOp::On) {
        let took = now.since(work.since);
        control.power.hosts.remove(host);
        control.tables.change::<Host>(host, |row| {
            row.boot_time = Some(took);
            row.off_since = None;
        });
        let text = format!("{host} answered {took} after it was switched on");
        control.tables.event(now, Severity::Info, format!("host/{host}"), None, "host-woken", text);
    } else if control.host(host).is_some_and(|row| row.power == PowerIntent::On) {
        // It should be on and is: nothing to ask the driver.
        control.power.hosts.remove(host);
    } else if !control.power.is_switching_off(host)
        && control.host(host).is_some_and(|row| row.power != PowerIntent::On)
    {
        control.tables.change::<Host>(host, |row| {
            row.power = PowerIntent::On;
            row.off_since = None;
        });
        let text = format!("{host} was switched on by other hands and is used again");
        control.tables.event(now, Severity::Info, format!("host/{host}"), None, "host-woken", text);
    }
}

impl Control {
    /// How many vms have the right to run on this host, are on their way to it, or are seen on it.
    pub(crate) fn holds_vms(&self, host: &HostId) -> usize {
        let coming = self.migrations().filter(|m| !m.phase.is_over() && (m.to == *host || m.from == *host)).count();
        let strays = self
            .live
            .hosts
            .get(host)
            .and_then(|live| live.vms.as_ref())
            .map_or(0, |vms| vms.values().filter(|seen| seen.state.runs_guest()).count());
        self.vms_on(host).filter(|vm| vm.run == drover_model::intent::RunIntent::Running).count().max(strays) + coming
    }
}
