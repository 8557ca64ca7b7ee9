//! What server and agents use while the cluster is at rest: three hosts, all vms on the first.
//!
//! The vms are pinned and their guests idle, so there is telemetry to gather and judge every second and nothing to
//! do about it. While it is measured nothing is asked of the server.

use crate::report::{Bar, Report, Row};
use crate::usage::{Machine, Meter};
use anyhow::{Context, Result, ensure};
use drover_lab::cluster::ClusterOptions;
use drover_lab::config::HostSize;
use drover_lab::vms::{self, GuestImage, NewVm, RunningVm};
use drover_lab::{Lab, LabOptions, LabOutcome, process};
use drover_model::HostId;
use drover_model::intent::Host;
use drover_model::policy::Policy;
use std::time::{Duration, Instant};

const VMS: u8 = 10;
const TENANT: &str = "acme";
/// The host with the vms, then the others.
const HOSTS: [HostSize; 3] = [
    HostSize { cpu_millis: 1_000, memory_mib: 2_048 },
    HostSize { cpu_millis: 500, memory_mib: 1_024 },
    HostSize { cpu_millis: 500, memory_mib: 1_024 },
];
/// With ten vms.
const AGENT: Bar = Bar { cpu_percent: 1.0, rss_mib: 30.0 };
/// With three hosts.
const SERVER: Bar = Bar { cpu_percent: 2.0, rss_mib: 80.0 };
/// A guest that boots wants all its host has: the next one begins when the host wants less than this share again.
const BOOTED_BELOW: f64 = 0.6;
/// All guests idle together want less than this share, for so long.
const CALM_BELOW: f64 = 0.6;
const CALM_FOR: Duration = Duration::from_secs(10);
const CALM_WAIT_MAX: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Builds the cluster, measures for so long, and removes it.
pub fn measure(span: Duration) -> Result<Report> {
    let options = LabOptions {
        kind: "bench",
        sweep_kept: false,
        cluster: ClusterOptions {
            hosts: HOSTS.to_vec(),
            policy: Policy::default(),
            drover: process::programs_dir()?.join("drover"),
            power_switch: None,
        },
    };
    println!("building a cluster of {} hosts", HOSTS.len());
    let (report, kept) = drover_lab::run(options, async |lab| {
        let host = lab.cluster.hosts()[0].clone();
        boot(lab, &host).await?;
        println!("waiting until {host} is calm");
        wait_for_calm(lab, &host, CALM_BELOW, CALM_FOR).await?;
        println!("measuring for {} s", span.as_secs());
        watch(lab, &host, span).await
    })?;
    if let LabOutcome::No { leftovers } = kept
        && !leftovers.is_empty()
    {
        eprintln!("clean-up is not complete, the next lab will try again: {leftovers:?}");
    }
    Ok(report)
}

async fn boot(lab: &Lab, host: &HostId) -> Result<()> {
    GuestImage::find()?.upload(lab.cluster.client()).await?;
    lab.cluster.create_tenant(TENANT).await?;
    for number in 1..=VMS {
        println!("booting vm {number} of {VMS} on {host}");
        let small = NewVm::small(TENANT, &format!("idle-{number}"), number);
        lab.cluster.create_vms(&[NewVm { pinned_to: vec![host.to_string()], ..small }]).await?;
        wait_for_calm(lab, host, BOOTED_BELOW, Duration::ZERO).await?;
    }
    Ok(())
}

/// Until what the host's vms want has stayed below a share of what it has.
async fn wait_for_calm(lab: &Lab, host: &HostId, below: f64, for_so_long: Duration) -> Result<()> {
    let client = lab.cluster.client();
    let mut calm_since: Option<Instant> = None;
    let what = format!("the vms of {host} want less than {:.0} % of it", below * 100.0);
    lab.cluster
        .wait_for(&what, CALM_WAIT_MAX, async || {
            let view =
                client.of::<Host>().get(host.as_str()).await.with_context(|| format!("can't read host {host}"))?;
            let share = match (view.load, view.capacity) {
                (Some(load), Some(capacity)) => load.cpu_wanted_millis as f64 / capacity.cpu_millis.max(1) as f64,
                _ => return Ok(None),
            };
            if share >= below {
                calm_since = None;
                return Ok(None);
            }
            Ok((calm_since.get_or_insert_with(Instant::now).elapsed() >= for_so_long).then_some(()))
        })
        .await
}

async fn watch(lab: &Lab, host: &HostId, span: Duration) -> Result<Report> {
    let before = vms_on(lab, host)?;
    let mut meters = Vec::new();
    for other in lab.cluster.hosts() {
        let name = if other == host { format!("agent {other}, {VMS} vms") } else { format!("agent {other}, no vm") };
        let pid = lab.cluster.agent(other)?.pid().with_context(|| format!("the agent of {other} does not run"))?;
        meters.push((name, AGENT, Meter::start(pid)?));
    }
    let pid = lab.cluster.server()?.pid().context("the server does not run")?;
    meters.push((format!("server, {} hosts", HOSTS.len()), SERVER, Meter::start(pid)?));

    let (began, machine) = (Instant::now(), Machine::read()?);
    while began.elapsed() < span {
        tokio::time::sleep(LOOK_EVERY.min(span.saturating_sub(began.elapsed()))).await;
        for (name, _, meter) in &mut meters {
            meter.look().with_context(|| format!("can't measure {name}"))?;
        }
    }
    let machine_busy_percent = Machine::read()?.busy_percent_since(machine);
    ensure!(vms_on(lab, host)? == before, "the vms were not at rest: other processes run them than when it began");
    let rows = meters.into_iter().map(|(name, bar, meter)| Row::new(name, meter.cost(), bar)).collect();
    Ok(Report { bench: "footprint", seconds: span.as_secs(), machine_busy_percent, rows })
}

/// The processes of all vms, which must be on this host.
fn vms_on(lab: &Lab, host: &HostId) -> Result<Vec<RunningVm>> {
    let mut running = vms::running(lab.place());
    running.sort_by_key(|running| running.pid);
    let there = running.iter().filter(|running| running.host == *host).count();
    ensure!(
        running.len() == usize::from(VMS) && there == running.len(),
        "{there} of {} vms run on {host}, and {VMS} should: see the logs below",
        running.len()
    );
    Ok(running)
}
