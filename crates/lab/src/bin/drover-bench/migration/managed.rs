//! A vm that drover runs and moves, by its API.

use super::moves::Outcome;
use super::site_network::SiteNetwork;
use super::workloads::Workload;
use anyhow::{Context, Result, ensure};
use drover_api::client::Client;
use drover_api::v1::{CreateImage, CreateVm, ImagePart, MigrateVm, MigrationView, StrategyView, TenantQuery, VmView};
use drover_lab::Lab;
use drover_lab::limits::GUESTS_UP_WAIT_MAX;
use drover_lab::place::Place;
use drover_lab::vms::{self, GuestImage, KERNEL_CMDLINE};
use drover_model::intent::Vm;
use drover_model::migration::MigrationRecord;
use drover_model::{HostId, VmId};
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

pub const TENANT: &str = "bench";
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// From the cancel of a move until it has unwound.
const CANCEL_WAIT_MAX: Duration = Duration::from_secs(60);

/// The image of a workload's guest: the one with a disk has a name of its own.
fn image_name(workload: Workload) -> &'static str {
    if workload.guest().disk { "bench-disk" } else { "bench" }
}

/// Uploads the images that these workloads need.
pub async fn upload(client: &Client, image: &GuestImage, disk: &Path, workloads: &[Workload]) -> Result<()> {
    let mut needed: Vec<(&str, bool)> = workloads.iter().map(|w| (image_name(*w), w.guest().disk)).collect();
    needed.sort_unstable();
    needed.dedup();
    for (name, with_disk) in needed {
        let mut files = vec![(ImagePart::Kernel, image.kernel.as_path()), (ImagePart::Initrd, &image.initrd)];
        if with_disk {
            files.push((ImagePart::Disk, disk));
        }
        for (part, path) in &files {
            let staged = client.stage_image_file(name, *part, path, |_| {}).await;
            staged.with_context(|| format!("can't upload {}", path.display()))?;
        }
        let files = files.iter().map(|(part, _)| *part).collect();
        let image = CreateImage {
            name: name.to_owned(),
            cmdline: KERNEL_CMDLINE.to_owned(),
            files,
            labels: Default::default(),
        };
        client.create_image(&image).await.with_context(|| format!("can't make the image {name}"))?;
    }
    Ok(())
}

#[derive(Debug)]
pub struct Managed {
    client: Client,
    place: Place,
    id: VmId,
    /// The two that it may run on.
    hosts: [HostId; 2],
    pub address: IpAddr,
}

impl Managed {
    pub async fn boot(lab: &Lab, hosts: &[HostId; 2], network: &SiteNetwork, workload: Workload) -> Result<Self> {
        let guest = workload.guest();
        let guest_args = [("workload", workload.to_string()), ("ws-mib", guest.working_set_mib.to_string())];
        let ask = CreateVm {
            name: workload.to_string(),
            tenant: Some(TENANT.to_owned()),
            image: image_name(workload).to_owned(),
            vcpus: 1,
            memory_mib: guest.memory_mib,
            network: Some(network.name.clone()),
            address: Some(network.vm_address.clone()),
            pinned_to: hosts.iter().map(HostId::to_string).collect(),
            guest_args: guest_args.map(|(key, value)| (key.to_owned(), value)).into(),
            ..CreateVm::default()
        };
        let client = lab.cluster.client().clone();
        let made = client.of::<Vm>().create(&ask).await.with_context(|| format!("can't make the vm of {workload}"))?;
        let vm = Self { client, place: lab.place().clone(), id: made.id, hosts: hosts.clone(), address: network.vm()? };
        lab.cluster
            .wait_for("drover runs the vm", GUESTS_UP_WAIT_MAX, async || {
                let view = vm.client.of::<Vm>().get(vm.id.as_str()).await?;
                ensure!(view.phase != "failed", "the vm failed: {:?}", view.why);
                Ok((view.phase == "running").then_some(()))
            })
            .await?;
        Ok(vm)
    }

    async fn view(&self) -> Result<VmView> {
        self.client.of::<Vm>().get(self.id.as_str()).await.context("can't read the vm")
    }

    pub async fn host(&self) -> Result<HostId> {
        self.view().await?.host.context("the vm has no host")
    }

