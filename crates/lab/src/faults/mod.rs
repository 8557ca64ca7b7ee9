//! Who dies in which phase of a migration, and what has to be so afterwards: the vm runs exactly once, soon, with its
//! memory, and nothing is left over.
//!
//! ```text
//!  the vm runs ─▶ migrate ─▶ phase reached and held open ─▶ fault ─▶ hold let go ─▶ what died comes back ─▶ settled ─▶ judged
//!                            [hold]                         [strike]                [strike]                 [cell]
//!                └────────────────────── watched throughout: ticks, and who executes the guest [watch] ──────────────────┘
//! ```
//!
//! A phase is not raced for but held open: a process whose next word is awaited stands still (SIGSTOP), and what is sent
//! to it waits in its socket; see [`hold`].

mod cell;
mod hold;
mod strike;
mod watch;

pub use cell::{CellReport, Memory, Outcome, run_cell};

use crate::config::HostSize;
use crate::probe::GuestLoad;
use crate::vms::NewVm;
use anyhow::{Result, bail};
use serde::{Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// What is hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Victim {
    SourceQemu,
    DestinationQemu,
    SourceAgent,
    DestinationAgent,
    Server,
    /// The path that the migration takes. Both hosts still reach the server.
    Link,
    SourceHost,
    DestinationHost,
}

/// When it is hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The destination's qemu is there, and its agent has not yet said where it listens.
    Reserve,
    PreCopy,
    /// The guest runs at the destination, and part of its memory is still at the source.
    PostCopy,
    /// The guest stands still at the source, and the server has not committed.
    SwitchOver,
    /// The server has committed, and the source has not heard of it.
    Commit,
    /// The destination runs the whole guest, the source has let it go and still holds its memory; the server has
    /// heard of neither.
    Release,
}

impl Victim {
    pub const ALL: [Self; 8] = [
        Self::SourceQemu,
        Self::DestinationQemu,
        Self::SourceAgent,
        Self::DestinationAgent,
        Self::Server,
        Self::Link,
        Self::SourceHost,
        Self::DestinationHost,
    ];

    pub fn word(self) -> &'static str {
        match self {
            Self::SourceQemu => "source-qemu",
            Self::DestinationQemu => "destination-qemu",
            Self::SourceAgent => "source-agent",
            Self::DestinationAgent => "destination-agent",
            Self::Server => "server",
            Self::Link => "link",
            Self::SourceHost => "source-host",
            Self::DestinationHost => "destination-host",
        }
    }
}

impl Phase {
    pub const ALL: [Self; 6] =
        [Self::Reserve, Self::PreCopy, Self::PostCopy, Self::SwitchOver, Self::Commit, Self::Release];

    pub fn word(self) -> &'static str {
        match self {
            Self::Reserve => "reserve",
            Self::PreCopy => "pre-copy",
            Self::PostCopy => "post-copy",
            Self::SwitchOver => "switch-over",
            Self::Commit => "commit",
            Self::Release => "release",
        }
    }
}

/// What is hit in one phase; written `victim/phase`, or `victim+victim/phase` when several are hit at once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell {
    pub victims: Vec<Victim>,
    pub phase: Phase,
}

impl Cell {
    /// The whole matrix of single victims, phase by phase.
    pub fn all() -> Vec<Self> {
        let row = |phase| Victim::ALL.map(|victim| Self { victims: vec![victim], phase });
        Phase::ALL.into_iter().flat_map(row).collect()
    }

    /// Whether the only place that had the whole memory, or part of it alone, is among what dies.
    pub fn loses_memory(&self) -> bool {
        self.victims.iter().any(|victim| {
            let (source, destination) = match victim {
                Victim::SourceQemu | Victim::SourceHost => (true, false),
                Victim::DestinationQemu | Victim::DestinationHost => (false, true),
                Victim::SourceAgent | Victim::DestinationAgent | Victim::Server | Victim::Link => (false, false),
            };
            match self.phase {
                Phase::Reserve | Phase::PreCopy | Phase::SwitchOver | Phase::Commit => source,
                Phase::PostCopy => source || destination,
                Phase::Release => destination,
            }
        })
    }

