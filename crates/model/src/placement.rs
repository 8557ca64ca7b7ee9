//! Rules of placement that name vms and hosts, and the room that pools of vms have. Never prices: a plan that breaks one
//! is no plan.

use crate::{Bytes, CpuMillis, HostId, Label, PoolId, RackId, RuleId, VmId, ZoneId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// How far apart, or how near, vms must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    Host,
    /// A host that names no rack is a rack of its own.
    Rack,
    /// A host that names no zone is in a zone with all others that name none.
    Zone,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Host => "host",
            Self::Rack => "rack",
            Self::Zone => "zone",
        })
    }
}

/// Hosts by name, rack, zone or label: the union of all four.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostSet {
    pub hosts: BTreeSet<HostId>,
    pub racks: BTreeSet<RackId>,
    pub zones: BTreeSet<ZoneId>,
    pub labels: BTreeSet<Label>,
}

/// A rule that an operator wrote. Vms that do not exist (any more) are passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementRule {
    pub id: RuleId,
    pub vms: BTreeSet<VmId>,
    pub kind: RuleKind,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "rule")]
pub enum RuleKind {
    /// Affinity: all of the vms in one host, rack or zone.
    Together { within: Scope },
    /// Anti-affinity: no two of the vms in one host, rack or zone.
    Apart { within: Scope },
    /// Only there: pinning, and licences, which are sets of hosts.
    On { hosts: HostSet },
    /// Never there.
    NotOn { hosts: HostSet },
    /// The vms together on no more hosts than this: licences that are counted by host.
    HostsMax { count: u32 },
}

/// What a pool of vms is promised and allowed, over the whole cluster. Pools form a forest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolView {
    pub parent: Option<PoolId>,
    /// There for the pool whenever it asks. The hosts that are up must hold the sum of all roots' reservations.
    pub cpu_reserved: CpuMillis,
    pub memory_reserved: Bytes,
    /// No more than this, whatever is free: demand above it is not met, and does not count. `None`: no limit.
    pub cpu_limit: Option<CpuMillis>,
    /// The vms' memory together never passes it; checked where vms are placed, since a move does not change it.
    pub memory_limit: Option<Bytes>,
}
