//! Time and memory of this process.

use serde::Serialize;
use std::time::{Duration, Instant};

/// Wall time, and processor time of this thread.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch {
    begun: Instant,
    cpu_begun: Option<Duration>,
    pub wall: Duration,
    pub cpu: Option<Duration>,
}

/// Of several times.
#[derive(Debug, Serialize)]
pub struct Spread {
    pub median_ms: f64,
    pub min_ms: f64,
    pub max_ms: f64,
    /// `None` where the kernel does not say.
    pub cpu_median_ms: Option<f64>,
}

impl Stopwatch {
    pub fn start() -> Self {
        Self { begun: Instant::now(), cpu_begun: thread_cpu(), wall: Duration::ZERO, cpu: None }
    }

    pub fn stop(&mut self) {
        self.wall = self.begun.elapsed();
        self.cpu = self.cpu_begun.zip(thread_cpu()).map(|(begun, now)| now.saturating_sub(begun));
    }
}

impl Spread {
    /// Of at least one.
    pub fn of<'a>(times: impl Iterator<Item = &'a Stopwatch>) -> Self {
        let (wall, cpu): (Vec<f64>, Vec<Option<f64>>) =
            times.map(|time| (millis(time.wall), time.cpu.map(millis))).unzip();
        let sorted = |mut values: Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values
        };
        let wall = sorted(wall);
        let cpu: Option<Vec<f64>> = cpu.into_iter().collect();
        Self {
            median_ms: wall[wall.len() / 2],
            min_ms: wall[0],
            max_ms: wall[wall.len() - 1],
            cpu_median_ms: cpu.map(sorted).map(|cpu| cpu[cpu.len() / 2]),
        }
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// `schedstat` of proc(5): nanoseconds on a processor come first.
fn thread_cpu() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

/// The most memory this process ever held, as the kernel counts it (`VmHWM`); `None` where it does not say.
pub fn peak_memory_mib() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024.0)
}
