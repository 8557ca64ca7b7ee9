//! Where intent is kept: objects by (kind, id, revision), changed several at a time by compare-and-swap. In the
//! same transaction: the event log, append-only records in streams, and the ordered log of changes of objects.
//!
//! ```text
//!  state task ──▶ Store (one writer; holds the lease, whose epoch every write checks)
//!                   └─ commit ─▶ database ─▶ notice of the new revision ─▶ readers that wait
//!  API ─────────▶ Reader (connections of its own): events, changes, records
//! ```
//! Load and heartbeats never come here. How another database fits beside SQLite: docs/decisions/0011.

pub mod sqlite;

use async_trait::async_trait;
use drover_control::interface::{Commit, ObjectKey, PatternWrites, PersistedState};
use drover_control::journal::{Changes, EventRange, Record, RecordRange, Stream};
use drover_model::event::Event;
use drover_model::{Millis, Revision, TimeMs};
use std::sync::Arc;
use tokio::sync::watch;

/// What the control plane needs of a store, and no more. It holds the lease from when it was opened: as soon as
/// another process has taken the lease over, everything here that writes returns [`StoreError::LeaseLost`].
#[async_trait]
pub trait Store: Send {
    /// Everything the control plane starts from.
    async fn load(&mut self) -> Result<PersistedState, StoreError>;

    /// All of it is durable when this returns `Ok`; none of it was done when this returns
    /// [`StoreError::Conflict`], [`StoreError::RecordConflict`], [`StoreError::RevisionConflict`],
    /// [`StoreError::LeaseLost`] or [`StoreError::Full`].
    async fn commit(&mut self, commit: &Commit) -> Result<(), StoreError>;

    /// Takes in what was learned, in no revision: beside the objects, and outside the logs.
    async fn keep(&mut self, patterns: &PatternWrites) -> Result<(), StoreError>;

    /// Whether a change could be written now. Changes nothing.
    async fn probe(&mut self) -> Result<(), StoreError>;

    /// Called with every tick; mostly it does nothing. Renews the lease when no commit has done so, and deletes old
    /// entries of the change log and of streams, a small batch at a time.
    async fn maintain(&mut self, now: TimeMs) -> Result<(), StoreError>;

    /// Gives the lease back, so that another process need not wait until it expires. Nothing is written after it.
    async fn release(&mut self) -> Result<(), StoreError>;

    fn reader(&self) -> Arc<dyn Reader>;
}

/// Reads what is durable, beside the writer and without making it wait.
#[async_trait]
pub trait Reader: Send + Sync {
    /// Oldest first. Those of the range that are no longer kept are missing without a word:
    /// [`Reader::oldest_event`] tells.
    async fn events(&self, range: &EventRange) -> Result<Vec<Event>, StoreError>;

    /// `None` if there are no events at all.
    async fn oldest_event(&self) -> Result<Option<drover_model::EventSeq>, StoreError>;

    /// What was changed after this revision, at most about `limit` entries: a revision is never cut in two.
    async fn changes(&self, after: Revision, limit: usize) -> Result<Changes, StoreError>;

    async fn records(&self, stream: &Stream, range: &RecordRange) -> Result<Vec<Record>, StoreError>;

    /// Changes after each commit. A wake-up and no truth: a notice can be lost where the writer is another process,
    /// so whoever waits looks again from time to time.
    fn notices(&self) -> watch::Receiver<Revision>;
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the store is at revision {found} where {expected} was expected: something else writes to it")]
    RevisionConflict { expected: Revision, found: Revision },
    #[error("{} {} changed meanwhile: it is at {found:?} where {expected:?} was expected", key.kind, key.id)]
    Conflict { key: ObjectKey, expected: Option<Revision>, found: Option<Revision> },
    #[error(
        "the stream {stream} has another record under the key {key:?}; this is a defect of drover, please report it"
    )]
    RecordConflict { stream: Stream, key: String },
    #[error(
        "the store {path} is in use by {holder}: stop that server, or start this one on another data_dir. If it hangs \
         and does not come back, its hold ends in {expires_in}"
    )]
    LeaseHeld { path: String, holder: String, expires_in: Millis },
    #[error(
        "the store {path} was taken over by {holder}, because this server did not answer for too long; this one ends. \
         Leave one of the two running"
    )]
    LeaseLost { path: String, holder: String },
    #[error("the store {path} is full: free space on its file system, the server goes on by itself")]
    Full { path: String, source: sqlx::Error },
    #[error("the store {path} can't be used: see whether its file system is writable and healthy")]
    Io { path: String, source: sqlx::Error },
    #[error("the store's lock file {path} can't be used: see whether its directory is writable")]
    Lock { path: String, source: std::io::Error },
    #[error("the store {path} could not be brought to this version's schema; it is as it was before")]
    Migration { path: String, source: sqlx::migrate::MigrateError },
    #[error("the store {path} holds {what} that this version can't read; start the version that wrote it")]
    Unreadable { path: String, what: String, source: serde_json::Error },
    #[error("the store {path} has schema version {found}, this version knows {known}: start a newer one")]
    Schema { path: String, found: i64, known: i64 },
}
