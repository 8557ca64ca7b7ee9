//! Measures one vm: files of its QEMU process kept open and read again each second.

use super::parse::{self, SchedStat};
use super::read_at_start;
use drover_model::load::VmSample;
use drover_model::{Bytes, CpuMillis};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::time::{Duration, Instant};

/// How often the guest's share of its process's memory is told apart from QEMU's own: the kernel walks all of its pages
/// for that. In between it moves with the process's.
const GUEST_MEMORY_EVERY: Duration = Duration::from_secs(15);

/// What does not change while a vm's QEMU process lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSubject {
    pub pid: u32,
    /// Threads that run the guest's instructions.
    pub vcpu_threads: Vec<u32>,
    pub memory: Bytes,
    /// Its tap, if it is on a network.
    pub tap: Option<String>,
}

/// Resident bytes at one reading.
#[derive(Debug, Clone, Copy)]
struct GuestMemory {
    read_at: Instant,
    guest: u64,
    process: u64,
}

pub struct VmMeter {
    subject: VmSubject,
    threads: Vec<(File, Option<SchedStat>)>,
    statm: File,
    page_size: u64,
    guest_memory: Option<GuestMemory>,
    read_at: Option<Instant>,
    tap: Option<(u64, u64)>,
}

impl VmMeter {
    pub fn open(subject: VmSubject, page_size: u64) -> io::Result<Self> {
        let pid = subject.pid;
        let threads = subject
            .vcpu_threads
            .iter()
            .map(|tid| Ok((File::open(format!("/proc/{pid}/task/{tid}/schedstat"))?, None)))
            .collect::<io::Result<_>>()?;
        let statm = File::open(format!("/proc/{pid}/statm"))?;
        Ok(Self { subject, threads, statm, page_size, guest_memory: None, read_at: None, tap: None })
    }

    pub fn subject(&self) -> &VmSubject {
        &self.subject
    }

    /// What the vm used since the last call; `None` the first time. `text` is scratch space; `saturation` is how
    /// much of the time the host was full; `tap` holds what the
    /// host received from and sent to the vm, in bytes since the tap was made. An error means that the process is gone.
    pub fn sample(
        &mut self,
        now: Instant,
        text: &mut String,
        saturation: f64,
        tap: Option<(u64, u64)>,
        disk_latency_us: u64,
    ) -> io::Result<Option<VmSample>> {
        let elapsed = self.read_at.replace(now).map(|before| now.duration_since(before));
        let mut usage = Usage::default();
        for (file, last) in &mut self.threads {
            read_at_start(file, text)?;
            let stat = parse::schedstat(text).ok_or(io::ErrorKind::InvalidData)?;
            let before = last.replace(stat);
            if let (Some(before), Some(elapsed)) = (before, elapsed) {
                usage.add_thread(before, stat, saturation, elapsed);
            }
        }
        read_at_start(&self.statm, text)?;
        let resident = parse::resident_pages(text).ok_or(io::ErrorKind::InvalidData)? * self.page_size;
        let memory_used = self.memory_used(now, resident, text)?;
        let tap_before = std::mem::replace(&mut self.tap, tap);
        let Some(elapsed) = elapsed.filter(|elapsed| !elapsed.is_zero()) else {
            return Ok(None);
        };
        // What the host receives on the tap, the guest sent.
        let (net_tx, net_rx) = match (tap_before, tap) {
            (Some(before), Some(now)) => (per_second(before.0, now.0, elapsed), per_second(before.1, now.1, elapsed)),
            _ => (Bytes::ZERO, Bytes::ZERO),
        };
        Ok(Some(VmSample {
            cpu_used: usage.used,
            cpu_wanted: usage.wanted,
            memory_used,
            net_rx,
            net_tx,
            disk_latency_us,
            // Not to be read from the process: only QEMU can measure it.
            dirty_rate: None,
        }))
    }
}

impl VmMeter {
    /// What the guest holds, of a process that holds `resident` bytes.
    fn memory_used(&mut self, now: Instant, resident: u64, text: &mut String) -> io::Result<Bytes> {
        if self.guest_memory.is_none_or(|known| now.duration_since(known.read_at) >= GUEST_MEMORY_EVERY) {
            let smaps = File::open(format!("/proc/{}/smaps", self.subject.pid))?;
            // Without a mapping of its size, QEMU's own memory counts, too.
            let guest = guest_resident(BufReader::new(smaps), self.subject.memory, text)?.unwrap_or(resident);
            self.guest_memory = Some(GuestMemory { read_at: now, guest, process: resident });
        }
        let used = self.guest_memory.map_or(resident, |known| (known.guest + resident).saturating_sub(known.process));
        Ok(Bytes(used).min(self.subject.memory))
    }
}

/// What a guest of so much memory holds of it now; `None` if its process can't be read.
pub fn guest_holds(pid: u32, memory: Bytes) -> Option<Bytes> {
    let smaps = File::open(format!("/proc/{pid}/smaps")).ok()?;
    guest_resident(BufReader::new(smaps), memory, &mut String::new()).ok().flatten().map(Bytes)
}

