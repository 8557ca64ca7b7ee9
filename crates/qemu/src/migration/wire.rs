//! `query-migrate`, as far as the drivers need it.

use super::Progress;
use crate::machine::Machine;
use crate::qmp::QmpError;
use serde::Deserialize;
use serde_json::Value;
use std::fmt;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(from = "String")]
pub(super) enum Status {
    /// There never was a migration.
    #[default]
    None,
    Setup,
    Active,
    PreSwitchover,
    Device,
    Completed,
    /// The guest runs at the destination, the rest of its memory follows.
    PostcopyActive,
    /// The connection broke; both ends wait to be connected anew.
    PostcopyPaused,
    /// Connected anew; the two ends tell each other what is missing.
    PostcopyRecover,
    Failed,
    Cancelling,
    Cancelled,
    /// One that this driver never asks for.
    Other(String),
}

impl From<String> for Status {
    fn from(word: String) -> Self {
        match word.as_str() {
            "none" => Self::None,
            "setup" => Self::Setup,
            "active" => Self::Active,
            "pre-switchover" => Self::PreSwitchover,
            "device" => Self::Device,
            "completed" => Self::Completed,
            // 10.2 calls it so while the destination loads its devices.
            "postcopy-active" | "postcopy-device" => Self::PostcopyActive,
            "postcopy-paused" => Self::PostcopyPaused,
            // 9.1 and later begin a recovery with a state of its own.
            "postcopy-recover" | "postcopy-recover-setup" => Self::PostcopyRecover,
            // 10.x passes through "failing" before "failed" in some of its releases.
            "failed" | "failing" => Self::Failed,
            "cancelling" => Self::Cancelling,
            "cancelled" => Self::Cancelled,
            _ => Self::Other(word),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Setup => "setup",
            Self::Active => "active",
            Self::PreSwitchover => "pre-switchover",
            Self::Device => "device",
            Self::Completed => "completed",
            Self::PostcopyActive => "postcopy-active",
            Self::PostcopyPaused => "postcopy-paused",
            Self::PostcopyRecover => "postcopy-recover",
            Self::Failed => "failed",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
            Self::Other(word) => word,
        })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub(super) struct MigrateInfo {
    pub status: Status,
    pub error_desc: Option<String>,
    /// Milliseconds, all three.
    total_time: u64,
    downtime: Option<u64>,
    cpu_throttle_percentage: u8,
    ram: Ram,
    /// Where a destination listens.
    socket_address: Vec<ListenAddress>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Ram {
    transferred: u64,
    remaining: u64,
    total: u64,
    dirty_sync_count: u64,
    dirty_pages_rate: u64,
    page_size: u64,
    normal_bytes: u64,
    postcopy_bytes: u64,
    /// Megabits per second.
    mbps: f64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ListenAddress {
    port: String,
}

impl MigrateInfo {
    pub async fn query(machine: &Machine) -> Result<Self, QmpError> {
        machine.qmp().query("query-migrate", Value::Null).await
    }

    pub fn progress(&self) -> Progress {
        Progress {
            transferred: self.ram.transferred,
            remaining: self.ram.remaining,
            total: self.ram.total,
            rounds: self.ram.dirty_sync_count,
            dirty_rate: self.ram.dirty_pages_rate.saturating_mul(self.ram.page_size),
            // Float to integer saturates.
            throughput: (self.ram.mbps * 1e6 / 8.0) as u64,
            throttled: self.cpu_throttle_percentage,
            post_copied: self.ram.postcopy_bytes,
        }
    }

    /// Bytes of pages that were sent and not all zero.
    pub fn normal(&self) -> u64 {
        self.ram.normal_bytes
    }

    pub fn total(&self) -> Duration {
        Duration::from_millis(self.total_time)
    }

    pub fn downtime(&self) -> Option<Duration> {
        self.downtime.map(Duration::from_millis)
    }

    pub fn listen_port(&self) -> Option<u16> {
        self.socket_address.iter().find_map(|address| address.port.parse().ok())
    }

    /// For people.
    pub fn describe(&self) -> String {
        match &self.error_desc {
            Some(desc) => format!("{} ({desc})", self.status),
            None => self.status.to_string(),
        }
    }

    pub fn error(&self) -> String {
        self.error_desc.clone().unwrap_or_else(|| "it gave no reason".to_owned())
    }
}
