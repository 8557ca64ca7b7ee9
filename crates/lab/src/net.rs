//! The lab's network: a switch namespace, and a namespace for each host.
//!
//! Two networks, as a small data centre has them: `mgmt` between server and agents, over which
//! migrations go, and `prov`, the provider network of the vms. Addresses are the same in every lab,
//! since each has its namespaces to itself, and nothing of it shows in the machine's own network.
//!
//! Every bridge has a fixed hardware address. Without one it takes the lowest of its ports' and
//! changes it when a vm's tap comes or goes, and neighbours go on sending to the old one for a while.

use crate::limits::HOSTS_MAX;
use crate::netns::Namespace;
use anyhow::{Result, ensure};
use std::net::{IpAddr, Ipv4Addr};

/// The server, on the management network.
pub const SERVER_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1));
/// The test or demo, on the vms' network.
pub const PROVIDER_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 78, 0, 1));
/// The bridge of the vms' network on each host.
pub const HOST_BRIDGE: &str = "br-prov";

const PREFIX_LEN: u8 = 24;
const MGMT: &str = "mgmt";
const PROV: &str = "prov";
const MGMT_MAC: &str = "02:4d:00:00:00:01";
const PROV_MAC: &str = "02:50:00:00:00:01";
/// Of no interface.
const NOBODY_MAC: &str = "02:4e:00:00:00:01";
/// A host's own end of its management link.
const MGMT_INTERFACE: &str = "eth0";

/// One host's part of the network, by its number from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostNumber(u8);

impl HostNumber {
    pub fn new(number: usize) -> Option<Self> {
        u8::try_from(number).ok().filter(|n| (1..=HOSTS_MAX).contains(&usize::from(*n))).map(Self)
    }

    /// On the management network.
    pub fn address(self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 77, 0, 10 + self.0))
    }

    /// The switch's end of the management link.
    pub(crate) fn mgmt_port(self) -> String {
        format!("h{}m", self.0)
    }

    pub(crate) fn prov_port(self) -> String {
        format!("h{}p", self.0)
    }

    fn mac(self, part: u8) -> String {
        format!("02:50:00:00:{part:02x}:{:02x}", self.0)
    }
}

/// A vm's address on the provider network, in CIDR form; `number` from 1 to 200.
pub fn vm_address(number: u8) -> (IpAddr, String) {
    let address = Ipv4Addr::new(10, 78, 0, 10 + number);
    (IpAddr::V4(address), format!("{address}/{PREFIX_LEN}"))
}

/// The namespaces of one lab.
#[derive(Debug, Clone)]
pub struct LabNet {
    prefix: String,
    hosts: usize,
}

impl LabNet {
    /// Namespaces are named `<prefix>-sw` and `<prefix>-h1` and on.
    pub fn new(prefix: impl Into<String>, hosts: usize) -> Result<Self> {
        ensure!((1..=HOSTS_MAX).contains(&hosts), "a lab has 1 to {HOSTS_MAX} hosts, not {hosts}");
        Ok(Self { prefix: prefix.into(), hosts })
    }

    pub fn switch(&self) -> Namespace {
        Namespace::named(format!("{}-sw", self.prefix))
    }

    pub fn host(&self, number: HostNumber) -> Namespace {
        Namespace::named(format!("{}-h{}", self.prefix, number.0))
    }

    fn numbers(&self) -> impl Iterator<Item = HostNumber> {
        (1..=self.hosts).filter_map(HostNumber::new)
    }

    pub fn create(&self) -> Result<()> {
        let switch = self.switch();
        switch.create()?;
        for (bridge, mac, address) in [(MGMT, MGMT_MAC, SERVER_ADDRESS), (PROV, PROV_MAC, PROVIDER_ADDRESS)] {
            make_bridge(&switch, bridge, mac)?;
            switch.ip(&["addr", "add", &cidr(address), "dev", bridge])?;
        }
        self.numbers().try_for_each(|number| self.create_host(&switch, number))
    }

    fn create_host(&self, switch: &Namespace, number: HostNumber) -> Result<()> {
        let host = self.host(number);
        host.create()?;
        make_bridge(&host, HOST_BRIDGE, &number.mac(1))?;
        connect(switch, &number.mgmt_port(), MGMT, &host, "eth0", &number.mac(2))?;
        connect(switch, &number.prov_port(), PROV, &host, "eth1", &number.mac(3))?;
        host.ip(&["addr", "add", &cidr(number.address()), "dev", "eth0"])?;
        host.ip(&["link", "set", "eth1", "master", HOST_BRIDGE])
    }

    /// Plugs a host's management link in or out at the switch.
    pub fn link(&self, number: HostNumber, up: bool) -> Result<()> {
        self.switch().ip(&["link", "set", &number.mgmt_port(), if up { "up" } else { "down" }])
    }

    /// Opens or cuts the path between two hosts on the management network; both still reach the server. What one sends
    /// to the other while it is cut goes to an address nobody has, so neither is told.
    pub fn path(&self, a: HostNumber, b: HostNumber, open: bool) -> Result<()> {
        for (from, to) in [(a, b), (b, a)] {
            let peer = to.address().to_string();
            let entry = ["lladdr", NOBODY_MAC, "nud", "permanent"];
            let (verb, entry) = if open { ("del", &[][..]) } else { ("replace", &entry[..]) };
            self.host(from).ip(&[&["neigh", verb, &peer, "dev", MGMT_INTERFACE], entry].concat())?;
        }
        Ok(())
    }
}

fn cidr(address: IpAddr) -> String {
    format!("{address}/{PREFIX_LEN}")
}

fn make_bridge(namespace: &Namespace, name: &str, mac: &str) -> Result<()> {
    // Ports forward at once: the topology has no loop to be found first.
    let kind = ["type", "bridge", "stp_state", "0", "forward_delay", "0", "mcast_snooping", "0"];
    namespace.ip(&[&["link", "add", "name", name, "address", mac], &kind[..]].concat())?;
    namespace.ip(&["link", "set", name, "up"])
}

/// A cable from the switch's bridge to a host's interface.
fn connect(switch: &Namespace, port: &str, bridge: &str, host: &Namespace, interface: &str, mac: &str) -> Result<()> {
    let peer = ["peer", "name", interface, "address", mac, "netns", host.name()];
    switch.ip(&[&["link", "add", "name", port, "type", "veth"], &peer[..]].concat())?;
    switch.ip(&["link", "set", port, "master", bridge, "up"])?;
    host.ip(&["link", "set", interface, "up"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_numbered_from_one_and_have_their_own_addresses() {
        assert_eq!(HostNumber::new(0), None);
        assert_eq!(HostNumber::new(HOSTS_MAX + 1), None);
        let last = HostNumber::new(HOSTS_MAX).unwrap();
        assert_eq!(last.address().to_string(), "10.77.0.210");
        assert_eq!(HostNumber::new(1).unwrap().address().to_string(), "10.77.0.11");
        assert_ne!(last.mac(1), last.mac(2));
        assert!(LabNet::new("x", 0).is_err());
    }

    #[test]
    fn vms_have_their_own_addresses_on_the_provider_network() {
        assert_eq!(vm_address(1).1, "10.78.0.11/24");
        assert_eq!(vm_address(200).0.to_string(), "10.78.0.210");
    }
}
