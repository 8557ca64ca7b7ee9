//! What the guests do, how large they are, and what is asked of drover for each.

use clap::ValueEnum;
use serde::Serialize;
use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Nothing but the probes.
    Idle,
    /// Files of 512 KB for 100 clients.
    Web,
    /// A tick every 20 ms to six players, in the smallest guest that boots.
    Game,
    /// Random writes, each transaction synchronised to a disk that both hosts reach.
    Database,
    /// Rewrites memory faster than any link carries it.
    Diabolical,
}

/// A guest of one virtual processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guest {
    pub memory_mib: u64,
    /// Memory that it rewrites and verifies.
    pub working_set_mib: u32,
    pub dirty_mib_s: u32,
    pub disk: bool,
}

impl Workload {
    pub const ALL: [Self; 5] = [Self::Idle, Self::Web, Self::Game, Self::Database, Self::Diabolical];

    pub fn word(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Web => "web",
            Self::Game => "game",
            Self::Database => "database",
            Self::Diabolical => "diabolical",
        }
    }

    pub fn guest(self) -> Guest {
        let guest = |memory_mib, working_set_mib, dirty_mib_s| Guest {
            memory_mib,
            working_set_mib,
            dirty_mib_s,
            disk: self == Self::Database,
        };
        match self {
            Self::Idle => guest(96, 16, 0),
            Self::Web => guest(112, 12, 1),
            // With 72 MiB the kernel finds no room to unpack its first files.
            Self::Game => guest(80, 2, 1),
            Self::Database => guest(96, 8, 1),
            // More than fits into QEMU's default downtime limit of 300 ms on a link of 1 Gbit/s, and rewritten without
            // a pause: a guest reaches some 2,800 MiB/s where nothing else runs.
            Self::Diabolical => guest(160, 72, DIRTY_WITHOUT_PAUSE_MIB_S),
        }
    }

    /// Median downtime that is asked of drover, where one is.
    pub fn downtime_bar_ms(self) -> Option<f64> {
        match self {
            Self::Idle => None,
            Self::Web | Self::Game => Some(60.0),
            Self::Database => Some(210.0),
            Self::Diabolical => Some(500.0),
        }
    }
}

/// As much as guest-load takes.
const DIRTY_WITHOUT_PAUSE_MIB_S: u32 = 4_096;

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// Who moves the vm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum SideName {
    /// QEMU's own pre-copy with all its defaults.
    Stock,
    Drover,
}

impl SideName {
    pub const ALL: [Self; 2] = [Self::Stock, Self::Drover];

    pub fn word(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::Drover => "drover",
        }
    }
}

impl fmt::Display for SideName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// Speed of all hosts' links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
pub enum Link {
    /// 1 Gbit/s
    #[serde(rename = "1g")]
    #[value(name = "1g")]
    Gigabit,
    /// 100 Mbit/s
    #[serde(rename = "100m")]
    #[value(name = "100m")]
    Fast,
}

impl Link {
    pub const ALL: [Self; 2] = [Self::Gigabit, Self::Fast];

    pub fn speed(self) -> drover_lab::shaping::Speed {
        let mbit_s = match self {
            Self::Gigabit => 1_000,
            Self::Fast => 100,
        };
        drover_lab::shaping::Speed { mbit_s }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Gigabit => "1g",
            Self::Fast => "100m",
        }
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}
