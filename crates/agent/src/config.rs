//! The agent's configuration: one TOML file. Every interval and limit is named here and nowhere else.
//!
//! Unknown keys are refused by name; every other mistake names its key and says what to write instead.

use drover_model::inventory::Capacity;
use drover_model::{Bytes, CpuMillis, HostId, NetworkId};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest path a unix socket may have (`sun_path` without its final zero, unix(7)).
const SOCKET_PATH_MAX: usize = 107;
/// `/vms/<id>/serial.sock` for an id as the server makes them (`vm-` and 12 letters).
const SOCKET_SUFFIX_LEN: usize = "/vms/vm-aaaaaaaaaaaa/serial.sock".len();
/// Longest name of a network interface (`IFNAMSIZ` without its final zero).
const INTERFACE_NAME_MAX: usize = 15;

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// This host's name in the cluster, as its join token was made for.
    pub host: HostId,
    /// Base of the server's API, `https://<name or address>:<port>`. The agents' port is learned at joining.
    pub server: String,
    /// Identity and vm records. One agent per directory.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// The directory all hosts share: `images/<image>/{kernel,initrd,disk}` and `disks/<vm>.qcow2`.
    #[serde(default = "default_shared_dir")]
    pub shared_dir: PathBuf,
    /// File with the one-time join token; read only while the host has no identity.
    #[serde(default)]
    pub join_token_file: Option<PathBuf>,
    /// Where this host receives vms. Default: the local address of the connection to the server.
    #[serde(default)]
    pub migration_address: Option<IpAddr>,
    /// Where other hosts send this one's frames of overlay networks. Default: the migration address.
    #[serde(default)]
    pub overlay_address: Option<IpAddr>,
    /// Control group of this host's vms, below the root of each hierarchy.
    #[serde(default = "default_cgroup")]
    pub cgroup: String,
    /// When given, the host is held to it by control groups; default: the whole machine.
    #[serde(default)]
    pub capacity: Option<CapacityConfig>,
    /// Network name to the bridge that vms of that network are attached to.
    #[serde(default)]
    pub networks: BTreeMap<NetworkId, String>,
    /// QEMU's program, by name (searched in PATH) or path.
    #[serde(default = "default_qemu")]
    pub qemu: String,
    #[serde(default)]
    pub limits: Limits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CapacityConfig {
    /// Processor time for guests in thousandths of a core.
    pub cpu_millis: u64,
    /// Memory for guests in MiB.
    pub memory_mib: u64,
}

impl CapacityConfig {
    pub fn capacity(self) -> Capacity {
        Capacity { cpu: CpuMillis(self.cpu_millis), memory: Bytes::mib(self.memory_mib) }
    }
}

/// Every interval, queue and wait of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Vms this host keeps records of.
    pub vms_max: usize,
    /// Commands waiting for one vm; one more is refused.
    pub vm_commands_max: usize,
    /// Frames waiting to be sent to the server; the connection ends when that is not enough.
    pub frames_waiting_max: usize,
    /// TCP, TLS and WebSocket handshake together, and the wait for the server's welcome.
    pub connect_wait_max_ms: u64,
    /// First wait before dialling again; each further one is half as long again.
    pub reconnect_min_ms: u64,
    /// Longest wait while the server was heard within `reconnect_eager_ms`: a restarted server is found quickly.
    pub reconnect_eager_max_ms: u64,
    pub reconnect_eager_ms: u64,
    /// Longest wait after that.
    pub reconnect_max_ms: u64,
    /// Wait after the server refused this agent.
    pub refused_wait_ms: u64,
    pub ping_every_ms: u64,
    /// The connection is given up when the server was silent for so long.
    pub server_silence_max_ms: u64,
    /// One HTTP request while joining.
    pub join_wait_max_ms: u64,
    pub sample_every_ms: u64,
    /// Disk counters are asked of QEMU, which costs more than reading a file.
    pub disk_sample_every_ms: u64,
    /// How often each running vm's dirty rate is measured; it stands for 60 s.
    pub dirty_rate_every_ms: u64,
    /// One call of `ip`.
    pub tool_wait_max_ms: u64,
    /// How often a vm whose QEMU can't be reached over QMP is tried again.
    pub attach_every_ms: u64,
    /// A migration update is told again at each connection for so long: the server may have missed it.
    pub update_repeat_max_ms: u64,
    /// What a console shows of the past when it is opened.
    pub console_history_bytes: u64,
    /// Chunks of input waiting for a guest's console; more are dropped.
    pub console_input_max: usize,
    /// Consoles open at once.
    pub consoles_max: usize,
    /// Lines of QEMU's log that a failure quotes.
    pub log_lines_max: usize,
    /// A vm's serial and QEMU log; what is older goes when it gets longer.
    pub log_bytes_max: u64,
    /// How often the length of logs is looked at.
    pub log_check_every_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            vms_max: 512,
            vm_commands_max: 16,
            frames_waiting_max: 1024,
            connect_wait_max_ms: 5_000,
            reconnect_min_ms: 200,
            reconnect_eager_max_ms: 800,
            reconnect_eager_ms: 20_000,
            reconnect_max_ms: 5_000,
            refused_wait_ms: 10_000,
            ping_every_ms: 5_000,
            server_silence_max_ms: 15_000,
            join_wait_max_ms: 10_000,
            sample_every_ms: 1_000,
            disk_sample_every_ms: 5_000,
            dirty_rate_every_ms: 30_000,
            tool_wait_max_ms: 10_000,
            attach_every_ms: 1_000,
            update_repeat_max_ms: 600_000,
            console_history_bytes: 8 << 10,
            console_input_max: 64,
            consoles_max: 32,
            log_lines_max: 5,
            log_bytes_max: 4 << 20,
            log_check_every_ms: 30_000,
        }
    }
}

