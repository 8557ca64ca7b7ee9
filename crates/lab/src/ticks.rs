//! What the numbered lines of the guests' `guest-load` tell: that a vm runs, once, and since when.
//!
//! A guest's number rises by one with each line of one boot. Migration carries it along, so a number
//! that comes again or goes back, or a boot that comes back after another, was sent by a second copy.

use crate::limits::{BOOTS_MAX, TICKING_VMS_MAX};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Tick {
    pub name: String,
    pub boot_id: String,
    pub seq: u64,
    /// Pages whose content was wrong, since the guest's boot.
    pub errors: u64,
}

/// What is known of one vm. Times are since the book was opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmTicks {
    pub boot_id: String,
    pub seq: u64,
    pub total: u64,
    /// Lines that a second copy of the vm must have sent.
    pub twice: u64,
    /// Starts after the first.
    pub reboots: u64,
    /// Most page errors that any boot reported.
    pub errors: u64,
    /// Longest time between two lines since the last [`TickBook::reset_gaps`].
    pub longest_gap_ms: u64,
    #[serde(skip)]
    last_at: Duration,
    /// The gap that is counted begins here: at the last line, or at the last reset if that was later.
    #[serde(skip)]
    gap_since: Duration,
    #[serde(skip)]
    past_boots: Vec<String>,
}

impl VmTicks {
    fn first(tick: Tick, at: Duration) -> Self {
        Self {
            boot_id: tick.boot_id,
            seq: tick.seq,
            total: 1,
            twice: 0,
            reboots: 0,
            errors: tick.errors,
            longest_gap_ms: 0,
            last_at: at,
            gap_since: at,
            past_boots: Vec::new(),
        }
    }

    fn record(&mut self, tick: Tick, at: Duration) {
        self.total += 1;
        self.errors = self.errors.max(tick.errors);
        self.longest_gap_ms = self.gap_ms(at);
        self.last_at = at;
        self.gap_since = at;
        if tick.boot_id == self.boot_id {
            if tick.seq <= self.seq {
                self.twice += 1;
            } else {
                self.seq = tick.seq;
            }
        } else if self.past_boots.contains(&tick.boot_id) {
            self.twice += 1;
        } else {
            if self.past_boots.len() == BOOTS_MAX {
                self.past_boots.remove(0);
            }
            self.past_boots.push(std::mem::replace(&mut self.boot_id, tick.boot_id));
            self.seq = tick.seq;
            self.reboots += 1;
        }
    }

    /// The longest gap, counting the one that is open at `now`.
    fn gap_ms(&self, now: Duration) -> u64 {
        let open = now.saturating_sub(self.gap_since).as_millis() as u64;
        self.longest_gap_ms.max(open)
    }

    /// How long nothing has been heard.
    pub fn silent_for(&self, now: Duration) -> Duration {
        now.saturating_sub(self.last_at)
    }
}

/// All vms, by name. Time is passed in, from any steady clock.
#[derive(Debug, Default)]
pub struct TickBook {
    vms: BTreeMap<String, VmTicks>,
    /// Datagrams that were no ticks.
    pub unreadable: u64,
}

impl TickBook {
    /// Takes one datagram.
    pub fn record(&mut self, datagram: &[u8], at: Duration) {
        let Ok(tick) = serde_json::from_slice::<Tick>(datagram) else {
            self.unreadable += 1;
            return;
        };
        if let Some(vm) = self.vms.get_mut(&tick.name) {
            vm.record(tick, at);
        } else if self.vms.len() < TICKING_VMS_MAX {
            self.vms.insert(tick.name.clone(), VmTicks::first(tick, at));
        }
    }

    /// As of now: open gaps count.
    pub fn snapshot(&self, now: Duration) -> BTreeMap<String, VmTicks> {
        let closed = |vm: &VmTicks| VmTicks { longest_gap_ms: vm.gap_ms(now), ..vm.clone() };
        self.vms.iter().map(|(name, vm)| (name.clone(), closed(vm))).collect()
    }

