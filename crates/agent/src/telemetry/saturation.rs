//! How much of the time the host's processor was used up, so that waiting for it means demand.
//!
//! A thread also waits for its turn on a processor that is not full, and gets its work done all the same: what it wanted
//! then is what it used. Only where the processor was used up is the time that it waited demand that was not met.

use super::{parse, read_at_start};
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Counts the jiffies of all processors.
const MACHINE: &str = "/proc/stat";
/// A machine that is busy for more than this share begins to be full; at 1 it is.
const FULL_FROM: f64 = 0.9;

/// Where the host's use is read.
#[derive(Debug, Clone)]
pub enum Meter {
    /// The host has the whole machine.
    Machine,
    /// The host has a quota: `cpu.stat` of its group, and the length of a quota period.
    Quota { stat: PathBuf, period: Duration },
}

pub struct Saturation {
    meter: Meter,
    file: Option<File>,
    machine: Option<parse::MachineTime>,
    throttled: Option<(Instant, u64)>,
}

impl Saturation {
    pub fn open(meter: Meter) -> Self {
        let file = match &meter {
            Meter::Machine => File::open(MACHINE),
            Meter::Quota { stat, .. } => File::open(stat),
        };
        Self { meter, file: file.ok(), machine: None, throttled: None }
    }

    /// Since the last call, 0 to 1; 1 where it can't be told. `text` is scratch space.
    pub fn sample(&mut self, now: Instant, text: &mut String) -> f64 {
        let Some(file) = &self.file else { return 1.0 };
        if read_at_start(file, text).is_err() {
            return 1.0;
        }
        let known = match &self.meter {
            Meter::Machine => parse::machine_time(text).and_then(|time| {
                let before = self.machine.replace(time)?;
                busy_to_saturation(time.busy_share_since(before)?)
            }),
            Meter::Quota { period, .. } => parse::throttled_periods(text).and_then(|count| {
                let (at, before) = self.throttled.replace((now, count))?;
                let periods = now.duration_since(at).as_secs_f64() / period.as_secs_f64();
                (periods > 0.0).then(|| (count.saturating_sub(before) as f64 / periods).min(1.0))
            }),
        };
        known.unwrap_or(1.0)
    }
}

fn busy_to_saturation(busy: f64) -> Option<f64> {
    Some(((busy - FULL_FROM) / (1.0 - FULL_FROM)).clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_quota_is_used_up_in_the_share_of_periods_that_were_cut_short() {
        let mut stat = tempfile::NamedTempFile::new().unwrap();
        let mut meter = Saturation::open(Meter::Quota { stat: stat.path().into(), period: Duration::from_millis(20) });
        let (mut text, start) = (String::new(), Instant::now());
        let mut at = |second: u64, throttled: u64| {
            stat.as_file_mut().set_len(0).unwrap();
            std::io::Seek::rewind(&mut stat).unwrap();
            write!(stat, "nr_periods 900\nnr_throttled {throttled}\nthrottled_time 5\n").unwrap();
            meter.sample(start + Duration::from_secs(second), &mut text)
        };
        assert_eq!(at(0, 100), 1.0);
        assert_eq!(at(1, 110), 0.2);
        assert_eq!(at(2, 110), 0.0);
        assert_eq!(at(3, 990), 1.0);
    }

    #[test]
    fn a_machine_is_full_when_nothing_is_idle() {
        assert_eq!(busy_to_saturation(0.5), Some(0.0));
        assert_eq!(busy_to_saturation(1.0), Some(1.0));
        assert!((busy_to_saturation(0.95).unwrap() - 0.5).abs() < 1e-9);
    }

    #[test]
    fn what_cannot_be_read_counts_as_full() {
        let stat = PathBuf::from("/nonexistent/cpu.stat");
        let mut meter = Saturation::open(Meter::Quota { stat, period: Duration::from_millis(20) });
        assert_eq!(meter.sample(Instant::now(), &mut String::new()), 1.0);
    }
}