macro_rules! durations {
    ($($name:ident: $field:ident),* $(,)?) => {
        impl Limits {
            $(pub fn $name(&self) -> Duration {
                Duration::from_millis(self.$field)
            })*
        }
    };
}

durations! {
    connect_wait_max: connect_wait_max_ms,
    reconnect_min: reconnect_min_ms,
    reconnect_eager_max: reconnect_eager_max_ms,
    reconnect_eager: reconnect_eager_ms,
    reconnect_max: reconnect_max_ms,
    refused_wait: refused_wait_ms,
    ping_every: ping_every_ms,
    server_silence_max: server_silence_max_ms,
    join_wait_max: join_wait_max_ms,
    sample_every: sample_every_ms,
    disk_sample_every: disk_sample_every_ms,
    dirty_rate_every: dirty_rate_every_ms,
    tool_wait_max: tool_wait_max_ms,
    attach_every: attach_every_ms,
    update_repeat_max: update_repeat_max_ms,
    log_check_every: log_check_every_ms,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("can't read the agent's configuration {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the agent's configuration is not valid")]
    Parse(#[from] toml::de::Error),
    #[error("agent configuration: {key}: {problem}")]
    Value { key: String, problem: String },
}

impl AgentConfig {
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::from_toml(&text)
    }

    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let server = reqwest::Url::parse(&self.server).ok();
        if !server.is_some_and(|url| url.scheme() == "https" && url.has_host() && url.path() == "/") {
            return bad("server", "write the API's base as https://NAME:PORT, without a path");
        }
        for (key, path) in [("state_dir", &self.state_dir), ("shared_dir", &self.shared_dir)] {
            if !path.is_absolute() {
                return bad(key, "write an absolute path: QEMU runs in another directory than the agent");
            }
        }
        let room = SOCKET_PATH_MAX - SOCKET_SUFFIX_LEN;
        if self.state_dir.as_os_str().len() > room {
            return bad(
                "state_dir",
                &format!("use a path of at most {room} bytes: it leads to unix sockets, whose paths are limited"),
            );
        }
        let part_ok = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.starts_with("cgroup.");
        if !self.cgroup.split('/').all(part_ok) {
            return bad("cgroup", "write a relative path like drover/h1, without empty parts, '.' or '..'");
        }
        if let Some(capacity) = self.capacity {
            if !(100..=1_000_000).contains(&capacity.cpu_millis) {
                return bad("capacity.cpu_millis", "must lie between 100 and 1000000 (thousandths of a core)");
            }
            if !(64..=64 << 20).contains(&capacity.memory_mib) {
                return bad("capacity.memory_mib", "must lie between 64 and 67108864");
            }
        }
        for (network, bridge) in &self.networks {
            let name_ok = !bridge.is_empty()
                && bridge.len() <= INTERFACE_NAME_MAX
                && bridge.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
            if !name_ok {
                return bad(&format!("networks.{network}"), "write the name of a bridge, at most 15 characters");
            }
        }
        if self.qemu.is_empty() {
            return bad("qemu", "write the program's name, like qemu-system-x86_64");
        }
        self.limits.check()
    }
}

