//! The kernel's text files that load is read from. Pure functions of the text.

use drover_model::Ratio;

/// `/proc/<pid>/task/<tid>/schedstat`: time on a processor and time waiting for one, both in nanoseconds
/// (Documentation/scheduler/sched-stats.rst). Waiting includes being held back by a control group's quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SchedStat {
    pub run_ns: u64,
    pub wait_ns: u64,
}

pub fn schedstat(text: &str) -> Option<SchedStat> {
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    Some(SchedStat { run_ns: numbers.next()?.ok()?, wait_ns: numbers.next()?.ok()? })
}

/// Of the `cpu` line of `/proc/stat` (proc_stat(5)): jiffies of all processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineTime {
    pub total: u64,
    /// Idle, and idle while a disk was waited for.
    pub idle: u64,
}

impl MachineTime {
    /// `None` if no time has passed.
    pub fn busy_share_since(self, before: Self) -> Option<f64> {
        let total = self.total.checked_sub(before.total).filter(|total| *total > 0)?;
        Some(1.0 - self.idle.saturating_sub(before.idle) as f64 / total as f64)
    }
}

pub fn machine_time(text: &str) -> Option<MachineTime> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    // Guest time is counted in user time too, so only the first eight columns are added up.
    let columns = line.split_ascii_whitespace().take(8).map(str::parse).collect::<Result<Vec<u64>, _>>().ok()?;
    Some(MachineTime { total: columns.iter().sum(), idle: columns.get(3)? + columns.get(4)? })
}

/// `cpu.stat` of a control group, either version: quota periods that ended with somebody held back
/// (Documentation/scheduler/sched-bwc.rst).
pub fn throttled_periods(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("nr_throttled "))?.trim().parse().ok()
}

/// `/proc/<pid>/statm`: resident pages (proc_pid_statm(5)).
pub fn resident_pages(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// A mapping's first line in `/proc/<pid>/smaps`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    pub bytes: u64,
    /// Readable, writable, private, not executable.
    pub is_private_data: bool,
}

/// `None` for the lines that tell of a mapping.
pub fn mapping(line: &str) -> Option<Mapping> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    Some(Mapping { bytes: address(end)?.checked_sub(address(start)?)?, is_private_data: words.next()? == "rw-p" })
}

/// `<key>   <number> kB`.
pub fn kib_of(line: &str, key: &str) -> Option<u64> {
    line.strip_prefix(key)?.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// One interface of `/proc/net/dev`, as its owner sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterfaceBytes<'a> {
    pub name: &'a str,
    pub received: u64,
    pub sent: u64,
}

/// `/proc/net/dev` (proc_pid_net(5)): eight columns for receiving, then eight for sending.
pub fn interfaces(text: &str) -> impl Iterator<Item = InterfaceBytes<'_>> {
    text.lines().filter_map(|line| {
        let (name, columns) = line.split_once(':')?;
        let mut columns = columns.split_ascii_whitespace();
        let received = columns.next()?.parse().ok()?;
        let sent = columns.nth(7)?.parse().ok()?;
        Some(InterfaceBytes { name: name.trim(), received, sent })
    })
}

/// `memory.pressure` or `/proc/pressure/memory`: the share of the last ten seconds in which some task stalled
/// (Documentation/accounting/psi.rst).
pub fn some_pressure(text: &str) -> Option<Ratio> {
    let some = text.lines().find(|line| line.starts_with("some "))?;
    let percent: f64 = some.split_ascii_whitespace().find_map(|word| word.strip_prefix("avg10="))?.parse().ok()?;
    (0.0..=100.0).contains(&percent).then_some(Ratio(percent / 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_files_are_read_as_documented() {
        assert_eq!(schedstat("6923000 120500 19\n"), Some(SchedStat { run_ns: 6_923_000, wait_ns: 120_500 }));
        assert_eq!(throttled_periods("nr_periods 45\nnr_throttled 44\nthrottled_time 9\n"), Some(44));
        let machine = |text| machine_time(text).unwrap();
        let before = machine("cpu  100 0 50 800 50 0 0 0 30 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n");
        assert_eq!(before, MachineTime { total: 1000, idle: 850 });
        let busy = machine("cpu  170 0 50 825 55 0 0 0 90 0\n").busy_share_since(before).unwrap();
        assert!((busy - 0.7).abs() < 1e-9, "{busy}");
        assert_eq!(resident_pages("35210 12000 3300 900 0 8000 0\n"), Some(12_000));
        assert_eq!(
            some_pressure(
                "some avg10=12.50 avg60=1.00 avg300=0.00 total=5\nfull avg10=9.00 avg60=0 avg300=0 total=1\n"
            ),
            Some(Ratio(0.125))
        );
        let dev = "Inter-|   Receive                                                |  Transmit\n \
                   face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop\n    \
                   lo: 11 1 0 0 0 0 0 0 12 1 0 0 0 0 0 0\n\
                   dvabc:1000 5 0 0 0 0 0 0 2000 7 0 0 0 0 0 0\n";
        assert_eq!(
            interfaces(dev).collect::<Vec<_>>(),
            [
                InterfaceBytes { name: "lo", received: 11, sent: 12 },
                InterfaceBytes { name: "dvabc", received: 1000, sent: 2000 }
            ]
        );
    }

    #[test]
    fn other_text_is_unknown_and_not_zero() {
        for text in ["", "x", "12", "some avg10=nan\n"] {
            assert_eq!(schedstat(text), None, "{text:?}");
            assert_eq!(some_pressure(text), None, "{text:?}");
        }
        assert_eq!(resident_pages("1"), None);
        assert_eq!(interfaces("eth0: 1 2 3\n").count(), 0);
    }
}
