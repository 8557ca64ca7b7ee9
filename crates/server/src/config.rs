//! The server's configuration: one TOML file in which every interval and limit has a name and a default.
//!
//! Unknown keys are refused, so that a misspelt limit is never silently the default.

use drover_api::v1::{BadPolicy, Policy};
use drover_control::Waits;
use drover_model::{HostId, Millis};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("the configuration {path} can't be read; write one or name another with --config")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the configuration {path} is not valid: {detail}")]
    Syntax { path: PathBuf, detail: String },
    #[error("{path}: {key}: {problem}")]
    Value { path: PathBuf, key: String, problem: String },
    #[error("{path}: [policy] {source}")]
    Policy { path: PathBuf, source: BadPolicy },
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// The server's own: store, CA, operator token. One server at a time.
    #[serde(default = "default_data_dir")]
    pub data_dir: PathBuf,
    /// Seen by the server and all hosts under the same path: images and disks.
    #[serde(default = "default_shared_dir")]
    pub shared_dir: PathBuf,
    /// Address and port of the API.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Address and port that agents dial.
    #[serde(default = "default_agent_listen")]
    pub agent_listen: SocketAddr,
    /// DNS names and IP addresses that clients and agents reach this server by, beside `localhost`
    /// and the two listening addresses; they go into the server's certificate.
    #[serde(default)]
    pub names: Vec<String>,
    #[serde(default)]
    pub intervals: Intervals,
    #[serde(default)]
    pub waits: WaitsConfig,
    #[serde(default)]
    pub limits: Limits,
    /// The policy of a new cluster, with the keys of `drover policy show`. Afterwards the API changes it and this one is
    /// not looked at.
    #[serde(default)]
    pub policy: Policy,
    #[serde(default)]
    pub hosts: BTreeMap<HostId, HostConfig>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Intervals {
    /// How often the loops run; 20 to 200.
    pub tick_ms: u64,
    /// How often agents report; 200 to 10000.
    pub report_ms: u64,
    /// An agent connection without a frame for this long is ended.
    pub agent_idle_s: u64,
    /// How often an event stream without events sends a comment, so that both ends know the other lives.
    pub event_keep_alive_s: u64,
}

impl Default for Intervals {
    fn default() -> Self {
        Self { tick_ms: 100, report_ms: 1_000, agent_idle_s: 15, event_keep_alive_s: 10 }
    }
}

/// How long the loops wait before they conclude something; see [`Waits`].
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WaitsConfig {
    /// No host is suspected after a shorter silence; 1000 to 60000, and at least `intervals.report_ms` and 500 ms more.
    pub suspect_after_ms: u64,
    /// No host is called down after a shorter silence; at least `suspect_after_ms`, at most 600000.
    pub down_after_ms: u64,
    /// After the server's start, how long a host may take to send its first message.
    pub first_message_within_ms: u64,
    /// The loops stop when more than this share of the hosts is silent at once; 1 to 100 percent.
    pub brake_above_percent: u32,
    /// A tick later than this means that the server itself stood still; 500 to 10000.
    pub tick_late_after_ms: u64,
    /// A vm whose QEMU ends unasked is started again at most so often within `restarts_within_s`, then only on request.
    pub restarts_max: u32,
    pub restarts_within_s: u64,
    /// A host that has refused to start a vm so often in a row is avoided by that vm for `avoid_host_for_s`.
    pub start_failures_max: u32,
    pub avoid_host_for_s: u64,
}

impl Default for WaitsConfig {
    fn default() -> Self {
        let waits = Waits::default();
        Self {
            suspect_after_ms: waits.suspect_after.0,
            down_after_ms: waits.down_after.0,
            first_message_within_ms: waits.first_message_within.0,
            brake_above_percent: waits.brake_above_percent,
            tick_late_after_ms: waits.tick_late_after.0,
            restarts_max: waits.restarts_max,
            restarts_within_s: waits.restarts_within.0 / 1_000,
            start_failures_max: waits.start_failures_max,
            avoid_host_for_s: waits.avoid_host_for.0 / 1_000,
        }
    }
}