impl Limits {
    fn check(&self) -> Result<(), ConfigError> {
        for (key, value) in [
            ("vms_max", self.vms_max),
            ("vm_commands_max", self.vm_commands_max),
            ("frames_waiting_max", self.frames_waiting_max),
            ("console_input_max", self.console_input_max),
            ("consoles_max", self.consoles_max),
            ("log_lines_max", self.log_lines_max),
        ] {
            if !(1..=65_536).contains(&value) {
                return bad(&format!("limits.{key}"), "must lie between 1 and 65536");
            }
        }
        for (key, value) in [
            ("connect_wait_max_ms", self.connect_wait_max_ms),
            ("reconnect_min_ms", self.reconnect_min_ms),
            ("reconnect_eager_max_ms", self.reconnect_eager_max_ms),
            ("reconnect_eager_ms", self.reconnect_eager_ms),
            ("reconnect_max_ms", self.reconnect_max_ms),
            ("refused_wait_ms", self.refused_wait_ms),
            ("ping_every_ms", self.ping_every_ms),
            ("server_silence_max_ms", self.server_silence_max_ms),
            ("join_wait_max_ms", self.join_wait_max_ms),
            ("sample_every_ms", self.sample_every_ms),
            ("disk_sample_every_ms", self.disk_sample_every_ms),
            ("dirty_rate_every_ms", self.dirty_rate_every_ms),
            ("tool_wait_max_ms", self.tool_wait_max_ms),
            ("attach_every_ms", self.attach_every_ms),
            ("update_repeat_max_ms", self.update_repeat_max_ms),
            ("log_check_every_ms", self.log_check_every_ms),
        ] {
            if !(10..=3_600_000).contains(&value) {
                return bad(&format!("limits.{key}"), "must lie between 10 and 3600000 ms");
            }
        }
        if !(64 << 10..=1 << 40).contains(&self.log_bytes_max) {
            return bad("limits.log_bytes_max", "must lie between 65536 and 1099511627776");
        }
        if self.console_history_bytes > 1 << 20 {
            return bad("limits.console_history_bytes", "must be at most 1048576");
        }
        if self.server_silence_max_ms <= self.ping_every_ms {
            return bad(
                "limits.server_silence_max_ms",
                "must be more than ping_every_ms, or no answer could be in time",
            );
        }
        Ok(())
    }
}

fn bad<T>(key: &str, problem: &str) -> Result<T, ConfigError> {
    Err(ConfigError::Value { key: key.to_owned(), problem: problem.to_owned() })
}

fn default_state_dir() -> PathBuf {
    "/var/lib/drover/agent".into()
}

fn default_shared_dir() -> PathBuf {
    "/srv/drover".into()
}

fn default_cgroup() -> String {
    "drover".into()
}

fn default_qemu() -> String {
    "qemu-system-x86_64".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALLEST: &str = "host = \"h1\"\nserver = \"https://10.77.0.1:7443\"\n";

    fn complaint(text: &str) -> String {
        let error = AgentConfig::from_toml(text).expect_err("refused");
        let mut chain = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(next) = cause {
            chain.push_str(&format!(": {next}"));
            cause = next.source();
        }
        chain
    }

    #[test]
    fn two_keys_are_enough() {
        let config = AgentConfig::from_toml(SMALLEST).unwrap();
        assert_eq!(config.state_dir, Path::new("/var/lib/drover/agent"));
        assert_eq!(config.cgroup, "drover");
        assert_eq!(config.capacity, None);
        assert_eq!(config.limits, Limits::default());
    }

    #[test]
    fn a_full_file_is_read() {
        let config = AgentConfig::from_toml(&format!(
            "{SMALLEST}state_dir = \"/s\"\nshared_dir = \"/d\"\njoin_token_file = \"/t\"\nmigration_address = \"10.77.0.11\"\n\
             cgroup = \"drover/h1\"\nqemu = \"/usr/bin/q\"\n[capacity]\ncpu_millis = 600\nmemory_mib = 1024\n\
             [networks]\nlan = \"br0\"\n[limits]\nvms_max = 7\n"
        ))
        .unwrap();
        assert_eq!(config.capacity.unwrap().capacity(), Capacity { cpu: CpuMillis(600), memory: Bytes::mib(1024) });
        assert_eq!(config.limits.vms_max, 7);
        assert_eq!(config.networks.values().collect::<Vec<_>>(), ["br0"]);
    }

    #[test]
    fn every_mistake_names_its_key() {
        for (line, key) in [
            ("sate_dir = \"/x\"", "sate_dir"),
            ("state_dir = \"x\"", "state_dir"),
            ("cgroup = \"../x\"", "cgroup"),
            ("cgroup = \"/x\"", "cgroup"),
            ("migration_address = \"nowhere\"", "migration_address"),
            ("overlay_address = \"10.0.0.1/24\"", "overlay_address"),
            ("[capacity]\ncpu_millis = 5\nmemory_mib = 1024", "capacity.cpu_millis"),
            ("[capacity]\ncpu_millis = 500", "memory_mib"),
            ("[networks]\nlan = \"a-name-too-long-for-linux\"", "networks.lan"),
            ("[networks]\nLAN = \"br0\"", "LAN"),
            ("[limits]\nping_every_ms = 1", "limits.ping_every_ms"),
            ("[limits]\nserver_silence_max_ms = 5000", "limits.server_silence_max_ms"),
            ("[limits]\nspeed = 1", "speed"),
        ] {
            let said = complaint(&format!("{SMALLEST}{line}\n"));
            assert!(said.contains(key), "{line:?} was answered with {said:?}");
        }
        for server in ["http://h:1", "h:1", "https://h:1/v1", ""] {
            let said = complaint(&format!("host = \"h1\"\nserver = \"{server}\"\n"));
            assert!(said.contains("server"), "{server:?} was answered with {said:?}");
        }
        let long = format!("{SMALLEST}state_dir = \"/{}\"", "x".repeat(90));
        assert!(complaint(&long).contains("unix sockets"));
    }
}
