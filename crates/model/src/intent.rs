//! What somebody decided. These are the objects of the store; every one is changed by compare-and-swap only.

use crate::kind::Labels;
use crate::network::{Bandwidth, Subnet};
use crate::policy::PowerCurve;
use crate::world::VmView;
use crate::{
    Bytes, CpuMillis, Generation, GroupId, HostId, ImageId, Label, MicroMoney, MigrationId, Millis, NetworkId, RackId,
    SecurityGroupId, TenantId, TenantName, TimeMs, VmId, VmName, ZoneId,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use utoipa::ToSchema;

/// A cloud consumer. Owns vms, networks, security groups and API tokens; shown as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(from = "StoredTenant")]
pub struct Tenant {
    /// Never used again: whoever reads records of the past tells two tenants of one name apart by it.
    pub id: TenantId,
    /// Unique among the tenants that there are; other objects name their tenant by it.
    pub name: TenantName,
    #[serde(rename = "created_at_ms")]
    #[schema(value_type = u64)]
    pub created_at: TimeMs,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    pub quota: Quota,
    /// Provider networks that its own tokens may put vms on, each with the addresses that they may have there; no range: any.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, Vec<String>>)]
    pub provider_networks: BTreeMap<NetworkId, Vec<Subnet>>,
}

/// Stores of version 0.1.0 know a tenant by its name alone: it is the id of those tenants, too.
#[derive(Deserialize)]
struct StoredTenant {
    id: TenantId,
    #[serde(default)]
    name: Option<TenantName>,
    #[serde(rename = "created_at_ms", alias = "created_at")]
    created_at: TimeMs,
    #[serde(default)]
    labels: Labels,
    #[serde(default)]
    quota: Quota,
    #[serde(default)]
    provider_networks: BTreeMap<NetworkId, Vec<Subnet>>,
}

impl From<StoredTenant> for Tenant {
    fn from(stored: StoredTenant) -> Self {
        let StoredTenant { id, name, created_at, labels, quota, provider_networks } = stored;
        let name = name.unwrap_or_else(|| id.as_str().parse().expect("names and ids follow one rule"));
        Self { id, name, created_at, labels, quota, provider_networks }
    }
}

/// How much a tenant may have. What would pass it is refused; lowering it takes nothing away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Quota {
    pub vms: u64,
    pub vcpus: u64,
    pub memory_mib: u64,
    pub networks: u64,
    pub security_groups: u64,
    pub tokens: u64,
}

impl Quota {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Quota {
    fn default() -> Self {
        Self { vms: 1_000, vcpus: 4_000, memory_mib: 8 << 20, networks: 64, security_groups: 128, tokens: 1_000 }
    }
}

/// What vms are created from. The files lie in the shared image directory under `images/<id>/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    pub id: ImageId,
    pub created_at: TimeMs,
    /// Linux kernel for direct boot; without one the firmware boots from the disk.
    pub kernel: Option<ImageFile>,
    pub initrd: Option<ImageFile>,
    /// qcow2 backing file of every vm's disk; without one the vm has no disk.
    pub disk: Option<ImageFile>,
    /// Kernel command line, before what drover adds for the vm.
    pub cmdline: String,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFile {
    pub size: Bytes,
    /// Lower-case hexadecimal SHA-256 of the content.
    pub sha256: String,
}

/// A host that has joined.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Host {
    pub id: HostId,
    pub joined_at: TimeMs,
    /// Drained by command: its vms leave, none come, until it is given back.
    pub maintenance: bool,
    /// Since when, by the cluster clock; `None` while it is not drained.
    #[serde(default)]
    pub drained_at: Option<TimeMs>,
    pub power: PowerIntent,
    /// The last capacity its agent reported; still known while the host sleeps.
    pub capacity: Option<crate::inventory::Capacity>,
    /// Likewise the networks it is attached to.
    pub networks: BTreeSet<NetworkId>,
    /// Likewise where frames of overlay networks to it go; `None`: it takes part in none.
    #[serde(default)]
    pub overlay_address: Option<std::net::IpAddr>,
    /// Measured time from power-on to the agent's first word, for the planner.
    pub boot_time: Option<Millis>,
    #[serde(default)]
    pub attributes: HostAttributes,
    /// How often drover has switched it off: each is wear.
    #[serde(default)]
    pub power_cycles: u32,
    /// Since when it is off, by drover's doing; `None` while it should be on.
    #[serde(default)]
    pub off_since: Option<TimeMs>,
    /// Why its last wake failed: it is not counted on until it has answered again.
    #[serde(default)]
    pub wake_failed: Option<String>,
    /// A person declared it lost: what it held counts as gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<LostHost>,
}

