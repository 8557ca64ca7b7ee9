//! What a process and the machine have used, as the kernel counts it: proc_pid_stat(5), proc_pid_status(5), proc_stat(5).

use anyhow::{Context, Result, ensure};
use std::fs;
use std::time::Instant;

/// Of every time in /proc: USER_HZ is 100 on every architecture drover runs on (time(7)).
const TICKS_PER_SECOND: f64 = 100.0;
const KIB_PER_MIB: f64 = 1024.0;

/// What a process cost while it was watched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Of one core.
    pub cpu_percent: f64,
    /// Most at any look.
    pub rss_mib: f64,
    /// Most since the process began, which may be before it was watched.
    pub hwm_mib: f64,
}

/// Watches one process.
#[derive(Debug)]
pub struct Meter {
    pid: u32,
    since: Instant,
    first: Times,
    last: (Instant, Times),
    memory: Memory,
}

impl Meter {
    pub fn start(pid: u32) -> Result<Self> {
        let (times, memory) = (Times::read(pid)?, Memory::read(pid)?);
        let now = Instant::now();
        Ok(Self { pid, since: now, first: times, last: (now, times), memory })
    }

    /// An error if the process has ended, also if another has its number now.
    pub fn look(&mut self) -> Result<()> {
        let (times, memory) = (Times::read(self.pid)?, Memory::read(self.pid)?);
        ensure!(times.began == self.first.began, "process {} ended while it was measured", self.pid);
        self.last = (Instant::now(), times);
        let rss_kib = memory.rss_kib.max(self.memory.rss_kib);
        self.memory = Memory { rss_kib, hwm_kib: memory.hwm_kib.max(rss_kib) };
        Ok(())
    }

    /// Up to the last look.
    pub fn cost(&self) -> Cost {
        let (at, times) = self.last;
        let seconds = at.duration_since(self.since).as_secs_f64();
        let used = times.used.saturating_sub(self.first.used) as f64 / TICKS_PER_SECOND;
        Cost {
            cpu_percent: if seconds > 0.0 { 100.0 * used / seconds } else { 0.0 },
            rss_mib: self.memory.rss_kib as f64 / KIB_PER_MIB,
            hwm_mib: self.memory.hwm_kib as f64 / KIB_PER_MIB,
        }
    }
}

/// In ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Times {
    /// By itself and by the programs that it ran and waited for: what it has others do is its cost, too.
    used: u64,
    /// Since the machine started.
    began: u64,
}

impl Times {
    fn read(pid: u32) -> Result<Self> {
        Self::in_stat(&read(pid, "stat")?).with_context(|| format!("/proc/{pid}/stat has another form than expected"))
    }

    fn in_stat(text: &str) -> Option<Self> {
        // The name, in parentheses, may hold anything; fields 3 and on follow the last one.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        // utime, stime, and both of children that were waited for
        Some(Self { used: field(14)? + field(15)? + field(16)? + field(17)?, began: field(22)? })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Memory {
    rss_kib: u64,
    /// The most there ever was of it.
    hwm_kib: u64,
}

impl Memory {
    fn read(pid: u32) -> Result<Self> {
        Self::in_status(&read(pid, "status")?).with_context(|| format!("/proc/{pid}/status tells no memory: it ended"))
    }

    fn in_status(text: &str) -> Option<Self> {
        let kib = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
        };
        let rss_kib = kib("VmRSS")?;
        // The kernel brings the mark up to date only now and then, so it may lag behind.
        Some(Self { rss_kib, hwm_kib: kib("VmHWM")?.max(rss_kib) })
    }
}

fn read(pid: u32, what: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{what}");
    fs::read_to_string(&path).with_context(|| format!("can't read {path}: has the process ended?"))
}

/// Processor time of the whole machine since it started, in ticks of all its cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    busy: u64,
    total: u64,
}

