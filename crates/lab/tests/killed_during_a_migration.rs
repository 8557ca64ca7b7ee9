//! Who dies while a vm moves, the vm runs exactly once afterwards, with its memory intact.
//!
//! Real parts throughout: two hosts, a guest that rewrites and verifies its memory, `kill -9` in the middle of
//! the pre-copy, and a restart of what was killed.

use anyhow::{Context, Result, ensure};
use drover_api::v1::{MigrateVm, MigrationView, VmQuery};
use drover_lab::cluster::ClusterOptions;
use drover_lab::config::HostSize;
use drover_lab::probe::{GuestLoad, guest_stats, verify_guest};
use drover_lab::vms::{self, GuestImage, LabVm, NewVm};
use drover_lab::{Kept, Lab, LabOptions, process};
use drover_model::policy::{Mode, Policy};
use drover_model::{Bytes, HostId, MigrationId};
use std::time::Duration;

/// Slow enough that the kill falls into the pre-copy: some 60 MiB are in use.
const BANDWIDTH_MAX: Bytes = Bytes::mib(8);
const MOVES_WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Victim {
    SourceAgent,
    DestinationAgent,
    Server,
}

fn options() -> LabOptions {
    let mut policy = Policy { mode: Mode::Observe, ..Policy::default() };
    policy.migration.bandwidth_max = BANDWIDTH_MAX;
    let programs = process::programs_dir().expect("the tests' programs have a directory");
    LabOptions {
        kind: "test",
        sweep_kept: false,
        cluster: ClusterOptions {
            hosts: vec![HostSize { cpu_millis: 800, memory_mib: 512 }; 2],
            policy,
            drover: programs.join("drover"),
            power_switch: None,
        },
    }
}

#[test]
fn the_agent_of_the_source() {
    check(&[Victim::SourceAgent]);
}

#[test]
fn the_agent_of_the_destination() {
    check(&[Victim::DestinationAgent]);
}

#[test]
fn the_server() {
    check(&[Victim::Server]);
}

#[test]
fn the_server_and_the_agent_of_the_source() {
    check(&[Victim::Server, Victim::SourceAgent]);
}

#[test]
fn the_server_and_both_agents() {
    check(&[Victim::Server, Victim::SourceAgent, Victim::DestinationAgent]);
}

#[track_caller]
fn check(victims: &[Victim]) {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: a lab makes network namespaces, which needs root");
        return;
    }
    let ((), kept) = drover_lab::run(options(), async |lab| scenario(lab, victims).await).expect("the vm survives");
    let Kept::No { leftovers } = kept else { panic!("the lab was kept") };
    assert!(leftovers.is_empty(), "left over: {leftovers:?}");
}

async fn scenario(lab: &mut Lab, victims: &[Victim]) -> Result<()> {
    let client = lab.cluster.client().clone();
    GuestImage::find()?.upload(&client).await?;
    lab.cluster.create_tenant("acme").await?;
    let mut new = NewVm::small("acme", "web-1", 1);
    new.load = GuestLoad { cpu_percent: 5, dirty_mib_s: 1 };
    let vm = lab.cluster.create_vms(&[new]).await?.remove(0);
    let booted = guest_stats(vm.address).await?.boot_id;

    let from = vm.view(&client).await?.host.context("the vm has a host")?;
    let to = lab.cluster.hosts().iter().find(|host| **host != from).context("there are two hosts")?.clone();
    let ask = MigrateVm { to: Some(to.to_string()) };
    let migration = client.migrate_vm(vm.id.as_str(), &VmQuery::default(), &ask).await?.id;
    wait_until_copying(lab, migration).await?;
    for victim in victims {
        kill(lab, *victim, &from, &to)?;
    }
    for victim in victims {
        start(lab, *victim, &from, &to)?;
    }
    lab.cluster.wait_until_served().await?;

    let ended = wait_until_over(lab, migration).await?;
    let host = wait_until_running_once(lab, &vm).await?;
    let expected = if ended.phase == "done" { &to } else { &from };
    ensure!(host == *expected, "the migration ended as {} and the vm runs on {host}", ended.phase);
    let stats = verify_guest(vm.address).await?;
    ensure!(stats.boot_id == booted, "the guest was restarted");
    ensure!(stats.errors == 0 && stats.pages > 0, "{} of {} pages are damaged", stats.errors, stats.pages);
    let ticks = lab.probe.ticks().remove(&vm.name).context("the guest ticks")?;
    ensure!(ticks.twice == 0, "the vm was heard twice: {ticks:?}");
    Ok(())
}

async fn wait_until_copying(lab: &Lab, id: MigrationId) -> Result<()> {
    let client = lab.cluster.client();
    lab.cluster
        .wait_for("memory is being copied", MOVES_WITHIN, async || {
            let view = client.migration(id).await?;
            ensure!(!view.over, "the migration ended before the kill: {view:?}");
            let copied = view.progress.map_or(0, |progress| progress.transferred_bytes);
            Ok((copied > 4 << 20).then_some(()))
        })
        .await
}

/// The server may be away meanwhile.
async fn wait_until_over(lab: &Lab, id: MigrationId) -> Result<MigrationView> {
    let client = lab.cluster.client();
    lab.cluster
        .wait_for("the migration is resolved", MOVES_WITHIN, async || {
            Ok(client.migration(id).await.ok().filter(|view| view.over))
        })
        .await
}

/// One process of it is left, on the host that the store names, and its guest answers.
async fn wait_until_running_once(lab: &Lab, vm: &LabVm) -> Result<HostId> {
    let client = lab.cluster.client();
    lab.cluster
        .wait_for("the vm runs once", MOVES_WITHIN, async || {
            let view = vm.view(client).await?;
            let processes = vms::running(lab.place());
            let [only] = processes.as_slice() else { return Ok(None) };
            let settled = view.phase == "running" && view.host.as_ref() == Some(&only.host);
            let answers = guest_stats(vm.address).await.is_ok();
            Ok((settled && answers).then(|| only.host.clone()))
        })
        .await
}

fn kill(lab: &Lab, victim: Victim, from: &HostId, to: &HostId) -> Result<()> {
    match victim {
        Victim::SourceAgent => lab.cluster.agent(from)?.kill(),
        Victim::DestinationAgent => lab.cluster.agent(to)?.kill(),
        Victim::Server => lab.cluster.server()?.kill(),
    }
}

fn start(lab: &Lab, victim: Victim, from: &HostId, to: &HostId) -> Result<()> {
    match victim {
        Victim::SourceAgent => lab.cluster.agent(from)?.start(),
        Victim::DestinationAgent => lab.cluster.agent(to)?.start(),
        Victim::Server => lab.cluster.server()?.start(),
    }
}
