//! What else the machine did while something was measured, from `/proc/stat` (proc_stat(5)).

use serde::Serialize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;

const EVERY: Duration = Duration::from_millis(100);

/// Of all cores. The guests and the migrations themselves are in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Noise {
    pub busy_percent: f64,
    /// Taken by whatever else runs on the machine that this one is a guest of.
    pub steal_percent: f64,
    /// Threads that run or could, on average, and at most.
    pub runnable_mean: f64,
    pub runnable_max: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sample {
    total: u64,
    idle: u64,
    steal: u64,
    runnable: u64,
}

impl Sample {
    fn read() -> Option<Self> {
        Self::in_stat(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    fn in_stat(text: &str) -> Option<Self> {
        let times = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let times: Vec<u64> = times.split_ascii_whitespace().take(8).map_while(|word| word.parse().ok()).collect();
        let [_, _, _, idle, iowait, _, _, steal] = times[..] else { return None };
        let runnable = text.lines().find_map(|line| line.strip_prefix("procs_running "))?;
        Some(Self { total: times.iter().sum(), idle: idle + iowait, steal, runnable: runnable.trim().parse().ok()? })
    }
}

/// Looks as long as it lives.
#[derive(Debug)]
pub struct Listener {
    samples: Arc<Mutex<Vec<Sample>>>,
    task: JoinHandle<()>,
}

impl Listener {
    pub fn start() -> Self {
        let samples = Arc::new(Mutex::new(Vec::from_iter(Sample::read())));
        let kept = samples.clone();
        let task = tokio::spawn(async move {
            loop {
                tokio::time::sleep(EVERY).await;
                // What can't be read now is read the next time.
                kept.lock().unwrap_or_else(PoisonError::into_inner).extend(Sample::read());
            }
        });
        Self { samples, task }
    }

    pub fn heard(&self) -> Noise {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner).clone();
        samples.extend(Sample::read());
        judge(&samples)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn judge(samples: &[Sample]) -> Noise {
    let ([first, ..], [.., last]) = (samples, samples) else { return Noise::default() };
    let total = last.total.saturating_sub(first.total).max(1) as f64;
    let percent = |ticks: u64| 100.0 * ticks as f64 / total;
    let idle = last.idle.saturating_sub(first.idle);
    Noise {
        busy_percent: percent(last.total.saturating_sub(first.total).saturating_sub(idle)),
        steal_percent: percent(last.steal.saturating_sub(first.steal)),
        runnable_mean: samples.iter().map(|sample| sample.runnable as f64).sum::<f64>() / samples.len() as f64,
        runnable_max: samples.iter().map(|sample| sample.runnable).max().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_what_happened_between_the_first_and_the_last_look() {
        let sample = |cpu: &str, runnable| {
            Sample::in_stat(&format!("cpu  {cpu} 0 0\ncpu0 1 1\nctxt 5\nprocs_running {runnable}\n")).unwrap()
        };
        let samples = [sample("100 0 100 700 100 0 0 0", 1), sample("150 0 120 780 110 0 0 40", 4)];
        let noise = judge(&samples);
        assert_eq!((noise.busy_percent, noise.steal_percent), (55.0, 20.0));
        assert_eq!((noise.runnable_mean, noise.runnable_max), (2.5, 4));
        assert_eq!(judge(&[]), Noise::default());
        assert_eq!(Sample::in_stat("cpu  1 2 3\nprocs_running 1\n"), None);
    }
}
