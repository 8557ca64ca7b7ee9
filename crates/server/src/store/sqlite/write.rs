//! The transactions that change the file. Each demands the lease first.

use super::{SqliteStore, failure, lease, severity_word};
use crate::store::StoreError;
use drover_control::interface::{Commit, Object, ObjectKey, PatternWrites, StoredPattern, Write};
use drover_control::journal::{Append, Retention};
use drover_model::event::Event;
use drover_model::v1::ChangeOp;
use drover_model::{Revision, TenantName, TimeMs};
use sqlx::Connection as _;
use sqlx::sqlite::SqliteConnection;

/// Old entries deleted in one transaction, of each sort.
const DELETED_AT_ONCE_MAX: i64 = 500;

impl SqliteStore {
    pub(super) async fn keep_in_transaction(&mut self, patterns: &PatternWrites) -> Result<(), StoreError> {
        let path = &self.path;
        let fail = |error| failure(path, error);
        let mut tx = self.connection.begin_with("BEGIN IMMEDIATE").await.map_err(fail)?;
        lease::renew(&mut tx, path, self.lease.epoch).await?;
        write_patterns(&mut tx, patterns).await.map_err(fail)?;
        tx.commit().await.map_err(fail)
    }

    pub(super) async fn commit_in_transaction(&mut self, commit: &Commit) -> Result<(), StoreError> {
        let path = &self.path;
        let fail = |error| failure(path, error);
        let mut tx = self.connection.begin_with("BEGIN IMMEDIATE").await.map_err(fail)?;
        lease::renew(&mut tx, path, self.lease.epoch).await?;
        let before = Revision(commit.revision.0.saturating_sub(1));
        let moved = sqlx::query("UPDATE meta SET revision = ?1 WHERE revision = ?1 - 1")
            .bind(commit.revision.0 as i64)
            .execute(&mut *tx)
            .await
            .map_err(fail)?;
        if moved.rows_affected() != 1 {
            let found: i64 = sqlx::query_scalar("SELECT revision FROM meta").fetch_one(&mut *tx).await.map_err(fail)?;
            return Err(StoreError::RevisionConflict { expected: before, found: Revision(found as u64) });
        }
        for write in &commit.writes {
            let (key, expected, tenant, op, swapped) = match write {
                Write::Put { object, expected } => {
                    let key = object.key();
                    let swapped = put(&mut tx, &key, object, *expected, commit.revision).await.map_err(fail)?;
                    (key, *expected, object.tenant(), ChangeOp::Put, swapped)
                }
                Write::Delete { key, expected, tenant } => {
                    let done = sqlx::query("DELETE FROM objects WHERE kind = ? AND id = ? AND rev = ?")
                        .bind(&*key.kind)
                        .bind(&key.id)
                        .bind(expected.0 as i64)
                        .execute(&mut *tx)
                        .await
                        .map_err(fail)?;
                    (key.clone(), Some(*expected), tenant.as_ref(), ChangeOp::Delete, done.rows_affected() == 1)
                }
            };
            if !swapped {
                let found: Option<i64> = sqlx::query_scalar("SELECT rev FROM objects WHERE kind = ? AND id = ?")
                    .bind(&*key.kind)
                    .bind(&key.id)
                    .fetch_optional(&mut *tx)
                    .await
                    .map_err(fail)?;
                return Err(StoreError::Conflict { key, expected, found: found.map(|rev| Revision(rev as u64)) });
            }
            note_change(&mut tx, commit.revision, &key, op, tenant).await.map_err(fail)?;
        }
        add_events(&mut tx, &commit.events, self.kept.events_max).await.map_err(fail)?;
        for record in &commit.appends {
            if !append(&mut tx, record).await.map_err(fail)? {
                return Err(StoreError::RecordConflict { stream: record.stream.clone(), key: record.key.clone() });
            }
        }
        for retention in &commit.retention {
            retain(&mut tx, retention).await.map_err(fail)?;
        }
        write_patterns(&mut tx, &commit.patterns).await.map_err(fail)?;
        tx.commit().await.map_err(fail)
    }

    /// Whether there may be more to delete than was done.
    pub(super) async fn maintain_in_transaction(&mut self, now: TimeMs) -> Result<bool, StoreError> {
        let path = &self.path;
        let fail = |error| failure(path, error);
        let mut tx = self.connection.begin_with("BEGIN IMMEDIATE").await.map_err(fail)?;
        lease::renew(&mut tx, path, self.lease.epoch).await?;
        let changes = compact(&mut tx, self.kept.changes_max).await.map_err(fail)?;
        let records = delete_old_records(&mut tx, now).await.map_err(fail)?;
        tx.commit().await.map_err(fail)?;
        Ok(changes || records)
    }
}

/// Whether the object was at the expected revision and is now at the new one.
async fn put(
    tx: &mut SqliteConnection,
    key: &ObjectKey,
    object: &Object,
    expected: Option<Revision>,
    revision: Revision,
) -> Result<bool, sqlx::Error> {
    let json = serde_json::to_string(object).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
    let done = match expected {
        Some(expected) => {
            sqlx::query("UPDATE objects SET rev = ?, json = ? WHERE kind = ? AND id = ? AND rev = ?")
                .bind(revision.0 as i64)
                .bind(json)
                .bind(&*key.kind)
                .bind(&key.id)
                .bind(expected.0 as i64)
                .execute(&mut *tx)
                .await?
        }
        None => {
            sqlx::query("INSERT INTO objects (kind, id, rev, json) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING")
                .bind(&*key.kind)
                .bind(&key.id)
                .bind(revision.0 as i64)
                .bind(json)
                .execute(&mut *tx)
                .await?
        }
    };
    Ok(done.rows_affected() == 1)
}

