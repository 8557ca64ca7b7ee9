//! Reading beside the writer: a few connections that cannot write, each answer from one snapshot.

use super::{BUSY_TIMEOUT, event_of, failure};
use crate::store::{Reader, StoreError};
use async_trait::async_trait;
use drover_control::journal::{Changed, Changes, EventRange, Position, Record, RecordRange, Stream};
use drover_model::event::{Event, Severity};
use drover_model::{BadName, EventSeq, Revision, TenantName, TimeMs};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions, SqliteRow};
use sqlx::{ConnectOptions as _, QueryBuilder, Row as _};
use std::path::Path;
use tokio::sync::watch;

/// Readers at once; more of them wait, at most [`BUSY_TIMEOUT`].
const CONNECTIONS_MAX: u32 = 4;

pub(super) struct SqliteReader {
    path: String,
    pool: SqlitePool,
    notices: watch::Receiver<Revision>,
}

impl SqliteReader {
    /// Connects when there is something to read.
    pub fn new(file: &Path, path: String, notices: watch::Receiver<Revision>) -> Self {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .read_only(true)
            .busy_timeout(BUSY_TIMEOUT)
            .disable_statement_logging();
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .acquire_timeout(BUSY_TIMEOUT)
            .connect_lazy_with(options);
        Self { path, pool, notices }
    }
}

#[async_trait]
impl Reader for SqliteReader {
    async fn events(&self, range: &EventRange) -> Result<Vec<Event>, StoreError> {
        let mut query = QueryBuilder::new(
            "SELECT seq, at, severity, object, tenant, kind, text, actor, actor_role FROM events WHERE seq > ",
        );
        query.push_bind(range.after.map_or(0, |after| after.0 as i64));
        if let Some(before) = range.before {
            query.push(" AND seq < ").push_bind(before.0 as i64);
        }
        if let Some(since) = range.since {
            query.push(" AND at >= ").push_bind(since.0 as i64);
        }
        match range.severity {
            Severity::Info => {}
            Severity::Warning => drop(query.push(" AND severity IN ('warning', 'escalation')")),
            Severity::Escalation => drop(query.push(" AND severity = 'escalation'")),
        }
        if let Some(tenant) = &range.tenant {
            query.push(" AND tenant = ").push_bind(tenant.as_str());
        }
        if let Some(object) = &range.object {
            query.push(" AND object = ").push_bind(object);
        }
        query.push(if range.after.is_some() { " ORDER BY seq LIMIT " } else { " ORDER BY seq DESC LIMIT " });
        query.push_bind(i64::try_from(range.limit).unwrap_or(i64::MAX));
        let fail = |error| failure(&self.path, error);
        let rows = query.build().fetch_all(&self.pool).await.map_err(fail)?;
        let mut events: Vec<Event> = rows.iter().map(event_of).collect::<Result<_, _>>().map_err(fail)?;
        events.sort_by_key(|event| event.seq);
        Ok(events)
    }

    async fn oldest_event(&self) -> Result<Option<EventSeq>, StoreError> {
        let oldest: Option<i64> = sqlx::query_scalar("SELECT min(seq) FROM events")
            .fetch_one(&self.pool)
            .await
            .map_err(|error| failure(&self.path, error))?;
        Ok(oldest.map(|seq| EventSeq(seq as u64)))
    }

    async fn changes(&self, after: Revision, limit: usize) -> Result<Changes, StoreError> {
        let fail = |error| failure(&self.path, error);
        let mut tx = self.pool.begin().await.map_err(fail)?;
        let meta = sqlx::query("SELECT revision, compacted FROM meta").fetch_one(&mut *tx).await.map_err(fail)?;
        let newest = Revision(meta.try_get::<i64, _>("revision").map_err(fail)? as u64);
        let compacted = Revision(meta.try_get::<i64, _>("compacted").map_err(fail)? as u64);
        if after < compacted || after > newest {
            return Ok(Changes::ListAnew { newest });
        }
        let select = "SELECT revision, kind, id, op, tenant FROM changes WHERE revision > ? AND revision <= ?
            ORDER BY revision, kind, id LIMIT ?";
        let read = async |tx: &mut sqlx::SqliteConnection, upto: Revision, limit: i64| {
            let query = sqlx::query(select).bind(after.0 as i64).bind(upto.0 as i64).bind(limit);
            let rows = query.fetch_all(tx).await?;
            rows.iter().map(change_of).collect::<Result<Vec<Changed>, sqlx::Error>>()
        };
        let mut changes =
            read(&mut tx, newest, i64::try_from(limit.saturating_add(1)).unwrap_or(i64::MAX)).await.map_err(fail)?;
        let mut seen = newest;
        if let Some(last) = changes.last().map(|last| last.revision).filter(|_| changes.len() > limit) {
            // The last revision may be cut: it comes next time, or whole now if it is the only one.
            let first = changes[0].revision;
            if first < last {
                changes.retain(|change| change.revision < last);
                seen = Revision(last.0 - 1);
            } else {
                changes = read(&mut tx, first, i64::MAX).await.map_err(fail)?;
                seen = first;
            }
        }
        tx.rollback().await.map_err(fail)?;
        Ok(Changes::Read { changes, seen, more: seen < newest })
    }

    async fn records(&self, stream: &Stream, range: &RecordRange) -> Result<Vec<Record>, StoreError> {
        let fail = |error| failure(&self.path, error);
        let mut query = QueryBuilder::new("SELECT position, key, at, body FROM records WHERE stream = ");
        query.push_bind(stream.to_string()).push(" AND position > ").push_bind(range.after.0 as i64);
        if let Some((from, to)) = range.between {
            query.push(" AND at >= ").push_bind(from.0 as i64).push(" AND at < ").push_bind(to.0 as i64);
        }
        query.push(" ORDER BY position LIMIT ").push_bind(i64::try_from(range.limit).unwrap_or(i64::MAX));
        let rows = query.build().fetch_all(&self.pool).await.map_err(fail)?;
        rows.iter().map(record_of).collect::<Result<_, _>>().map_err(fail)
    }

    fn notices(&self) -> watch::Receiver<Revision> {
        self.notices.clone()
    }
}

fn change_of(row: &SqliteRow) -> Result<Changed, sqlx::Error> {
    let decode = |error: BadName| sqlx::Error::Decode(Box::new(error));
    Ok(Changed {
        revision: Revision(row.try_get::<i64, _>("revision")? as u64),
        kind: row.try_get("kind")?,
        id: row.try_get("id")?,
        op: row.try_get::<&str, _>("op")?.parse().map_err(decode)?,
        tenant: row.try_get::<Option<&str>, _>("tenant")?.map(str::parse::<TenantName>).transpose().map_err(decode)?,
    })
}

fn record_of(row: &SqliteRow) -> Result<Record, sqlx::Error> {
    Ok(Record {
        position: Position(row.try_get::<i64, _>("position")? as u64),
        key: row.try_get("key")?,
        body: row.try_get("body")?,
        at: TimeMs(row.try_get::<i64, _>("at")? as u64),
    })
}
