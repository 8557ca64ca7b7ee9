//! Overlay networks, security groups, and ports of hosts on networks.

use super::schema;
use crate::intent::{Host, Tenant};
use crate::kind::{Access, Exposed, Kind, Labels, ObjectKey, Owned, Owner, Versioned};
use crate::network::{self, Direction, Network, Port, Protocol, Remote, Subnet};
use crate::{HostId, NetworkId, NetworkName, PortId, Revision, SecurityGroupId, TenantName};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr};
use utoipa::ToSchema;

/// A tenant's own network, laid over the hosts'. Two tenants may use the same addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkView {
    pub id: NetworkId,
    pub name: NetworkName,
    pub tenant: TenantName,
    #[schema(value_type = u64)]
    pub revision: Revision,
    /// VXLAN network identifier.
    pub vni: u32,
    /// E.g. `10.1.0.0/16`.
    #[schema(value_type = String)]
    pub subnet: Subnet,
    /// Default route of its vms.
    #[schema(value_type = Option<String>)]
    pub router: Option<Ipv4Addr>,
    #[schema(value_type = Vec<String>)]
    pub dns: Vec<Ipv4Addr>,
    /// Largest packet of a guest, in bytes.
    pub mtu: u16,
    pub created_at_ms: u64,
    #[serde(default)]
    pub labels: Labels,
    pub vms: u64,
    pub ports: u64,
    /// How far the hosts that have it, or are about to, have set it up; for operators, and of one network only.
    pub hosts: Option<Vec<NetworkHostView>>,
}

impl NetworkView {
    /// `vms`, `ports` and `hosts` are the observer's to fill in.
    pub fn new(network: &Network, revision: Revision) -> Self {
        Self {
            id: network.id.clone(),
            name: network.name.clone(),
            tenant: network.tenant.clone(),
            revision,
            vni: network.vni,
            subnet: network.subnet,
            router: network.router,
            dns: network.dns.clone(),
            mtu: network.mtu,
            created_at_ms: network.created_at.0,
            labels: network.labels.clone(),
            vms: 0,
            ports: 0,
            hosts: None,
        }
    }
}

/// How one host stands to a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkHostView {
    pub host: HostId,
    /// Where the other hosts send its frames to; `null`: it takes part in no overlay network.
    #[schema(value_type = Option<String>)]
    pub overlay_address: Option<IpAddr>,
    /// Its agent.
    pub connected: bool,
    /// It has set up its networks just as they should be now.
    pub applied: bool,
    /// Why it could not.
    pub error: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateNetwork {
    /// Unique within the tenant.
    pub name: NetworkName,
    /// Operators must say whose it is; a tenant's own token may leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantName>,
    /// IPv4, e.g. `10.1.0.0/16`; a prefix of 8 to 30.
    #[schema(value_type = String)]
    pub subnet: Subnet,
    /// An address of the subnet that guests are told as their default route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub router: Option<Ipv4Addr>,
    /// At most 4 name servers that guests are told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub dns: Vec<Ipv4Addr>,
    /// Largest packet of a guest; 1450 when left out, which fits hosts' networks of 1500.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 576, maximum = 8950)]
    pub mtu: Option<u16>,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

/// What may reach the vms of the group, and what they may reach. Replies always pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SecurityGroupView {
    pub name: SecurityGroupId,
    pub tenant: TenantName,
    #[schema(value_type = u64)]
    pub revision: Revision,
    pub rules: Vec<SecurityRule>,
    pub created_at_ms: u64,
    #[serde(default)]
    pub labels: Labels,
    /// How many are in it.
    pub vms: u64,
}

impl SecurityGroupView {
    /// `vms` is the observer's to fill in.
    pub fn new(group: &network::SecurityGroup, revision: Revision) -> Self {
        Self {
            name: group.id.clone(),
            tenant: group.tenant.clone(),
            revision,
            rules: group.rules.iter().map(SecurityRule::from).collect(),
            created_at_ms: group.created_at.0,
            labels: group.labels.clone(),
            vms: 0,
        }
    }
}