async fn note_change(
    tx: &mut SqliteConnection,
    revision: Revision,
    key: &ObjectKey,
    op: ChangeOp,
    tenant: Option<&TenantName>,
) -> Result<(), sqlx::Error> {
    sqlx::query("INSERT INTO changes (revision, kind, id, op, tenant) VALUES (?, ?, ?, ?, ?)")
        .bind(revision.0 as i64)
        .bind(&*key.kind)
        .bind(&key.id)
        .bind(op.word())
        .bind(tenant.map(TenantName::as_str))
        .execute(tx)
        .await?;
    Ok(())
}

/// Adds the events and lets as many old ones go as there are too many.
async fn add_events(tx: &mut SqliteConnection, events: &[Event], kept_max: u64) -> Result<(), sqlx::Error> {
    for event in events {
        let role = event.actor.as_ref().map(|actor| serde_json::to_string(&actor.role)).transpose();
        sqlx::query(
            "INSERT INTO events (seq, at, severity, object, tenant, kind, text, actor, actor_role)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(event.seq.0 as i64)
        .bind(event.at.0 as i64)
        .bind(severity_word(event.severity))
        .bind(&event.object)
        .bind(event.tenant.as_ref().map(TenantName::as_str))
        .bind(&event.kind)
        .bind(&event.text)
        .bind(event.actor.as_ref().map(|actor| actor.name.as_str()))
        .bind(role.map_err(|error| sqlx::Error::Encode(Box::new(error)))?)
        .execute(&mut *tx)
        .await?;
    }
    if let Some(last) = events.last()
        && last.seq.0 > kept_max
    {
        sqlx::query("DELETE FROM events WHERE seq <= ?").bind((last.seq.0 - kept_max) as i64).execute(&mut *tx).await?;
    }
    Ok(())
}

/// Whether the record is there now: it was added, or the same one was.
async fn append(tx: &mut SqliteConnection, record: &Append) -> Result<bool, sqlx::Error> {
    let stream = record.stream.to_string();
    let added = sqlx::query(
        "INSERT INTO records (stream, key, at, body) VALUES (?, ?, ?, ?) ON CONFLICT (stream, key) DO NOTHING",
    )
    .bind(&stream)
    .bind(&record.key)
    .bind(record.at.0 as i64)
    .bind(&record.body)
    .execute(&mut *tx)
    .await?;
    if added.rows_affected() == 1 {
        return Ok(true);
    }
    sqlx::query_scalar("SELECT body = ? FROM records WHERE stream = ? AND key = ?")
        .bind(&record.body)
        .bind(&stream)
        .bind(&record.key)
        .fetch_one(tx)
        .await
}

async fn retain(tx: &mut SqliteConnection, retention: &Retention) -> Result<(), sqlx::Error> {
    sqlx::query("INSERT INTO streams VALUES (?, ?) ON CONFLICT (stream) DO UPDATE SET keep_ms = excluded.keep_ms")
        .bind(retention.stream.to_string())
        .bind(retention.keep_for.map(|span| span.0 as i64))
        .execute(tx)
        .await?;
    Ok(())
}

async fn write_patterns(tx: &mut SqliteConnection, patterns: &PatternWrites) -> Result<(), sqlx::Error> {
    for StoredPattern { vm, json } in &patterns.kept {
        sqlx::query("INSERT INTO patterns VALUES (?, ?) ON CONFLICT (vm) DO UPDATE SET json = excluded.json")
            .bind(vm.as_str())
            .bind(json)
            .execute(&mut *tx)
            .await?;
    }
    for vm in &patterns.forgotten {
        sqlx::query("DELETE FROM patterns WHERE vm = ?").bind(vm.as_str()).execute(&mut *tx).await?;
    }
    Ok(())
}

/// Deletes the oldest entries of the change log, whole revisions at a time.
async fn compact(tx: &mut SqliteConnection, kept_max: u64) -> Result<bool, sqlx::Error> {
    let upto: Option<i64> = sqlx::query_scalar(
        "SELECT max(revision) FROM (SELECT revision FROM changes
             WHERE revision <= (SELECT revision FROM meta) - ? ORDER BY revision LIMIT ?)",
    )
    .bind(i64::try_from(kept_max).unwrap_or(i64::MAX))
    .bind(DELETED_AT_ONCE_MAX)
    .fetch_one(&mut *tx)
    .await?;
    let Some(upto) = upto else { return Ok(false) };
    let deleted = sqlx::query("DELETE FROM changes WHERE revision <= ?").bind(upto).execute(&mut *tx).await?;
    sqlx::query("UPDATE meta SET compacted = ?").bind(upto).execute(&mut *tx).await?;
    Ok(deleted.rows_affected() >= DELETED_AT_ONCE_MAX as u64)
}

async fn delete_old_records(tx: &mut SqliteConnection, now: TimeMs) -> Result<bool, sqlx::Error> {
    let deleted = sqlx::query(
        "DELETE FROM records WHERE position IN (
             SELECT records.position FROM streams CROSS JOIN records
             ON records.stream = streams.stream AND records.at < ? - streams.keep_ms
             WHERE streams.keep_ms IS NOT NULL LIMIT ?)",
    )
    .bind(now.0 as i64)
    .bind(DELETED_AT_ONCE_MAX)
    .execute(tx)
    .await?;
    Ok(deleted.rows_affected() >= DELETED_AT_ONCE_MAX as u64)
}
