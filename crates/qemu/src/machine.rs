//! A running QEMU seen through its monitor: what it can be asked and told.
//!
//! Answers hold what drover uses and ignore the rest, so that other versions of QEMU fit.

use crate::qmp::{Qmp, QmpError, QmpEvent};
use serde::Deserialize;
use serde_json::{Value, json};
use std::fmt;
use std::path::Path;
use std::time::Duration;
use tokio::sync::broadcast;

/// What QEMU's virtual processors do (`query-status`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunStatus {
    Running,
    Paused,
    /// Waits for or receives a migration.
    InMigrate,
    /// Was sent away completely; stands still here.
    PostMigrate,
    /// Stopped for the switch-over.
    FinishMigrate,
    Shutdown,
    Prelaunch,
    GuestPanicked,
    /// A state this version does not name, as QEMU spells it.
    Other(String),
}

impl RunStatus {
    fn parse(word: &str) -> Self {
        match word {
            "running" => Self::Running,
            "paused" => Self::Paused,
            "inmigrate" => Self::InMigrate,
            "postmigrate" => Self::PostMigrate,
            "finish-migrate" => Self::FinishMigrate,
            "shutdown" => Self::Shutdown,
            "prelaunch" => Self::Prelaunch,
            "guest-panicked" => Self::GuestPanicked,
            other => Self::Other(other.to_owned()),
        }
    }
}

impl fmt::Display for RunStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::InMigrate => "inmigrate",
            Self::PostMigrate => "postmigrate",
            Self::FinishMigrate => "finish-migrate",
            Self::Shutdown => "shutdown",
            Self::Prelaunch => "prelaunch",
            Self::GuestPanicked => "guest-panicked",
            Self::Other(word) => word,
        })
    }
}

/// Counters since QEMU started, all disks together. Two readings give rates; time over operations gives latency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockStats {
    pub read_operations: u64,
    pub write_operations: u64,
    pub flush_operations: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    /// Summed over all operations.
    pub time: Duration,
}

impl BlockStats {
    pub fn operations(&self) -> u64 {
        self.read_operations + self.write_operations + self.flush_operations
    }
}

/// One QEMU, attached. Clones share the connection.
#[derive(Debug, Clone)]
pub struct Machine {
    qmp: Qmp,
}

impl Machine {
    pub async fn attach(qmp_socket: &Path) -> Result<Self, QmpError> {
        Ok(Self { qmp: Qmp::connect(qmp_socket).await? })
    }

    pub fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    pub fn events(&self) -> broadcast::Receiver<QmpEvent> {
        self.qmp.events()
    }

    pub async fn status(&self) -> Result<RunStatus, QmpError> {
        #[derive(Deserialize)]
        struct Status {
            status: String,
        }
        let answer: Status = self.qmp.query("query-status", Value::Null).await?;
        Ok(RunStatus::parse(&answer.status))
    }

    /// Presses the power button: a request to the guest, not an act.
    pub async fn power_down(&self) -> Result<(), QmpError> {
        self.told("system_powerdown").await
    }

    /// Ends QEMU at once. That the monitor closes before it answers is success.
    pub async fn quit(&self) -> Result<(), QmpError> {
        match self.told("quit").await {
            Err(QmpError::Closed { .. }) => Ok(()),
            other => other,
        }
    }

    /// Lets the guest run.
    pub async fn cont(&self) -> Result<(), QmpError> {
        self.told("cont").await
    }

    /// Makes the guest stand still.
    pub async fn stop(&self) -> Result<(), QmpError> {
        self.told("stop").await
    }

    /// Kernel thread ids of the virtual processors, by index: what a processor quota is put on.
    pub async fn vcpu_threads(&self) -> Result<Vec<u32>, QmpError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        struct Cpu {
            cpu_index: u32,
            thread_id: u32,
        }
        let mut cpus: Vec<Cpu> = self.qmp.query("query-cpus-fast", Value::Null).await?;
        cpus.sort_by_key(|cpu| cpu.cpu_index);
        Ok(cpus.into_iter().map(|cpu| cpu.thread_id).collect())
    }

    pub async fn block_stats(&self) -> Result<BlockStats, QmpError> {
        let devices: Vec<BlockDevice> = self.qmp.query("query-blockstats", Value::Null).await?;
        Ok(devices.iter().fold(BlockStats::default(), |sum, device| {
            let one = &device.stats;
            BlockStats {
                read_operations: sum.read_operations + one.rd_operations,
                write_operations: sum.write_operations + one.wr_operations,
                flush_operations: sum.flush_operations + one.flush_operations,
                read_bytes: sum.read_bytes + one.rd_bytes,
                written_bytes: sum.written_bytes + one.wr_bytes,
                time: sum.time
                    + Duration::from_nanos(one.rd_total_time_ns + one.wr_total_time_ns + one.flush_total_time_ns),
            }
        }))
    }

    /// Bytes of memory the guest has: what it was given, less what the balloon holds.
    pub async fn memory_actual(&self) -> Result<u64, QmpError> {
        #[derive(Deserialize)]
        struct Balloon {
            actual: u64,
        }
        let balloon: Balloon = self.qmp.query("query-balloon", Value::Null).await?;
        Ok(balloon.actual)
    }

    /// Sends the guest's address around again, so that switches learn where it is.
    pub async fn announce_self(&self) -> Result<(), QmpError> {
        let rounds = json!({ "initial": 50, "max": 550, "rounds": 5, "step": 50 });
        self.qmp.execute("announce-self", rounds).await.map(drop)
    }

    /// Bytes per second that the guest dirties, measured for `seconds` (1 to 60).
    ///
    /// Always by page sampling, which reads low: QEMU 7.2's other modes abort the process under TCG.
    pub async fn dirty_rate(&self, seconds: u32) -> Result<u64, QmpError> {
        let seconds = seconds.clamp(1, 60);
        let start = json!({ "calc-time": seconds, "mode": "page-sampling" });
        self.qmp.execute("calc-dirty-rate", start).await?;
        let deadline = tokio::time::Instant::now() + Duration::from_secs(u64::from(seconds)) + DIRTY_RATE_GRACE;
        tokio::time::sleep(Duration::from_secs(u64::from(seconds))).await;
        loop {
            let measured: DirtyRate = self.qmp.query("query-dirty-rate", Value::Null).await?;
            // QEMU speaks MiB per second, and -1 for unknown.
            if let (true, Ok(mib)) = (measured.status == "measured", u64::try_from(measured.dirty_rate)) {
                return Ok(mib << 20);
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(QmpError::Timeout { command: "calc-dirty-rate".to_owned() });
            }
            tokio::time::sleep(DIRTY_RATE_POLL).await;
        }
    }

    async fn told(&self, command: &str) -> Result<(), QmpError> {
        self.qmp.execute(command, Value::Null).await.map(drop)
    }
}

/// How much longer than asked a dirty-rate measurement may take, and how often it is looked at: there is no event.
const DIRTY_RATE_GRACE: Duration = Duration::from_secs(10);
const DIRTY_RATE_POLL: Duration = Duration::from_millis(100);

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct DirtyRate {
    #[serde(default = "unknown_rate")]
    dirty_rate: i64,
    status: String,
}

fn unknown_rate() -> i64 {
    -1
}

#[derive(Deserialize)]
struct BlockDevice {
    stats: BlockCounters,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct BlockCounters {
    rd_operations: u64,
    wr_operations: u64,
    flush_operations: u64,
    rd_bytes: u64,
    wr_bytes: u64,
    rd_total_time_ns: u64,
    wr_total_time_ns: u64,
    flush_total_time_ns: u64,
}
