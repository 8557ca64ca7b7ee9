//! What goes wrong, and how often. Each seed picks which kinds of fault it has at all: a run in which everything
//! fails all the time reaches less than one in which two things fail often (Groce et al., "Swarm testing", ISSTA 2012).

use crate::cluster::Cluster;
use crate::dice::Dice;
use crate::qemu::Guest;
use crate::schedule::Happening;
use crate::store::DiskFault;
use drover_model::{HostId, VmId};
use std::collections::BTreeMap;
use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    AgentKilled,
    /// In its next command, between writing it down and doing it.
    AgentKilledInCommand,
    ServerKilled,
    /// The server dies in its next commit, just before it is durable or just after.
    ServerKilledBeforeCommit,
    ServerKilledAfterCommit,
    BothKilled,
    DiskFull,
    DiskUnconfirmed,
    ConnectionCut,
    ConnectionStalled,
    HostUnreachable,
    QemuKilled,
    /// The source or the destination of a migration under way.
    MigratingQemuKilled,
    StreamSevered,
    HostLost,
    GuestPowersOff,
}

impl Fault {
    pub const ALL: [Self; 16] = [
        Self::AgentKilled,
        Self::AgentKilledInCommand,
        Self::ServerKilled,
        Self::ServerKilledBeforeCommit,
        Self::ServerKilledAfterCommit,
        Self::BothKilled,
        Self::DiskFull,
        Self::DiskUnconfirmed,
        Self::ConnectionCut,
        Self::ConnectionStalled,
        Self::HostUnreachable,
        Self::QemuKilled,
        Self::MigratingQemuKilled,
        Self::StreamSevered,
        Self::HostLost,
        Self::GuestPowersOff,
    ];

    fn mean_ms(self) -> &'static [u64] {
        match self {
            // Rare by nature, or a cluster would do nothing else.
            Self::HostLost | Self::QemuKilled | Self::GuestPowersOff => &[120_000, 300_000],
            Self::MigratingQemuKilled | Self::StreamSevered => &[10_000, 40_000],
            _ => &[15_000, 45_000, 120_000],
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Share of the kinds that a seed has.
const KINDS: f64 = 0.4;
/// Share of power driver runs that fail, where they fail.
const DRIVER_FAILS: f64 = 0.2;

#[derive(Debug, Default)]
pub struct Faults {
    mean_ms: BTreeMap<Fault, u64>,
    pub driver_fails: f64,
    pub active: bool,
    pub injected: BTreeMap<Fault, u64>,
}

impl Faults {
    pub fn new(dice: &mut Dice) -> Self {
        let mut mean_ms = BTreeMap::new();
        for fault in Fault::ALL {
            if dice.chance(KINDS)
                && let Some(mean) = dice.pick(fault.mean_ms())
            {
                mean_ms.insert(fault, *mean);
            }
        }
        let driver_fails = if dice.chance(KINDS) { DRIVER_FAILS } else { 0.0 };
        Self { mean_ms, driver_fails, active: true, injected: BTreeMap::new() }
    }

    pub fn none() -> Self {
        Self::default()
    }

    /// The first of each kind.
    pub fn arm(&self, dice: &mut Dice) -> Vec<(u64, Fault)> {
        self.mean_ms.iter().map(|(fault, mean)| (dice.wait_ms(*mean), *fault)).collect()
    }

    fn next(&self, fault: Fault, dice: &mut Dice) -> Option<u64> {
        self.mean_ms.get(&fault).map(|mean| dice.wait_ms(*mean))
    }
}

impl Cluster {
    /// A fault that is due; the next of its kind is scheduled.
    pub(crate) fn fault_due(&mut self, fault: Fault) {
        if !self.faults.active {
            return;
        }
        if let Some(wait) = self.faults.next(fault, &mut self.luck) {
            self.around.schedule.after(wait, Happening::Fault(fault));
        }
        if self.inject(fault) {
            *self.faults.injected.entry(fault).or_default() += 1;
        }
    }

    /// `false` if there is nothing it could hit.
    fn inject(&mut self, fault: Fault) -> bool {
        let hosts: Vec<HostId> = self.fleet.hosts.values().filter(|host| host.on).map(|host| host.id.clone()).collect();
        let Some(host) = self.luck.pick(&hosts).cloned() else { return false };
        let down_ms = self.luck.wait_ms(4_000);
        self.around.witness.note(format!("fault: {fault} ({host}, {down_ms} ms)"));
        match fault {
            Fault::AgentKilled => self.kill_agent(&host, down_ms),
            Fault::AgentKilledInCommand => {
                if let Some(row) = self.fleet.hosts.get_mut(&host) {
                    row.dies_in_command = true;
                }
            }
            Fault::ServerKilled => self.kill_server(down_ms),
            Fault::ServerKilledBeforeCommit => self.shell.die_at_commit(false),
            Fault::ServerKilledAfterCommit => self.shell.die_at_commit(true),
            Fault::BothKilled => {
                let other_ms = self.luck.wait_ms(4_000);
                self.kill_agent(&host, down_ms);
                self.kill_server(other_ms);
            }
            Fault::DiskFull => self.shell.store.break_next(DiskFault::Full),
            Fault::DiskUnconfirmed => self.shell.store.break_next(DiskFault::Unconfirmed),
            Fault::ConnectionCut => self.cut_connection(&host),
            Fault::ConnectionStalled => self.stall_connection(&host, down_ms),
            Fault::HostUnreachable => self.make_unreachable(&host, down_ms),
            Fault::QemuKilled | Fault::MigratingQemuKilled | Fault::StreamSevered | Fault::GuestPowersOff => {
                let Some((host, vm)) = self.victim(fault) else { return false };
                match fault {
                    Fault::StreamSevered => self.fleet.sever(&mut self.around, &host, &vm, down_ms),
                    Fault::GuestPowersOff => self.power_off_guest(&host, &vm),
                    _ => self.fleet.kill_qemu(&mut self.around, &host, &vm),
                }
            }
            Fault::HostLost => self.lose_host(&host, down_ms * 10),
        }
        true
    }

    fn victim(&mut self, fault: Fault) -> Option<(HostId, VmId)> {
        let mut victims = Vec::new();
        for host in self.fleet.hosts.values() {
            for (vm, qemu) in &host.processes {
                let fits = match (&qemu.guest, fault) {
                    (Guest::Running, Fault::GuestPowersOff) => true,
                    (_, Fault::GuestPowersOff) => false,
                    (Guest::Sending(_), _) => true,
                    (_, Fault::StreamSevered) => false,
                    (Guest::Sent | Guest::Receiving { .. } | Guest::Received | Guest::Completing(_), _) => true,
                    (Guest::Starting | Guest::Running | Guest::PoweringDown, fault) => fault == Fault::QemuKilled,
                };
                if fits {
                    victims.push((host.id.clone(), vm.clone()));
                }
            }
        }
        self.luck.pick(&victims).cloned()
    }
}
