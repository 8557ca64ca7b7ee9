//! The configurations that the lab's server and agents are given.

use crate::net::{HOST_BRIDGE, HostNumber, SERVER_ADDRESS};
use crate::place::Place;
use anyhow::{Context, Result};
use drover_model::HostId;
use drover_model::policy::Policy;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// Of the API, on the switch.
pub const API_PORT: u16 = 7443;
const AGENT_PORT: u16 = 7444;
/// The vms' network, as hosts and vms call it.
pub const NETWORK: &str = "prov";
/// One operation of a host's power switch.
pub const POWER_TIMEOUT_S: u64 = 30;

pub fn api_base() -> String {
    format!("https://{SERVER_ADDRESS}:{API_PORT}")
}

/// What one host can give to vms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostSize {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    pub memory_mib: u64,
}

#[derive(Serialize)]
struct Server<'a> {
    data_dir: PathBuf,
    shared_dir: PathBuf,
    listen: SocketAddr,
    agent_listen: SocketAddr,
    policy: drover_api::v1::Policy,
    hosts: BTreeMap<&'a HostId, ServerHost>,
}

#[derive(Serialize)]
struct ServerHost {
    power: Power,
}

#[derive(Serialize)]
struct Power {
    driver: &'static str,
    on: Vec<String>,
    off: Vec<String>,
    status: Vec<String>,
    timeout_s: u64,
}

/// `power_switch` is the program whose `host-power` command is [`crate::power`]; without one no host can be switched.
pub fn server(place: &Place, hosts: &[HostId], policy: &Policy, power_switch: Option<&Path>) -> Result<String> {
    let switched = |host: &'_ HostId, program: &Path| {
        let command = |op: &str| {
            let dir = place.dir();
            let words = [program.to_string_lossy(), "host-power".into(), op.into(), "--state-dir".into()];
            let mut words: Vec<String> = words.into_iter().map(|word| word.into_owned()).collect();
            words.extend([dir.display().to_string(), "--host".to_owned(), host.to_string()]);
            words
        };
        let (on, off, status) = (command("on"), command("off"), command("status"));
        ServerHost { power: Power { driver: "command", on, off, status, timeout_s: POWER_TIMEOUT_S } }
    };
    let server = Server {
        data_dir: place.file("server"),
        shared_dir: place.shared_dir(),
        listen: SocketAddr::new(SERVER_ADDRESS, API_PORT),
        agent_listen: SocketAddr::new(SERVER_ADDRESS, AGENT_PORT),
        policy: policy.into(),
        hosts: hosts.iter().filter_map(|host| power_switch.map(|program| (host, switched(host, program)))).collect(),
    };
    toml::to_string(&server).context("the server's configuration can't be written as TOML")
}

#[derive(Serialize)]
struct Agent<'a> {
    host: &'a HostId,
    server: String,
    state_dir: PathBuf,
    shared_dir: PathBuf,
    join_token_file: PathBuf,
    migration_address: IpAddr,
    cgroup: PathBuf,
    capacity: Capacity,
    networks: BTreeMap<&'static str, &'static str>,
}

#[derive(Serialize)]
struct Capacity {
    cpu_millis: u64,
    memory_mib: u64,
}

pub fn agent(place: &Place, host: &HostId, number: HostNumber, size: HostSize) -> Result<String> {
    let agent = Agent {
        host,
        server: api_base(),
        state_dir: agent_state_dir(place, host),
        shared_dir: place.shared_dir(),
        join_token_file: join_token_file(place, host),
        migration_address: number.address(),
        cgroup: place.cgroup().join(host.as_str()),
        capacity: Capacity { cpu_millis: size.cpu_millis, memory_mib: size.memory_mib },
        networks: BTreeMap::from([(NETWORK, HOST_BRIDGE)]),
    };
    toml::to_string(&agent).context("the agent's configuration can't be written as TOML")
}

pub fn server_file(place: &Place) -> PathBuf {
    place.file("server.toml")
}

pub fn agent_file(place: &Place, host: &HostId) -> PathBuf {
    place.file(&format!("{host}.toml"))
}

pub fn agent_state_dir(place: &Place, host: &HostId) -> PathBuf {
    place.file(host.as_str())
}

pub fn join_token_file(place: &Place, host: &HostId) -> PathBuf {
    place.file(&format!("{host}.join"))
}

/// A host's name by its number.
pub fn host_id(number: usize) -> HostId {
    format!("h{number}").parse().expect("h and a number are a valid name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_told_its_place_in_the_lab() {
        let place = Place::new("test");
        let size = HostSize { cpu_millis: 600, memory_mib: 1_000 };
        let text = agent(&place, &host_id(2), HostNumber::new(2).unwrap(), size).unwrap();
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table["host"].as_str(), Some("h2"));
        assert_eq!(table["migration_address"].as_str(), Some("10.77.0.12"));
        assert_eq!(table["cgroup"].as_str(), Some(&*format!("drover-lab/{}/h2", place.name())));
        assert_eq!(table["capacity"]["cpu_millis"].as_integer(), Some(600));
        assert_eq!(table["networks"]["prov"].as_str(), Some("br-prov"));
    }

    #[test]
    fn the_server_switches_hosts_by_command_only_if_there_is_a_switch() {
        let place = Place::new("test");
        let hosts = [host_id(1), host_id(2)];
        let with = server(&place, &hosts, &Policy::default(), Some(Path::new("/bin/lab"))).unwrap();
        let table: toml::Table = with.parse().unwrap();
        let off = table["hosts"]["h2"]["power"]["off"].as_array().unwrap();
        let off: Vec<&str> = off.iter().filter_map(|word| word.as_str()).collect();
        let dir = place.dir();
        assert_eq!(off, ["/bin/lab", "host-power", "off", "--state-dir", dir.to_str().unwrap(), "--host", "h2"]);
        assert!(table["policy"]["hot_above"].as_float().is_some());

        let without: toml::Table = server(&place, &hosts, &Policy::default(), None).unwrap().parse().unwrap();
        assert!(without.get("hosts").and_then(|hosts| hosts.get("h1")).is_none());
    }
}
