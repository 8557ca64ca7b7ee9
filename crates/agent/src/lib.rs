//! The host side of drover: runs vms with QEMU, adopts the ones it finds, measures them, migrates them.
//!
//! The agent decides nothing except to stop itself. It does what the server commands, refuses what is older than
//! what it knows, and says what it sees. It may be stopped, killed and upgraded at any moment: vms are detached
//! processes with a durable record each, which the next agent adopts.
//!
//! | module | what it does |
//! |---|---|
//! | `config` | the TOML file; every interval and limit |
//! | `startup` | what must be right before anything runs; what the host is |
//! | `identity` | joining the cluster; key and certificates |
//! | `link` | the connection to the server |
//! | `vms` | a task for each vm: admission, records, life, migration |
//! | `telemetry` | load, once a second |
//! | `cgroup`, `net`, `console` | quotas, taps, serial consoles |

mod cgroup;
mod clock;
mod config;
mod console;
mod error_chain;
mod identity;
mod link;
mod net;
mod send_queue;
mod startup;
mod telemetry;
mod tool;
mod vms;

pub use config::{AgentConfig, CapacityConfig, ConfigError, Limits};

use anyhow::Context;
use identity::Identity;
use link::Link;
use std::sync::Arc;
use telemetry::TelemetryConfig;
use tokio::sync::watch;
use vms::Supervisor;

/// Runs the host's agent until `shutdown` completes. Its vms run on.
///
/// Errors are those of the start: a check that failed, or a join that was refused. Once it serves, an agent
/// bears everything else and says so in its log.
pub async fn run(config: AgentConfig, shutdown: impl Future<Output = ()> + Send) -> anyhow::Result<()> {
    // Refused where a provider is set already, which is then the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let checked = startup::check(config).await.context("this host can't run an agent yet")?;
    let startup::Checked { host, facts, page_size, lock } = checked;
    let identity = Identity::obtain(&host.config).await.context("this host can't join its cluster")?;
    let config = host.config.clone();
    let telemetry = TelemetryConfig {
        sample_every: config.limits.sample_every(),
        disk_sample_every: config.limits.disk_sample_every(),
        cpu: host.cgroup.as_ref().map_or(telemetry::Meter::Machine, cgroup::HostGroup::cpu_meter),
        pressure_file: host.cgroup.as_ref().and_then(cgroup::HostGroup::pressure_file),
        bridges: config.networks.values().cloned().collect(),
        page_size,
    };
    let supervisor = Arc::new(Supervisor::start(host).await.context("the vms of this host can't be taken over")?);
    tracing::info!(host = %config.host, vms = supervisor.inventory().len(), "agent ready");

    let (newest, load) = watch::channel(None);
    let link = Link {
        host: config.host,
        facts,
        identity,
        limits: config.limits,
        supervisor: Arc::clone(&supervisor),
        load,
        learn_migration_address: config.migration_address.is_none(),
    };
    tokio::select! {
        () = shutdown => tracing::info!("agent stops; its vms run on"),
        () = link.run() => {}
        () = telemetry::run(telemetry, || supervisor.measurable(), newest) => {}
    }
    drop(lock);
    Ok(())
}