impl From<&WaitsConfig> for Waits {
    fn from(config: &WaitsConfig) -> Self {
        Self {
            suspect_after: Millis(config.suspect_after_ms),
            down_after: Millis(config.down_after_ms),
            first_message_within: Millis(config.first_message_within_ms),
            brake_above_percent: config.brake_above_percent,
            tick_late_after: Millis(config.tick_late_after_ms),
            restarts_max: config.restarts_max,
            restarts_within: Millis::secs(config.restarts_within_s),
            start_failures_max: config.start_failures_max,
            avoid_host_for: Millis::secs(config.avoid_host_for_s),
        }
    }
}

/// Most of everything. Each is checked to be at least 1.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// API connections at once.
    pub connections_max: usize,
    /// Agent connections at once.
    pub agents_max: usize,
    /// TLS handshakes at once, per listener, and how long one may take.
    pub handshakes_at_once_max: usize,
    pub handshake_timeout_s: u64,
    /// How long a client may take to send a request's head.
    pub header_timeout_s: u64,
    /// Requests worked on at once (streams and uploads apart), and how long one may take.
    pub requests_at_once_max: usize,
    pub request_timeout_s: u64,
    /// Longest request body, uploads apart.
    pub request_body_bytes_max: usize,
    /// Largest image file, uploads at once, and how long an upload may pause.
    pub image_file_bytes_max: u64,
    pub uploads_at_once_max: usize,
    pub upload_idle_timeout_s: u64,
    /// Requests and messages waiting for the state machine.
    pub queue_max: usize,
    /// Frames waiting to be sent to one agent; one that reads more slowly is disconnected.
    pub agent_queue_max: usize,
    pub event_streams_max: usize,
    pub consoles_max: usize,
    /// Events kept in the store; older ones go.
    pub events_kept_max: u64,
    /// Revisions of which the log of changed objects is kept; who watches and falls further behind lists anew.
    pub changes_kept_max: u64,
    /// Longest life of a join token.
    pub join_token_life_s_max: u64,
    /// How often in a row a failed store is tried again before the server gives up and exits.
    pub store_retries_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 512,
            agents_max: 256,
            handshakes_at_once_max: 32,
            handshake_timeout_s: 10,
            header_timeout_s: 10,
            requests_at_once_max: 128,
            request_timeout_s: 30,
            request_body_bytes_max: 1 << 20,
            image_file_bytes_max: 64 << 30,
            uploads_at_once_max: 4,
            upload_idle_timeout_s: 30,
            queue_max: 1_024,
            agent_queue_max: 1_024,
            event_streams_max: 64,
            consoles_max: 64,
            events_kept_max: 100_000,
            changes_kept_max: 100_000,
            join_token_life_s_max: 7 * 86_400,
            store_retries_max: 10,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostConfig {
    pub power: Option<PowerConfig>,
}

/// How a host is switched on and off.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "driver")]
pub enum PowerConfig {
    /// The operator's own programs, run without a shell: first the path, then its arguments.
    /// `status` exits with 0 for on and 1 for off; the others with 0 when done.
    Command {
        on: Vec<String>,
        off: Vec<String>,
        status: Vec<String>,
        #[serde(default = "default_power_timeout_s")]
        timeout_s: u64,
    },
}

fn default_data_dir() -> PathBuf {
    "/var/lib/drover/server".into()
}
fn default_shared_dir() -> PathBuf {
    "/srv/drover".into()
}
fn default_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7443))
}
fn default_agent_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7444))
}
fn default_power_timeout_s() -> u64 {
    30
}

