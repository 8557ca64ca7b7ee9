//! Every victim in every phase of a migration ([`drover_lab::faults`]), on clusters of real parts.
//!
//! Cells follow each other on one cluster as long as they pass: each leaves it as it found it, and shows that. After one
//! that does not pass, the next begins on a new cluster, so that it is judged by itself.

mod report;

pub use report::Report;

use anyhow::{Context, Result};
use drover_lab::cluster::ClusterOptions;
use drover_lab::faults::{self, Cell, CellReport};
use drover_lab::vms::GuestImage;
use drover_lab::{Interrupted, Lab, LabOptions, LabOutcome, process};
use drover_model::policy::{Mode, Policy};
use std::fs;
use std::path::Path;

/// A cluster that does not come up is tried again; then the bench gives up.
const CLUSTERS_FAILED_MAX: u32 = 3;

/// Carries the cells out in this order. Logs of cells that fail are kept below `logs`.
pub fn measure(cells: &[Cell], logs: Option<&Path>) -> Result<Report> {
    let mut reports: Vec<CellReport> = Vec::with_capacity(cells.len());
    let mut failed = 0;
    while reports.len() < cells.len() {
        let rest = &cells[reports.len()..];
        println!("building a cluster; {} of {} cells are left", rest.len(), cells.len());
        let outcome = drover_lab::run(options()?, async |lab| until_one_fails(lab, rest, logs).await);
        match outcome {
            Ok((done, kept)) => {
                reports.extend(done);
                if let LabOutcome::No { leftovers } = kept
                    && !leftovers.is_empty()
                {
                    eprintln!("clean-up is not complete, the next lab will try again: {leftovers:?}");
                }
            }
            Err(problem) if failed + 1 < CLUSTERS_FAILED_MAX && !problem.is::<Interrupted>() => {
                failed += 1;
                eprintln!("{problem:#}");
            }
            Err(problem) => return Err(problem),
        }
    }
    Ok(Report::new(reports))
}

fn options() -> Result<LabOptions> {
    Ok(LabOptions {
        kind: "bench",
        sweep_kept: false,
        cluster: ClusterOptions {
            hosts: faults::HOSTS.to_vec(),
            policy: Policy { mode: Mode::Observe, ..Policy::default() },
            drover: process::programs_dir()?.join("drover"),
            power_switch: None,
        },
    })
}

/// The cells up to the first that fails, and that one.
async fn until_one_fails(lab: &Lab, cells: &[Cell], logs: Option<&Path>) -> Result<Vec<CellReport>> {
    let client = lab.cluster.client();
    GuestImage::find()?.upload(client).await?;
    lab.cluster.create_tenant(faults::TENANT).await?;
    let vm = lab.cluster.create_vms(&[faults::vm("web-1", 1)]).await?.remove(0);
    let mut reports = Vec::new();
    for cell in cells {
        let report = faults::run_cell(lab, &vm, cell).await;
        println!("{}", report::line(&report));
        let passed = report.passed();
        if let (false, Some(logs)) = (passed, logs) {
            keep_logs(lab, &logs.join(cell.to_string().replace('/', "-")), &report)?;
        }
        reports.push(report);
        if !passed {
            break;
        }
    }
    Ok(reports)
}

fn keep_logs(lab: &Lab, to: &Path, report: &CellReport) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("can't make {}", to.display()))?;
    let text = serde_json::to_string_pretty(report).context("a cell can't be written as JSON")?;
    let path = to.join("cell.json");
    fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))?;
    for entry in fs::read_dir(lab.dir()).context("can't read the lab's directory")? {
        let path = entry.context("can't read the lab's directory")?.path();
        let name = path.file_name().filter(|_| path.extension().is_some_and(|extension| extension == "log"));
        if let Some(name) = name {
            fs::copy(&path, to.join(name)).with_context(|| format!("can't copy {}", path.display()))?;
        }
    }
    Ok(())
}
