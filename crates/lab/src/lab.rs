//! A whole lab, from start to clean-up.
//!
//! ```text
//!  sweep what others left -> directory -> network -> [ inside the switch namespace: start, body ] -> sweep
//!                                                        Ctrl-C, SIGTERM, error, panic ─────────┘
//! ```

use crate::cluster::{Cluster, ClusterOptions};
use crate::net::LabNet;
use crate::place::Place;
use crate::probe::Probe;
use crate::process;
use crate::sweep::{self, Leftovers};
use anyhow::{Context, Result, bail};
use std::fmt;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Debug, Clone)]
pub struct LabOptions {
    /// `demo` or `test`: the beginning of the lab's name.
    pub kind: &'static str,
    /// Whether labs that were kept for looking at are removed, too, before this one begins.
    pub sweep_kept: bool,
    pub cluster: ClusterOptions,
}

/// A lab that is up, as the body of [`run`] sees it.
#[derive(Debug)]
pub struct Lab {
    place: Place,
    pub cluster: Cluster,
    pub probe: Probe,
}

impl Lab {
    /// Where its configurations, logs and state are.
    pub fn dir(&self) -> PathBuf {
        self.place.dir()
    }

    /// The namespace that server and body run in.
    pub fn switch(&self) -> String {
        self.place.switch_name()
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Leaves the lab up after the body has returned.
    pub fn keep(&self) -> Result<()> {
        self.place.keep()
    }
}

/// What became of the lab after its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabOutcome {
    /// It is up, with its things in this directory.
    Yes { dir: PathBuf, switch: String },
    /// It is gone, but for these.
    No { leftovers: Leftovers },
}

/// Somebody asked the lab to end before its body had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Builds a lab, runs the body inside its switch namespace, and removes the lab, whatever the body's
/// outcome. When the body fails, the ends of the lab's logs are printed, since they go with it.
pub fn run<T: Send>(
    options: LabOptions,
    body: impl AsyncFnOnce(&mut Lab) -> Result<T> + Send,
) -> Result<(T, LabOutcome)> {
    if !nix::unistd::geteuid().is_root() {
        bail!("a lab makes network namespaces and control groups, which needs root");
    }
    sweep::sweep_abandoned(options.sweep_kept)?;
    let place = Place::new(options.kind);
    place.create()?;
    let mut guard = Guard { place: place.clone(), show_logs: true };
    let net = LabNet::new(place.namespace_prefix(), options.cluster.hosts.len())?;
    net.create()?;
    let outcome = net.switch().within(|| inside(&place, &options, body));
    guard.show_logs = outcome.as_ref().is_err_and(|problem| !problem.is::<Interrupted>());
    let outcome = outcome?;
    guard.end().map(|kept| (outcome, kept))
}

fn inside<T>(place: &Place, options: &LabOptions, body: impl AsyncFnOnce(&mut Lab) -> Result<T>) -> Result<T> {
    // Its threads begin on this one, so they are in its namespace.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(2)
        .build()
        .context("can't start tokio")?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).context("can't listen for signals")?;
        let mut terminate = signal(SignalKind::terminate()).context("can't listen for signals")?;
        let work = async {
            let cluster = Cluster::start(place, &options.cluster).await?;
            let probe = Probe::start().await?;
            let mut lab = Lab { place: place.clone(), cluster, probe };
            let outcome = body(&mut lab).await?;
            if !place.is_kept() {
                lab.cluster.stop()?;
            }
            Ok(outcome)
        };
        tokio::select! {
            outcome = work => outcome,
            _ = interrupt.recv() => Err(Interrupted.into()),
            _ = terminate.recv() => Err(Interrupted.into()),
        }
    })
}

/// Removes the lab when it goes, also in a panic.
struct Guard {
    place: Place,
    show_logs: bool,
}

impl Guard {
    /// The orderly end, which tells what is left.
    fn end(self) -> Result<LabOutcome> {
        let place = self.place.clone();
        drop(self);
        if place.is_kept() {
            let switch = place.switch_name();
            return Ok(LabOutcome::Yes { dir: place.dir(), switch });
        }
        Ok(LabOutcome::No { leftovers: Leftovers::of(&place) })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.show_logs {
            show_logs(&self.place);
        }
        if self.place.is_kept() {
            return;
        }
        if let Err(problem) = sweep::sweep(&self.place) {
            eprintln!("clean-up is not complete, the next lab will try again: {problem:#}");
        }
    }
}

/// Lines of each log that are shown of a lab that failed.
const LOG_LINES_SHOWN: usize = 40;

fn show_logs(place: &Place) {
    let mut logs: Vec<PathBuf> = std::fs::read_dir(place.dir())
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    logs.sort();
    for log in logs {
        eprintln!("--- the end of {}\n{}", log.display(), process::last_lines(&log, LOG_LINES_SHOWN));
    }
}