impl Intervals {
    pub fn tick(&self) -> Duration {
        Duration::from_millis(self.tick_ms)
    }
    pub fn report(&self) -> Millis {
        Millis(self.report_ms)
    }
    pub fn agent_idle(&self) -> Duration {
        Duration::from_secs(self.agent_idle_s)
    }
    pub fn event_keep_alive(&self) -> Duration {
        Duration::from_secs(self.event_keep_alive_s)
    }
}

impl ServerConfig {
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// `path` is for messages only.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            detail: error.to_string().trim_end().to_owned(),
        })?;
        config.check(path)?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let bad = |key: &str, problem: &str| {
            Err(ConfigError::Value { path: path.to_owned(), key: key.to_owned(), problem: problem.to_owned() })
        };
        self.policy.checked().map_err(|source| ConfigError::Policy { path: path.to_owned(), source })?;
        for (key, dir) in [("data_dir", &self.data_dir), ("shared_dir", &self.shared_dir)] {
            if !dir.is_absolute() {
                return bad(key, "must be an absolute path");
            }
        }
        if self.listen.port() == self.agent_listen.port() && self.listen.port() != 0 {
            return bad("agent_listen", "must be another port than listen");
        }
        for name in &self.names {
            if name.is_empty() || name.len() > 253 || !name.bytes().all(|b| b.is_ascii_graphic()) {
                return bad("names", "each must be a DNS name or an IP address");
            }
        }
        for (key, value, range) in [
            ("intervals.tick_ms", self.intervals.tick_ms, 20..=200),
            ("intervals.report_ms", self.intervals.report_ms, 200..=10_000),
            ("intervals.agent_idle_s", self.intervals.agent_idle_s, 2..=600),
            ("intervals.event_keep_alive_s", self.intervals.event_keep_alive_s, 1..=60),
            (
                "waits.suspect_after_ms",
                self.waits.suspect_after_ms,
                (self.intervals.report_ms + 500).max(1_000)..=60_000,
            ),
            ("waits.down_after_ms", self.waits.down_after_ms, self.waits.suspect_after_ms..=600_000),
            ("waits.first_message_within_ms", self.waits.first_message_within_ms, 1_000..=600_000),
            ("waits.brake_above_percent", u64::from(self.waits.brake_above_percent), 1..=100),
            ("waits.tick_late_after_ms", self.waits.tick_late_after_ms, 500..=10_000),
            ("waits.restarts_max", u64::from(self.waits.restarts_max), 1..=100),
            ("waits.restarts_within_s", self.waits.restarts_within_s, 10..=7 * 86_400),
            ("waits.start_failures_max", u64::from(self.waits.start_failures_max), 1..=100),
            ("waits.avoid_host_for_s", self.waits.avoid_host_for_s, 10..=7 * 86_400),
            ("limits.request_timeout_s", self.limits.request_timeout_s, 1..=600),
            ("limits.handshake_timeout_s", self.limits.handshake_timeout_s, 1..=60),
            ("limits.header_timeout_s", self.limits.header_timeout_s, 1..=60),
            ("limits.upload_idle_timeout_s", self.limits.upload_idle_timeout_s, 1..=600),
            ("limits.request_body_bytes_max", self.limits.request_body_bytes_max as u64, 1_024..=64 << 20),
            ("limits.image_file_bytes_max", self.limits.image_file_bytes_max, 1..=1 << 50),
            ("limits.join_token_life_s_max", self.limits.join_token_life_s_max, 1..=365 * 86_400),
            ("limits.events_kept_max", self.limits.events_kept_max, 100..=100_000_000),
            ("limits.changes_kept_max", self.limits.changes_kept_max, 100..=100_000_000),
            ("limits.store_retries_max", u64::from(self.limits.store_retries_max), 1..=1_000),
            ("limits.queue_max", self.limits.queue_max as u64, 1..=1 << 20),
            ("limits.agent_queue_max", self.limits.agent_queue_max as u64, 16..=1 << 20),
            ("limits.connections_max", self.limits.connections_max as u64, 1..=1 << 20),
            ("limits.agents_max", self.limits.agents_max as u64, 1..=1 << 20),
            ("limits.handshakes_at_once_max", self.limits.handshakes_at_once_max as u64, 1..=1 << 16),
            ("limits.requests_at_once_max", self.limits.requests_at_once_max as u64, 1..=1 << 16),
            ("limits.uploads_at_once_max", self.limits.uploads_at_once_max as u64, 1..=1 << 16),
            ("limits.event_streams_max", self.limits.event_streams_max as u64, 1..=1 << 16),
            ("limits.consoles_max", self.limits.consoles_max as u64, 1..=1 << 16),
        ] {
            if !range.contains(&value) {
                return bad(key, &format!("must lie between {} and {}", range.start(), range.end()));
            }
        }
        for (host, config) in &self.hosts {
            let Some(PowerConfig::Command { on, off, status, timeout_s }) = &config.power else { continue };
            for (word, command) in [("on", on), ("off", off), ("status", status)] {
                let key = format!("hosts.{host}.power.{word}");
                match command.first() {
                    Some(program) if Path::new(program).is_absolute() => {}
                    Some(_) => return bad(&key, "must begin with the absolute path of a program"),
                    None => return bad(&key, "must not be empty: give the program's path and its arguments"),
                }
            }
            if !(1..=600).contains(timeout_s) {
                return bad(&format!("hosts.{host}.power.timeout_s"), "must lie between 1 and 600");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ServerConfig, String> {
        ServerConfig::parse(Path::new("server.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        let config = parse("").unwrap();
        assert_eq!(config.listen.port(), 7443);
        assert_eq!(config.limits, Limits::default());
        assert_eq!(Waits::from(&config.waits), Waits::default());
        assert_eq!(config.policy, Policy::default());
    }

    #[test]
    fn a_full_file_is_read() {
        let config = parse(
            r#"
            data_dir = "/d"
            listen = "0.0.0.0:9000"
            names = ["drover.example", "10.0.0.1"]
            [policy]
            hot_above = 0.9
            [hosts.h2.power]
            driver = "command"
            on = ["/bin/on", "h2"]
            off = ["/bin/off"]
            status = ["/bin/status"]
            "#,
        )
        .unwrap();
        let h2 = &config.hosts[&"h2".parse().unwrap()];
        let Some(PowerConfig::Command { on, timeout_s, .. }) = &h2.power else { panic!("no power driver") };
        assert_eq!((on.len(), *timeout_s), (2, 30));
    }

    #[test]
    fn what_is_wrong_is_said_by_name() {
        for (text, expected) in [
            ("data_dri = \"/d\"", "data_dri"),
            ("[limits]\nqueue = 3", "queue"),
            ("[limits]\nqueue_max = 0", "limits.queue_max: must lie between"),
            ("[waits]\nsuspect_after_ms = 500", "waits.suspect_after_ms: must lie between 1500 and 60000"),
            ("[waits]\ndown_after_ms = 3000", "waits.down_after_ms: must lie between 3500 and 600000"),
            ("[policy]\nhot_above = 2.0", "[policy] hot_above: must lie between 0 and 1"),
            ("[policy]\nhot_abov = 0.8", "hot_abov"),
            ("listen = \"nowhere\"", "listen"),
            ("data_dir = \"d\"", "data_dir: must be an absolute path"),
            ("agent_listen = \"127.0.0.1:7443\"", "agent_listen: must be another port"),
            ("[hosts.H2.power]\ndriver=\"command\"", "H2"),
            (
                "[hosts.h2.power]\ndriver=\"command\"\non=[\"x\"]\noff=[\"/x\"]\nstatus=[\"/x\"]",
                "hosts.h2.power.on: must begin with the absolute path",
            ),
            ("[hosts.h2.power]\ndriver=\"ipmi\"", "ipmi"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
