//! Recorded load: what each vm wanted, at fixed steps.

use drover_model::{Bytes, CpuMillis, Millis, TimeMs, VmId};
use std::collections::BTreeMap;

/// What a vm wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    pub cpu: CpuMillis,
    /// Resident.
    pub memory: Bytes,
}

/// Made of points by hand, or read from text.
#[derive(Debug, Clone, PartialEq)]
pub struct Recording {
    pub start: TimeMs,
    /// Above zero.
    pub step: Millis,
    /// From the start on. A vm goes on as before where it has no point.
    pub vms: BTreeMap<VmId, Vec<Option<Point>>>,
}

/// What stands in a recording is not what must stand there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {found}, but expected {expected}")]
pub struct BadRecording {
    /// From 1.
    pub line: usize,
    pub found: String,
    pub expected: String,
}

impl Recording {
    /// How many steps it has.
    pub fn len(&self) -> usize {
        self.vms.values().map(Vec::len).max().unwrap_or(0)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// When a step begins.
    pub fn at(&self, step: usize) -> TimeMs {
        self.start.plus(Millis(self.step.0 * step as u64))
    }

    pub fn point(&self, vm: &VmId, step: usize) -> Option<Point> {
        *self.vms.get(vm)?.get(step)?
    }
}