/// Resident bytes of the mapping that is the guest's memory, from `/proc/PID/smaps` (proc_pid_smaps(5)): the private,
/// writable one of just that size. `text` is scratch space.
fn guest_resident(mut smaps: impl BufRead, memory: Bytes, text: &mut String) -> io::Result<Option<u64>> {
    let mut is_guest = false;
    loop {
        text.clear();
        if smaps.read_line(text)? == 0 {
            return Ok(None);
        }
        if let Some(mapping) = parse::mapping(text) {
            let short = memory.0.checked_sub(mapping.bytes);
            is_guest = mapping.is_private_data && short.is_some_and(|short| short <= MEMORY_SHORT_MAX);
        } else if is_guest && let Some(resident) = parse::kib_of(text, "Rss:") {
            return Ok(Some(resident << 10));
        }
    }
}

/// Under TCG the guest gets this much less than it was promised (docs/decisions/0006).
const MEMORY_SHORT_MAX: u64 = 8 << 10;

#[derive(Debug, Default, PartialEq)]
struct Usage {
    used: CpuMillis,
    wanted: CpuMillis,
}

impl Usage {
    /// A thread can neither use nor want more than one core. What it waited for while the host was not full, it got.
    fn add_thread(&mut self, before: SchedStat, now: SchedStat, saturation: f64, elapsed: Duration) {
        let millis =
            |ns: u64| CpuMillis((u128::from(ns) * 1000 / elapsed.as_nanos().max(1)) as u64).min(CpuMillis::CORE);
        let run = now.run_ns.saturating_sub(before.run_ns);
        let wait = now.wait_ns.saturating_sub(before.wait_ns);
        self.used += millis(run);
        self.wanted += millis(run + (wait as f64 * saturation) as u64);
    }
}

/// Rate of a counter that may have started anew.
pub fn per_second(before: u64, now: u64, elapsed: Duration) -> Bytes {
    let nanos = elapsed.as_nanos().max(1);
    Bytes((u128::from(now.saturating_sub(before)) * 1_000_000_000 / nanos) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_wants_what_it_got_and_what_it_waited_for_and_at_most_a_core() {
        let at = |run_ms: u64, wait_ms: u64| SchedStat { run_ns: run_ms * 1_000_000, wait_ns: wait_ms * 1_000_000 };
        let mut usage = Usage::default();
        usage.add_thread(at(100, 0), at(400, 500), 1.0, Duration::from_secs(1));
        assert_eq!(usage, Usage { used: CpuMillis(300), wanted: CpuMillis(800) });
        usage.add_thread(at(0, 0), at(900, 900), 1.0, Duration::from_secs(1));
        assert_eq!(usage, Usage { used: CpuMillis(1200), wanted: CpuMillis(1800) });
        let mut usage = Usage::default();
        usage.add_thread(at(0, 0), at(300, 400), 0.25, Duration::from_secs(1));
        assert_eq!(usage, Usage { used: CpuMillis(300), wanted: CpuMillis(400) });
    }

    #[test]
    fn a_counter_that_started_anew_is_no_traffic() {
        assert_eq!(per_second(500, 100, Duration::from_secs(1)), Bytes(0));
        assert_eq!(per_second(100, 600, Duration::from_millis(500)), Bytes(1000));
    }

    #[test]
    fn the_guests_memory_is_told_from_qemus_own() {
        let smaps = "7f7bd4000000-7f7bd7ffe000 rw-p 00000000 00:00 0 \nSize:   65528 kB\nRss:     4224 kB\n\
                     7f7be0000000-7f7be3fff000 rwxp 00000000 00:00 0 \nSize:   65532 kB\nRss:     2048 kB\n\
                     55c9cd180000-55c9cdf49000 rw-p 00000000 00:00 0 [heap]\nRss:    4288 kB\n";
        let resident = |mib| guest_resident(smaps.as_bytes(), Bytes::mib(mib), &mut String::new()).unwrap();
        assert_eq!(resident(64), Some(4224 << 10));
        assert_eq!(resident(63), None);
        assert_eq!(resident(128), None);
    }

    #[test]
    fn a_real_process_is_measured_between_two_readings() {
        let pid = std::process::id();
        let subject =
            VmSubject { pid, vcpu_threads: vec![pid], memory: Bytes::mib(1 << 20), tap: Some("dvx".to_owned()) };
        let mut meter = VmMeter::open(subject, 4096).unwrap();
        let mut text = String::new();
        let start = Instant::now();
        assert_eq!(meter.sample(start, &mut text, 1.0, Some((10, 20)), 0).unwrap(), None);
        let sample =
            meter.sample(start + Duration::from_secs(1), &mut text, 1.0, Some((1010, 20)), 7).unwrap().unwrap();
        assert!(sample.memory_used > Bytes::MIB, "{sample:?}");
        assert_eq!((sample.net_tx, sample.net_rx, sample.disk_latency_us), (Bytes(1000), Bytes(0), 7));
    }
}
