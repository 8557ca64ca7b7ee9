//! The server around the real [`Control`]: the store, requests, and what happens to both when it dies.

use crate::store::{Epoch, Store};
use drover_control::{Control, Settings};
use drover_model::TimeMs;

/// Where in its next commit the server dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiesAt {
    BeforeCommit,
    AfterCommit,
}

#[derive(Debug)]
pub struct Shell {
    pub store: Store,
    /// Under which this server writes.
    pub epoch: Epoch,
    /// `None`: the server is down, or its store can't be written.
    pub control: Option<Control>,
    pub settings: Settings,
    /// Of the server's process; grows with each start, and when a broken store is usable again.
    pub run: u64,
    pub dies_at: Option<DiesAt>,
    pub next_request: u64,
    pub next_connection: u64,
}

impl Shell {
    pub fn new(settings: Settings) -> Self {
        let (next_request, next_connection) = (0, 0);
        let (store, epoch) = (Store::default(), Epoch::default());
        Self { store, epoch, control: None, settings, run: 0, dies_at: None, next_request, next_connection }
    }

    pub fn die_at_commit(&mut self, after: bool) {
        self.dies_at = Some(if after { DiesAt::AfterCommit } else { DiesAt::BeforeCommit });
    }

    /// A new state machine from what is durable.
    pub fn load(&mut self, now: TimeMs) -> Result<(), serde_json::Error> {
        // Its predecessor is gone, or was this very process: there is nobody to wait for.
        if let Ok(epoch) = self.store.take_lease(now, false) {
            self.epoch = epoch;
        }
        let kept = self.store.load()?;
        self.run += 1;
        self.control = Some(Control::load(kept, self.settings.clone(), now));
        Ok(())
    }

    /// No fault waits any more.
    pub fn heal(&mut self) {
        self.dies_at = None;
        self.store.heal();
    }
}
