//! What the screen shows, and where it is scrolled to.

use drover_api::v1::{ClusterView, EventView, HostView, MigrationView, VmView};
use drover_model::HostId;
use std::collections::{BTreeMap, VecDeque};

/// The cluster at one moment, as the API told it. What is missing (for a tenant: hosts) is left off the screen.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub now_ms: u64,
    /// Lines above everything else: what a demonstration is doing, or why the screen stands still.
    pub banner: Vec<String>,
    pub cluster: Option<ClusterView>,
    pub hosts: Vec<HostView>,
    pub vms: Vec<VmView>,
    pub migrations: Vec<MigrationView>,
    /// Oldest first.
    pub events: Vec<EventView>,
    /// Filled by [`Snapshot::note_trends`].
    pub trends: Trends,
}

/// Processor wanted over capacity of each host, the last samples.
#[derive(Debug, Clone, Default)]
pub struct Trends(BTreeMap<HostId, VecDeque<f64>>);

impl Snapshot {
    /// Samples of a host's trend that are kept; one per [`Snapshot::note_trends`].
    pub const TREND_MAX: usize = 60;
    /// Events that are kept.
    pub const EVENTS_MAX: usize = 200;

    /// Takes the hosts' present load into their trends.
    pub fn note_trends(&mut self) {
        let known: Vec<_> = self.hosts.iter().map(|host| host.id.clone()).collect();
        self.trends.0.retain(|host, _| known.contains(host));
        for host in &self.hosts {
            let trend = self.trends.0.entry(host.id.clone()).or_default();
            if trend.len() == Self::TREND_MAX {
                trend.pop_front();
            }
            trend.push_back(cpu_wanted_share(host).unwrap_or(0.0));
        }
    }

    /// Takes one more event in; the oldest goes.
    pub fn push_event(&mut self, event: EventView) {
        if self.events.len() >= Self::EVENTS_MAX {
            self.events.drain(..=self.events.len() - Self::EVENTS_MAX);
        }
        self.events.push(event);
    }

    /// Processor wanted over capacity, oldest first.
    pub(super) fn trend(&self, host: &HostId) -> impl Iterator<Item = f64> {
        self.trends.0.get(host).into_iter().flatten().copied()
    }
}

/// 1.0 is the whole host; `None` if unknown.
pub(super) fn cpu_wanted_share(host: &HostView) -> Option<f64> {
    share(host.load?.cpu_wanted_millis, host.capacity?.cpu_millis)
}

/// Of what was promised to vms, which is what the planner counts.
pub(super) fn memory_share(host: &HostView) -> Option<f64> {
    share(host.memory_promised_mib, host.capacity?.memory_mib)
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// The part of the screen that the arrow keys scroll.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Focus {
    #[default]
    Vms,
    Events,
}

/// How the screen is turned; not part of what it shows.
#[derive(Debug, Clone, Default)]
pub struct View {
    pub focus: Focus,
    /// Rows of vms scrolled past, from the first.
    pub vms_from: usize,
    /// Events scrolled past, from the newest.
    pub events_back: usize,
    /// Colours off: words and bars only.
    pub plain: bool,
}

impl View {
    pub fn next_focus(&mut self) {
        self.focus = match self.focus {
            Focus::Vms => Focus::Events,
            Focus::Events => Focus::Vms,
        };
    }

    /// Down is towards later vms and newer events. Bounded by what there is.
    pub fn scroll(&mut self, rows: isize, snapshot: &Snapshot) {
        let (at, end, rows) = match self.focus {
            Focus::Vms => (&mut self.vms_from, snapshot.vms.len(), rows),
            Focus::Events => (&mut self.events_back, snapshot.events.len(), -rows),
        };
        *at = at.saturating_add_signed(rows).min(end.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scrolling_stays_within_what_there_is() {
        let mut view = View::default();
        let snapshot = Snapshot::default();
        view.scroll(5, &snapshot);
        assert_eq!(view.vms_from, 0);
        view.next_focus();
        view.scroll(-1, &snapshot);
        assert_eq!(view.events_back, 0);
    }

    #[test]
    fn events_are_kept_up_to_a_bound_newest_last() {
        let mut snapshot = Snapshot::default();
        for seq in 0..Snapshot::EVENTS_MAX as u64 + 5 {
            let event = serde_json::json!({
                "seq": seq, "at_ms": 1, "severity": "info", "object": "cluster", "tenant": null, "kind": "k", "text": "t",
            });
            snapshot.push_event(serde_json::from_value(event).unwrap());
        }
        assert_eq!(snapshot.events.len(), Snapshot::EVENTS_MAX);
        assert_eq!(snapshot.events[0].seq.0, 5);
    }
}
