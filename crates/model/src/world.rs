//! What the planner sees: intent, inventory and load at one moment, with their age. A plain value.

use crate::inventory::Capacity;
use crate::load::{HostSample, VmSample, Window};
use crate::policy::Policy;
use crate::{Bytes, Generation, GroupId, HostId, Millis, NetworkId, Revision, TenantId, TimeMs, VmId, VmName};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The cluster at `now`. Everything the planner may base a decision on is in here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct World {
    pub now: TimeMs,
    /// Of the intent this was made from; a plan made from it carries it as parent.
    pub revision: Revision,
    pub policy: Policy,
    pub hosts: BTreeMap<HostId, HostView>,
    /// Every vm that has, or should have, a host.
    pub vms: BTreeMap<VmId, VmView>,
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

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VmView {
    pub name: VmName,
    pub tenant: TenantId,
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
    /// When and whence it last moved.
    pub moved: Option<(TimeMs, HostId)>,
    pub load: Window<VmSample>,
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
