//! Networks of vms: what somebody decided about them, and what a host is told to make of it (design section 7).
//!
//! An overlay network lies between hosts as VXLAN (RFC 7348) without learning: which host a frame goes to is written by
//! drover. Two tenants may use the same addresses. A provider network is a bridge of the host, named in its configuration.

use crate::kind::Labels;
use crate::{Bytes, HostId, NetworkId, NetworkName, PortId, SecurityGroupId, TenantName, TimeMs, VmId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use utoipa::ToSchema;

/// A tenant's own network, laid over the hosts'.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub id: NetworkId,
    pub tenant: TenantName,
    pub name: NetworkName,
    /// VXLAN network identifier, [`Network::VNI_MIN`] to 2^24 - 1, unique in the cluster and not used again soon.
    pub vni: u32,
    pub subnet: Subnet,
    /// Told to guests by DHCP as their default route, if given. Inside `subnet`.
    pub router: Option<Ipv4Addr>,
    /// Told to guests by DHCP.
    pub dns: Vec<Ipv4Addr>,
    /// Largest packet of a guest, in bytes: 576 to 8950.
    pub mtu: u16,
    pub created_at: TimeMs,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

impl Network {
    /// Lower ones are left to networks set up by hand.
    pub const VNI_MIN: u32 = 4096;
    pub const VNI_MAX: u32 = (1 << 24) - 1;
    /// What VXLAN over IPv4 adds to a packet: outer Ethernet is not counted, inner is.
    pub const OVERHEAD: u16 = 50;
    pub const MTU_DEFAULT: u16 = 1450;
}

/// An IPv4 network or an address with its network's length, as `10.1.0.5/16`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    pub address: Ipv4Addr,
    /// 0 to 32.
    pub prefix: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an IPv4 network: write it as 10.1.0.0/16")]
pub struct BadSubnet(String);

impl Subnet {
    pub fn mask(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0)
    }

    /// The network's first address.
    pub fn network(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.address) & self.mask())
    }

    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network()) | !self.mask())
    }

    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & self.mask() == u32::from(self.network())
    }

    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.network()) || other.contains(self.network())
    }
}

impl FromStr for Subnet {
    type Err = BadSubnet;
    fn from_str(text: &str) -> Result<Self, BadSubnet> {
        let bad = || BadSubnet(text.chars().take(80).collect());
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        let address = address.parse().map_err(|_| bad())?;
        if prefix > 32 { Err(bad()) } else { Ok(Self { address, prefix }) }
    }
}

impl TryFrom<String> for Subnet {
    type Error = BadSubnet;
    fn try_from(text: String) -> Result<Self, BadSubnet> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> String {
        subnet.to_string()
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl fmt::Debug for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What may reach a vm, and what it may reach. Replies to what was let through always pass (stateful). A vm in no
/// group is let through both ways; one in groups may receive what any of their rules lets in, and send what any lets
/// out (everything, where no group of it has a rule for sending).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityGroup {
    pub id: SecurityGroupId,
    pub tenant: TenantName,
    pub rules: Vec<SecurityRule>,
    pub created_at: TimeMs,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SecurityRule {
    pub direction: Direction,
    pub protocol: Protocol,
    /// First and last port, both included; TCP and UDP only. `None`: all.
    pub ports: Option<(u16, u16)>,
    pub remote: Remote,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// Towards the vm.
    Ingress,
    Egress,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    Any,
    Tcp,
    Udp,
    Icmp,
}

/// Whom a rule is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "remote")]
pub enum Remote {
    Any,
    Subnet {
        subnet: Subnet,
    },
    /// The vms of this group, on the same network.
    Group {
        group: SecurityGroupId,
    },
}

/// How much a vm may send and receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Bytes per second towards the vm; 0 is no limit.
    pub ingress_max: Bytes,
    /// Bytes per second from the vm; 0 is no limit.
    pub egress_max: Bytes,
}

/// An interface of a host on an overlay network: how what is not a vm (a gateway, a monitor, a test client) reaches the
/// vms of it.
/// Shown as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Port {
    #[serde(rename = "name", alias = "id")]
    pub id: PortId,
    pub network: NetworkId,
    pub host: HostId,
    /// The interface's name on the host: at most 15 characters.
    pub interface: String,
    pub mac: String,
    #[schema(value_type = String)]
    pub address: Ipv4Addr,
    #[serde(rename = "created_at_ms", alias = "created_at")]
    #[schema(value_type = u64)]
    pub created_at: TimeMs,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

impl Port {
    /// As a vm's from its id, and never the same as one.
    pub fn derived_mac(id: &PortId) -> String {
        derived_mac(&format!("port/{id}"))
    }
}

/// A MAC address from a name, by FNV-1a (64 bits, of which the last 40 are used).
pub(crate) fn derived_mac(name: &str) -> String {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let b = hash.to_be_bytes();
    format!("52:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", b[3], b[4], b[5], b[6], b[7])
}

/// Everything that one host must make true of networks, whole each time. An agent replaces what it has by it, as one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HostNetwork {
    /// Grows with every change; an agent ignores an older one than it has from the same server run.
    pub generation: u64,
    pub overlays: Vec<Overlay>,
    /// One for every vm with a network card that this host has or is about to have, on provider networks, too.
    pub vms: Vec<VmPort>,
    pub ports: Vec<Port>,
}

