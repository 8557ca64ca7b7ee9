//! What a client of a vm sees while the vm moves, moved by stock QEMU and by drover, side by side.
//!
//! ```text
//!   h1 ═══ link of a set speed ═══ switch ═══ link ═══ h2        stock and drover each have a vm that goes to and fro
//!                                     ║
//!                                    h3: clients: probes, readers, players, transactions
//! ```
//!
//! Both vms run the same guest with the same workload, one virtual processor under TCG, and have the same clients, but
//! only one of them has something to do at a time. Each is moved there and back in every round, the sides taking turns
//! to begin. Clients, on a host of their own and first at the processor, note the longest wait for what they expect,
//! numbers that never come or come twice, and connections that break ([`clients`]). The guest proves by its patterns
//! that its memory arrived whole, the database that it holds what it said it holds.
//!
//! # Telling a guest's cold start apart
//!
//! Under TCG a guest runs from translated code, and at the destination there is none yet: it is slow for a while, which
//! has nothing to do with how it was moved. So the stock vm is also made to stand still where it is, for as long as the
//! median downtime of each side, and its clients' worst gap is taken
//! - at rest, when nothing is done to it: what the machine's noise alone does;
//! - paused: `stop` and `cont`;
//! - paused cold: stopped, its state saved into a file, loaded again in the same process, and gone on with. Loading makes
//!   QEMU throw away all translated code (`cpu_common_post_load`), as an arrival does. Memory and network stay as they
//!   are, so this is a move without the moving. Saving and loading take longer than a downtime, so it is what the gap has
//!   beyond the time the guest stood still that counts.
//!
//! A side's own share of the gap is its median gap less what a cold pause has beyond its length; the downtime is in it.

mod arguments;
mod bars;
mod clients;
mod managed;
mod memory;
mod moves;
mod noise;
mod run;
mod site_network;
mod stock;
mod subject;
mod table;
mod workloads;

pub use arguments::Arguments;
pub use run::measure;

use anyhow::{Context, Result, ensure};
use bars::Bar;
use moves::{Cell, Control, Move};
use serde::Serialize;
use std::path::Path;
use std::process::Command;

/// Of the database's disk.
const DISK_SIZE: &str = "32M";

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub bench: &'static str,
    pub rounds: u32,
    /// Whether everything that was asked for was measured.
    pub complete: bool,
    pub network: &'static str,
    pub stock_memory_short: bool,
    pub cells: Vec<Cell>,
    pub bars: Vec<Bar>,
    pub notes: Vec<String>,
    pub moves: Vec<Move>,
    pub controls: Vec<Control>,
}

/// An empty disk, thin, in QEMU's own format.
fn make_disk(path: &Path) -> Result<()> {
    let status = Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(path).arg(DISK_SIZE).status();
    ensure!(
        status.context("can't run qemu-img: install Debian's qemu-utils")?.success(),
        "qemu-img can't make {}: is the disk full?",
        path.display()
    );
    Ok(())
}
