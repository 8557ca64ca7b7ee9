//! Who is alive.
//!
//! ```text
//!  Unknown ──first word──▶ Up ──late──▶ Suspect ──silent──▶ Down
//!     │                    ▲              │                  │
//!     └──silent──▶ Down    └──── heard again, any time ──────┘
//!
//!  with the power intent Asleep or Off:  Up ──▶ FallingAsleep ──connection gone, driver done──▶ Asleep ──▶ Waking ──▶ Up
//! ```
//!
//! Suspicion is by accrual over the intervals between heartbeats, in the manner of Hayashibara et
//! al., "The phi accrual failure detector" (SRDS 2004), with an exponentially weighted mean and deviation in
//! place of a window. A silent host is noticed, reported and never used; nothing here starts its vms elsewhere.

use crate::{Control, Waits};
use drover_model::event::Severity;
use drover_model::intent::PowerIntent;
use drover_model::world::HostState;
use drover_model::{HostId, Millis, TimeMs};

/// Inter-arrival statistics of one host's heartbeats.
#[derive(Debug, Clone, Default)]
pub struct Heartbeat {
    last: Option<TimeMs>,
    mean_ms: f64,
    deviation_ms: f64,
}

impl Heartbeat {
    /// Weight of the newest interval.
    const ALPHA: f64 = 0.1;
    /// How many deviations late is suspicious.
    const DEVIATIONS: f64 = 8.0;

    pub fn arrived(&mut self, now: TimeMs) {
        if let Some(last) = self.last {
            let interval = now.since(last).0 as f64;
            if self.mean_ms == 0.0 {
                self.mean_ms = interval;
                self.deviation_ms = interval / 2.0;
            } else {
                let off = interval - self.mean_ms;
                self.mean_ms += Self::ALPHA * off;
                self.deviation_ms += Self::ALPHA * (off.abs() - self.deviation_ms);
            }
        }
        self.last = Some(now);
    }

    /// Nobody listened for so long: the time does not count as silence.
    fn excuse(&mut self, now: TimeMs, unattended: Millis) {
        self.last = self.last.map(|last| last.plus(unattended).min(now));
    }

    /// How long it has been silent, and how long it may be before it is suspected.
    fn silence(&self, now: TimeMs, waits: &Waits) -> Option<(Millis, Millis)> {
        let allowed = Millis((self.mean_ms + Self::DEVIATIONS * self.deviation_ms) as u64);
        self.last.map(|last| (now.since(last), allowed.max(waits.suspect_after).min(waits.down_after)))
    }
}

/// The server itself stood still for so long.
pub fn excuse(control: &mut Control, now: TimeMs, unattended: Millis) {
    let hosts: Vec<HostId> = control.live.hosts.keys().cloned().collect();
    for host in hosts {
        control.live.host(&host, now).heartbeat.excuse(now, unattended);
    }
    control.first_messages_from = control.first_messages_from.plus(unattended).min(now);
}

/// The host's agent has connected.
pub fn connected(control: &mut Control, now: TimeMs, host: &HostId) {
    if control.host(host).is_some() {
        judge(control, now, host);
    }
}

/// Brings every host's state up to date and tells of the changes.
pub fn turn(control: &mut Control, now: TimeMs) {
    let hosts: Vec<HostId> = control.tables.hosts.keys().cloned().collect();
    for host in &hosts {
        judge(control, now, host);
    }
    apply_brake(control, now, &hosts);
}

fn judge(control: &mut Control, now: TimeMs, host: &HostId) {
    let next = state_of(control, now, host);
    let live = control.live.host(host, now);
    if live.state == next {
        return;
    }
    let before = std::mem::replace(&mut live.state, next);
    live.since = now;
    if matches!(next, HostState::Down | HostState::Asleep) {
        live.load.clear();
    }
    control.look_at_vms_of(host);
    tell(control, now, host, before, next);
}

fn state_of(control: &mut Control, now: TimeMs, host: &HostId) -> HostState {
    let intent = control.tables.get::<drover_model::intent::Host>(host).map_or(PowerIntent::On, |h| h.power);
    let waking = control.power.is_waking(host);
    let switching_off = control.power.is_switching_off(host);
    let waits = control.settings.waits;
    let first_messages_from = control.first_messages_from;
    let live = control.live.host(host, now);
    let connected = live.connection.is_some();
    match intent {
        PowerIntent::Asleep | PowerIntent::Off if connected || switching_off => HostState::FallingAsleep,
        PowerIntent::Asleep | PowerIntent::Off => HostState::Asleep,
        PowerIntent::On => match live.heartbeat.silence(now, &waits) {
            // A closed connection alone proves little: an agent that is upgraded is back within the second.
            Some((silent, allowed)) if silent < allowed && (connected || live.state == HostState::Up) => HostState::Up,
            _ if waking => HostState::Waking,
            Some((silent, _)) if silent < waits.down_after => HostState::Suspect,
            None if now.since(first_messages_from) < waits.first_message_within => HostState::Unknown,
            Some(_) | None => HostState::Down,
        },
    }
}

fn tell(control: &mut Control, now: TimeMs, host: &HostId, before: HostState, next: HostState) {
    let vms = control.vms_on(host).count();
    let silent =
        control.live.hosts.get(host).and_then(|live| live.heartbeat.last).map_or(Millis::ZERO, |at| now.since(at));
    let (severity, kind, text) = match next {
        HostState::Up if before == HostState::Unknown => (Severity::Info, "host-up", format!("{host} is up")),
        HostState::Up => (Severity::Info, "host-up", format!("{host} is up again")),
        HostState::Suspect => (
            Severity::Warning,
            "host-suspect",
            format!("{host}: no heartbeat for {silent}; no vms are placed on it until it answers"),
        ),
        HostState::Down => (
            Severity::Escalation,
            "host-down",
            format!(
                "{host} is silent and is not used; {vms} vms on it are in an unknown state and are not started \
                 elsewhere. Check its power, its network and its agent (`systemctl status drover-agent`)"
            ),
        ),
        HostState::Asleep => (Severity::Info, "host-asleep", format!("{host} is powered off")),
        HostState::FallingAsleep => (Severity::Info, "host-falling-asleep", format!("{host} is being powered off")),
        HostState::Waking => (Severity::Info, "host-waking", format!("{host} is being powered on")),
        HostState::Unknown => return,
    };
    control.tables.event(now, severity, format!("host/{host}"), None, kind, text);
}

/// A cluster-wide brake: when most hosts look dead at once, stop, report, escalate.
fn apply_brake(control: &mut Control, now: TimeMs, hosts: &[HostId]) {
    let (mut silent, mut expected): (u32, u32) = (0, 0);
    for host in hosts {
        match control.live.state(host) {
            HostState::Suspect | HostState::Down => {
                silent += 1;
                expected += 1;
            }
            HostState::Up => expected += 1,
            HostState::Unknown | HostState::Asleep | HostState::Waking | HostState::FallingAsleep => {}
        }
    }
    let brake = silent >= 2 && silent * 100 > control.settings.waits.brake_above_percent * expected;
    if brake != control.brake {
        control.brake = brake;
        let (severity, kind, text) = if brake {
            (
                Severity::Escalation,
                "brake-on",
                format!(
                    "{silent} of {expected} hosts are silent at once: the fault is probably on the server's side of \
                     the network, so nothing is moved until most answer again. Check the server's own links"
                ),
            )
        } else {
            (Severity::Info, "brake-off", "most hosts answer again; the loops go on".to_owned())
        };
        control.tables.event(now, severity, "cluster", None, kind, text);
    }
}

#[cfg(test)]
mod tests;
