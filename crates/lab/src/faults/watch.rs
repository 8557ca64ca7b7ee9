//! Watches one vm all the while: when it is heard, and which of its qemus execute it.
//!
//! Ticks alone would not do. A second copy whose frames the network keeps back is not heard and yet runs, so the kernel
//! is asked, too, how much processor time each qemu's virtual processors were given.

use crate::place::Place;
use crate::probe::TickReader;
use crate::ticks::VmTicks;
use crate::vms::{self, RunningVm};
use drover_model::{HostId, VmId};
use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

const LISTEN_EVERY: Duration = Duration::from_millis(20);
/// Silences below this are not kept; ticks come ten times a second.
const SILENCE_MIN: Duration = Duration::from_millis(250);
/// Processor time is compared this often.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A guest that is executed gets more than this of each look: it is told to be busy for a twentieth of the time. One
/// that stands still gets none.
const EXECUTED_MIN: Duration = Duration::from_millis(2);
/// Two qemus that execute a guest in so many looks on end do so at once. In one look the one may have ended
/// and the other begun.
const LOOKS_AT_ONCE: u32 = 4;
/// A guest that is silent for so long, and not executed in two looks, stands still.
const STILL_AFTER: Duration = Duration::from_millis(400);
const LOOKS_STILL: u32 = 2;
/// A guest that was heard within this runs.
const HEARD_WITHIN: Duration = Duration::from_millis(300);

/// A time without ticks.
#[derive(Debug, Clone, Copy)]
struct Silence {
    from: Instant,
    to: Instant,
}

/// One qemu of the vm.
#[derive(Debug)]
struct Qemu {
    host: HostId,
    /// When it was first seen.
    since: Instant,
    /// What its virtual processors have had.
    executed: Duration,
    /// Looks on end in which it did, and did not, execute the guest.
    busy: u32,
    still: u32,
}

#[derive(Debug, Default)]
struct Seen {
    ticks: Option<VmTicks>,
    heard_at: Option<Instant>,
    silences: Vec<Silence>,
    qemus: BTreeMap<u32, Qemu>,
    /// Two copies, in words.
    twice: Option<String>,
}

/// Watches for as long as it lives.
#[derive(Debug)]
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