/// A host of which a person has said that it and all that ran on it are gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostHost {
    pub at: TimeMs,
    /// The vms that had the right to run on it: should it return, it ends them before it is used again.
    pub outdated: BTreeMap<VmId, Generation>,
}

/// What the operator says of a host and no agent can know.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostAttributes {
    pub rack: Option<RackId>,
    pub zone: Option<ZoneId>,
    /// At most [`HostAttributes::LABELS_MAX`].
    pub labels: BTreeSet<Label>,
    /// Room for the disks that vms have on the host itself; `None`: not limited.
    pub disk: Option<Bytes>,
    /// What its link carries each way, per second; `None`: not limited.
    pub link: Option<Bytes>,
    /// `None`: what the policy's price list says of any host.
    pub power: Option<PowerCurve>,
    /// Wear of switching it off and on once; `None`: as the price list says.
    pub power_cycle_price: Option<MicroMoney>,
}

impl HostAttributes {
    pub const LABELS_MAX: usize = 64;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PowerIntent {
    On,
    /// Put to sleep by the planner, which may wake it.
    Asleep,
    /// Switched off by command: stays off until switched on by command.
    Off,
}

/// What a vm should be, as its owner asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    pub name: VmName,
    pub tenant: TenantName,
    pub image: ImageId,
    /// 1 to 64.
    pub vcpus: u32,
    /// 32 MiB to 1 TiB, whole MiB.
    pub memory: Bytes,
    pub nic: Option<Nic>,
    /// Never on one host with another vm of this group and tenant.
    pub anti_affinity: Option<GroupId>,
    /// If not empty: runs on these hosts only.
    pub pinned_to: BTreeSet<HostId>,
    /// Processor that its host keeps for it; at most its vcpus.
    #[serde(default)]
    pub cpu_reserved: CpuMillis,
    /// Handed to the guest on its kernel command line as `drover.<key>=<value>`.
    pub guest_args: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    pub network: NetworkId,
    /// Locally administered, derived from the vm id, so it moves with the vm.
    pub mac: String,
    /// Address in CIDR form, told to the guest as `drover.address` and, on an overlay network, by DHCP. The card sends
    /// from no other.
    pub address: Option<String>,
    /// Of the vm's tenant.
    #[serde(default)]
    pub security_groups: BTreeSet<SecurityGroupId>,
    #[serde(default)]
    pub bandwidth: Bandwidth,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunIntent {
    Running,
    Stopped,
}

/// A vm: what it should be, and who has the right to run it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    pub id: VmId,
    pub spec: VmSpec,
    pub created_at: TimeMs,
    pub run: RunIntent,
    /// The one host that may run it, at `generation`; `None` until placed.
    pub host: Option<HostId>,
    pub generation: Generation,
    /// The move under way, if any.
    pub migration: Option<MigrationId>,
    /// Hosts that it left by moving, and when, oldest first; see [`VmView::left`].
    #[serde(default)]
    pub left: Vec<(TimeMs, HostId)>,
    /// Its owner removed it; it goes once every host has let go of it.
    pub deleting: bool,
    /// Hosts that have lost the right to run it, or never got it, and have not yet been seen without it.
    #[serde(default)]
    pub remains_on: BTreeSet<HostId>,
    /// It died too often in too short a time, and is not started again until somebody asks for it: why it died last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gave_up: Option<String>,
}

impl Vm {
    /// It has moved away from a host. What is too old to matter is forgotten, but for the newest.
    pub fn note_left(&mut self, now: TimeMs, from: HostId) {
        self.left.retain(|(at, _)| now.since(*at) < VmView::LEFT_KEPT);
        self.left.push((now, from));
        let surplus = self.left.len().saturating_sub(VmView::LEFT_MAX);
        self.left.drain(..surplus);
    }

    /// Locally administered unicast MAC (IEEE 802-2014, clause 8.2) from the vm id: stable
    /// for the vm's life. 40 bits, so two in a million vms share one with a chance of one half; a
    /// network that minds must give its own.
    pub fn derived_mac(id: &VmId) -> String {
        crate::network::derived_mac(id.as_str())
    }
}

