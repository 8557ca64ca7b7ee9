//! Measured load, once a second, in bounded windows. Never stored.

use crate::{Bytes, CpuMillis, Millis, Ratio, TimeMs};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// One second of a host.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct HostSample {
    /// Processor time its vms got.
    pub cpu_used: CpuMillis,
    /// What they would have used with nobody in the way: used plus waited for (run queue, quota). May pass the capacity.
    pub cpu_wanted: CpuMillis,
    /// Memory its vms hold.
    pub memory_used: Bytes,
    /// Share of the second in which some task stalled on memory (kernel PSI "some"); 0 where the kernel has none.
    pub memory_pressure: Ratio,
    /// Bytes per second over all its interfaces.
    pub net_rx: Bytes,
    pub net_tx: Bytes,
    /// Mean time of a disk request of its vms, in microseconds; 0 without requests.
    pub disk_latency_us: u64,
}

/// One second of a vm.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct VmSample {
    pub cpu_used: CpuMillis,
    /// Used plus waited for; at most its vcpus.
    pub cpu_wanted: CpuMillis,
    /// Resident memory of the guest.
    pub memory_used: Bytes,
    pub net_rx: Bytes,
    pub net_tx: Bytes,
    pub disk_latency_us: u64,
    /// Bytes the guest writes per second, when it was asked for (it costs the guest something): what was measured last,
    /// until it is [`VmSample::DIRTY_RATE_KEPT_MAX`] old or is measured anew.
    pub dirty_rate: Option<Bytes>,
}

impl VmSample {
    /// A guest may do something else by then.
    pub const DIRTY_RATE_KEPT_MAX: Millis = Millis::secs(60);
}

/// What a vm's processor demand is at each time of day (UTC), learned over days. Empty until a whole day has been seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DailyPattern {
    /// Whole days it rests on.
    pub days: u16,
    /// One per [`DailyPattern::SLOT`] from midnight, or none.
    pub slots: Vec<PatternSlot>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PatternSlot {
    /// Mean over the days, thousandths of a core.
    pub mean: u32,
    /// Standard deviation, within the slot and from day to day; thousandths of a core.
    pub deviation: u32,
}

impl DailyPattern {
    pub const SLOT: Millis = Millis::secs(15 * 60);
    pub const SLOTS: usize = 96;

    /// What it says of a moment; `None` while it has not seen a day.
    pub fn at(&self, at: TimeMs) -> Option<PatternSlot> {
        let slot = (at.0 / Self::SLOT.0) as usize % Self::SLOTS;
        self.slots.get(slot).copied()
    }
}

/// The last samples of one series, oldest first, at most [`Window::SAMPLES_MAX`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Window<T> {
    samples: VecDeque<(TimeMs, T)>,
}

impl<T> Default for Window<T> {
    fn default() -> Self {
        Self { samples: VecDeque::new() }
    }
}

impl<T> Window<T> {
    /// Two minutes at one sample a second.
    pub const SAMPLES_MAX: usize = 120;

    /// Takes a sample in. One that is not newer than the last is dropped: reports can be re-sent.
    pub fn push(&mut self, at: TimeMs, sample: T) {
        if self.samples.back().is_some_and(|(last, _)| *last >= at) {
            return;
        }
        if self.samples.len() == Self::SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back((at, sample));
    }

    pub fn clear(&mut self) {
        self.samples.clear();
    }

    pub fn len(&self) -> usize {
        self.samples.len()
    }

    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    pub fn last(&self) -> Option<&(TimeMs, T)> {
        self.samples.back()
    }

    /// Oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &(TimeMs, T)> + ExactSizeIterator {
        self.samples.iter()
    }
}

impl<T> FromIterator<(TimeMs, T)> for Window<T> {
    fn from_iter<I: IntoIterator<Item = (TimeMs, T)>>(items: I) -> Self {
        let mut window = Self::default();
        for (at, sample) in items {
            window.push(at, sample);
        }
        window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_bounded_and_ordered() {
        let mut window = Window::default();
        for n in 0..(Window::<u64>::SAMPLES_MAX as u64 + 10) {
            window.push(TimeMs(n), n);
        }
        window.push(TimeMs(3), 3);
        assert_eq!(window.len(), Window::<u64>::SAMPLES_MAX);
        assert_eq!(window.iter().next(), Some(&(TimeMs(10), 10)));
        assert_eq!(window.last(), Some(&(TimeMs(129), 129)));
    }
}