impl Watch {
    pub fn start(vm: VmId, name: String, place: Place, reader: TickReader) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let task = tokio::spawn({
            let seen = seen.clone();
            async move {
                let mut looked_at = Instant::now();
                loop {
                    let heard = reader.vm(&name);
                    let now = Instant::now();
                    if let Some((ticks, silent)) = heard {
                        lock(&seen).hear(ticks, now.checked_sub(silent).unwrap_or(now));
                    }
                    if looked_at.elapsed() >= LOOK_EVERY {
                        looked_at = now;
                        let qemus = vms::running(&place).into_iter().filter(|qemu| qemu.vm == vm);
                        let qemus = qemus.map(|qemu| (executed(qemu.pid), qemu)).collect();
                        lock(&seen).look(qemus);
                    }
                    tokio::time::sleep(LISTEN_EVERY).await;
                }
            }
        });
        Self { seen, task }
    }

    /// Whether the guest is heard at this moment.
    pub fn is_heard(&self) -> bool {
        lock(&self.seen).heard_at.is_some_and(|at| at.elapsed() < HEARD_WITHIN)
    }

    /// Whether the guest stands still at this host, and was not executed there for a while.
    pub fn stands_still(&self, host: &HostId) -> bool {
        let seen = lock(&self.seen);
        let silent = seen.heard_at.is_some_and(|at| at.elapsed() >= STILL_AFTER);
        silent && seen.qemus.values().any(|qemu| qemu.host == *host && qemu.still >= LOOKS_STILL)
    }

    /// Whether the guest is being executed on this host.
    pub fn executes(&self, host: &HostId) -> bool {
        lock(&self.seen).qemus.values().any(|qemu| qemu.host == *host && qemu.busy >= 1)
    }

    /// How long after that moment the newest of its qemus was there.
    pub fn newest_qemu_since(&self, moment: Instant) -> Option<Duration> {
        let newest = lock(&self.seen).qemus.values().map(|qemu| qemu.since).max()?;
        Some(newest.saturating_duration_since(moment))
    }

    /// The longest time without a tick since then, an open one included.
    pub fn longest_silence_since(&self, since: Instant) -> Duration {
        let seen = lock(&self.seen);
        let now = Instant::now();
        let open = seen.heard_at.map(|from| Silence { from, to: now });
        let spans = seen.silences.iter().copied().chain(open);
        spans.map(|silence| silence.to.saturating_duration_since(silence.from.max(since))).max().unwrap_or_default()
    }

    pub fn ticks(&self) -> Option<VmTicks> {
        lock(&self.seen).ticks.clone()
    }

    /// What shows that there were two copies, if anything does.
    pub fn twice(&self) -> Option<String> {
        lock(&self.seen).twice.clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Seen {
    fn hear(&mut self, ticks: VmTicks, heard_at: Instant) {
        if let Some(from) = self.heard_at
            && heard_at.saturating_duration_since(from) >= SILENCE_MIN
        {
            self.silences.push(Silence { from, to: heard_at });
        }
        self.heard_at = Some(heard_at);
        let before = self.ticks.as_ref().map_or(ticks.twice, |before| before.twice);
        if ticks.twice > before && self.twice.is_none() {
            self.twice = Some(format!("{} ticks came from a second copy of the guest", ticks.twice - before));
        }
        self.ticks = Some(ticks);
    }

    fn look(&mut self, now: Vec<(Duration, RunningVm)>) {
        self.qemus.retain(|pid, _| now.iter().any(|(_, qemu)| qemu.pid == *pid));
        for (executed, RunningVm { host, pid, .. }) in now {
            let qemu =
                self.qemus.entry(pid).or_insert(Qemu { host, since: Instant::now(), executed, busy: 0, still: 0 });
            let gained = executed.saturating_sub(qemu.executed);
            qemu.executed = executed;
            if gained > EXECUTED_MIN {
                (qemu.busy, qemu.still) = (qemu.busy + 1, 0);
            } else {
                (qemu.busy, qemu.still) = (0, qemu.still + 1);
            }
        }
        let at_once: Vec<String> = self
            .qemus
            .iter()
            .filter(|(_, qemu)| qemu.busy >= LOOKS_AT_ONCE)
            .map(|(pid, qemu)| format!("{pid} on {}", qemu.host))
            .collect();
        if at_once.len() > 1 && self.twice.is_none() {
            self.twice = Some(format!("qemus {} executed the guest at once", at_once.join(" and ")));
        }
    }
}

/// Processor time of a qemu's virtual processors. Their threads are named `CPU 0/TCG` (`debug-threads=on`); the first
/// figure of a thread's `schedstat` is what it was given, in nanoseconds (Linux, `Documentation/scheduler/sched-stats`).
fn executed(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten().map(|task| task.path());
    let nanos = tasks.filter_map(|task| {
        let name = fs::read_to_string(task.join("comm")).ok()?;
        let stat = fs::read_to_string(task.join("schedstat")).ok()?;
        name.starts_with("CPU ").then(|| stat.split_ascii_whitespace().next()?.parse::<u64>().ok())?
    });
    Duration::from_nanos(nanos.sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qemu(pid: u32, host: &str, ms: u64) -> (Duration, RunningVm) {
        let vm = "vm-abcdefghijkl".parse().unwrap();
        (Duration::from_millis(ms), RunningVm { vm, host: host.parse().unwrap(), pid })
    }

    /// Looks as milliseconds that the qemus of h1 and h2 have executed the guest; whether two did at once.
    #[track_caller]
    fn check(looks: &[(u64, u64)], at_once: bool) {
        let mut seen = Seen::default();
        for (h1, h2) in looks {
            seen.look(vec![qemu(1, "h1", *h1), qemu(2, "h2", *h2)]);
        }
        assert_eq!(seen.twice.is_some(), at_once, "{:?}", seen.twice);
    }

    #[test]
    fn two_qemus_run_the_guest_at_once_only_if_both_go_on() {
        check(&[(0, 0), (10, 0), (20, 0), (25, 5), (25, 15), (25, 25), (25, 35), (25, 45)], false);
        check(&[(0, 0), (10, 10), (20, 20), (30, 30), (30, 40), (40, 50), (50, 60)], false);
        check(&[(0, 0), (10, 10), (20, 20), (30, 30), (40, 40)], true);
    }

    #[test]
    fn a_qemu_that_ended_is_forgotten_and_a_new_one_begins_at_nothing() {
        let mut seen = Seen::default();
        seen.look(vec![qemu(1, "h1", 100)]);
        seen.look(vec![qemu(1, "h1", 120)]);
        assert_eq!(seen.qemus[&1].busy, 1);
        seen.look(vec![qemu(3, "h1", 500)]);
        assert_eq!((seen.qemus.len(), seen.qemus[&3].busy, seen.qemus[&3].still), (1, 0, 1));
    }

    #[tokio::test]
    async fn the_time_without_ticks_counts_from_the_fault_at_the_earliest_and_to_now_if_it_is_open() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let ticks: VmTicks = {
            let mut book = crate::ticks::TickBook::default();
            book.record(br#"{"name":"web-1","boot_id":"a","seq":1,"errors":0}"#, Duration::ZERO);
            book.snapshot(Duration::ZERO).remove("web-1").unwrap()
        };
        let mut seen = Seen::default();
        for ms in [0, 100, 3_000, 3_100, 5_100, 60_000] {
            seen.hear(ticks.clone(), at(ms));
        }
        let watch = Watch { seen: Arc::new(Mutex::new(seen)), task: tokio::spawn(async {}) };
        assert_eq!(watch.longest_silence_since(at(5_100)), Duration::from_millis(54_900));
        lock(&watch.seen).silences.pop();
        // The last tick lies ahead of the clock here, so nothing is open.
        assert_eq!(watch.longest_silence_since(at(0)), Duration::from_millis(2_900));
        assert_eq!(watch.longest_silence_since(at(1_000)), Duration::from_millis(2_000));
    }
}
