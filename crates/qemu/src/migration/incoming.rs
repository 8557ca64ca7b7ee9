//! The destination's end.

use super::POLL;
use super::completing::{Completing, StalledIncoming};
use super::strategy::{Method, Strategy};
use super::timeline::{Ended, Timeline};
use super::wire::{MigrateInfo, Status};
use crate::command_line::migration_uri;
use crate::machine::{Machine, RunStatus};
use crate::qmp::QmpError;
use serde_json::json;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::SystemTime;
use tokio::time::timeout;

/// Ports of a range that are tried before giving up.
const PORTS_TRIED_MAX: usize = 64;

/// Which ports a destination may listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenPorts {
    /// Any the kernel finds free.
    Any,
    /// For hosts whose firewall opens a range; the first free one is taken, of at most 64.
    Range(RangeInclusive<u16>),
}

#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    #[error("QEMU is {0}, not waiting for a migration: start it with `incoming`")]
    NotWaiting(RunStatus),
    #[error("no port of {} to {} can be listened on at {address}: widen the range, or check the address", ports.start(), ports.end())]
    NoFreePort { address: IpAddr, ports: RangeInclusive<u16>, source: QmpError },
    #[error("QEMU listens and does not say on which port: give a range of ports")]
    PortUnknown,
    #[error(transparent)]
    Monitor(#[from] QmpError),
}

/// The guest runs here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RanAt {
    pub at: SystemTime,
    /// Whether `at` is from QEMU's event; else it is when the guest was first seen running.
    pub exact: bool,
}

/// The guest does not run here.
#[derive(Debug, thiserror::Error)]
pub enum IncomingFailed {
    #[error(
        "the destination's QEMU ended before the guest ran: the source broke off or the stream did not fit, its log says which"
    )]
    Ended,
    #[error("the stream broke: {desc}")]
    Stream { desc: String },
    #[error("the destination's QEMU ended, and whether the guest ran before is not known: treat it as one that ran")]
    Unclear,
    #[error("the whole guest arrived and stands still ({0}), as it did at the source")]
    StandsStill(RunStatus),
}

impl IncomingFailed {
    /// Whether it is certain that the guest never ran here and never will: one half of what taking it back needs.
    pub fn never_ran(&self) -> bool {
        match self {
            Self::Ended | Self::Stream { .. } => true,
            Self::Unclear | Self::StandsStill(_) => false,
        }
    }
}

/// A destination that listens or receives.
pub struct Incoming {
    machine: Machine,
    method: Method,
    timeline: Timeline,
    port: u16,
}

/// The guest runs here.
#[must_use]
pub enum Arrived {
    Ran(RanAt),
    /// It ran here, and part of its memory is still at the source.
    Completing(Completing),
}

/// What a QEMU started with `incoming` is up to, asked by a driver that was away.
pub enum AdoptedIncoming {
    /// Nothing listens yet.
    NotPrepared,
    Waiting(Incoming),
    Completing(Completing),
    Stalled(StalledIncoming),
    Ran(RanAt),
    Failed(IncomingFailed),
}

impl Incoming {
    /// Makes a QEMU started with `incoming` listen for one source.
    pub async fn prepare(
        machine: &Machine,
        address: IpAddr,
        ports: ListenPorts,
        strategy: &Strategy,
    ) -> Result<Self, PrepareError> {
        match machine.status().await? {
            RunStatus::InMigrate => {}
            other => return Err(PrepareError::NotWaiting(other)),
        }
        let timeline = Timeline::of(machine);
        strategy.set_up_destination(machine).await?;
        let port = listen(machine, "migrate-incoming", address, ports).await?;
        Ok(Self { machine: machine.clone(), method: strategy.method, timeline, port })
    }