impl Machine {
    pub fn read() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("can't read /proc/stat")?;
        Self::in_stat(&text).context("/proc/stat has another form than expected")
    }

    /// Share of all cores, of the time since then.
    pub fn busy_percent_since(self, then: Self) -> f64 {
        let (busy, total) = (self.busy.saturating_sub(then.busy), self.total.saturating_sub(then.total));
        100.0 * busy as f64 / total.max(1) as f64
    }

    /// The first line: `cpu  user nice system idle iowait irq softirq steal guest guest_nice`, where user and nice
    /// hold what is told of guests again.
    fn in_stat(text: &str) -> Option<Self> {
        let figures = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let times: Vec<u64> = figures.split_ascii_whitespace().take(8).map_while(|word| word.parse().ok()).collect();
        let [_, _, _, idle, iowait, ..] = times[..] else { return None };
        let total = times.iter().sum();
        Some(Self { busy: total - idle - iowait, total })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_its_own_and_its_childrens_whatever_its_name_is() {
        let after_name = "S 1 2 3 0 -1 4194560 900 800 0 0 61 29 7 3 20 0 6 0 4242 123456 789 1844";
        for name in ["drover", "a b", "x) S 1 2 3", ")"] {
            let times = Times::in_stat(&format!("77 ({name}) {after_name}\n"));
            assert_eq!(times, Some(Times { used: 100, began: 4242 }), "{name}");
        }
        assert_eq!(Times::in_stat("77 (drover) S 1 2 3"), None);
        assert_eq!(Times::in_stat(""), None);
    }

    #[test]
    fn memory_is_found_among_the_other_lines() {
        let text = "Name:\tdrover\nVmPeak:\t  999 kB\nVmHWM:\t   24680 kB\nVmRSS:\t   12345 kB\nThreads:\t4\n";
        assert_eq!(Memory::in_status(text), Some(Memory { rss_kib: 12_345, hwm_kib: 24_680 }));
        let lagging = "VmHWM:\t   24680 kB\nVmRSS:\t   24700 kB\n";
        assert_eq!(Memory::in_status(lagging), Some(Memory { rss_kib: 24_700, hwm_kib: 24_700 }));
        // Of a process that has ended and was not waited for.
        assert_eq!(Memory::in_status("Name:\tdrover\nState:\tZ (zombie)\n"), None);
    }

    #[test]
    fn waiting_for_a_disk_is_idle_and_time_of_guests_is_not_counted_again() {
        let then = Machine::in_stat("cpu  100 0 100 700 100 0 0 0 50 0\ncpu0 1 2 3 4 5\n").unwrap();
        assert_eq!(then, Machine { busy: 200, total: 1_000 });
        let now = Machine::in_stat("cpu  150 0 120 800 110 0 0 20 90 0\n").unwrap();
        assert_eq!(now.busy_percent_since(then), 45.0);
        assert_eq!(Machine::in_stat("cpu0 1 2 3 4 5 6 7 8\n"), None);
    }

    #[test]
    fn cost_is_what_was_used_since_the_first_look() {
        let since = Instant::now();
        let times = |used| Times { used, began: 1 };
        let meter = Meter {
            pid: 77,
            since,
            first: times(1_000),
            last: (since + std::time::Duration::from_secs(60), times(1_030)),
            memory: Memory { rss_kib: 20 << 10, hwm_kib: 24 << 10 },
        };
        assert_eq!(meter.cost(), Cost { cpu_percent: 0.5, rss_mib: 20.0, hwm_mib: 24.0 });
    }

    #[test]
    fn a_process_that_runs_is_measured_and_one_that_ended_is_an_error() {
        let mut meter = Meter::start(std::process::id()).unwrap();
        meter.look().unwrap();
        assert!(meter.cost().rss_mib > 0.0 && meter.cost().hwm_mib >= meter.cost().rss_mib, "{:?}", meter.cost());

        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let mut meter = Meter::start(child.id()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(meter.look().is_err());
    }
}
