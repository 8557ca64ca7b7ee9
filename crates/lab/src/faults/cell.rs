//! One cell of the matrix: the fault, and the judgement of what came of it.

use super::hold;
use super::strike::Ends;
use super::watch::Watch;
use super::{CALM, Cell, Victim, until};
use crate::lab::Lab;
use crate::limits::POLL;
use crate::probe::{guest_stats, verify_guest};
use crate::vms::{self, LabVm};
use anyhow::{Context, Result, ensure};
use drover_api::v1::{EventQuery, EventView, MigrationView};
use drover_model::event::Severity;
use drover_model::intent::Host;
use drover_model::migration::Method;
use drover_model::migration::MigrationRecord;
use drover_model::{EventSeq, HostId, MigrationId};
use serde::Serialize;
use std::time::{Duration, Instant};

/// From the fault, or from the return of what was hit where the vm can't run without it.
const RUNS_AGAIN_WITHIN: Duration = Duration::from_secs(10);
/// All is as it should be, after what was hit is back.
const SETTLED_WITHIN: Duration = Duration::from_secs(90);
/// What a migration leaves behind is cleared away.
const CLEARED_WITHIN: Duration = Duration::from_secs(20);
const MOVED_AGAIN_WITHIN: Duration = Duration::from_secs(40);
const EVENTS_MAX: usize = 1_000;

/// What became of the vm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It runs at the destination.
    Moved,
    /// It runs at the source, which never lost the right to run it.
    Stayed,
    /// The right to run it came back to the source.
    TakenBack,
    /// It was started anew.
    Restarted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Memory {
    Intact,
    /// Pages do not hold what was written to them.
    Damaged,
    /// The vm was started anew.
    Lost,
}

/// One cell, as it came out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CellReport {
    pub cell: Cell,
    /// One copy of the vm at every moment, and one that runs at the end.
    pub exactly_once: bool,
    pub outcome: Option<Outcome>,
    /// Phase in which the migration ended.
    pub migration: Option<String>,
    pub memory: Option<Memory>,
    /// Starts of the guest, the first included.
    pub boots: u64,
    /// Longest time without a tick, which come ten times a second, since `counted_from`.
    pub run_again_ms: u64,
    /// `fault`, or `return` (of what was hit) where the vm can't run without it: see [`Cell::needs_return`].
    pub counted_from: &'static str,
    /// Of a vm that was started anew: from `counted_from` until its new qemu was there. The rest is the guest's boot.
    pub started_ms: Option<u64>,
    /// Of the machine at the end (proc_loadavg(5)): one that has more to do than processors is slow by itself.
    pub load_average: f64,
    pub took_s: f64,
    /// What is not as it has to be; empty if all is.
    pub failures: Vec<String>,
    /// Warnings since the fault, oldest first.
    pub said: Vec<String>,
}

impl CellReport {
    pub fn passed(&self) -> bool {
        self.failures.is_empty()
    }
}

/// What is written down as the cell goes; it stays when the cell breaks off.
struct Account {
    report: CellReport,
    began: Instant,
}

/// Carries out one cell on a vm that runs and a cluster at rest, which is at rest afterwards if the cell passed.
pub async fn run_cell(lab: &Lab, vm: &LabVm, cell: &Cell) -> CellReport {
    let report = CellReport {
        cell: cell.clone(),
        exactly_once: false,
        outcome: None,
        migration: None,
        memory: None,
        boots: 0,
        run_again_ms: 0,
        counted_from: if cell.needs_return() { "return" } else { "fault" },
        started_ms: None,
        load_average: 0.0,
        took_s: 0.0,
        failures: Vec::new(),
        said: Vec::new(),
    };
    let mut account = Account { report, began: Instant::now() };
    let watch = Watch::start(vm.id.clone(), vm.name.clone(), lab.place().clone(), lab.probe.reader());
    if let Err(problem) = account.carry_out(lab, vm, &watch).await {
        account.report.failures.push(format!("{problem:#}"));
    }
    if let Some(twice) = watch.twice() {
        account.report.failures.push(format!("the vm ran twice: {twice}"));
        account.report.exactly_once = false;
    }
    account.report.load_average = load_average();
    account.report.took_s = account.began.elapsed().as_secs_f64();
    account.report
}

/// Over the last minute; 0 if the kernel does not tell.
fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}