    /// Goes on from what QEMU says. A QEMU that has ended has no monitor to ask: whether its guest ran, only the
    /// source's end can then tell. `strategy` is the one that it was prepared with.
    pub async fn adopt(machine: &Machine, strategy: &Strategy) -> Result<AdoptedIncoming, QmpError> {
        let timeline = Timeline::of(machine);
        let mut incoming = Self { machine: machine.clone(), method: strategy.method, timeline, port: 0 };
        let info = MigrateInfo::query(machine).await?;
        incoming.port = info.listen_port().unwrap_or(0);
        Ok(match incoming.look().await? {
            Look::Ran(ran) => AdoptedIncoming::Ran(ran),
            Look::Completing(_) if info.status == Status::PostcopyPaused => {
                AdoptedIncoming::Stalled(StalledIncoming::new(machine.clone(), incoming.timeline, info.error()))
            }
            Look::Completing(ran) => {
                AdoptedIncoming::Completing(Completing::new(machine.clone(), incoming.timeline, ran))
            }
            Look::Failed(failed) => AdoptedIncoming::Failed(failed),
            Look::NotOver if info.status == Status::None && incoming.port == 0 => AdoptedIncoming::NotPrepared,
            Look::NotOver => AdoptedIncoming::Waiting(incoming),
        })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Waits until the guest runs here, or never will. May wait as long as the source is silent: whoever calls
    /// bounds it, and ends the process to give up. Dropping it changes nothing in QEMU.
    pub async fn wait(mut self) -> Result<Arrived, IncomingFailed> {
        loop {
            match self.look().await {
                Ok(Look::NotOver) => {}
                Ok(Look::Ran(ran)) => return Ok(Arrived::Ran(ran)),
                Ok(Look::Completing(ran)) => {
                    return Ok(Arrived::Completing(Completing::new(self.machine, self.timeline, ran)));
                }
                // Stop-and-copy stopped it at the source. That it is whole here says that this was committed.
                Ok(Look::Failed(IncomingFailed::StandsStill(RunStatus::Paused)))
                    if self.method == Method::StopAndCopy =>
                {
                    if let Err(error) = self.machine.cont().await {
                        tracing::warn!(%error, "the guest that arrived does not run yet");
                    } else {
                        continue;
                    }
                }
                Ok(Look::Failed(failed)) => return Err(failed),
                Err(QmpError::Closed { .. }) => return self.ended(),
                Err(error) => tracing::warn!(%error, "cannot see how the incoming migration is doing"),
            }
            if let Ok(Err(Ended)) = timeout(POLL, self.timeline.next()).await {
                return self.ended();
            }
        }
    }

    /// QEMU is gone. It may have run the guest before.
    fn ended(mut self) -> Result<Arrived, IncomingFailed> {
        self.timeline.catch_up();
        match self.timeline.resumed_at {
            Some(at) => {
                let ran = RanAt { at, exact: true };
                Ok(match self.method {
                    Method::PreCopy | Method::StopAndCopy => Arrived::Ran(ran),
                    // Which it says at once to be lost.
                    Method::PostCopy => Arrived::Completing(Completing::new(self.machine, self.timeline, ran)),
                })
            }
            None if self.timeline.missed_some => Err(IncomingFailed::Unclear),
            None => Err(IncomingFailed::Ended),
        }
    }

    async fn look(&mut self) -> Result<Look, QmpError> {
        // In this order: of a guest that runs, the phase is then known to be of that time or later.
        let status = self.machine.status().await?;
        let info = MigrateInfo::query(&self.machine).await?;
        self.timeline.catch_up();
        let ran = match (self.timeline.resumed_at, &status) {
            (Some(at), _) => Some(RanAt { at, exact: true }),
            (None, RunStatus::Running) => Some(RanAt { at: SystemTime::now(), exact: false }),
            (None, _) => None,
        };
        if let Some(ran) = ran {
            return Ok(match (self.method, &info.status) {
                (Method::PreCopy | Method::StopAndCopy, _) | (Method::PostCopy, Status::Completed | Status::None) => {
                    Look::Ran(ran)
                }
                (Method::PostCopy, Status::PostcopyActive | Status::PostcopyPaused | Status::PostcopyRecover) => {
                    Look::Completing(ran)
                }
                // It began to run between the two answers.
                (Method::PostCopy, _) => Look::NotOver,
            });
        }
        Ok(match (status, &info.status) {
            // Newer versions can be told to stay after a failure.
            (_, Status::Failed) => Look::Failed(IncomingFailed::Stream { desc: info.error() }),
            (RunStatus::InMigrate, _) => Look::NotOver,
            (other, Status::Completed) => Look::Failed(IncomingFailed::StandsStill(other)),
            _ => Look::NotOver,
        })
    }
}

/// What one look at the destination shows.
enum Look {
    NotOver,
    Ran(RanAt),
    Completing(RanAt),
    Failed(IncomingFailed),
}

/// Listens by `migrate-incoming`, or `migrate-recover`, and returns the port.
pub(super) async fn listen(
    machine: &Machine,
    command: &str,
    address: IpAddr,
    ports: ListenPorts,
) -> Result<u16, PrepareError> {
    match ports {
        ListenPorts::Any => {
            listen_at(machine, command, address, 0).await?;
            MigrateInfo::query(machine).await?.listen_port().ok_or(PrepareError::PortUnknown)
        }
        ListenPorts::Range(ports) => listen_in(machine, command, address, ports).await,
    }
}

async fn listen_at(machine: &Machine, command: &str, address: IpAddr, port: u16) -> Result<(), QmpError> {
    let uri = migration_uri(address, port);
    machine.qmp().execute(command, json!({ "uri": uri })).await.map(drop)
}

/// QEMU takes another command to listen after one that it could not carry out.
async fn listen_in(
    machine: &Machine,
    command: &str,
    address: IpAddr,
    ports: RangeInclusive<u16>,
) -> Result<u16, PrepareError> {
    let mut refused = QmpError::Protocol { command: command.to_owned(), problem: "the range is empty".to_owned() };
    for port in ports.clone().take(PORTS_TRIED_MAX) {
        match listen_at(machine, command, address, port).await {
            Ok(()) => return Ok(port),
            Err(error @ QmpError::Command { .. }) => refused = error,
            Err(error) => return Err(error.into()),
        }
    }
    Err(PrepareError::NoFreePort { address, ports, source: refused })
}