/// Lets something in or out. Without `subnet` and `group`: from or to anybody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SecurityRule {
    #[schema(schema_with = schema::direction)]
    pub direction: Direction,
    /// `any` when left out.
    #[serde(default = "any")]
    #[schema(schema_with = schema::protocol)]
    pub protocol: Protocol,
    /// With `tcp` and `udp` only; all ports when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 65535)]
    pub first_port: Option<u16>,
    /// The last port of a range; the first when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 65535)]
    pub last_port: Option<u16>,
    /// Only addresses of this IPv4 network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<String>,
    /// Only vms of this security group, on the same network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

fn any() -> Protocol {
    Protocol::Any
}

impl From<&network::SecurityRule> for SecurityRule {
    fn from(rule: &network::SecurityRule) -> Self {
        let (subnet, group) = match &rule.remote {
            Remote::Any => (None, None),
            Remote::Subnet { subnet } => (Some(subnet.to_string()), None),
            Remote::Group { group } => (None, Some(group.to_string())),
        };
        let (first_port, last_port) = rule.ports.unzip();
        Self { direction: rule.direction, protocol: rule.protocol, first_port, last_port, subnet, group }
    }
}

/// Why a rule can't be read; shown as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadSecurityRule(String);

impl TryFrom<&SecurityRule> for network::SecurityRule {
    type Error = BadSecurityRule;

    fn try_from(rule: &SecurityRule) -> Result<Self, BadSecurityRule> {
        let bad = |why: &dyn std::fmt::Display| BadSecurityRule(why.to_string());
        let ports = match (rule.first_port, rule.last_port) {
            (None, None) => None,
            (Some(first), last) => Some((first, last.unwrap_or(first))),
            (None, Some(_)) => return Err(bad(&"last_port needs first_port, too")),
        };
        let remote = match (&rule.subnet, &rule.group) {
            (None, None) => Remote::Any,
            (Some(subnet), None) => Remote::Subnet { subnet: subnet.parse().map_err(|error| bad(&error))? },
            (None, Some(group)) => Remote::Group { group: group.parse().map_err(|error| bad(&error))? },
            (Some(_), Some(_)) => return Err(bad(&"name a subnet or a group, not both: make two rules")),
        };
        Ok(Self { direction: rule.direction, protocol: rule.protocol, ports, remote })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSecurityGroup {
    /// Unique within the tenant.
    pub name: SecurityGroupId,
    /// Operators must say whose it is; a tenant's own token may leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantName>,
    /// At most 64; nothing reaches the vms of a group without rules.
    #[serde(default)]
    pub rules: Vec<SecurityRule>,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

/// Takes a vm out of the security groups it is in, and puts it into these.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetSecurityGroups {
    /// At most 8; a vm in none is let through both ways.
    pub security_groups: Vec<String>,
}

/// A port as it is shown.
pub type PortView = Versioned<Port>;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreatePort {
    /// Unique in the cluster.
    pub name: PortId,
    /// By its id, or by its name with `tenant`.
    pub network: String,
    /// Whose network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantName>,
    pub host: HostId,
    /// Its name on the host: at most 15 lower-case letters, digits, hyphens and underscores.
    pub interface: String,
    /// Derived from the name when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The lowest free one when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<Ipv4Addr>,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

/// What `PATCH` changes of a network, a port or an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OnlyLabels {
    #[serde(default)]
    pub labels: Labels,
}

/// What `PATCH` changes of a security group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SecurityGroupSettings {
    #[serde(default)]
    pub labels: Labels,
    /// All of them: at most 64. `null`: none.
    #[serde(default)]
    pub rules: Vec<SecurityRule>,
}

impl Kind for Network {
    const NAME: &'static str = "network";
    type Key = NetworkId;

    fn key(&self) -> NetworkId {
        self.id.clone()
    }

    fn owner(&self) -> Owner<'_> {
        Owner::Tenant(&self.tenant)
    }

    fn name(&self) -> String {
        self.name.to_string()
    }

    fn labels(&self) -> Option<&Labels> {
        Some(&self.labels)
    }

