//! When the guest stopped, ran again and was sent, from QEMU's events. Events give moments only;
//! what state QEMU is in is always asked.

use crate::machine::Machine;
use crate::qmp::QmpEvent;
use std::time::SystemTime;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

pub(super) struct Timeline {
    events: Receiver<QmpEvent>,
    pub stopped_at: Option<SystemTime>,
    pub resumed_at: Option<SystemTime>,
    pub completed_at: Option<SystemTime>,
    /// There were more events than are kept: a moment that is missing may have been.
    pub missed_some: bool,
}

/// QEMU closed its monitor.
pub(super) struct Ended;

impl Timeline {
    pub fn of(machine: &Machine) -> Self {
        Self { events: machine.events(), stopped_at: None, resumed_at: None, completed_at: None, missed_some: false }
    }

    /// Waits for an event worth looking closer for. Missed events are such, too.
    pub async fn next(&mut self) -> Result<(), Ended> {
        loop {
            match self.events.recv().await {
                Ok(event) if self.note(&event) => return Ok(()),
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => {
                    self.missed_some = true;
                    return Ok(());
                }
                Err(RecvError::Closed) => return Err(Ended),
            }
        }
    }

    /// Takes in what has arrived. An answer from QEMU means that all events before it have.
    pub fn catch_up(&mut self) {
        loop {
            match self.events.try_recv() {
                Ok(event) => {
                    self.note(&event);
                }
                Err(TryRecvError::Lagged(_)) => self.missed_some = true,
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }

    fn note(&mut self, event: &QmpEvent) -> bool {
        match event.name.as_str() {
            "STOP" => self.stopped_at = Some(event.at),
            "RESUME" => self.resumed_at = Some(event.at),
            "MIGRATION" if event.data["status"] == "completed" => self.completed_at = Some(event.at),
            "MIGRATION" | "MIGRATION_PASS" => {}
            _ => return false,
        }
        true
    }
}
