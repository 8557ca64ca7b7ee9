//! Virtual servers.

use super::schema;
use crate::command::Command;
use crate::intent::{Host, Image, Nic, RunIntent, Tenant, Vm};
use crate::kind::{Access, Exposed, Fixed, Kind, Labels, ObjectKey, Owned, Owner};
use crate::load::VmSample;
use crate::migration::Method;
use crate::network::{Network, SecurityGroup};
use crate::{
    Bytes, Generation, GroupId, HostId, ImageId, MigrationId, NetworkId, NetworkName, Revision, SecurityGroupId,
    TenantName, VmId, VmName,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use utoipa::ToSchema;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmView {
    pub id: VmId,
    pub name: VmName,
    pub tenant: TenantName,
    #[schema(value_type = u64)]
    pub revision: Revision,
    pub image: ImageId,
    pub vcpus: u32,
    pub memory_mib: u64,
    pub nic: Option<NicView>,
    /// Never on one host with another vm of this group and tenant.
    pub anti_affinity: Option<GroupId>,
    /// If not empty: runs on these hosts only.
    pub pinned_to: BTreeSet<HostId>,
    /// Processor that its host keeps for it, in thousandths of a core; 0 is none.
    #[serde(default)]
    pub cpu_reserved_millis: u64,
    pub guest_args: BTreeMap<String, String>,
    #[serde(default)]
    pub labels: Labels,
    pub created_at_ms: u64,
    /// What its owner asked for.
    #[schema(schema_with = schema::run_intent)]
    pub run: RunIntent,
    /// What it does, in one word: `waiting` (for a host), `starting`, `running`, `migrating`, `stopping`, `stopped`, `failed`, `deleting`, `unknown`.
    pub phase: String,
    /// Where the phase needs a reason.
    pub why: Option<String>,
    /// The one host that may run it; `null` until placed.
    pub host: Option<HostId>,
    /// Raised each time the right to run it moves.
    #[schema(value_type = u64)]
    pub generation: Generation,
    /// The move under way, if any.
    #[schema(value_type = Option<u64>)]
    pub migration: Option<MigrationId>,
    pub moved_at_ms: Option<u64>,
    pub moved_from: Option<HostId>,
    /// Of its qemu process.
    pub pid: Option<u32>,
    /// The newest sample; `null` if there is none.
    pub load: Option<VmLoad>,
}

impl VmView {
    /// What the store knows of it; `phase`, `why`, `pid` and `load` are the observer's to fill in.
    pub fn new(vm: &Vm, revision: Revision, phase: &str) -> Self {
        let spec = &vm.spec;
        Self {
            id: vm.id.clone(),
            name: spec.name.clone(),
            tenant: spec.tenant.clone(),
            revision,
            image: spec.image.clone(),
            vcpus: spec.vcpus,
            memory_mib: spec.memory.0 >> 20,
            nic: spec.nic.as_ref().map(NicView::from),
            anti_affinity: spec.anti_affinity.clone(),
            pinned_to: spec.pinned_to.clone(),
            cpu_reserved_millis: spec.cpu_reserved.0,
            guest_args: spec.guest_args.clone(),
            labels: spec.labels.clone(),
            created_at_ms: vm.created_at.0,
            run: vm.run,
            phase: phase.to_owned(),
            why: None,
            host: vm.host.clone(),
            generation: vm.generation,
            migration: vm.migration,
            moved_at_ms: vm.left.last().map(|(at, _)| at.0),
            moved_from: vm.left.last().map(|(_, from)| from.clone()),
            pid: None,
            load: None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NicView {
    pub network: NetworkId,
    /// Of an overlay network; `null`: it is a provider network.
    #[serde(default)]
    pub network_name: Option<NetworkName>,
    pub mac: String,
    /// In CIDR form, told to the guest. The card sends from no other.
    pub address: Option<String>,
    #[serde(default)]
    pub security_groups: BTreeSet<SecurityGroupId>,
    /// Towards the vm; `null`: no limit.
    #[serde(default)]
    pub ingress_max_bytes_s: Option<u64>,
    /// From the vm; `null`: no limit.
    #[serde(default)]
    pub egress_max_bytes_s: Option<u64>,
}

/// `network_name` is the observer's to fill in.
impl From<&Nic> for NicView {
    fn from(nic: &Nic) -> Self {
        let limit = |max: Bytes| (max != Bytes::ZERO).then_some(max.0);
        Self {
            network: nic.network.clone(),
            network_name: None,
            mac: nic.mac.clone(),
            address: nic.address.clone(),
            security_groups: nic.security_groups.clone(),
            ingress_max_bytes_s: limit(nic.bandwidth.ingress_max),
            egress_max_bytes_s: limit(nic.bandwidth.egress_max),
        }
    }
}

/// One second of a vm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmLoad {
    pub cpu_used_millis: u64,
    /// Used plus waited for; at most its vcpus.
    pub cpu_wanted_millis: u64,
    pub memory_used_mib: u64,
    pub net_rx_bytes_s: u64,
    pub net_tx_bytes_s: u64,
    pub disk_latency_us: u64,
    /// What the guest writes to its memory; `null` but for a minute after it was measured ([`MeasureVm`]).
    pub dirty_bytes_s: Option<u64>,
}

impl From<&VmSample> for VmLoad {
    fn from(sample: &VmSample) -> Self {
        Self {
            cpu_used_millis: sample.cpu_used.0,
            cpu_wanted_millis: sample.cpu_wanted.0,
            memory_used_mib: sample.memory_used.0 >> 20,
            net_rx_bytes_s: sample.net_rx.0,
            net_tx_bytes_s: sample.net_tx.0,
            disk_latency_us: sample.disk_latency_us,
            dirty_bytes_s: sample.dirty_rate.map(|rate| rate.0),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVm {
    /// Unique within the tenant; 1 to 63 lower-case letters, digits and hyphens.
    pub name: String,
    /// Operators must say whose it is; a tenant's own token may leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    pub image: String,
    #[schema(minimum = 1, maximum = 64)]
    pub vcpus: u32,
    #[schema(minimum = 32, maximum = 1048576)]
    pub memory_mib: u64,
    /// The tenant's network by name or id, or a provider network of the hosts. Without one the vm has no network card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// An address of the network, the lowest free one when left out; on a provider network in CIDR form, e.g.
    /// `10.78.0.11/24`, none when left out. Told to the guest. Only with a network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// At most 8; without one everything is let through. Only with a network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub security_groups: Vec<String>,
    /// Towards the vm; no limit when left out. Only with a network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 10000)]
    pub ingress_max_bytes_s: Option<u64>,
    /// From the vm; no limit when left out. Only with a network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 10000)]
    pub egress_max_bytes_s: Option<u64>,
    /// Never on one host with another vm of this group and tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anti_affinity: Option<String>,
    /// If not empty: runs on these hosts only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pinned_to: Vec<String>,
    /// Processor that its host keeps for it, in thousandths of a core; at most its vcpus.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cpu_reserved_millis: u64,
    /// Handed to the guest on its kernel command line as `drover.<key>=<value>`; at most 32, values of at most 128
    /// characters without spaces.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub guest_args: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl CreateVm {
    pub const VCPUS_MAX: u32 = 64;
    pub const MEMORY_MIB_MIN: u64 = 32;
    pub const MEMORY_MIB_MAX: u64 = 1 << 20;
    pub const GUEST_ARGS_MAX: usize = 32;
    pub const GUEST_ARG_VALUE_MAX: usize = 128;
    pub const PINNED_TO_MAX: usize = 64;
}

impl Kind for Vm {
    const NAME: &'static str = "vm";
    type Key = VmId;

    fn key(&self) -> VmId {
        self.id.clone()
    }

    fn owner(&self) -> Owner<'_> {
        Owner::Tenant(&self.spec.tenant)
    }

    fn name(&self) -> String {
        self.spec.name.to_string()
    }

    fn labels(&self) -> Option<&Labels> {
        Some(&self.spec.labels)
    }

    /// Among them the one host that may run it.
    fn references(&self) -> Vec<ObjectKey> {
        let spec = &self.spec;
        let mut keys = vec![ObjectKey::of::<Tenant>(&spec.tenant), ObjectKey::of::<Image>(&spec.image)];
        keys.extend(self.host.as_ref().map(ObjectKey::of::<Host>));
        if let Some(nic) = &spec.nic {
            keys.push(ObjectKey::of::<Network>(&nic.network));
            let group = |name: &SecurityGroupId| Owned { tenant: spec.tenant.clone(), name: name.clone() };
            keys.extend(nic.security_groups.iter().map(|name| ObjectKey::of::<SecurityGroup>(&group(name))));
        }
        keys
    }
}

impl Exposed for Vm {
    const TITLE: &'static str = "vm";
    const PLURAL: &'static str = "vms";
    const TAG: &'static str = "vms";
    const ACCESS: Access = Access::OWNER;
    type Create = CreateVm;
    type View = VmView;
    type Settings = Fixed;
    const CREATABLE: bool = false;
    const PATCHABLE: bool = false;
    /// It goes once its host has let go of it.
    const REMOVABLE: bool = false;
    const STATES: &'static [&'static str] =
        &["waiting", "starting", "running", "migrating", "stopping", "stopped", "failed", "deleting", "unknown"];
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MigrateVm {
    /// Left out: the planner chooses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Left out: what is expected to do best.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::optional_method)]
    pub method: Option<Method>,
}

/// Measure how fast the guest writes to its memory; the result is in [`VmLoad::dirty_bytes_s`] for a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MeasureVm {
    /// For how long.
    #[schema(minimum = 1, maximum = 60, default = 2)]
    pub seconds: u32,
}

impl MeasureVm {
    pub const SECONDS_MIN: u32 = (Command::MEASURE_SPAN_MIN.0 / 1000) as u32;
    pub const SECONDS_MAX: u32 = (Command::MEASURE_SPAN_MAX.0 / 1000) as u32;
}

impl Default for MeasureVm {
    fn default() -> Self {
        Self { seconds: 2 }
    }
}
