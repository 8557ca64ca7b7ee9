//! The destination's end of a post-copy: the guest runs here, and part of its memory is still at the source.

use super::POLL;
use super::incoming::{ListenPorts, PrepareError, RanAt, listen};
use super::timeline::{Ended, Timeline};
use super::wire::{MigrateInfo, Status};
use crate::machine::Machine;
use crate::qmp::QmpError;
use serde_json::json;
use std::fmt;
use std::net::IpAddr;
use std::time::SystemTime;
use tokio::time::timeout;

/// The guest runs, and waits wherever it touches what has not come.
pub struct Completing {
    machine: Machine,
    timeline: Timeline,
    ran: RanAt,
    /// Listens after a stall, and nobody has come yet.
    waits: bool,
}

/// The connection to the source broke; the memory that came is kept.
pub struct StalledIncoming {
    machine: Machine,
    timeline: Timeline,
    why: String,
}

/// A post-copy that did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum CompletingBroken {
    #[error("the post-copy lost its connection ({}): let both ends connect anew", .0.why)]
    Stalled(StalledIncoming),
    #[error("the destination's QEMU ended in post-copy ({why}): part of the guest's memory is lost, start it anew")]
    Lost { why: String },
}

/// It is stalled as before, and can be tried again.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for the source anew")]
pub struct ListenFailed {
    pub stalled: StalledIncoming,
    #[source]
    pub cause: PrepareError,
}

impl Completing {
    pub(super) fn new(machine: Machine, timeline: Timeline, ran: RanAt) -> Self {
        Self { machine, timeline, ran, waits: false }
    }

    pub fn ran_at(&self) -> RanAt {
        self.ran
    }

    /// Breaks the connection, for a source that is known to be cut off: QEMU itself notices only when the kernel does.
    pub async fn pause(machine: &Machine) -> Result<(), QmpError> {
        machine.qmp().execute("migrate-pause", json!({})).await.map(drop)
    }

    /// Waits until all memory is here. May wait as long as the source is silent: whoever calls bounds it.
    pub async fn wait(mut self) -> Result<(), CompletingBroken> {
        loop {
            match MigrateInfo::query(&self.machine).await {
                Ok(info) => {
                    self.timeline.catch_up();
                    self.waits &= !self.timeline.recovering && info.status == Status::PostcopyPaused;
                    match info.status {
                        Status::Completed | Status::None => return Ok(()),
                        Status::PostcopyPaused if !self.waits => {
                            let why = info.error();
                            let stalled = StalledIncoming::new(self.machine, self.timeline, why);
                            return Err(CompletingBroken::Stalled(stalled));
                        }
                        // After a failure QEMU ends itself.
                        _ => {}
                    }
                }
                Err(QmpError::Closed { why }) => return Err(CompletingBroken::Lost { why }),
                Err(error) => tracing::warn!(%error, "cannot see how the post-copy is doing"),
            }
            if let Ok(Err(Ended)) = timeout(POLL, self.timeline.next()).await {
                return Err(CompletingBroken::Lost { why: "it closed its monitor".to_owned() });
            }
        }
    }
}

impl fmt::Debug for StalledIncoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StalledIncoming").field("why", &self.why).finish_non_exhaustive()
    }
}

impl StalledIncoming {
    pub(super) fn new(machine: Machine, timeline: Timeline, why: String) -> Self {
        Self { machine, timeline, why }
    }

    /// QEMU's words, for people.
    pub fn why(&self) -> &str {
        &self.why
    }

    /// Listens for the source anew, at the port returned. [`Completing::wait`] then says that it stalled only if it
    /// does so again after the source has come.
    pub async fn listen(mut self, address: IpAddr, ports: ListenPorts) -> Result<(u16, Completing), ListenFailed> {
        self.timeline.recovering = false;
        match listen(&self.machine, "migrate-recover", address, ports).await {
            Ok(port) => {
                // When it began to run was told before.
                let ran = RanAt { at: self.timeline.resumed_at.unwrap_or_else(SystemTime::now), exact: false };
                Ok((port, Completing { machine: self.machine, timeline: self.timeline, ran, waits: true }))
            }
            Err(cause) => Err(ListenFailed { stalled: self, cause }),
        }
    }
}