impl Account {
    fn must(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.report.failures.push(otherwise());
        }
    }

    async fn carry_out(&mut self, lab: &Lab, vm: &LabVm, watch: &Watch) -> Result<()> {
        let Cell { victims, phase } = self.report.cell.clone();
        let cluster = &lab.cluster;
        let before = guest_stats(vm.address).await.context("the guest does not answer before the fault")?;
        let boots_before = lab.probe.ticks().get(&vm.name).map_or(0, |ticks| ticks.reboots);
        let last_event = newest_event(lab).await?;
        let ends = ends(lab, vm).await?;

        let reached = hold::reach(phase, lab, vm, &ends, watch).await;
        let mut held = reached.with_context(|| format!("{} was not reached", phase.word()))?;
        let fault = Instant::now();
        victims.iter().try_for_each(|victim| victim.strike(cluster, &ends))?;
        held.let_go()?;
        let mut returned = fault;
        let mut away: Vec<(Duration, Victim)> = victims.iter().filter_map(|one| Some((one.away()?, *one))).collect();
        away.sort();
        for (away, victim) in away {
            tokio::time::sleep(away.saturating_sub(fault.elapsed())).await;
            victim.bring_back(cluster, &ends)?;
            returned = Instant::now();
        }

        let settled = until(SETTLED_WITHIN, POLL, async || is_settled(lab, vm, watch, held.migration).await).await;
        let counted_from = if self.report.cell.needs_return() { returned } else { fault };
        let silent = watch.longest_silence_since(counted_from);
        self.report.run_again_ms = silent.as_millis() as u64;
        let ticks = watch.ticks();
        let reboots = ticks.as_ref().map_or(0, |ticks| ticks.reboots) - boots_before;
        self.report.boots = 1 + reboots;
        if reboots > 0 {
            self.report.started_ms = watch.newest_qemu_since(counted_from).map(|span| span.as_millis() as u64);
        }
        let events = warnings_since(lab, vm, held.migration, last_event).await.unwrap_or_default();
        self.report.said = events.iter().map(|event| format!("{}: {}", event.kind, event.text)).collect();
        let ended = cluster.client().of::<MigrationRecord>().get(&held.migration.to_string()).await.ok();
        self.report.migration = ended.as_ref().map(|view| view.phase.clone());
        settled?;
        self.report.exactly_once = reboots <= 1;

        let ended = ended.context("the server does not show the migration")?;
        self.judge_outcome(&ended, &ends, lab, vm, reboots, &events).await?;
        self.must(silent <= RUNS_AGAIN_WITHIN, || {
            format!("it did not run for {} ms, and {} s are the limit", silent.as_millis(), RUNS_AGAIN_WITHIN.as_secs())
        });
        vm.set_load(CALM).await?;
        self.judge_memory(vm, &before.boot_id, reboots).await?;
        self.judge_rest(lab, vm, watch).await
    }

    async fn judge_outcome(
        &mut self,
        ended: &MigrationView,
        ends: &Ends,
        lab: &Lab,
        vm: &LabVm,
        reboots: u64,
        events: &[EventView],
    ) -> Result<()> {
        let host = vm.view(lab.cluster.client()).await?.host;
        let outcome = match (reboots, ended.phase.as_str()) {
            (1.., _) => Outcome::Restarted,
            (0, "done") => Outcome::Moved,
            (0, "taken-back") => Outcome::TakenBack,
            (0, _) => Outcome::Stayed,
        };
        self.report.outcome = Some(outcome);
        let expected = match outcome {
            Outcome::Moved => Some(&ends.to),
            Outcome::Stayed | Outcome::TakenBack => Some(&ends.from),
            Outcome::Restarted => None,
        };
        self.must(expected.is_none() || expected == host.as_ref(), || {
            format!("the migration ended as {}, and the vm runs on {host:?}", ended.phase)
        });
        let must_lose = self.report.cell.loses_memory();
        self.must(reboots <= 1, || format!("it was started anew {reboots} times"));
        self.must(must_lose || reboots == 0, || "it was started anew although its memory was there".to_owned());
        let told = ended.phase == "restarted" || events.iter().any(|event| event.kind.contains("restart"));
        self.must(reboots == 0 || told, || "that it was started anew is told by no event and no migration".to_owned());
        Ok(())
    }

    async fn judge_memory(&mut self, vm: &LabVm, boot: &str, reboots: u64) -> Result<()> {
        let stats = verify_guest(vm.address).await.context("the guest can't be asked to verify its memory")?;
        let whole = stats.errors == 0 && stats.pages > 0 && stats.verified_pages >= stats.pages;
        self.report.memory = Some(match (whole, reboots) {
            (false, _) => Memory::Damaged,
            (true, 0) => Memory::Intact,
            (true, _) => Memory::Lost,
        });
        self.must(whole, || format!("{} of {} pages are damaged", stats.errors, stats.pages));
        self.must(reboots > 0 || stats.boot_id == boot, || {
            "another boot answers, and nothing was heard of it".to_owned()
        });
        Ok(())
    }

    /// Nothing is left over, and the vm can be moved as if nothing had been.
    async fn judge_rest(&mut self, lab: &Lab, vm: &LabVm, watch: &Watch) -> Result<()> {
        until(CLEARED_WITHIN, POLL, async || nothing_left_over(lab, vm).await)
            .await
            .context("something is left over")?;
        let boot = watch.ticks().map(|ticks| ticks.boot_id);
        hold::set_bandwidth(&lab.cluster, None).await?;
        let ends = ends(lab, vm).await?;
        let again = hold::migrate(&lab.cluster, &ends, Method::PreCopy).await.context("it can't be moved later")?;
        until(MOVED_AGAIN_WITHIN, POLL, async || is_settled(lab, vm, watch, again).await)
            .await
            .context("a later move does not end")?;
        let view = lab.cluster.client().of::<MigrationRecord>().get(&again.to_string()).await?;
        ensure!(view.phase == "done", "a later move ended as {}: {:?}", view.phase, view.why);
        let stats = verify_guest(vm.address).await?;
        ensure!(Some(stats.boot_id) == boot && stats.errors == 0, "a later move did not bring its memory along");
        until(CLEARED_WITHIN, POLL, async || nothing_left_over(lab, vm).await)
            .await
            .context("something is left over of a later move")
    }
}

