//! The embedded store: one SQLite file in WAL mode with `synchronous=FULL`, so that a commit that was
//! acknowledged survives a power cut, and one connection, so that there is one writer.

use super::{Store, StoreError};
use async_trait::async_trait;
use drover_control::interface::{Commit, Object, ObjectKey, PersistedState, Stored, StoredPattern, Write};
use drover_model::event::{Event, Severity};
use drover_model::{EventSeq, Revision, TimeMs, VmId};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection, Row};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

/// Each entry brings the schema from its index to the next; never changed once released.
const SCHEMA: &[&str] = &[
    "
    CREATE TABLE objects (
        kind TEXT NOT NULL,
        id   TEXT NOT NULL,
        rev  INTEGER NOT NULL,
        json TEXT NOT NULL,
        PRIMARY KEY (kind, id)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE events (
        seq      INTEGER PRIMARY KEY,
        at       INTEGER NOT NULL,
        severity TEXT NOT NULL,
        object   TEXT NOT NULL,
        tenant   TEXT,
        kind     TEXT NOT NULL,
        text     TEXT NOT NULL
    ) STRICT;
    CREATE TABLE meta (revision INTEGER NOT NULL) STRICT;
    INSERT INTO meta VALUES (0);
",
    "
    CREATE TABLE patterns (
        vm   TEXT PRIMARY KEY,
        json TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
",
    // Answers that earlier versions remembered have another form. They are kept for a day at most, so they are let go.
    "
    DELETE FROM objects WHERE kind = 'idempotency';
",
];

/// Events given back at start; as many as the control plane keeps in memory.
const EVENTS_LOADED_MAX: i64 = 10_000;

/// Another process looking at the file (a backup) may hold a lock this long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// SQLITE_FULL, <https://sqlite.org/rescode.html#full>.
const SQLITE_FULL: &str = "13";

pub struct SqliteStore {
    path: String,
    options: SqliteConnectOptions,
    events_kept_max: u64,
    connection: SqliteConnection,
    /// SQLite may have ended a transaction by itself (<https://sqlite.org/lang_transaction.html>, "Response
    /// To Errors Within A Transaction") while this side believes it open: such a connection is not used again.
    suspect: bool,
}

impl SqliteStore {
    /// Opens the file, or makes it, and brings its schema up to date.
    pub async fn open(path: &Path, events_kept_max: u64) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            .disable_statement_logging();
        let path = path.display().to_string();
        let connection = SqliteConnection::connect_with(&options).await.map_err(|error| failure(&path, error))?;
        let mut store = Self { path, options, events_kept_max, connection, suspect: false };
        store.migrate().await?;
        Ok(store)
    }

    async fn migrate(&mut self) -> Result<(), StoreError> {
        let known = SCHEMA.len() as i64;
        let path = self.path.clone();
        let fail = |error| failure(&path, error);
        let mut tx = self.connection.begin_with("BEGIN IMMEDIATE").await.map_err(fail)?;
        sqlx::raw_sql("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL) STRICT")
            .execute(&mut *tx)
            .await
            .map_err(fail)?;
        let found: Option<i64> =
            sqlx::query_scalar("SELECT version FROM schema_version").fetch_optional(&mut *tx).await.map_err(fail)?;
        let found = match found {
            Some(version) => version,
            None => {
                sqlx::query("INSERT INTO schema_version VALUES (0)").execute(&mut *tx).await.map_err(fail)?;
                0
            }
        };
        if !(0..=known).contains(&found) {
            return Err(StoreError::Schema { path: self.path.clone(), found, known });
        }
        for step in &SCHEMA[found as usize..] {
            sqlx::raw_sql(*step).execute(&mut *tx).await.map_err(fail)?;
        }
        sqlx::query("UPDATE schema_version SET version = ?").bind(known).execute(&mut *tx).await.map_err(fail)?;
        tx.commit().await.map_err(fail)
    }

    async fn trusted(&mut self) -> Result<(), StoreError> {
        if self.suspect {
            self.connection =
                SqliteConnection::connect_with(&self.options).await.map_err(|error| failure(&self.path, error))?;
            self.suspect = false;
        }
        Ok(())
    }

    fn noted<T>(&mut self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        self.suspect = matches!(result, Err(StoreError::Full { .. } | StoreError::Io { .. }));
        result
    }

    async fn load_in_transaction(&mut self) -> Result<PersistedState, StoreError> {
        let path = self.path.clone();
        let fail = |error| failure(&path, error);
        let mut tx = self.connection.begin().await.map_err(fail)?;
        let revision: i64 = sqlx::query_scalar("SELECT revision FROM meta").fetch_one(&mut *tx).await.map_err(fail)?;
        let mut objects = Vec::new();
        for row in sqlx::query("SELECT kind, id, rev, json FROM objects ORDER BY kind, id")
            .fetch_all(&mut *tx)
            .await
            .map_err(fail)?
        {
            let json: &str = row.try_get("json").map_err(fail)?;
            let object = serde_json::from_str(json).map_err(|source| StoreError::Unreadable {
                path: path.clone(),
                what: format!("{} {}", row.get::<&str, _>("kind"), row.get::<&str, _>("id")),
                source,
            })?;
            objects.push(Stored { revision: Revision(row.try_get::<i64, _>("rev").map_err(fail)? as u64), object });
        }
        let rows = sqlx::query(
            "SELECT seq, at, severity, object, tenant, kind, text FROM
                (SELECT * FROM events ORDER BY seq DESC LIMIT ?) ORDER BY seq",
        )
        .bind(EVENTS_LOADED_MAX)
        .fetch_all(&mut *tx)
        .await
        .map_err(fail)?;
        let events = rows.iter().map(event_of).collect::<Result<_, _>>().map_err(fail)?;
        let rows = sqlx::query("SELECT vm, json FROM patterns").fetch_all(&mut *tx).await.map_err(fail)?;
        let patterns = rows.iter().map(pattern_of).collect::<Result<_, _>>().map_err(fail)?;
        tx.rollback().await.map_err(fail)?;
        Ok(PersistedState { objects, events, revision: Revision(revision as u64), patterns })
    }

    async fn keep_in_transaction(
        &mut self,
        kept: &[StoredPattern],
        forgotten: &BTreeSet<VmId>,
    ) -> Result<(), StoreError> {
        let path = self.path.clone();
        let fail = |error| failure(&path, error);
        let mut tx = self.connection.begin_with("BEGIN IMMEDIATE").await.map_err(fail)?;
        for StoredPattern { vm, json } in kept {
            sqlx::query("INSERT INTO patterns VALUES (?, ?) ON CONFLICT (vm) DO UPDATE SET json = excluded.json")
                .bind(vm.as_str())
                .bind(json)
                .execute(&mut *tx)
                .await
                .map_err(fail)?;
        }
        for vm in forgotten {
            sqlx::query("DELETE FROM patterns WHERE vm = ?").bind(vm.as_str()).execute(&mut *tx).await.map_err(fail)?;
        }
        tx.commit().await.map_err(fail)
    }

    async fn probe_in_transaction(&mut self) -> Result<(), StoreError> {
        let path = self.path.clone();
        let fail = |error| failure(&path, error);
        // Takes pages as a change would, and gives them back.
        let mut tx = self.connection.begin_with("BEGIN IMMEDIATE").await.map_err(fail)?;
        sqlx::query("UPDATE meta SET revision = revision").execute(&mut *tx).await.map_err(fail)?;
        tx.commit().await.map_err(fail)
    }

    async fn commit_in_transaction(&mut self, commit: &Commit) -> Result<(), StoreError> {
        let path = &self.path;
        let fail = |error| failure(path, error);
        let mut tx = self.connection.begin_with("BEGIN IMMEDIATE").await.map_err(fail)?;
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
            let (key, expected, swapped) = match write {
                Write::Put { object, expected } => {
                    let key = object.key();
                    let swapped = put(&mut tx, &key, object, *expected, commit.revision).await.map_err(fail)?;
                    (key, *expected, swapped)
                }
                Write::Delete { key, expected } => {
                    let done = sqlx::query("DELETE FROM objects WHERE kind = ? AND id = ? AND rev = ?")
                        .bind(&*key.kind)
                        .bind(&key.id)
                        .bind(expected.0 as i64)
                        .execute(&mut *tx)
                        .await
                        .map_err(fail)?;
                    (key.clone(), Some(*expected), done.rows_affected() == 1)
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
        }
        append(&mut tx, &commit.events, self.events_kept_max).await.map_err(fail)?;
        tx.commit().await.map_err(fail)
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

/// Adds the events and lets as many old ones go as there are too many.
async fn append(tx: &mut SqliteConnection, events: &[Event], kept_max: u64) -> Result<(), sqlx::Error> {
    for event in events {
        sqlx::query("INSERT INTO events (seq, at, severity, object, tenant, kind, text) VALUES (?, ?, ?, ?, ?, ?, ?)")
            .bind(event.seq.0 as i64)
            .bind(event.at.0 as i64)
            .bind(severity_word(event.severity))
            .bind(&event.object)
            .bind(event.tenant.as_ref().map(|tenant| tenant.as_str()))
            .bind(&event.kind)
            .bind(&event.text)
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

#[async_trait]
impl Store for SqliteStore {
    async fn load(&mut self) -> Result<PersistedState, StoreError> {
        self.trusted().await?;
        let loaded = self.load_in_transaction().await;
        self.noted(loaded)
    }

    async fn commit(&mut self, commit: &Commit) -> Result<(), StoreError> {
        self.trusted().await?;
        let committed = self.commit_in_transaction(commit).await;
        self.noted(committed)
    }

    async fn keep(&mut self, kept: &[StoredPattern], forgotten: &BTreeSet<VmId>) -> Result<(), StoreError> {
        self.trusted().await?;
        let done = self.keep_in_transaction(kept, forgotten).await;
        self.noted(done)
    }

    async fn probe(&mut self) -> Result<(), StoreError> {
        self.trusted().await?;
        let probed = self.probe_in_transaction().await;
        self.noted(probed)
    }
}

fn pattern_of(row: &sqlx::sqlite::SqliteRow) -> Result<StoredPattern, sqlx::Error> {
    let vm: &str = row.try_get("vm")?;
    let vm = vm.parse().map_err(|error: drover_model::BadName| sqlx::Error::Decode(Box::new(error)))?;
    Ok(StoredPattern { vm, json: row.try_get("json")? })
}

fn severity_word(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Escalation => "escalation",
    }
}

fn event_of(row: &sqlx::sqlite::SqliteRow) -> Result<Event, sqlx::Error> {
    let decode = |error: String| sqlx::Error::Decode(error.into());
    Ok(Event {
        seq: EventSeq(row.try_get::<i64, _>("seq")? as u64),
        at: TimeMs(row.try_get::<i64, _>("at")? as u64),
        severity: match row.try_get::<&str, _>("severity")? {
            "info" => Severity::Info,
            "warning" => Severity::Warning,
            "escalation" => Severity::Escalation,
            other => return Err(decode(format!("event severity {other:?}"))),
        },
        object: row.try_get("object")?,
        tenant: row
            .try_get::<Option<String>, _>("tenant")?
            .map(|tenant| tenant.parse())
            .transpose()
            .map_err(|error: drover_model::BadName| decode(error.to_string()))?,
        kind: row.try_get("kind")?,
        text: row.try_get("text")?,
    })
}

fn failure(path: &str, source: sqlx::Error) -> StoreError {
    let full = source.as_database_error().and_then(|error| error.code()).is_some_and(|code| code == SQLITE_FULL);
    if full {
        StoreError::Full { path: path.to_owned(), source }
    } else {
        StoreError::Io { path: path.to_owned(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_model::intent::Tenant;

    #[tokio::test]
    async fn a_full_disk_is_told_from_a_broken_one_and_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = SqliteStore::open(&dir.path().join("store.sqlite"), 100).await.unwrap();
        let commit = |revision, count| Commit {
            revision: Revision(revision),
            writes: (0..count)
                .map(|n| {
                    let name = format!("a-tenant-with-a-longer-name-{revision}-{n}");
                    let (id, name) = (format!("tn-{name}").parse().unwrap(), name.parse().unwrap());
                    let (created_at, labels, quota) = (TimeMs(1), Default::default(), Default::default());
                    let object = Object::Tenant(Tenant {
                        id,
                        name,
                        created_at,
                        labels,
                        quota,
                        provider_networks: Default::default(),
                    });
                    Write::Put { object, expected: None }
                })
                .collect(),
            events: Vec::new(),
        };
        store.commit(&commit(1, 1)).await.unwrap();
        let before = store.load().await.unwrap();
        // SQLITE_FULL as a full disk gives it: the file may not grow beyond 20 pages.
        sqlx::raw_sql("PRAGMA max_page_count = 20").execute(&mut store.connection).await.unwrap();
        let error = store.commit(&commit(2, 3_000)).await.unwrap_err();
        assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
        assert!(error.to_string().contains("store.sqlite is full: free space"), "{error}");
        assert_eq!(store.load().await.unwrap(), before);
        // The limit was the connection's: a new one, as after space was freed, has none.
        store.probe().await.unwrap();
        store.commit(&commit(2, 3_000)).await.unwrap();
    }
}
