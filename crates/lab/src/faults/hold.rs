//! Getting a migration to a phase, and holding it there.
//!
//! | phase | held by |
//! |---|---|
//! | reserve | the destination's agent stands still from the moment its qemu is there |
//! | pre-copy | bandwidth that makes it last |
//! | post-copy | a guest that writes all its working set anew while it is copied, and bandwidth that makes that last |
//! | switch-over | the server stands still since the pre-copy, and the guest since the pause |
//! | commit | as before; then the source's agent stands still, and the server goes on until it has committed |
//! | release | as before; then the server stands still, and the source's agent goes on until the guest runs at the destination |
//!
//! The source waits for the commit for a bounded time only, so all this is quick.

use super::strike::Ends;
use super::watch::Watch;
use super::{BUSY, Phase, until};
use crate::cluster::Cluster;
use crate::lab::Lab;
use crate::limits::POLL;
use crate::process::{self, Daemon};
use crate::vms::{self, LabVm};
use anyhow::{Context, Result, bail, ensure};
use drover_api::v1::{MigrateVm, TenantQuery};
use drover_model::migration::Method;
use drover_model::migration::MigrationRecord;
use drover_model::{HostId, MigrationId};
use nix::sys::signal::Signal;
use serde_json::json;
use std::time::Duration;

/// Bytes per second: the copy is over in two seconds or so, time enough to stop somebody meanwhile.
const BANDWIDTH: u64 = 32 << 20;
/// The copy lasts long enough to be hit.
const BANDWIDTH_SLOW: u64 = 12 << 20;
/// So much is copied when the pre-copy is hit.
const COPIED_MIN: u64 = 4 << 20;

/// Between two looks at what has to be caught in time.
const OFTEN: Duration = Duration::from_millis(5);
const STARTED_WITHIN: Duration = Duration::from_secs(20);
const POST_COPY_WITHIN: Duration = Duration::from_secs(40);
const PAUSED_WITHIN: Duration = Duration::from_secs(20);
const COMMITTED_WITHIN: Duration = Duration::from_secs(5);
const ARRIVED_WITHIN: Duration = Duration::from_secs(5);
/// An agent that was stopped before it said where its qemu listens has not said so after this, either.
const RESERVED_FOR: Duration = Duration::from_millis(300);
/// The destination's agent can be too quick to be stopped in time.
const RESERVE_TRIES_MAX: u32 = 3;

/// A migration in its phase, held there by processes that stand still.
#[derive(Debug)]
pub struct Held {
    pub migration: MigrationId,
    frozen: Vec<u32>,
}

impl Held {
    fn freeze(&mut self, daemon: &Daemon) -> Result<()> {
        daemon.freeze(true)?;
        self.frozen.extend(daemon.pid());
        Ok(())
    }

    fn thaw(&mut self, daemon: &Daemon) -> Result<()> {
        daemon.freeze(false)?;
        let pid = daemon.pid();
        self.frozen.retain(|frozen| Some(*frozen) != pid);
        Ok(())
    }

    /// Lets all of them go on that are still there.
    pub fn let_go(&mut self) -> Result<()> {
        self.frozen.drain(..).try_for_each(|pid| process::signal(pid, Signal::SIGCONT))
    }
}

/// Begins a migration and brings it to the phase.
pub async fn reach(phase: Phase, lab: &Lab, vm: &LabVm, ends: &Ends, watch: &Watch) -> Result<Held> {
    let cluster = &lab.cluster;
    match phase {
        Phase::Reserve => {
            set_bandwidth(cluster, Some(BANDWIDTH)).await?;
            reserve(cluster, ends).await
        }
        Phase::PreCopy => {
            set_bandwidth(cluster, Some(BANDWIDTH_SLOW)).await?;
            pre_copy(cluster, ends).await
        }
        Phase::PostCopy => {
            vm.set_load(BUSY).await?;
            set_bandwidth(cluster, Some(BANDWIDTH_SLOW)).await?;
            post_copy(cluster, ends, watch).await
        }
        Phase::SwitchOver => switch_over(cluster, ends, watch).await,
        Phase::Commit => commit(cluster, ends, watch).await,
        Phase::Release => release(cluster, ends, watch).await,
    }
}

/// Of migrations that begin from now on, from their first byte; `None`: as the cluster finds best.
pub async fn set_bandwidth(cluster: &Cluster, bytes_s: Option<u64>) -> Result<()> {
    let patch = json!({
        "migration_bandwidth_max_bytes_s": bytes_s,
        "migration_host_bandwidth_max_bytes_s": bytes_s,
        "migration_start_percent": bytes_s.map(|_| 100),
    });
    cluster.client().patch_policy(&patch).await.context("can't set the bandwidth of migrations")?;
    Ok(())
}

pub async fn migrate(cluster: &Cluster, ends: &Ends, method: Method) -> Result<MigrationId> {
    let ask = MigrateVm { to: Some(ends.to.to_string()), method: Some(method) };
    let asked = cluster.client().migrate_vm(ends.vm.as_str(), &TenantQuery::default(), &ask).await;
    Ok(asked.with_context(|| format!("can't migrate from {} to {}", ends.from, ends.to))?.id)
}

