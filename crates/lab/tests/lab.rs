//! A lab with server, agents and guests: it comes up, does what tests and the demo ask of it, and
//! goes without a trace. Needs root and QEMU.

use anyhow::{Context, Result, ensure};
use drover_lab::cluster::ClusterOptions;
use drover_lab::config::HostSize;
use drover_lab::limits::{GUESTS_UP_WAIT_MAX, HOSTS_UP_WAIT_MAX};
use drover_lab::place::Place;
use drover_lab::power::{self, PowerOp};
use drover_lab::probe::{GuestLoad, guest_stats, verify_guest};
use drover_lab::vms::{self, GuestImage, NewVm};
use drover_lab::{LabOptions, LabOutcome, Leftovers, process};
use drover_model::intent::Host;
use drover_model::policy::{Mode, Policy};
use std::sync::OnceLock;

fn options(hosts: usize) -> LabOptions {
    let programs = process::programs_dir().unwrap();
    LabOptions {
        kind: "test",
        sweep_kept: false,
        cluster: ClusterOptions {
            hosts: vec![HostSize { cpu_millis: 800, memory_mib: 512 }; hosts],
            policy: Policy { mode: Mode::Observe, ..Policy::default() },
            drover: programs.join("drover"),
            power_switch: None,
        },
    }
}

/// End-to-end tests are left out without root by `cargo xtask test`, which says so.
fn run(hosts: usize, body: impl AsyncFnOnce(&mut drover_lab::Lab) -> Result<()> + Send) {
    let ((), kept) = drover_lab::run(options(hosts), body).unwrap();
    assert_eq!(kept, LabOutcome::No { leftovers: Leftovers::default() });
}

#[test]
fn a_guest_ticks_takes_load_and_verifies_its_memory() {
    run(1, async |lab| {
        GuestImage::find()?.upload(lab.cluster.client()).await?;
        lab.cluster.create_tenant("acme").await?;
        let vm = lab.cluster.create_vms(&[NewVm::small("acme", "web-1", 1)]).await?.remove(0);
        vm.set_load(GuestLoad { cpu_percent: 20, dirty_mib_s: 8 }).await?;
        let rewritten = lab.cluster.wait_for("pages are rewritten", GUESTS_UP_WAIT_MAX, async || {
            Ok(Some(guest_stats(vm.address).await?).filter(|stats| stats.dirtied_pages > 0))
        });
        let rewritten = rewritten.await?;
        ensure!(rewritten.cpu_percent == 20 && rewritten.pages == 16 * 256, "{rewritten:?}");
        let verified = verify_guest(vm.address).await?;
        ensure!(verified.errors == 0 && verified.verified_pages >= verified.pages, "{verified:?}");

        let ticks = lab.probe.ticks().remove("web-1").context("the guest ticks")?;
        ensure!(ticks.boot_id == verified.boot_id && ticks.twice == 0 && ticks.reboots == 0, "{ticks:?}");
        let processes = vms::processes_by_vm(lab.place());
        ensure!(processes.len() == 1 && processes.get(&vm.id) == Some(&1), "{processes:?}");
        Ok(())
    });
}

#[test]
fn a_host_that_is_switched_off_has_no_agent_no_vms_and_no_link_until_it_is_switched_on() {
    run(2, async |lab| {
        GuestImage::find()?.upload(lab.cluster.client()).await?;
        lab.cluster.create_tenant("acme").await?;
        let host = lab.cluster.hosts()[1].clone();
        let new = NewVm { pinned_to: vec![host.to_string()], ..NewVm::small("acme", "web-1", 1) };
        lab.cluster.create_vms(&[new]).await?;
        let dir = lab.dir();
        ensure!(power::perform(PowerOp::Status, &dir, &host)?);

        power::perform(PowerOp::Off, &dir, &host)?;
        ensure!(!power::perform(PowerOp::Status, &dir, &host)?);
        ensure!(vms::running(lab.place()).is_empty(), "its vm still runs");
        let client = lab.cluster.client();
        let gone = lab.cluster.wait_for("the server misses the host", HOSTS_UP_WAIT_MAX, async || {
            Ok(Some(client.of::<Host>().get(host.as_str()).await?).filter(|view| !view.connected))
        });
        gone.await?;

        power::perform(PowerOp::On, &dir, &host)?;
        lab.cluster.wait_until_up(&host).await
    });
}

#[test]
fn an_agent_and_a_server_that_were_killed_come_back_and_the_vm_never_stopped() {
    run(1, async |lab| {
        GuestImage::find()?.upload(lab.cluster.client()).await?;
        lab.cluster.create_tenant("acme").await?;
        let vm = lab.cluster.create_vms(&[NewVm::small("acme", "web-1", 1)]).await?.remove(0);
        let before = vms::running(lab.place());
        let host = lab.cluster.hosts()[0].clone();

        lab.cluster.agent(&host)?.kill()?;
        lab.cluster.server()?.kill()?;
        lab.cluster.server()?.start()?;
        lab.cluster.agent(&host)?.start()?;
        lab.cluster.wait_until_served().await?;
        lab.cluster.wait_until_up(&host).await?;

        ensure!(vms::running(lab.place()) == before, "another process runs the vm");
        let client = lab.cluster.client();
        let known = lab.cluster.wait_for("the vm is known to run", HOSTS_UP_WAIT_MAX, async || {
            Ok(Some(vm.view(client).await?).filter(|view| view.phase == "running"))
        });
        known.await?;
        let ticks = lab.probe.ticks().remove("web-1").context("the guest ticks")?;
        ensure!(ticks.reboots == 0 && ticks.twice == 0, "{ticks:?}");
        Ok(())
    });
}

#[test]
fn a_body_that_fails_or_panics_leaves_nothing_behind() {
    let place: OnceLock<Place> = OnceLock::new();
    let failed = drover_lab::run(options(1), async |lab| {
        place.set(lab.place().clone()).unwrap();
        Err::<(), _>(anyhow::anyhow!("the body's own error"))
    });
    assert_eq!(failed.unwrap_err().to_string(), "the body's own error");
    assert_eq!(Leftovers::of(place.get().unwrap()), Leftovers::default());

    let place: OnceLock<Place> = OnceLock::new();
    let panicked = std::panic::catch_unwind(|| {
        drover_lab::run(options(1), async |lab| -> Result<()> {
            place.set(lab.place().clone()).unwrap();
            panic!("in the body")
        })
    });
    assert!(panicked.is_err());
    let place = place.get().unwrap();
    assert_eq!(Leftovers::of(place), Leftovers::default());
    assert!(!place.dir().exists());
}