/// From where it runs to the other host.
async fn ends(lab: &Lab, vm: &LabVm) -> Result<Ends> {
    let from = vm.view(lab.cluster.client()).await?.host.context("the vm has no host")?;
    let to = lab.cluster.hosts().iter().find(|host| **host != from).context("there is one host only")?;
    Ok(Ends { vm: vm.id.clone(), to: to.clone(), from })
}

/// The migration is over, every host is up, and the vm runs as one process where the store says it does.
async fn is_settled(lab: &Lab, vm: &LabVm, watch: &Watch, id: MigrationId) -> Result<(), String> {
    let client = lab.cluster.client();
    let migration = client
        .of::<MigrationRecord>()
        .get(&id.to_string())
        .await
        .map_err(|error| format!("the server does not answer: {error}"))?;
    if !migration.over {
        return Err(format!("migration {id} is still {}", migration.phase));
    }
    for host in lab.cluster.hosts() {
        let view = client.of::<Host>().get(host.as_str()).await.map_err(|error| error.to_string())?;
        if !view.connected {
            return Err(format!("{host} is not connected"));
        }
    }
    let view = vm.view(client).await.map_err(|error| format!("{error:#}"))?;
    if view.phase != "running" || view.migration.is_some() {
        return Err(format!("the vm is {} on {:?} ({:?})", view.phase, view.host, view.why));
    }
    let qemus = processes(lab, vm);
    if qemus.as_slice() != view.host.as_slice() {
        return Err(format!("its processes are on {qemus:?}, and the store says {:?}", view.host));
    }
    if !watch.is_heard() {
        return Err("the guest is not heard".to_owned());
    }
    guest_stats(vm.address).await.map(drop).map_err(|error| format!("{error:#}"))
}

/// The hosts of its qemus.
fn processes(lab: &Lab, vm: &LabVm) -> Vec<HostId> {
    vms::running(lab.place()).into_iter().filter(|qemu| qemu.vm == vm.id).map(|qemu| qemu.host).collect()
}

/// Process, tap, directory and promised memory of the vm are at its host and nowhere else.
async fn nothing_left_over(lab: &Lab, vm: &LabVm) -> Result<(), String> {
    let words = |error: anyhow::Error| format!("{error:#}");
    let client = lab.cluster.client();
    let view = vm.view(client).await.map_err(words)?;
    for host in lab.cluster.hosts() {
        let here = view.host.as_ref() == Some(host);
        let count = |there: bool| if there { "no" } else { "a left-over" };
        let process = processes(lab, vm).contains(host);
        if process != here {
            return Err(format!("{} qemu on {host}", count(here)));
        }
        let interfaces = lab.cluster.namespace(host).and_then(|namespace| namespace.interfaces()).map_err(words)?;
        if interfaces.iter().any(|name| vm.is_tap(name)) != here {
            return Err(format!("{} tap on {host}", count(here)));
        }
        let dir = lab.place().file(host.as_str()).join("vms").join(vm.id.as_str());
        if dir.exists() != here {
            return Err(format!("{} directory on {host}", count(here)));
        }
        let promised =
            client.of::<Host>().get(host.as_str()).await.map_err(|error| error.to_string())?.memory_promised_mib;
        if promised != if here { view.memory_mib } else { 0 } {
            return Err(format!("{host} has {promised} MiB promised to vms"));
        }
    }
    Ok(())
}

async fn newest_event(lab: &Lab) -> Result<Option<EventSeq>> {
    let query = EventQuery { limit: Some(1), ..EventQuery::default() };
    Ok(lab.cluster.client().events(&query).await.context("can't read events")?.items.last().map(|event| event.seq))
}

/// Of the vm and its migration.
async fn warnings_since(
    lab: &Lab,
    vm: &LabVm,
    migration: MigrationId,
    after: Option<EventSeq>,
) -> Result<Vec<EventView>> {
    let query = EventQuery { after: after.map(|seq| seq.0), limit: Some(EVENTS_MAX), ..EventQuery::default() };
    let objects = [format!("vm/{}", vm.id), format!("migration/{migration}")];
    let events = lab.cluster.client().events(&query).await?.items.into_iter();
    Ok(events.filter(|event| event.severity > Severity::Info && objects.contains(&event.object)).collect())
}
