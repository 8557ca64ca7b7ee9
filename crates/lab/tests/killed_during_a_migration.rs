//! Whoever dies while a vm moves, the vm runs exactly once afterwards, with its memory.
//!
//! A few cells of the matrix that `cargo xtask bench migration-faults` carries out whole: see [`drover_lab::faults`].
//! Real parts throughout: two hosts, and a guest that rewrites and verifies its memory.

use anyhow::Result;
use drover_lab::cluster::ClusterOptions;
use drover_lab::faults::{self, Cell};
use drover_lab::vms::GuestImage;
use drover_lab::{Lab, LabOptions, LabOutcome, process};
use drover_model::policy::{Mode, Policy};

#[test]
fn in_the_pre_copy() {
    check(&[
        "source-agent/pre-copy",
        "destination-agent/pre-copy",
        "server/pre-copy",
        "server+source-agent/pre-copy",
        "server+source-agent+destination-agent/pre-copy",
    ]);
}

#[test]
fn from_the_pause_to_the_release() {
    check(&["server/switch-over", "source-agent/commit", "destination-qemu/commit", "source-host/release"]);
}

#[track_caller]
fn check(cells: &[&str]) {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: a lab makes network namespaces, which needs root");
        return;
    }
    let programs = process::programs_dir().expect("the tests' programs have a directory");
    let options = LabOptions {
        kind: "test",
        sweep_kept: false,
        cluster: ClusterOptions {
            hosts: faults::HOSTS.to_vec(),
            policy: Policy { mode: Mode::Observe, ..Policy::default() },
            drover: programs.join("drover"),
            power_switch: None,
        },
    };
    let cells: Vec<Cell> = cells.iter().map(|cell| cell.parse().expect("a cell is named")).collect();
    let ((), kept) = drover_lab::run(options, async |lab| carry_out(lab, &cells).await).expect("the vm survives");
    let LabOutcome::No { leftovers } = kept else { panic!("the lab was kept") };
    assert!(leftovers.is_empty(), "left over: {leftovers:?}");
}

/// One after the other on one cluster, which each leaves as it found it.
async fn carry_out(lab: &Lab, cells: &[Cell]) -> Result<()> {
    GuestImage::find()?.upload(lab.cluster.client()).await?;
    lab.cluster.create_tenant(faults::TENANT).await?;
    let vm = lab.cluster.create_vms(&[faults::vm("web-1", 1)]).await?.remove(0);
    for cell in cells {
        let report = faults::run_cell(lab, &vm, cell).await;
        anyhow::ensure!(report.passed(), "{cell}: {report:#?}");
    }
    Ok(())
}
