//! Virtual time: what will happen, in order. Nothing here waits; the clock jumps to the next happening.

use crate::faults::Fault;
use crate::hosts::DriverFailure;
use drover_control::interface::{ConnectionId, PowerOp};
use drover_model::{HostId, MigrationId, TimeMs, VmId};
use std::collections::BTreeMap;

/// More than this outstanding means that something schedules without end.
pub const HAPPENINGS_MAX: usize = 100_000;

/// Where the virtual clock starts.
pub const EPOCH: TimeMs = TimeMs(1_750_000_000_000);

#[derive(Debug, Clone)]
pub enum Happening {
    /// The server's clock ticks, in this run of it.
    Tick {
        run: u64,
    },
    ServerStarts,
    /// The store is tried again after a failed commit.
    StoreRetried {
        run: u64,
    },
    /// The oldest message under way on this connection arrives.
    ToServer {
        connection: ConnectionId,
    },
    ToAgent {
        connection: ConnectionId,
    },
    /// One end finds out that the connection is gone.
    ServerNotices {
        connection: ConnectionId,
    },
    AgentNotices {
        connection: ConnectionId,
    },
    AgentDials {
        host: HostId,
        run: u64,
    },
    AgentReports {
        host: HostId,
        run: u64,
    },
    AgentStarts {
        host: HostId,
    },
    HostStarts {
        host: HostId,
    },
    /// The network between this host and the server heals.
    HostReachable {
        host: HostId,
    },
    /// A source has waited for the commit as long as it may, or has copied for as long as it may.
    CommitWaitOver {
        host: HostId,
        run: u64,
        vm: VmId,
        migration: MigrationId,
    },
    CopyTooLong {
        host: HostId,
        run: u64,
        vm: VmId,
        migration: MigrationId,
    },
    StopGraceOver {
        host: HostId,
        run: u64,
        vm: VmId,
        pid: u32,
    },
    Qemu {
        host: HostId,
        vm: VmId,
        pid: u32,
        step: QemuStep,
    },
    PowerDriver {
        run: u64,
        host: HostId,
        op: PowerOp,
        fails: Option<DriverFailure>,
    },
    Fault(Fault),
    Operator,
}

/// What a qemu process does by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QemuStep {
    /// The guest has booted.
    Started,
    /// Half a second of pre-copy has passed.
    Copied {
        migration: MigrationId,
    },
    /// The last byte leaves the source.
    LastByte {
        migration: MigrationId,
    },
    /// The destination has loaded everything and lets the guest run.
    Resumed,
    /// Post-copy begins: the destination has what it needs to run.
    PostCopyStarts {
        migration: MigrationId,
    },
    /// Half a second of post-copy has passed.
    PagesCame {
        migration: MigrationId,
    },
    /// A stalled post-copy tries to connect anew.
    Reconnected {
        migration: MigrationId,
    },
    /// The stream ended early, as this side sees it.
    StreamBroken {
        migration: MigrationId,
    },
    PoweredDown,
}

#[derive(Debug)]
pub struct Schedule {
    pub now: TimeMs,
    next: u64,
    queue: BTreeMap<(TimeMs, u64), Happening>,
}

impl Schedule {
    pub fn new() -> Self {
        Self { now: EPOCH, next: 0, queue: BTreeMap::new() }
    }

    pub fn after(&mut self, wait_ms: u64, happening: Happening) {
        self.at(TimeMs(self.now.0 + wait_ms), happening);
    }

    pub fn at(&mut self, at: TimeMs, happening: Happening) {
        self.next += 1;
        self.queue.insert((at.max(self.now), self.next), happening);
    }

    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// The next happening no later than `until`, with the clock moved to it; else the clock is moved to `until`.
    pub fn next(&mut self, until: TimeMs) -> Option<Happening> {
        let due = self.queue.first_key_value().is_some_and(|((at, _), _)| *at <= until);
        if !due {
            self.now = self.now.max(until);
            return None;
        }
        let ((at, _), happening) = self.queue.pop_first()?;
        self.now = at;
        Some(happening)
    }
}
