//! What the day came to.

use drover_api::v1::MigrationView;
use drover_lab::Leftovers;
use serde::Serialize;
use std::fmt;

/// Seconds are since the demo was started.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    pub hosts: Vec<HostLine>,
    pub vms: Vec<VmLine>,
    pub phases: Vec<Phase>,
    pub hotspot: Hotspot,
    pub migrations: Vec<MigrationLine>,
    /// Every guest verified every page of its working set and found what it had written, and none was restarted.
    pub memory_intact: bool,
    /// How many vms were heard from two places.
    pub ran_twice: usize,
    pub leftovers: LeftoverCounts,
}

#[derive(Debug, Clone, Serialize)]
pub struct HostLine {
    pub name: String,
    pub cpu_millis: u64,
    pub memory_mib: u64,
    pub accelerator: String,
}

#[derive(Debug, Clone, Serialize)]
pub struct VmLine {
    pub name: String,
    pub tenant: String,
    pub host: Option<String>,
    pub moves: usize,
    /// Pages of the working set, and how many of them did not hold what was written.
    pub pages: u64,
    pub page_errors: u64,
    pub reboots: u64,
    /// Lines of its guest that only a second copy of the vm can have sent.
    pub heard_twice: u64,
    /// Longest time without the tick that the guest sends ten times a second, over the whole day.
    pub longest_silence_ms: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct Phase {
    pub name: &'static str,
    pub ok: bool,
    pub started_s: f64,
    pub ended_s: f64,
    /// What happened, or what did not.
    pub outcome: String,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Hotspot {
    pub host: String,
    /// The guests were told to want more than the host has.
    pub overloaded_s: f64,
    /// drover called it hot.
    pub detected_s: f64,
    /// Its vms want less than the hot threshold again.
    pub relieved_s: f64,
}

#[derive(Debug, Clone, Serialize)]
pub struct MigrationLine {
    pub vm: String,
    pub from: String,
    pub to: String,
    pub phase: String,
    pub total_ms: u64,
    pub downtime_ms: u64,
    pub reason: String,
}

impl From<&MigrationView> for MigrationLine {
    fn from(view: &MigrationView) -> Self {
        let report = view.report.as_ref();
        Self {
            vm: view.vm_name.as_ref().map_or_else(|| view.vm.to_string(), ToString::to_string),
            from: view.from.to_string(),
            to: view.to.to_string(),
            phase: view.phase.clone(),
            total_ms: report.map_or(0, |report| report.total_ms),
            downtime_ms: report.map_or(0, |report| report.downtime_ms),
            reason: view.reason.clone(),
        }
    }
}

/// Still there at the end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LeftoverCounts {
    pub namespaces: usize,
    pub processes: usize,
    pub cgroups: usize,
}

impl From<Leftovers> for LeftoverCounts {
    fn from(left: Leftovers) -> Self {
        Self { namespaces: left.namespaces.len(), processes: left.processes.len(), cgroups: left.cgroups.len() }
    }
}

impl Summary {
    pub fn is_good(&self) -> bool {
        self.phases.len() == crate::day::PHASES
            && self.phases.iter().all(|phase| phase.ok)
            && self.memory_intact
            && self.ran_twice == 0
            && self.leftovers == LeftoverCounts::default()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nThe day")?;
        for phase in &self.phases {
            let mark = if phase.ok { "ok" } else { "NOT OK" };
            writeln!(f, "  {:<18} {mark:<7} {:6.1} s  {}", phase.name, phase.ended_s - phase.started_s, phase.outcome)?;
        }
        let hot = &self.hotspot;
        writeln!(
            f,
            "Hot spot on {}: found {:.1} s after the load rose, relieved {:.1} s after it",
            hot.host,
            hot.detected_s - hot.overloaded_s,
            hot.relieved_s - hot.overloaded_s
        )?;
        writeln!(f, "Moves")?;
        for m in &self.migrations {
            writeln!(
                f,
                "  {:<9} {} -> {}  {:<9} {:5} ms in total, {:4} ms down; because {}",
                m.vm, m.from, m.to, m.phase, m.total_ms, m.downtime_ms, m.reason
            )?;
        }
        writeln!(f, "Guests")?;
        for vm in &self.vms {
            let host = vm.host.as_deref().unwrap_or("-");
            writeln!(
                f,
                "  {:<9} {:<7} on {host}, moved {} times, {} pages with {} errors, {} restarts, silent for {} ms at most",
                vm.name, vm.tenant, vm.moves, vm.pages, vm.page_errors, vm.reboots, vm.longest_silence_ms
            )?;
        }
        let intact = if self.memory_intact { "yes" } else { "NO" };
        writeln!(f, "Memory intact: {intact}. Vms that ran twice: {}.", self.ran_twice)?;
        let LeftoverCounts { namespaces, processes, cgroups } = self.leftovers;
        writeln!(f, "Left over: {namespaces} namespaces, {processes} processes, {cgroups} control groups.")
    }
}