/// An overlay network as one host has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    pub network: NetworkId,
    pub vni: u32,
    pub mtu: u16,
    pub subnet: Subnet,
    /// The other hosts with a member: frames to all (broadcast, multicast) go to each of them.
    pub peers: BTreeSet<IpAddr>,
    /// Every member that is on another host, and on which: forwarding entries.
    pub stations: Vec<Station>,
}

/// A member of an overlay network that is on another host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Station {
    pub mac: String,
    pub address: Option<Ipv4Addr>,
    /// Tunnel end point of its host.
    pub at: IpAddr,
}

/// A vm's network card as its host must guard it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmPort {
    pub vm: VmId,
    pub network: NetworkId,
    /// The only sender address that may leave it.
    pub mac: String,
    /// With the subnet's prefix. The only IPv4 sender address that may leave it; `None`: any.
    pub address: Option<Subnet>,
    /// Handed out by DHCP on this card; `None`: no DHCP from drover.
    pub lease: Option<Lease>,
    /// `None`: no perimeter, everything passes that is not spoofed.
    pub perimeter: Option<Vec<PortRule>>,
    pub bandwidth: Bandwidth,
}

/// What DHCP tells the guest besides its address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub host_name: String,
    pub router: Option<Ipv4Addr>,
    pub dns: Vec<Ipv4Addr>,
    pub mtu: u16,
}

/// A security rule with its remote group resolved to addresses. An empty `remotes` matches nobody.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortRule {
    pub direction: Direction,
    pub protocol: Protocol,
    pub ports: Option<(u16, u16)>,
    /// `None`: everybody.
    pub remotes: Option<Vec<Subnet>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_groups_and_ports_of_version_0_1_0_still_load() {
        let stored = serde_json::json!({
            "id": "net-abcdefghijkl", "tenant": "acme", "name": "lan", "vni": 5000, "subnet": "10.1.0.0/16",
            "router": "10.1.0.1", "dns": ["10.1.0.2"], "mtu": 1450, "created_at": 5,
        });
        let network: Network = serde_json::from_value(stored.clone()).unwrap();
        assert_eq!((network.created_at, network.labels.is_empty()), (TimeMs(5), true));
        assert_eq!(serde_json::to_value(&network).unwrap(), stored);

        let stored = serde_json::json!({
            "id": "web", "tenant": "acme", "created_at": 5,
            "rules": [
                {"direction": "ingress", "protocol": "tcp", "ports": [80, 80], "remote": {"remote": "any"}},
                {"direction": "egress", "protocol": "any", "ports": null, "remote": {"remote": "group", "group": "db"}},
            ],
        });
        let group: SecurityGroup = serde_json::from_value(stored.clone()).unwrap();
        assert_eq!((group.id.as_str(), group.rules.len(), group.labels.is_empty()), ("web", 2, true));
        assert_eq!(serde_json::to_value(&group).unwrap(), stored);

        let stored = serde_json::json!({
            "id": "gw", "network": "net-abcdefghijkl", "host": "h1", "interface": "gw0", "mac": "52:54:00:00:00:01",
            "address": "10.1.0.9", "created_at": 5,
        });
        let port: Port = serde_json::from_value(stored).unwrap();
        assert_eq!((port.id.as_str(), port.created_at, port.labels.is_empty()), ("gw", TimeMs(5), true));
        let again = serde_json::to_value(&port).unwrap();
        assert_eq!((&again["name"], &again["created_at_ms"]), (&"gw".into(), &5.into()));
        assert_eq!(serde_json::from_value::<Port>(again).unwrap(), port);
    }

    #[test]
    fn subnets_are_read_and_compared() {
        let subnet: Subnet = "10.1.2.3/16".parse().unwrap();
        assert_eq!(subnet.network(), Ipv4Addr::new(10, 1, 0, 0));
        assert_eq!(subnet.broadcast(), Ipv4Addr::new(10, 1, 255, 255));
        assert!(subnet.contains(Ipv4Addr::new(10, 1, 200, 1)) && !subnet.contains(Ipv4Addr::new(10, 2, 0, 1)));
        assert!(subnet.overlaps("10.1.9.0/24".parse().unwrap()) && !subnet.overlaps("10.2.0.0/16".parse().unwrap()));
        let all: Subnet = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains(Ipv4Addr::BROADCAST) && all.mask() == 0);
        for bad in ["", "10.1.2.3", "10.1.2.3/33", "10.1.2/8", "::/0", "a/b"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }
}
