//! Where intent is kept: objects by (kind, id, revision), changed several at a time by compare-and-swap,
//! and the event log beside them, written in the same transaction.
//!
//! Load and heartbeats never come here.

pub mod sqlite;

use async_trait::async_trait;
use drover_control::interface::{Commit, ObjectKey, PersistedState, StoredPattern};
use drover_model::{Revision, VmId};
use std::collections::BTreeSet;

/// What the control plane needs of a store, and no more.
#[async_trait]
pub trait Store: Send {
    /// Everything the control plane starts from.
    async fn load(&mut self) -> Result<PersistedState, StoreError>;

    /// All of it is durable when this returns `Ok`; none of it was done when this returns
    /// [`StoreError::Conflict`] or [`StoreError::Full`].
    async fn commit(&mut self, commit: &Commit) -> Result<(), StoreError>;

    /// Takes in what was learned, in no revision: beside the objects, and outside the log.
    async fn keep(&mut self, kept: &[StoredPattern], forgotten: &BTreeSet<VmId>) -> Result<(), StoreError>;

    /// Whether a change could be written now. Changes nothing.
    async fn probe(&mut self) -> Result<(), StoreError>;
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the store is at revision {found} where {expected} was expected: something else writes to it")]
    RevisionConflict { expected: Revision, found: Revision },
    #[error("{} {} changed meanwhile: it is at {found:?} where {expected:?} was expected", key.kind, key.id)]
    Conflict { key: ObjectKey, expected: Option<Revision>, found: Option<Revision> },
    #[error("the store {path} is full: free space on its file system, the server goes on by itself")]
    Full { path: String, source: sqlx::Error },
    #[error("the store {path} can't be used: see whether its file system is writable and healthy")]
    Io { path: String, source: sqlx::Error },
    #[error("the store {path} holds {what} that this version can't read; start the version that wrote it")]
    Unreadable { path: String, what: String, source: serde_json::Error },
    #[error("the store {path} has schema version {found}, this version knows {known}: start a newer one")]
    Schema { path: String, found: i64, known: i64 },
}