    /// Whether the vm can't run before what was hit is back: it alone has the right to run it, it alone may let
    /// it go on, it has to prove that it did not run it, or what is missing has to come that way. Then the time until the
    /// vm runs counts from there.
    pub fn needs_return(&self) -> bool {
        self.victims.iter().any(|victim| match victim {
            Victim::SourceQemu | Victim::DestinationQemu | Victim::Server => false,
            Victim::SourceAgent => matches!(self.phase, Phase::SwitchOver | Phase::Commit),
            Victim::DestinationAgent => self.phase == Phase::Commit,
            Victim::Link => matches!(self.phase, Phase::SwitchOver | Phase::Commit | Phase::PostCopy),
            Victim::SourceHost => self.phase != Phase::Release,
            Victim::DestinationHost => matches!(self.phase, Phase::Commit | Phase::PostCopy | Phase::Release),
        })
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let victims: Vec<&str> = self.victims.iter().map(|victim| victim.word()).collect();
        f.pad(&format!("{}/{}", victims.join("+"), self.phase.word()))
    }
}

impl FromStr for Cell {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = text.split_once('/').and_then(|(victims, phase)| {
            let named = |word: &str| Victim::ALL.into_iter().find(|victim| victim.word() == word);
            let victims = victims.split('+').map(named).collect::<Option<Vec<_>>>()?;
            let phase = Phase::ALL.into_iter().find(|known| known.word() == phase)?;
            Some(Self { victims, phase })
        });
        match parsed {
            Some(cell) => Ok(cell),
            None => {
                let victims = Victim::ALL.map(Victim::word).join(", ");
                let phases = Phase::ALL.map(Phase::word).join(", ");
                bail!(
                    "{text:?} is no cell: write VICTIM/PHASE or VICTIM+VICTIM/PHASE, with victims of {victims}, and a \
                     phase of {phases}"
                )
            }
        }
    }
}

impl Serialize for Cell {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The hosts that cells need: one to leave, one to go to.
pub const HOSTS: [HostSize; 2] = [HostSize { cpu_millis: 800, memory_mib: 512 }; 2];
pub const TENANT: &str = "acme";

/// The vm that cells move: some 80 MiB in use, of which it rewrites and verifies 32.
pub fn vm(name: &str, number: u8) -> NewVm {
    NewVm { load: CALM, working_set_mib: 32, memory_mib: 128, ..NewVm::small(TENANT, name, number) }
}

/// Little enough to be copied, enough to be seen executing.
const CALM: GuestLoad = GuestLoad { cpu_percent: 5, dirty_mib_s: 1 };
/// So that all of the working set is left for the post-copy.
const BUSY: GuestLoad = GuestLoad { cpu_percent: 5, dirty_mib_s: 48 };

/// Looks until it is so. What was still missing at the last look is the error.
async fn until(limit: Duration, every: Duration, mut look: impl AsyncFnMut() -> Result<(), String>) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        match look().await {
            Ok(()) => return Ok(()),
            Err(missing) if Instant::now() > deadline => bail!("after {} s: {missing}", limit.as_secs()),
            Err(_) => tokio::time::sleep(every).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_matrix_is_every_victim_in_every_phase_and_each_cell_is_found_by_its_name() {
        let all = Cell::all();
        assert_eq!(all.len(), 48);
        for cell in all {
            assert_eq!(cell.to_string().parse::<Cell>().unwrap(), cell);
        }
        let both: Cell = "server+source-agent/commit".parse().unwrap();
        assert_eq!((both.victims.len(), both.to_string().as_str()), (2, "server+source-agent/commit"));
        let error = "server/lunch".parse::<Cell>().unwrap_err().to_string();
        assert!(error.contains("post-copy, switch-over"), "{error}");
    }

    #[test]
    fn memory_is_lost_only_with_the_last_place_that_has_it() {
        let lost: Vec<String> =
            Cell::all().into_iter().filter(|cell| cell.loses_memory()).map(|cell| cell.to_string()).collect();
        assert_eq!(lost.len(), 14, "{lost:?}");
        assert!(lost.contains(&"destination-host/release".to_owned()));
        assert!(!lost.contains(&"source-host/release".to_owned()));
        assert!(!lost.iter().any(|cell| cell.contains("agent") || cell.contains("link")));
    }
}
