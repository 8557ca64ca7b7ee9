//! The working set: memory that is rewritten at a set rate and checked against what was written.
//!
//! Every 64-bit word of a page follows from (boot id, page, version, place in the page), and the
//! version each page should have is kept apart from the page. So a page that arrived torn, stale,
//! in the wrong place or not at all is found, and counted once: it is then written afresh.

use crate::stats::Shared;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

const PAGE_WORDS: usize = 4096 / size_of::<u64>();
const PAGES_PER_MIB: u32 = 256;
const PERIOD: Duration = Duration::from_millis(100);
/// While nothing is to be rewritten.
const IDLE_PERIOD: Duration = Duration::from_millis(400);
/// Verified by the standing sweep each period, of either kind: 16 MiB in 6 s, in 26 s when idle.
const SWEEP_PAGES: usize = 64;
/// Handled under one lock.
const BATCH_PAGES: u64 = 64;
/// A guest that was paused or starved does not make up for more than this.
const BACKLOG_MAX: Duration = Duration::from_millis(500);
/// Odd, so that all words of a page differ (2^64 divided by the golden ratio).
const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;

pub struct WorkingSet {
    boot: u64,
    words: Vec<u64>,
    versions: Vec<u32>,
    next_to_write: usize,
    next_to_verify: usize,
}

impl WorkingSet {
    pub fn new(boot: u64, mib: u32) -> Self {
        let pages = (mib * PAGES_PER_MIB) as usize;
        let mut set = Self {
            boot,
            words: vec![0; pages * PAGE_WORDS],
            versions: vec![0; pages],
            next_to_write: 0,
            next_to_verify: 0,
        };
        for page in 0..pages {
            set.write(page);
        }
        set
    }

    pub fn pages(&self) -> usize {
        self.versions.len()
    }

    fn page(&mut self, page: usize) -> &mut [u64] {
        &mut self.words[page * PAGE_WORDS..][..PAGE_WORDS]
    }

    fn write(&mut self, page: usize) {
        let mut word = first_word(self.boot, page, self.versions[page]);
        for slot in self.page(page) {
            *slot = word;
            word = word.wrapping_add(STRIDE);
        }
    }

    /// Gives the next page in turn its next version.
    fn rewrite_next(&mut self) {
        let page = self.next_to_write;
        self.versions[page] = self.versions[page].wrapping_add(1);
        self.write(page);
        self.next_to_write = (page + 1) % self.pages();
    }

    /// Whether the next page in turn holds what was last written to it.
    fn verify_next(&mut self) -> bool {
        let page = self.next_to_verify;
        self.next_to_verify = (page + 1) % self.pages();
        let mut word = first_word(self.boot, page, self.versions[page]);
        let mut difference = 0;
        for slot in self.page(page) {
            difference |= *slot ^ word;
            word = word.wrapping_add(STRIDE);
        }
        if difference != 0 {
            self.write(page);
        }
        difference == 0
    }
}

