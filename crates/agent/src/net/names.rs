//! What drover's interfaces are called. Linux allows 15 characters.

use drover_model::{NetworkId, PortId, VmId};
use sha2::{Digest, Sha256};

/// Of every tap drover makes.
pub const TAP_PREFIX: &str = "dv";
/// Of a network's bridge, VXLAN device and of the inner ends of ports; nothing else on a host may be called so.
pub const BRIDGE_PREFIX: &str = "drb";
pub const TUNNEL_PREFIX: &str = "drx";
pub const PORT_PREFIX: &str = "drp";
/// Of the devices that hold back what vms send too fast.
pub const SHAPER_PREFIX: &str = "dri";
const ID_LEN: usize = 12;
pub const PORT_ID_LEN: usize = 12;

/// A vm's tap: `dv` and the first 12 characters of what is random in its id.
pub fn tap_name(vm: &VmId) -> String {
    with_id(TAP_PREFIX, vm)
}

pub fn shaper_name(vm: &VmId) -> String {
    with_id(SHAPER_PREFIX, vm)
}

fn with_id(prefix: &str, vm: &VmId) -> String {
    let id = vm.as_str().strip_prefix("vm-").unwrap_or(vm.as_str());
    let mut name = prefix.to_owned();
    name.extend(id.chars().take(ID_LEN));
    name
}

pub fn bridge_name(vni: u32) -> String {
    format!("{BRIDGE_PREFIX}{vni}")
}

pub fn tunnel_name(vni: u32) -> String {
    format!("{TUNNEL_PREFIX}{vni}")
}

/// The end of a port's veth pair that is on the bridge: the other end has the name it was given.
pub fn port_end_name(port: &PortId) -> String {
    let digest = Sha256::digest(port.as_str());
    let hex: String = digest.iter().take(PORT_ID_LEN / 2).map(|byte| format!("{byte:02x}")).collect();
    format!("{PORT_PREFIX}{hex}")
}

/// Whether an interface is one of drover's, by its name.
pub fn is_own(interface: &str) -> bool {
    let devices = [BRIDGE_PREFIX, TUNNEL_PREFIX, PORT_PREFIX, SHAPER_PREFIX];
    interface.starts_with(TAP_PREFIX) || devices.iter().any(|prefix| interface.starts_with(prefix))
}

/// The tap's own address: the guest's with 0xfe in front. A bridge takes the lowest address of its ports as its own
/// unless it was given one; this one is never the lowest, so a vm that comes or goes does not change the bridge.
pub fn tap_mac(guest: Mac) -> Mac {
    let mut bytes = guest.0;
    bytes[0] = 0xfe;
    Mac(bytes)
}

/// A network's bridge has the same address on every host, and no guest has it: its first byte is not of those given to vms.
pub fn bridge_mac(vni: u32) -> Mac {
    let [_, a, b, c] = vni.to_be_bytes();
    Mac([0x02, b'd', b'r', a, b, c])
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an Ethernet address of one interface: write it as 52:54:00:12:34:56")]
pub struct BadMac(String);

impl Mac {
    /// The link-local address that Linux and most others make of it by default (RFC 4291 appendix A).
    pub fn link_local(self) -> std::net::Ipv6Addr {
        let [a, b, c, d, e, f] = self.0.map(u16::from);
        std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, (a ^ 2) << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f)
    }
}

impl std::str::FromStr for Mac {
    type Err = BadMac;
    fn from_str(text: &str) -> Result<Self, BadMac> {
        let bad = || BadMac(text.chars().take(40).collect());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = u8::from_str_radix(part.ok_or_else(bad)?, 16).map_err(|_| bad())?;
        }
        let multicast = bytes[0] & 1 == 1;
        if parts.next().is_some() || multicast || bytes == [0; 6] { Err(bad()) } else { Ok(Self(bytes)) }
    }
}

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl std::fmt::Debug for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// A name that Linux, `ip` and `nft` take as it is.
pub fn is_interface_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
}

/// For messages: a network as a person finds it.
pub fn shown(network: &NetworkId, vni: u32) -> String {
    format!("network {network} (VNI {vni})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_linux_and_follow_what_they_are_of() {
        assert_eq!(tap_name(&"vm-abcdefghijkl".parse().unwrap()), "dvabcdefghijkl");
        assert_eq!(tap_name(&"vm-a".parse().unwrap()), "dva");
        let long = "x".repeat(63);
        assert!(tap_name(&long.parse().unwrap()).len() <= 15 && shaper_name(&long.parse().unwrap()).len() <= 15);
        assert!(port_end_name(&long.parse().unwrap()).len() <= 15);
        assert_ne!(port_end_name(&"a".parse().unwrap()), port_end_name(&"b".parse().unwrap()));
        assert!(bridge_name(16_777_215).len() <= 15);
    }

    #[test]
    fn addresses_are_read_strictly() {
        let mac: Mac = "52:01:02:03:04:ff".parse().unwrap();
        assert_eq!(mac.to_string(), "52:01:02:03:04:ff");
        assert_eq!(tap_mac(mac).to_string(), "fe:01:02:03:04:ff");
        assert_eq!(mac.link_local().to_string(), "fe80::5001:2ff:fe03:4ff");
        for bad in [
            "",
            "52:01:02:03:04",
            "52:01:02:03:04:05:06",
            "53:01:02:03:04:05",
            "00:00:00:00:00:00",
            "5:01:02:03:04:055",
            "+5:01:02:03:04:05",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn interface_names_can_break_no_rule() {
        assert!(is_interface_name("gw0") && is_interface_name("mon-a.1"));
        for bad in ["", "-a", "a b", "a\"b", "a/b", "a*", "sixteen-letters-"] {
            assert!(!is_interface_name(bad), "{bad}");
        }
    }
}