    /// Forgets gaps up to now, so that the next snapshot tells of what came after.
    pub fn reset_gaps(&mut self, now: Duration) {
        for vm in self.vms.values_mut() {
            vm.longest_gap_ms = 0;
            vm.gap_since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Lines of `web-1` as (milliseconds, boot, number).
    fn book(lines: &[(u64, &str, u64)]) -> TickBook {
        let mut book = TickBook::default();
        for (at, boot, seq) in lines {
            let line = format!("{{\"name\":\"web-1\",\"boot_id\":\"{boot}\",\"seq\":{seq},\"errors\":0}}\n");
            book.record(line.as_bytes(), ms(*at));
        }
        book
    }

    #[track_caller]
    fn check(lines: &[(u64, &str, u64)], twice: u64, reboots: u64, gap_ms: u64) {
        let end = lines.last().unwrap().0;
        let vm = book(lines).snapshot(ms(end))["web-1"].clone();
        assert_eq!((vm.twice, vm.reboots, vm.longest_gap_ms), (twice, reboots, gap_ms));
        assert_eq!(vm.total, lines.len() as u64);
    }

    #[test]
    fn numbers_that_rise_are_one_vm_and_lost_lines_are_only_a_gap() {
        check(&[(0, "a", 1), (100, "a", 2), (200, "a", 3)], 0, 0, 100);
        check(&[(0, "a", 1), (100, "a", 2), (500, "a", 6)], 0, 0, 400);
    }

    #[test]
    fn a_number_that_comes_again_or_goes_back_is_a_vm_that_runs_twice() {
        check(&[(0, "a", 1), (100, "a", 2), (110, "a", 2)], 1, 0, 100);
        check(&[(0, "a", 7), (100, "a", 8), (200, "a", 3), (300, "a", 9)], 1, 0, 100);
    }

    #[test]
    fn another_boot_is_a_reboot_and_one_that_comes_back_runs_twice() {
        check(&[(0, "a", 50), (100, "b", 1), (200, "b", 2)], 0, 1, 100);
        check(&[(0, "a", 50), (100, "b", 1), (200, "a", 51), (300, "b", 2)], 1, 1, 100);
    }

    #[test]
    fn an_open_gap_counts_and_a_reset_forgets_what_was() {
        let mut book = book(&[(0, "a", 1), (700, "a", 2)]);
        assert_eq!(book.snapshot(ms(2_000))["web-1"].longest_gap_ms, 1_300);
        book.reset_gaps(ms(2_000));
        assert_eq!(book.snapshot(ms(2_050))["web-1"].longest_gap_ms, 50);
        book.record(br#"{"name":"web-1","boot_id":"a","seq":3,"errors":0}"#, ms(2_090));
        assert_eq!(book.snapshot(ms(2_090))["web-1"].longest_gap_ms, 90);
        assert_eq!(book.snapshot(ms(2_500))["web-1"].silent_for(ms(2_500)), ms(410));
    }

    #[test]
    fn page_errors_of_an_earlier_boot_are_not_forgotten() {
        let mut book = book(&[(0, "a", 1)]);
        book.record(br#"{"name":"web-1","boot_id":"a","seq":2,"errors":3}"#, ms(100));
        book.record(br#"{"name":"web-1","boot_id":"b","seq":1,"errors":0}"#, ms(200));
        assert_eq!(book.snapshot(ms(200))["web-1"].errors, 3);
    }

    #[test]
    fn what_is_not_a_tick_is_counted_and_harms_nothing() {
        let mut book = book(&[(0, "a", 1)]);
        book.record(b"\xff\x00 nonsense", ms(1));
        book.record(b"{\"name\":\"web-2\"}", ms(2));
        assert_eq!((book.unreadable, book.snapshot(ms(3)).len()), (2, 1));
    }
}