/// Mixes all that identifies a page's content (the finalizer of SplitMix64).
fn first_word(boot: u64, page: usize, version: u32) -> u64 {
    let mut z = boot ^ ((page as u64) << 32 | u64::from(version)).wrapping_mul(STRIDE);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// How many pages are due `elapsed` after the last time; what does not make a whole page is carried on.
pub struct Pace {
    carry: u64,
}

impl Pace {
    /// Parts of a page that the carry counts: a page per second is one of them per millisecond.
    const PART: u64 = 1_000;

    pub fn new() -> Self {
        Self { carry: 0 }
    }

    pub fn due(&mut self, mib_s: u32, elapsed: Duration) -> u64 {
        let elapsed_ms = elapsed.min(BACKLOG_MAX).as_millis() as u64;
        let parts = self.carry + u64::from(mib_s * PAGES_PER_MIB) * elapsed_ms;
        self.carry = parts % Self::PART;
        parts / Self::PART
    }
}

/// Verifies every page once. Returns when it is done.
pub fn verify_all(shared: &Shared) {
    let pages = shared.working_set().pages();
    verify(shared, pages);
}

fn verify(shared: &Shared, pages: usize) {
    let mut left = pages as u64;
    while left > 0 {
        let batch = left.min(BATCH_PAGES);
        let mut set = shared.working_set();
        let errors = (0..batch).filter(|_| !set.verify_next()).count();
        drop(set);
        shared.errors.fetch_add(errors as u64, Relaxed);
        shared.verified_pages.fetch_add(batch, Relaxed);
        left -= batch;
    }
}

fn rewrite(shared: &Shared, pages: u64) {
    let mut left = pages;
    // A rate that can't be reached makes this long; a new rate of nothing ends it.
    while left > 0 && shared.dirty_mib_s.load(Relaxed) > 0 {
        let batch = left.min(BATCH_PAGES);
        let mut set = shared.working_set();
        for _ in 0..batch {
            set.rewrite_next();
        }
        drop(set);
        shared.dirtied_pages.fetch_add(batch, Relaxed);
        left -= batch;
    }
}

pub fn run(shared: &Shared) {
    let mut pace = Pace::new();
    let mut last = Instant::now();
    loop {
        let idle = shared.dirty_mib_s.load(Relaxed) == 0;
        // What took longer than a period is followed at once by the next: a guest that is to write more than it can
        // writes without a pause.
        thread::sleep(if idle { IDLE_PERIOD } else { PERIOD }.saturating_sub(last.elapsed()));
        let now = Instant::now();
        rewrite(shared, pace.due(shared.dirty_mib_s.load(Relaxed), now - last));
        verify(shared, SWEEP_PAGES);
        last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors_in_a_sweep(set: &mut WorkingSet) -> usize {
        (0..set.pages()).filter(|_| !set.verify_next()).count()
    }

    #[test]
    fn a_fresh_and_a_rewritten_working_set_verify() {
        let mut set = WorkingSet::new(7, 1);
        assert_eq!(errors_in_a_sweep(&mut set), 0);
        for _ in 0..300 {
            set.rewrite_next();
        }
        assert_eq!(errors_in_a_sweep(&mut set), 0);
        assert_eq!((set.versions[0], set.versions[255]), (2, 1));
    }

    #[test]
    fn one_flipped_bit_is_one_error_and_is_counted_once() {
        let mut set = WorkingSet::new(7, 1);
        set.words[5 * PAGE_WORDS + 511] ^= 1;
        assert_eq!(errors_in_a_sweep(&mut set), 1);
        assert_eq!(errors_in_a_sweep(&mut set), 0);
    }

    #[test]
    fn a_page_that_fell_back_to_its_previous_version_is_found() {
        let mut set = WorkingSet::new(7, 1);
        let before = set.page(0).to_vec();
        set.rewrite_next();
        set.page(0).copy_from_slice(&before);
        assert_eq!(errors_in_a_sweep(&mut set), 1);
    }

    #[test]
    fn two_pages_that_changed_places_are_two_errors() {
        let mut set = WorkingSet::new(7, 1);
        let (one, two) = (set.page(1).to_vec(), set.page(2).to_vec());
        set.page(1).copy_from_slice(&two);
        set.page(2).copy_from_slice(&one);
        assert_eq!(errors_in_a_sweep(&mut set), 2);
    }

    #[test]
    fn a_page_of_another_boot_is_found() {
        let mut set = WorkingSet::new(7, 1);
        let mut other = WorkingSet::new(8, 1);
        set.page(3).copy_from_slice(other.page(3));
        assert_eq!(errors_in_a_sweep(&mut set), 1);
    }

    #[test]
    fn the_pace_keeps_the_rate_over_uneven_periods() {
        let mut pace = Pace::new();
        let pages: u64 = [33, 67, 100, 1, 299, 250, 250].iter().map(|ms| pace.due(3, Duration::from_millis(*ms))).sum();
        assert_eq!(pages, 3 * 256);
    }

    #[test]
    fn the_pace_does_not_make_up_for_a_long_pause() {
        let mut pace = Pace::new();
        assert_eq!(pace.due(4, Duration::from_secs(60)), 512);
    }
}
