//! What a replay came to.

use drover_model::{CpuMillis, HostId, MicroMoney, Millis, TimeMs, VmId};
use serde::Serialize;

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    pub span: Millis,
    /// Hosts that are on, waking or falling asleep draw by their power curve.
    pub energy_kwh: f64,
    /// Processor time that vms wanted.
    pub wanted_core_h: f64,
    /// Of it, what their hosts did not have.
    pub missed_core_h: f64,
    pub host_on_h: f64,
    pub moves: Vec<Move>,
    pub wakes: u32,
    pub sleeps: u32,
    pub plans: u32,
    /// Plans that the checker objected to: not carried out. Each is a defect of the planner; the first objection is kept.
    pub plans_unsound: u32,
    pub objection: Option<String>,
    /// Steps that no longer fitted when their turn came.
    pub steps_failed: u32,
    pub bill: Bill,
    /// One per step of the recording.
    pub timeline: Vec<Moment>,
}

/// Millionths of the currency unit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Bill {
    pub energy: MicroMoney,
    /// Core-hours missed.
    pub slowness: MicroMoney,
    /// As predicted, move by move.
    pub moving: MicroMoney,
    /// A power cycle for each wake-up.
    pub wear: MicroMoney,
}

impl Bill {
    pub fn total(&self) -> MicroMoney {
        self.energy + self.slowness + self.moving + self.wear
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Move {
    pub vm: VmId,
    pub from: HostId,
    pub to: HostId,
    pub started: TimeMs,
    pub ended: TimeMs,
    /// It had left `to` this long before it began to come back, within six hours.
    pub returned_after: Option<Millis>,
    /// Completes "because ...".
    pub reason: String,
}

/// One step of the recording, means over it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Moment {
    /// Its beginning.
    pub at: TimeMs,
    pub hosts_on: f64,
    pub wanted: CpuMillis,
    /// Of the hosts that are up.
    pub capacity: CpuMillis,
    pub missed: CpuMillis,
    pub watts: f64,
}

impl Report {
    /// Moves back to a host that the vm had left within six hours.
    pub fn returns(&self) -> usize {
        self.moves.iter().filter(|done| done.returned_after.is_some()).count()
    }
}