    fn references(&self) -> Vec<ObjectKey> {
        vec![ObjectKey::of::<Tenant>(&self.tenant)]
    }
}

impl Exposed for Network {
    const TITLE: &'static str = "network";
    const PLURAL: &'static str = "networks";
    const TAG: &'static str = "networks";
    const ACCESS: Access = Access::OWNER;
    type Create = CreateNetwork;
    type View = NetworkView;
    type Settings = OnlyLabels;
}

impl Kind for network::SecurityGroup {
    const NAME: &'static str = "security-group";
    type Key = Owned<SecurityGroupId>;

    fn key(&self) -> Self::Key {
        Owned { tenant: self.tenant.clone(), name: self.id.clone() }
    }

    fn owner(&self) -> Owner<'_> {
        Owner::Tenant(&self.tenant)
    }

    fn name(&self) -> String {
        self.id.to_string()
    }

    fn labels(&self) -> Option<&Labels> {
        Some(&self.labels)
    }

    /// Its tenant, and the other groups that its rules name.
    fn references(&self) -> Vec<ObjectKey> {
        let named = self.rules.iter().filter_map(|rule| match &rule.remote {
            Remote::Group { group } if *group != self.id => {
                Some(ObjectKey::of::<Self>(&Owned { tenant: self.tenant.clone(), name: group.clone() }))
            }
            Remote::Group { .. } | Remote::Any | Remote::Subnet { .. } => None,
        });
        named.chain([ObjectKey::of::<Tenant>(&self.tenant)]).collect()
    }
}

impl Exposed for network::SecurityGroup {
    const TITLE: &'static str = "security group";
    const PLURAL: &'static str = "security-groups";
    const TAG: &'static str = "networks";
    const ACCESS: Access = Access::OWNER;
    type Create = CreateSecurityGroup;
    type View = SecurityGroupView;
    type Settings = SecurityGroupSettings;
}

impl Kind for Port {
    const NAME: &'static str = "port";
    type Key = PortId;

    fn key(&self) -> PortId {
        self.id.clone()
    }

    fn owner(&self) -> Owner<'_> {
        Owner::Cluster
    }

    fn labels(&self) -> Option<&Labels> {
        Some(&self.labels)
    }

    fn references(&self) -> Vec<ObjectKey> {
        vec![ObjectKey::of::<Network>(&self.network), ObjectKey::of::<Host>(&self.host)]
    }
}

impl Exposed for Port {
    const TITLE: &'static str = "port";
    const PLURAL: &'static str = "ports";
    const TAG: &'static str = "networks";
    const ACCESS: Access = Access::OPERATORS;
    type Create = CreatePort;
    type View = PortView;
    type Settings = OnlyLabels;
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_rule_reads_back_as_it_was_written() {
        for (wire, ports) in [
            (json!({"direction": "ingress", "protocol": "tcp", "first_port": 22}), Some((22, 22))),
            (
                json!({"direction": "egress", "protocol": "udp", "first_port": 1, "last_port": 9, "group": "web"}),
                Some((1, 9)),
            ),
            (json!({"direction": "ingress", "subnet": "10.0.0.0/8"}), None),
        ] {
            let rule: SecurityRule = serde_json::from_value(wire).unwrap();
            let read = network::SecurityRule::try_from(&rule).unwrap();
            assert_eq!(read.ports, ports);
            let back = SecurityRule::from(&read);
            assert_eq!((&back.subnet, &back.group, back.protocol), (&rule.subnet, &rule.group, rule.protocol));
            assert_eq!(network::SecurityRule::try_from(&back), Ok(read));
        }
        for wire in [
            json!({"direction": "ingress", "last_port": 22}),
            json!({"direction": "ingress", "subnet": "10.0.0.0"}),
            json!({"direction": "ingress", "group": "No Name"}),
            json!({"direction": "ingress", "subnet": "10.0.0.0/8", "group": "web"}),
        ] {
            let rule: SecurityRule = serde_json::from_value(wire).unwrap();
            assert!(network::SecurityRule::try_from(&rule).is_err(), "{rule:?}");
        }
    }
}
