//! The destination's end.

use super::timeline::{Ended, Timeline};
use super::wire::{MigrateInfo, Status};
use super::{POLL, set_capabilities};
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
    #[error("the guest arrived and stands still ({0}), as it did at the source")]
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
    timeline: Timeline,
    port: u16,
}

/// What a QEMU started with `incoming` is up to, asked by a driver that was away.
pub enum AdoptedIncoming {
    /// Nothing listens yet.
    NotPrepared,
    Waiting(Incoming),
    Ran(RanAt),
    Failed(IncomingFailed),
}

impl Incoming {
    /// Makes a QEMU started with `incoming` listen for one source.
    pub async fn prepare(machine: &Machine, address: IpAddr, ports: ListenPorts) -> Result<Self, PrepareError> {
        match machine.status().await? {
            RunStatus::InMigrate => {}
            other => return Err(PrepareError::NotWaiting(other)),
        }
        let timeline = Timeline::of(machine);
        set_capabilities(machine).await?;
        let port = match ports {
            ListenPorts::Any => {
                listen(machine, address, 0).await?;
                MigrateInfo::query(machine).await?.listen_port().ok_or(PrepareError::PortUnknown)?
            }
            ListenPorts::Range(ports) => listen_in(machine, address, ports).await?,
        };
        Ok(Self { machine: machine.clone(), timeline, port })
    }

    /// Goes on from what QEMU says. A QEMU that has ended has no monitor to ask: whether its guest ran, only the
    /// source's end can then tell.
    pub async fn adopt(machine: &Machine) -> Result<AdoptedIncoming, QmpError> {
        let timeline = Timeline::of(machine);
        let mut incoming = Self { machine: machine.clone(), timeline, port: 0 };
        let info = MigrateInfo::query(machine).await?;
        incoming.port = info.listen_port().unwrap_or(0);
        Ok(match incoming.look().await? {
            Some(Ok(ran)) => AdoptedIncoming::Ran(ran),
            Some(Err(failed)) => AdoptedIncoming::Failed(failed),
            None if info.status == Status::None && incoming.port == 0 => AdoptedIncoming::NotPrepared,
            None => AdoptedIncoming::Waiting(incoming),
        })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Waits until the guest runs here, or never will. May wait as long as the source is silent: whoever calls
    /// bounds it, and ends the process to give up. Dropping it changes nothing in QEMU.
    pub async fn wait(mut self) -> Result<RanAt, IncomingFailed> {
        loop {
            match self.look().await {
                Ok(Some(end)) => return end,
                Ok(None) => {}
                Err(QmpError::Closed { .. }) => return self.ended(),
                Err(error) => tracing::warn!(%error, "cannot see how the incoming migration is doing"),
            }
            if let Ok(Err(Ended)) = timeout(POLL, self.timeline.next()).await {
                return self.ended();
            }
        }
    }

    /// QEMU is gone. It may have run the guest before.
    fn ended(&mut self) -> Result<RanAt, IncomingFailed> {
        self.timeline.catch_up();
        match self.timeline.resumed_at {
            Some(at) => Ok(RanAt { at, exact: true }),
            None if self.timeline.missed_some => Err(IncomingFailed::Unclear),
            None => Err(IncomingFailed::Ended),
        }
    }

    /// `None`: not over yet.
    async fn look(&mut self) -> Result<Option<Result<RanAt, IncomingFailed>>, QmpError> {
        let info = MigrateInfo::query(&self.machine).await?;
        let status = self.machine.status().await?;
        self.timeline.catch_up();
        if let Some(at) = self.timeline.resumed_at {
            return Ok(Some(Ok(RanAt { at, exact: true })));
        }
        Ok(match (status, &info.status) {
            (RunStatus::Running, _) => Some(Ok(RanAt { at: SystemTime::now(), exact: false })),
            // Newer versions can be told to stay after a failure.
            (_, Status::Failed) => Some(Err(IncomingFailed::Stream { desc: info.error() })),
            (RunStatus::InMigrate, _) => None,
            (other, Status::Completed) => Some(Err(IncomingFailed::StandsStill(other))),
            _ => None,
        })
    }
}

async fn listen(machine: &Machine, address: IpAddr, port: u16) -> Result<(), QmpError> {
    let uri = migration_uri(address, port);
    machine.qmp().execute("migrate-incoming", json!({ "uri": uri })).await.map(drop)
}

/// QEMU takes another `migrate-incoming` after one that it could not listen on.
async fn listen_in(machine: &Machine, address: IpAddr, ports: RangeInclusive<u16>) -> Result<u16, PrepareError> {
    let mut refused =
        QmpError::Protocol { command: "migrate-incoming".to_owned(), problem: "the range is empty".to_owned() };
    for port in ports.clone().take(PORTS_TRIED_MAX) {
        match listen(machine, address, port).await {
            Ok(()) => return Ok(port),
            Err(error @ QmpError::Command { .. }) => refused = error,
            Err(error) => return Err(error.into()),
        }
    }
    Err(PrepareError::NoFreePort { address, ports, source: refused })
}
