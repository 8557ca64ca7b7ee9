//! What all threads share: the load that is set, what was done, and the working set.

use crate::memory::WorkingSet;
use crate::settings::Settings;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub struct Shared {
    pub name: String,
    boot: u64,
    started: Instant,
    pub cpu_percent: AtomicU32,
    pub dirty_mib_s: AtomicU32,
    /// The number of the last tick sent.
    pub ticks: AtomicU64,
    pub verified_pages: AtomicU64,
    pub dirtied_pages: AtomicU64,
    /// Pages found with other content than was written to them.
    pub errors: AtomicU64,
    working_set: Mutex<WorkingSet>,
}

impl Shared {
    pub fn new(settings: &Settings, boot: u64) -> Self {
        Self {
            name: settings.name.clone(),
            boot,
            started: Instant::now(),
            cpu_percent: AtomicU32::new(settings.cpu_percent),
            dirty_mib_s: AtomicU32::new(settings.dirty_mib_s),
            ticks: AtomicU64::new(0),
            verified_pages: AtomicU64::new(0),
            dirtied_pages: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            working_set: Mutex::new(WorkingSet::new(boot, settings.working_set_mib)),
        }
    }

    pub fn boot_id(&self) -> String {
        format!("{:016x}", self.boot)
    }

    /// Held for a few pages at a time, so that a full sweep delays the rewriting only a little.
    pub fn working_set(&self) -> MutexGuard<'_, WorkingSet> {
        // Nothing panics while holding it; if it did, the pages themselves would tell.
        self.working_set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn to_json(&self) -> String {
        let pages = self.working_set().pages();
        format!(
            "{{\"name\":\"{}\",\"boot_id\":\"{}\",\"uptime_ms\":{},\"ticks\":{},\"pages\":{pages},\
             \"verified_pages\":{},\"errors\":{},\"cpu_percent\":{},\"dirty_mib_s\":{},\"dirtied_pages\":{}}}\n",
            json_text(&self.name),
            self.boot_id(),
            self.started.elapsed().as_millis(),
            self.ticks.load(Relaxed),
            self.verified_pages.load(Relaxed),
            self.errors.load(Relaxed),
            self.cpu_percent.load(Relaxed),
            self.dirty_mib_s.load(Relaxed),
            self.dirtied_pages.load(Relaxed),
        )
    }
}

/// The inside of a JSON string (RFC 8259 section 7).
pub fn json_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stats_are_one_json_line() {
        let settings = Settings::from_cmdline("drover.name=web-1 drover.ws_mib=1 drover.cpu=5").unwrap();
        let json = Shared::new(&settings, 0xab).to_json();
        assert!(json.starts_with("{\"name\":\"web-1\",\"boot_id\":\"00000000000000ab\",\"uptime_ms\":"), "{json}");
        assert!(json.ends_with("\"errors\":0,\"cpu_percent\":5,\"dirty_mib_s\":0,\"dirtied_pages\":0}\n"), "{json}");
        assert!(json.contains("\"pages\":256,"), "{json}");
    }

    #[test]
    fn json_text_escapes_what_would_end_the_string() {
        assert_eq!(json_text("a\"b\\c\n"), "a\\\"b\\\\c\\u000a");
    }
}
