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

use crate::Control;
use drover_model::event::Severity;
use drover_model::intent::PowerIntent;
use drover_model::world::HostState;
use drover_model::{HostId, Millis, TimeMs};

/// A host is never suspected sooner: three reports missed.
const SUSPECT_AFTER: Millis = Millis(3_500);
/// Nor called down sooner.
const DOWN_AFTER: Millis = Millis(12_000);
/// After the server's start, how long a host may take to say its first word.
const FIRST_WORD_WITHIN: Millis = Millis(20_000);
/// With more than this share of hosts silent at once the fault is probably ours.
const BRAKE_ABOVE: f64 = 0.5;

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

    /// How long it has been silent, and how long it may be before it is suspected.
    fn silence(&self, now: TimeMs) -> Option<(Millis, Millis)> {
        let allowed = Millis((self.mean_ms + Self::DEVIATIONS * self.deviation_ms) as u64);
        self.last.map(|last| (now.since(last), allowed.max(SUSPECT_AFTER).min(DOWN_AFTER)))
    }
}

/// Brings every host's state up to date and tells of the changes.
pub fn turn(control: &mut Control, now: TimeMs) {
    let hosts: Vec<HostId> = control.tables.hosts.keys().cloned().collect();
    for host in &hosts {
        let next = state_of(control, now, host);
        let live = control.live.host(host, now);
        if live.state == next {
            continue;
        }
        let before = std::mem::replace(&mut live.state, next);
        live.since = now;
        if matches!(next, HostState::Down | HostState::Asleep) {
            live.load.clear();
        }
        tell(control, now, host, before, next);
    }
    apply_brake(control, now, &hosts);
}

fn state_of(control: &mut Control, now: TimeMs, host: &HostId) -> HostState {
    let intent = control.tables.get::<drover_model::intent::Host>(host).map_or(PowerIntent::On, |h| h.power);
    let waking = control.power.is_waking(host);
    let switching_off = control.power.is_switching_off(host);
    let started_at = control.started_at;
    let live = control.live.host(host, now);
    let connected = live.connection.is_some();
    match intent {
        PowerIntent::Asleep | PowerIntent::Off if connected || switching_off => HostState::FallingAsleep,
        PowerIntent::Asleep | PowerIntent::Off => HostState::Asleep,
        PowerIntent::On => match live.heartbeat.silence(now) {
            // A closed connection alone proves little: an agent that is upgraded is back within the second.
            Some((silent, allowed)) if silent < allowed && (connected || live.state == HostState::Up) => HostState::Up,
            _ if waking => HostState::Waking,
            Some((silent, _)) if silent < DOWN_AFTER => HostState::Suspect,
            None if now.since(started_at) < FIRST_WORD_WITHIN => HostState::Unknown,
            Some(_) | None => HostState::Down,
        },
    }
}

fn tell(control: &mut Control, now: TimeMs, host: &HostId, before: HostState, next: HostState) {
    let vms = control.vms_on(host).count();
    let (severity, kind, text) = match next {
        HostState::Up if before == HostState::Unknown => (Severity::Info, "host-up", format!("{host} is up")),
        HostState::Up => (Severity::Info, "host-up", format!("{host} is up again")),
        HostState::Suspect => {
            (Severity::Warning, "host-suspect", format!("{host} has gone quiet; nothing new is placed on it"))
        }
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
    let mut silent = 0;
    let mut expected = 0;
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
    let brake = silent >= 2 && f64::from(silent) > BRAKE_ABOVE * f64::from(expected);
    if brake != control.brake {
        control.brake = brake;
        let (severity, kind, text) = if brake {
            (
                Severity::Escalation,
                "brake-on",
                format!(
                    "{silent} of {expected} hosts went quiet at once: the fault is probably on the server's side of \
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
mod tests {
    use super::*;

    #[test]
    fn a_regular_heartbeat_is_suspected_after_three_misses_and_an_irregular_one_later() {
        let mut regular = Heartbeat::default();
        for n in 0..50 {
            regular.arrived(TimeMs(n * 1000));
        }
        let (silent, allowed) = regular.silence(TimeMs(49_000 + 2_000)).unwrap();
        assert_eq!((silent, allowed), (Millis(2_000), SUSPECT_AFTER));

        let mut irregular = Heartbeat::default();
        let mut at = 0;
        for n in 0..50 {
            at += if n % 2 == 0 { 300 } else { 2_700 };
            irregular.arrived(TimeMs(at));
        }
        let (_, allowed) = irregular.silence(TimeMs(at)).unwrap();
        assert!(allowed > SUSPECT_AFTER && allowed <= DOWN_AFTER, "{allowed}");
    }
}
