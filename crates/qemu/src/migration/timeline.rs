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
    /// QEMU waits for the commit since then.
    pub paused_at: Option<SystemTime>,
    pub resumed_at: Option<SystemTime>,
    pub post_copy_at: Option<SystemTime>,
    pub completed_at: Option<SystemTime>,
    /// The other end of a stalled post-copy was met again.
    pub recovering: bool,
    /// Something was noted while nobody waited: a look that began before it may not have seen it.
    noted: bool,
    /// There were more events than are kept: a moment that is missing may have been.
    pub missed_some: bool,
}

/// QEMU closed its monitor.
pub(super) struct Ended;

impl Timeline {
    pub fn of(machine: &Machine) -> Self {
        Self {
            events: machine.events(),
            stopped_at: None,
            paused_at: None,
            resumed_at: None,
            post_copy_at: None,
            completed_at: None,
            recovering: false,
            noted: false,
            missed_some: false,
        }
    }

    /// Waits for an event worth looking closer for. Missed events are such, too.
    pub async fn next(&mut self) -> Result<(), Ended> {
        if std::mem::take(&mut self.noted) {
            return Ok(());
        }
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
                Ok(event) => self.noted |= self.note(&event),
                Err(TryRecvError::Lagged(_)) => self.missed_some = true,
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }

    fn note(&mut self, event: &QmpEvent) -> bool {
        let moment = match event.name.as_str() {
            "STOP" => &mut self.stopped_at,
            "RESUME" => &mut self.resumed_at,
            "MIGRATION" => match event.data["status"].as_str() {
                Some("pre-switchover") => &mut self.paused_at,
                // Recovery passes through it again.
                Some("postcopy-active") if self.post_copy_at.is_none() => &mut self.post_copy_at,
                Some("completed") => &mut self.completed_at,
                Some("postcopy-recover") => {
                    self.recovering = true;
                    return true;
                }
                _ => return true,
            },
            "MIGRATION_PASS" => return true,
            _ => return false,
        };
        *moment = Some(event.at);
        true
    }
}
