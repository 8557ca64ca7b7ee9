//! Taps and bridges, by iproute2. Taps are persistent: they outlive the agent, as the vms do.

use crate::tool::{Tool, ToolError};
use drover_model::VmId;
use std::fs;
use std::time::Duration;

/// Of every tap drover makes.
pub const TAP_PREFIX: &str = "dv";
const TAP_ID_LEN: usize = 12;

#[derive(Debug, Clone, Copy)]
pub struct Net {
    ip: Tool<'static>,
}

#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("can't make the tap {tap} on bridge {bridge}")]
    Attach {
        tap: String,
        bridge: String,
        #[source]
        source: ToolError,
    },
    #[error("can't remove the tap {tap}")]
    Detach {
        tap: String,
        #[source]
        source: ToolError,
    },
}

/// A vm's tap: `dv` and the first 12 characters of what is random in its id; Linux allows 15.
pub fn tap_name(vm: &VmId) -> String {
    let id = vm.as_str().strip_prefix("vm-").unwrap_or(vm.as_str());
    let mut name = TAP_PREFIX.to_owned();
    name.extend(id.chars().take(TAP_ID_LEN));
    name
}

/// The tap's own address: the guest's with 0xfe in front. A bridge takes the lowest address of its ports as its own
/// unless it was given one; this one is never the lowest, so a vm that comes or goes does not change the bridge.
fn tap_mac(guest_mac: &str) -> String {
    format!("fe{}", guest_mac.get(2..).unwrap_or(""))
}

impl Net {
    pub fn new(wait_max: Duration) -> Self {
        Self { ip: Tool { program: "ip", package: "iproute2", wait_max } }
    }

    /// Makes the vm's tap, or finds it, and puts it on the bridge.
    pub async fn attach(&self, vm: &VmId, guest_mac: &str, bridge: &str) -> Result<String, NetError> {
        let tap = tap_name(vm);
        let failed = |source| NetError::Attach { tap: tap.clone(), bridge: bridge.to_owned(), source };
        if !interface_exists(&tap) {
            self.ip.run(&["tuntap", "add", "dev", &tap, "mode", "tap"]).await.map_err(failed)?;
        }
        let mac = tap_mac(guest_mac);
        self.ip.run(&["link", "set", "dev", &tap, "address", &mac, "master", bridge, "up"]).await.map_err(failed)?;
        Ok(tap)
    }

    /// Removes the vm's tap if there is one.
    pub async fn detach(&self, vm: &VmId) -> Result<(), NetError> {
        let tap = tap_name(vm);
        if !interface_exists(&tap) {
            return Ok(());
        }
        match self.ip.run(&["link", "delete", "dev", &tap]).await {
            // Gone between the look and the deletion.
            Err(_) if !interface_exists(&tap) => Ok(()),
            other => other.map(drop).map_err(|source| NetError::Detach { tap, source }),
        }
    }

    pub async fn is_bridge(&self, name: &str) -> bool {
        // Asked of the kernel: sysfs shows the namespace it was mounted in, not ours.
        let found = self.ip.run(&["-o", "link", "show", "dev", name, "type", "bridge"]).await;
        found.is_ok_and(|line| !line.is_empty())
    }
}

/// In this network namespace.
fn interface_exists(name: &str) -> bool {
    fs::read_to_string("/proc/net/dev")
        .is_ok_and(|text| text.lines().filter_map(|line| line.split_once(':')).any(|(found, _)| found.trim() == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tap_names_fit_linux_and_follow_the_vm() {
        assert_eq!(tap_name(&"vm-abcdefghijkl".parse().unwrap()), "dvabcdefghijkl");
        assert_eq!(tap_name(&"vm-a".parse().unwrap()), "dva");
        assert!(tap_name(&"x".repeat(63).parse().unwrap()).len() <= 15);
    }

    #[test]
    fn a_tap_never_lends_its_address_to_the_bridge() {
        assert_eq!(tap_mac("52:01:02:03:04:05"), "fe:01:02:03:04:05");
    }

    #[tokio::test]
    async fn a_tap_is_made_once_and_removed_once() {
        let net = Net::new(Duration::from_secs(10));
        let n = std::process::id() % 100_000;
        let (vm, bridge): (VmId, _) = (format!("vm-t{n}").parse().unwrap(), format!("dbr{n}"));
        net.ip.run(&["link", "add", "dev", &bridge, "type", "bridge"]).await.expect("this test needs root");
        let run = async {
            assert!(net.is_bridge(&bridge).await && !net.is_bridge("lo").await && !net.is_bridge("none").await);
            let tap = net.attach(&vm, "52:01:02:03:04:05", &bridge).await?;
            assert_eq!(net.attach(&vm, "52:01:02:03:04:05", &bridge).await?, tap);
            assert!(interface_exists(&tap));
            net.detach(&vm).await?;
            assert!(!interface_exists(&tap));
            net.detach(&vm).await
        };
        let result = run.await;
        net.ip.run(&["link", "delete", "dev", &bridge]).await.unwrap();
        result.unwrap();
    }
}
