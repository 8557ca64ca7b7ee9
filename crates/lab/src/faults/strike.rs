//! Hitting a victim, and bringing it back as its operator, its service manager or its power supply would.

use super::Victim;
use crate::cluster::Cluster;
use crate::process;
use crate::vms;
use anyhow::{Result, ensure};
use drover_model::{HostId, VmId};
use std::time::Duration;

/// A service manager starts what ended after this.
const PROCESS_AWAY: Duration = Duration::from_secs(1);
/// A host's power returns after this; it is up at once, as there is no firmware.
const HOST_AWAY: Duration = Duration::from_secs(3);
/// Longer than a post-copy waits before it takes the link for lost.
const LINK_AWAY: Duration = Duration::from_secs(8);
/// Who is who in one migration.
#[derive(Debug, Clone)]
pub struct Ends {
    pub vm: VmId,
    pub from: HostId,
    pub to: HostId,
}

impl Victim {
    /// How long it is away; `None`: it does not come back.
    pub fn away(self) -> Option<Duration> {
        match self {
            Self::SourceQemu | Self::DestinationQemu => None,
            Self::SourceAgent | Self::DestinationAgent | Self::Server => Some(PROCESS_AWAY),
            Self::Link => Some(LINK_AWAY),
            Self::SourceHost | Self::DestinationHost => Some(HOST_AWAY),
        }
    }

    pub fn strike(self, cluster: &Cluster, ends: &Ends) -> Result<()> {
        match self {
            Self::SourceQemu => kill_qemu(cluster, &ends.vm, &ends.from),
            Self::DestinationQemu => kill_qemu(cluster, &ends.vm, &ends.to),
            Self::SourceAgent => cluster.agent(&ends.from)?.kill(),
            Self::DestinationAgent => cluster.agent(&ends.to)?.kill(),
            Self::Server => cluster.server()?.kill(),
            Self::Link => cluster.path(&ends.from, &ends.to, false),
            Self::SourceHost => cluster.pull_plug(&ends.from),
            Self::DestinationHost => cluster.pull_plug(&ends.to),
        }
    }

    pub fn bring_back(self, cluster: &Cluster, ends: &Ends) -> Result<()> {
        match self {
            Self::SourceQemu | Self::DestinationQemu => Ok(()),
            Self::SourceAgent => cluster.agent(&ends.from)?.start(),
            Self::DestinationAgent => cluster.agent(&ends.to)?.start(),
            Self::Server => cluster.server()?.start(),
            Self::Link => cluster.path(&ends.from, &ends.to, true),
            Self::SourceHost => cluster.plug_in(&ends.from),
            Self::DestinationHost => cluster.plug_in(&ends.to),
        }
    }
}

fn kill_qemu(cluster: &Cluster, vm: &VmId, host: &HostId) -> Result<()> {
    let found = vms::running(cluster.place()).into_iter().filter(|qemu| qemu.vm == *vm && qemu.host == *host);
    let pids: Vec<u32> = found.map(|qemu| qemu.pid).collect();
    ensure!(!pids.is_empty(), "there is no qemu of {vm} on {host} to kill");
    process::end_all(&pids, Duration::ZERO)
}