    /// Of the process that runs the guest.
    pub async fn pid(&self) -> Result<u32> {
        let host = self.host().await?;
        let running =
            vms::running(&self.place).into_iter().find(|running| running.vm == self.id && running.host == host);
        Ok(running.with_context(|| format!("no QEMU runs the vm on {host}"))?.pid)
    }

    /// Moves the vm to the other host. One that is not done within the limit is cancelled.
    pub async fn migrate(&self, limit: Duration) -> Result<(String, Outcome)> {
        let from = self.host().await?;
        let to = self.hosts.iter().find(|host| **host != from).context("a vm has two hosts here")?;
        let ask = MigrateVm { to: Some(to.to_string()), ..MigrateVm::default() };
        let mut id = match self.client.migrate_vm(self.id.as_str(), &TenantQuery::default(), &ask).await {
            Ok(view) => view.id,
            Err(refused) => {
                let outcome = Outcome { why: Some(format!("refused: {refused:#}")), ..Outcome::default() };
                return Ok((to.to_string(), outcome));
            }
        };
        let mut deadline = Instant::now() + limit;
        let mut cancelled = false;
        let mut tried_for_ms = 0;
        let view = loop {
            let view =
                self.client.of::<MigrationRecord>().get(&id.to_string()).await.context("can't read the migration")?;
            if view.over {
                // A pre-copy that would not end is followed by a post-copy, and both are one move to whoever waits.
                let Some(next) = self.view().await?.migration.filter(|_| view.phase == "failed") else { break view };
                tried_for_ms += view.finished_at_ms.unwrap_or(view.started_at_ms).saturating_sub(view.started_at_ms);
                id = next;
                continue;
            }
            if Instant::now() > deadline {
                ensure!(!cancelled, "migration {id} is not over {} s after its cancel", CANCEL_WAIT_MAX.as_secs());
                // Past its commit it can't be cancelled any more, and goes on.
                let _ = self.client.cancel_migration(id).await;
                cancelled = true;
                deadline = Instant::now() + CANCEL_WAIT_MAX;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        let outcome = outcome(&view);
        let total_ms = outcome.total_ms.map(|total| total + tried_for_ms as f64);
        Ok((to.to_string(), Outcome { total_ms, ..outcome }))
    }

    pub async fn remove(self) -> Result<()> {
        self.client.of::<Vm>().remove(self.id.as_str()).await.context("can't remove the vm")?;
        let deadline = Instant::now() + CANCEL_WAIT_MAX;
        while vms::running(&self.place).iter().any(|running| running.vm == self.id) {
            ensure!(Instant::now() < deadline, "the vm is not gone {} s after its removal", CANCEL_WAIT_MAX.as_secs());
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }
}

fn outcome(view: &MigrationView) -> Outcome {
    let (report, prediction) = (view.report.as_ref(), view.prediction.as_ref());
    Outcome {
        completed: view.phase == "done",
        why: view.why.clone(),
        total_ms: report.map(|report| report.total_ms as f64),
        downtime_ms: report.map(|report| report.downtime_ms as f64),
        transferred_bytes: report.map(|report| report.transferred_bytes),
        rounds: report.map(|report| report.rounds),
        strategy: Some(strategy(&view.strategy)),
        predicted_total_ms: prediction.map(|prediction| prediction.total_ms.expected as f64),
        predicted_downtime_ms: prediction.map(|prediction| prediction.downtime_ms.expected as f64),
        predicted_bytes: prediction.map(|prediction| prediction.transferred_bytes.expected),
        migration: Some(view.clone()),
    }
}

/// In a few words.
fn strategy(view: &StrategyView) -> String {
    let mut words = view.method.word().to_owned();
    if view.channels > 1 {
        words.push_str(&format!(", {} channels", view.channels));
    }
    for (is, word) in
        [(view.compress, ", compressed"), (view.throttle_max_percent > 0, ", throttled"), (view.tls, ", TLS")]
    {
        if is {
            words.push_str(word);
        }
    }
    words
}

/// Moves by hand only, and nothing that the planner would do meanwhile.
pub fn policy() -> drover_model::policy::Policy {
    drover_model::policy::Policy { mode: drover_model::policy::Mode::Observe, ..Default::default() }
}