async fn reserve(cluster: &Cluster, ends: &Ends) -> Result<Held> {
    let agent = cluster.agent(&ends.to)?;
    let client = cluster.client();
    for _ in 0..RESERVE_TRIES_MAX {
        let mut held = Held { migration: migrate(cluster, ends, Method::PreCopy).await?, frozen: Vec::new() };
        until(STARTED_WITHIN, OFTEN, async || qemu_is_at(cluster, ends, &ends.to)).await?;
        held.freeze(&agent)?;
        tokio::time::sleep(RESERVED_FOR).await;
        let phase = client.of::<MigrationRecord>().get(&held.migration.to_string()).await?.phase;
        if phase == "reserved" {
            return Ok(held);
        }
        // Too late: it goes its way, unwound.
        held.let_go()?;
        client.cancel_migration(held.migration).await?;
        let over = async || match client.of::<MigrationRecord>().get(&held.migration.to_string()).await {
            Ok(view) if view.over => Ok(()),
            other => Err(format!("migration {} is not over: {:?}", held.migration, other.map(|view| view.phase))),
        };
        until(STARTED_WITHIN, POLL, over).await?;
    }
    bail!("{} said {RESERVE_TRIES_MAX} times where its qemu listens before it could be stopped", ends.to)
}

fn qemu_is_at(cluster: &Cluster, ends: &Ends, host: &HostId) -> Result<(), String> {
    let there = vms::running(cluster.place()).into_iter().any(|qemu| qemu.vm == ends.vm && qemu.host == *host);
    if there { Ok(()) } else { Err(format!("{host} has no qemu of {}", ends.vm)) }
}

async fn pre_copy(cluster: &Cluster, ends: &Ends) -> Result<Held> {
    let migration = migrate(cluster, ends, Method::PreCopy).await?;
    until(STARTED_WITHIN, OFTEN, async || copied(cluster, migration, COPIED_MIN).await).await?;
    Ok(Held { migration, frozen: Vec::new() })
}

async fn post_copy(cluster: &Cluster, ends: &Ends, watch: &Watch) -> Result<Held> {
    let migration = migrate(cluster, ends, Method::PostCopy).await?;
    until(POST_COPY_WITHIN, OFTEN, async || {
        let view = cluster
            .client()
            .of::<MigrationRecord>()
            .get(&migration.to_string())
            .await
            .map_err(|error| error.to_string())?;
        if view.stage == "post-copy" && watch.executes(&ends.to) {
            return Ok(());
        }
        Err(format!("migration {migration} is {} ({}), not in post-copy", view.phase, view.stage))
    })
    .await?;
    Ok(Held { migration, frozen: Vec::new() })
}

async fn copied(cluster: &Cluster, migration: MigrationId, bytes: u64) -> Result<(), String> {
    let view = cluster
        .client()
        .of::<MigrationRecord>()
        .get(&migration.to_string())
        .await
        .map_err(|error| error.to_string())?;
    match view.progress {
        Some(progress) if view.phase == "pre-copy" && progress.transferred_bytes >= bytes => Ok(()),
        progress => Err(format!("migration {migration} is {}, and has come to {progress:?}", view.phase)),
    }
}

async fn switch_over(cluster: &Cluster, ends: &Ends, watch: &Watch) -> Result<Held> {
    set_bandwidth(cluster, Some(BANDWIDTH)).await?;
    let mut held = Held { migration: migrate(cluster, ends, Method::PreCopy).await?, frozen: Vec::new() };
    // The source's word that it copies must have come, or the server would find, when it goes on, that it does not.
    until(STARTED_WITHIN, OFTEN, async || copied(cluster, held.migration, 1).await).await?;
    held.freeze(&cluster.server()?)?;
    until(PAUSED_WITHIN, OFTEN, async || {
        if watch.stands_still(&ends.from) { Ok(()) } else { Err("the guest does not stand still".to_owned()) }
    })
    .await
    .context("the server may have been stopped too late")?;
    Ok(held)
}

async fn commit(cluster: &Cluster, ends: &Ends, watch: &Watch) -> Result<Held> {
    let mut held = switch_over(cluster, ends, watch).await?;
    held.freeze(&cluster.agent(&ends.from)?)?;
    held.thaw(&cluster.server()?)?;
    let client = cluster.client();
    until(COMMITTED_WITHIN, OFTEN, async || {
        match client
            .of::<MigrationRecord>()
            .get(&held.migration.to_string())
            .await
            .map_err(|error| error.to_string())?
            .phase
            .as_str()
        {
            "committed" => Ok(()),
            other => Err(format!("the server has not committed: it is {other}")),
        }
    })
    .await?;
    Ok(held)
}

async fn release(cluster: &Cluster, ends: &Ends, watch: &Watch) -> Result<Held> {
    let mut held = commit(cluster, ends, watch).await?;
    held.freeze(&cluster.server()?)?;
    held.thaw(&cluster.agent(&ends.from)?)?;
    until(ARRIVED_WITHIN, OFTEN, async || {
        let runs = watch.executes(&ends.to) && watch.is_heard();
        if runs { Ok(()) } else { Err(format!("the guest does not run at {}", ends.to)) }
    })
    .await?;
    ensure!(qemu_is_at(cluster, ends, &ends.from).is_ok(), "the source was released before the fault");
    Ok(held)
}