/// Who a token speaks for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "role")]
pub enum Role {
    /// Owns hosts, storage and policy; sees everything.
    Operator,
    /// Sees and changes the tenant's own things only.
    Tenant { tenant: TenantName },
}

impl Role {
    /// `None`: it speaks for the cluster's operators.
    pub fn tenant(&self) -> Option<&TenantName> {
        match self {
            Self::Operator => None,
            Self::Tenant { tenant } => Some(tenant),
        }
    }
}

/// An API token. Only the hash of its secret is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiToken {
    pub id: crate::TokenId,
    /// Lower-case hexadecimal SHA-256 of the secret (256 random bits, so a slow hash adds nothing).
    pub secret_sha256: String,
    pub role: Role,
    pub created_at: TimeMs,
    pub expires_at: Option<TimeMs>,
}

/// A one-time right for one host to join. Gone once used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    pub id: crate::TokenId,
    pub secret_sha256: String,
    /// The only host that may use it.
    pub host: HostId,
    pub created_at: TimeMs,
    pub expires_at: TimeMs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_are_remembered_for_six_hours_and_the_last_one_for_good() {
        let mut vm: Vm = serde_json::from_value(serde_json::json!({
            "id": "vm-abcdefghijkl", "created_at": 5, "run": "running", "host": "h1", "generation": 3,
            "migration": null, "deleting": false,
            "spec": {
                "name": "web-1", "tenant": "acme", "image": "tiny", "vcpus": 1, "memory": 96 << 20, "nic": null,
                "anti_affinity": null, "pinned_to": [], "guest_args": {},
            },
        }))
        .unwrap();
        let host = |n: u64| -> HostId { format!("h{n}").parse().unwrap() };
        vm.note_left(TimeMs(0), host(1));
        vm.note_left(TimeMs(1), host(2));
        assert_eq!(vm.left.len(), 2);
        vm.note_left(TimeMs(VmView::LEFT_KEPT.0), host(3));
        assert_eq!(vm.left.iter().map(|(_, host)| host.clone()).collect::<Vec<_>>(), [host(2), host(3)]);
        for n in 0..100 {
            vm.note_left(TimeMs(VmView::LEFT_KEPT.0 + n), host(n));
        }
        assert_eq!((vm.left.len(), vm.left.last().unwrap().1.clone()), (VmView::LEFT_MAX, host(99)));
    }

    #[test]
    fn a_tenant_and_an_image_of_version_0_1_0_still_load() {
        let stored = serde_json::json!({"id": "acme", "created_at": 5});
        let tenant: Tenant = serde_json::from_value(stored).unwrap();
        let (id, name) = ("acme".parse().unwrap(), "acme".parse().unwrap());
        let (labels, quota) = (Labels::default(), Quota::default());
        assert_eq!(
            tenant,
            Tenant { id, name, created_at: TimeMs(5), labels, quota, provider_networks: BTreeMap::new() }
        );
        let again = serde_json::to_value(&tenant).unwrap();
        assert_eq!(
            (&again["id"], &again["name"], &again["created_at_ms"]),
            (&"acme".into(), &"acme".into(), &5.into())
        );
        assert_eq!(serde_json::from_value::<Tenant>(again).unwrap(), tenant);

        let stored = serde_json::json!({
            "id": "tiny", "created_at": 5, "kernel": {"size": 7, "sha256": "ab"}, "initrd": null, "disk": null,
            "cmdline": "console=ttyS0",
        });
        let image: Image = serde_json::from_value(stored.clone()).unwrap();
        let kernel = ImageFile { size: Bytes(7), sha256: "ab".to_owned() };
        assert_eq!((image.id.as_str(), image.created_at, image.kernel.as_ref()), ("tiny", TimeMs(5), Some(&kernel)));
        assert_eq!((image.cmdline.as_str(), image.labels.is_empty()), ("console=ttyS0", true));
        assert_eq!(serde_json::to_value(&image).unwrap(), stored);
    }

    #[test]
    fn derived_mac_is_unicast_and_locally_administered() {
        let mac = Vm::derived_mac(&"vm-abcdefghijkl".parse().unwrap());
        let first = u8::from_str_radix(&mac[0..2], 16).unwrap();
        assert_eq!(first & 0b11, 0b10, "{mac}");
        assert_eq!(mac.len(), 17);
        assert_ne!(mac, Vm::derived_mac(&"vm-abcdefghijkm".parse().unwrap()));
    }
}
