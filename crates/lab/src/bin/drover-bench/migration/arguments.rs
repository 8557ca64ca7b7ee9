//! What the bench is asked for on its command line.

use super::run::Options;
use super::workloads::{Link, SideName, Workload};
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Write the figures and all single moves here, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Only this workload; may be given more than once.
    #[arg(long = "workload", value_enum)]
    workloads: Vec<Workload>,
    /// Only over links of this speed.
    #[arg(long = "link", value_enum)]
    links: Vec<Link>,
    /// Only moved by this side.
    #[arg(long = "side", value_enum)]
    sides: Vec<SideName>,
    /// How often each vm is moved there and back.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Begin nothing new after so long.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=1_440))]
    minutes_max: u64,
    /// The stock vm's memory: a plain size, or 8 KiB less, as drover gives its guests under TCG.
    #[arg(long, value_enum, default_value_t = StockMemory::Plain)]
    stock_memory: StockMemory,
    /// What network drover's vm is on.
    #[arg(long, value_enum, default_value_t = NetworkKind::Overlay)]
    network: NetworkKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StockMemory {
    Plain,
    Short,
}

/// Of drover's networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NetworkKind {
    Overlay,
    Provider,
}

impl Arguments {
    pub fn options(&self) -> Options {
        fn or_all<T: Copy>(chosen: &[T], all: &[T]) -> Vec<T> {
            if chosen.is_empty() { all.to_vec() } else { chosen.to_vec() }
        }
        Options {
            workloads: or_all(&self.workloads, &Workload::ALL),
            links: or_all(&self.links, &Link::ALL),
            sides: or_all(&self.sides, &SideName::ALL),
            rounds: self.rounds,
            limit: Duration::from_secs(60 * self.minutes_max),
            stock_memory_short: self.stock_memory == StockMemory::Short,
            network: self.network,
        }
    }
}
