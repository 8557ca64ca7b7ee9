//! What the planner sees: intent, inventory and load at one moment, with their age. A plain value.

use crate::inventory::Capacity;
use crate::load::{DailyPattern, HostSample, VmSample, Window};
use crate::placement::{PlacementRule, PoolView};
use crate::policy::{Policy, PowerCurve};
use crate::{
    Bytes, CpuMillis, Generation, GroupId, HostId, Label, MicroMoney, Millis, NetworkId, PoolId, RackId, Revision,
    TenantName, TimeMs, VmId, VmName, ZoneId,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The cluster at `now`. Everything the planner may base a decision on is in here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct World {
    pub now: TimeMs,
    /// Of the intent this was made from; a plan made from it carries it as parent.
    pub revision: Revision,
    pub policy: Policy,
    /// How far apart samples of load are meant to be: what "recent" and "a hole" mean.
    #[serde(default = "World::sample_every_default")]
    pub sample_every: Millis,
    pub hosts: BTreeMap<HostId, HostView>,
    /// Every vm that has, or should have, a host.
    pub vms: BTreeMap<VmId, VmView>,
    #[serde(default)]
    pub pools: BTreeMap<PoolId, PoolView>,
    #[serde(default)]
    pub rules: Vec<PlacementRule>,
}

impl World {
    /// What agents report by.
    pub const SAMPLE_EVERY: Millis = Millis::secs(1);

    fn sample_every_default() -> Millis {
        Self::SAMPLE_EVERY
    }

    /// Without hosts, vms, pools and rules.
    pub fn empty(now: TimeMs, revision: Revision, policy: Policy) -> Self {
        Self {
            now,
            revision,
            policy,
            sample_every: Self::SAMPLE_EVERY,
            hosts: BTreeMap::new(),
            vms: BTreeMap::new(),
            pools: BTreeMap::new(),
            rules: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostView {
    pub state: HostState,
    /// `None` until its agent first reported one.
    pub capacity: Option<Capacity>,
    /// Drained by command: must be emptied, takes nothing.
    pub maintenance: bool,
    /// Whether drover can switch it off and on again: a power driver is configured, and the operator
    /// did not switch the host off by hand.
    pub power_managed: bool,
    /// Measured, or a guess by the caller.
    pub boot_time: Millis,
    pub networks: BTreeSet<NetworkId>,
    /// Hosts of one kind can take over each other's running vms; numbered by the caller.
    #[serde(default)]
    pub kind: u32,
    /// Kinds of hosts whose running vms can't go on here, for the processor, the machine types or QEMU.
    #[serde(default)]
    pub refuses: BTreeSet<u32>,
    /// Newest sample last. Empty or old means unknown, never idle.
    pub load: Window<HostSample>,
    /// Since when it has been in `state`.
    pub since: TimeMs,
    #[serde(default)]
    pub rack: Option<RackId>,
    #[serde(default)]
    pub zone: Option<ZoneId>,
    #[serde(default)]
    pub labels: BTreeSet<Label>,
    /// Room for the disks that vms have on the host itself; `None`: not known, and not limited.
    #[serde(default)]
    pub disk: Option<Bytes>,
    /// What its link carries, each way, in bytes per second; `None`: not known, and not limited.
    #[serde(default)]
    pub link: Option<Bytes>,
    /// What it draws; `None`: as the price list says of any host.
    #[serde(default)]
    pub power: Option<PowerCurve>,
    /// Wear of switching it off and on once; `None`: as the price list says.
    #[serde(default)]
    pub power_cycle_price: Option<MicroMoney>,
    /// Moves from and to it that ended within the last hour, or are under way.
    #[serde(default)]
    pub moves_recent: u32,
}

/// Whether a host can be used, as membership and the power loop see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostState {
    /// Joined, never heard of since the server started.
    Unknown,
    Up,
    /// Heartbeats are late. Takes nothing new; nothing is concluded yet.
    Suspect,
    /// Confirmed silent. Never used; its vms are unknown.
    Down,
    Asleep,
    Waking,
    FallingAsleep,
}

impl HostState {
    pub fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Asleep => "asleep",
            Self::Waking => "waking",
            Self::FallingAsleep => "falling-asleep",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VmView {
    pub name: VmName,
    pub tenant: TenantName,
    pub generation: Generation,
    pub vcpus: u32,
    pub memory: Bytes,
    pub network: Option<NetworkId>,
    pub anti_affinity: Option<GroupId>,
    /// If not empty: runs on these hosts only.
    pub pinned_to: BTreeSet<HostId>,
    /// `None`: wants a host and has none yet.
    pub host: Option<HostId>,
    pub movable: Movable,
    /// Hosts that it left by moving, and when, oldest first: those of the last [`VmView::LEFT_KEPT`] at least, and the
    /// last one whenever it was.
    #[serde(default)]
    pub left: Vec<(TimeMs, HostId)>,
    pub load: Window<VmSample>,
    #[serde(default)]
    pub pattern: DailyPattern,
    /// Space of its disks on the host itself; 0 where they lie on shared storage.
    #[serde(default)]
    pub disk: Bytes,
    #[serde(default)]
    pub pool: Option<PoolId>,
    /// Its own promise: a host never promises more than it has.
    #[serde(default)]
    pub cpu_reserved: CpuMillis,
}

impl VmView {
    /// As long as moves are remembered, and returns looked upon with suspicion.
    pub const LEFT_KEPT: Millis = Millis::secs(6 * 3_600);
    /// More moves than this are not remembered.
    pub const LEFT_MAX: usize = 32;

    /// When and whence it last moved.
    pub fn moved(&self) -> Option<&(TimeMs, HostId)> {
        self.left.last()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "movable")]
pub enum Movable {
    Yes,
    /// Being moved now; counts at both ends.
    Moving {
        to: HostId,
    },
    /// It can't be moved at the moment; `why` completes "because ...".
    No {
        why: String,
    },
}

impl HostView {
    /// May receive vms: up, not in maintenance, capacity known.
    pub fn takes_vms(&self) -> bool {
        self.state == HostState::Up && !self.maintenance && self.capacity.is_some()
    }
}
