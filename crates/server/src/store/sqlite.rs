//! The embedded store: one SQLite file in WAL mode with `synchronous=FULL`, so that a commit that was
//! acknowledged survives a power cut, and one connection that writes. Readers have connections of their own: in WAL
//! mode they neither wait for the writer nor make it wait.

mod lease;
mod read;
mod schema;
mod write;

use super::{Reader, Store, StoreError};
use async_trait::async_trait;
use drover_control::EVENTS_MAX;
use drover_control::interface::{Commit, PatternWrites, PersistedState, Stored, StoredPattern};
use drover_model::event::{Event, EventActor, Severity};
use drover_model::{EventSeq, Millis, Revision, TimeMs};
use lease::Lease;
use read::SqliteReader;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection, Row};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Another process looking at the file (a backup) may hold a lock this long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How often somebody who waits for the lease looks again: nothing tells one process what another one does.
const LEASE_POLL: Duration = Duration::from_millis(200);

/// SQLITE_FULL, <https://sqlite.org/rescode.html#full>.
const SQLITE_FULL: &str = "13";

/// How much is kept of what grows; at least 1 each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Events.
    pub events_max: u64,
    /// Revisions of which the change log is kept.
    pub changes_max: u64,
    /// How often the lease is renewed and old entries are looked for: [`SqliteStore::MAINTAIN_EVERY`] at most.
    pub maintain_every: Duration,
}

pub struct SqliteStore {
    path: String,
    options: SqliteConnectOptions,
    kept: Kept,
    connection: SqliteConnection,
    lease: Lease,
    reader: Arc<SqliteReader>,
    notices: watch::Sender<Revision>,
    /// `None`: a batch was full, the next one is due at once.
    maintained: Option<Instant>,
    /// SQLite may have ended a transaction by itself (<https://sqlite.org/lang_transaction.html>, "Response
    /// To Errors Within A Transaction") while this side believes it open: such a connection is not used again.
    suspect: bool,
}

impl SqliteStore {
    /// A third of the lease's term: two renewals may fail.
    pub const MAINTAIN_EVERY: Duration = Duration::from_millis(lease::TERM.0 / 3);

    /// Opens the file, or makes it, takes the lease, and brings the schema up to date. Refused with
    /// [`StoreError::LeaseHeld`] while another process works with it.
    pub async fn open(path: &Path, kept: Kept) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            .disable_statement_logging();
        let (lock_path, file) = (lock_path(path), path);
        let path = path.display().to_string();
        let mut connection = SqliteConnection::connect_with(&options).await.map_err(|error| failure(&path, error))?;
        let found = schema::look(&mut connection, &path).await?;
        let holder = format!("process {}", std::process::id());
        // Where there is a lease, the schema is the holder's to change.
        let lease = match found.has_lease {
            true => {
                let lease = lease::take(&mut connection, &path, &lock_path, &holder).await?;
                schema::migrate(&mut connection, &path, &found).await?;
                lease
            }
            false => {
                schema::migrate(&mut connection, &path, &found).await?;
                lease::take(&mut connection, &path, &lock_path, &holder).await?
            }
        };
        let revision: i64 = sqlx::query_scalar("SELECT revision FROM meta")
            .fetch_one(&mut connection)
            .await
            .map_err(|error| failure(&path, error))?;
        let (notices, noticed) = watch::channel(Revision(revision as u64));
        let reader = Arc::new(SqliteReader::new(file, path.clone(), noticed));
        let maintained = Some(Instant::now());
        Ok(Self { path, options, kept, connection, lease, reader, notices, maintained, suspect: false })
    }

    /// As [`SqliteStore::open`], but a holder that is about to end is waited for: at most for the rest of its term,
    /// and not at all once it shows that it is alive by renewing its lease.
    pub async fn open_when_free(path: &Path, kept: Kept) -> Result<Self, StoreError> {
        let mut shortest = lease::TERM;
        loop {
            match Self::open(path, kept).await {
                Err(StoreError::LeaseHeld { expires_in, .. }) if expires_in <= shortest && expires_in > Millis(0) => {
                    if shortest == lease::TERM {
                        tracing::info!(path = %path.display(), "the store is in use by another process: waiting for it to end");
                    }
                    shortest = expires_in;
                    tokio::time::sleep(LEASE_POLL).await;
                }
                opened => return opened,
            }
        }
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
            "SELECT seq, at, severity, object, tenant, kind, text, actor, actor_role FROM
                (SELECT * FROM events ORDER BY seq DESC LIMIT ?) ORDER BY seq",
        )
        .bind(EVENTS_MAX as i64)
        .fetch_all(&mut *tx)
        .await
        .map_err(fail)?;
        let events = rows.iter().map(event_of).collect::<Result<_, _>>().map_err(fail)?;
        let rows = sqlx::query("SELECT vm, json FROM patterns").fetch_all(&mut *tx).await.map_err(fail)?;
        let patterns = rows.iter().map(pattern_of).collect::<Result<_, _>>().map_err(fail)?;
        tx.rollback().await.map_err(fail)?;
        Ok(PersistedState { objects, events, revision: Revision(revision as u64), patterns })
    }

    async fn probe_in_transaction(&mut self) -> Result<(), StoreError> {
        let path = self.path.clone();
        let fail = |error| failure(&path, error);
        // Takes pages as a change would, and gives them back.
        let mut tx = self.connection.begin_with("BEGIN IMMEDIATE").await.map_err(fail)?;
        lease::renew(&mut tx, &path, self.lease.epoch).await?;
        tx.commit().await.map_err(fail)
    }

    async fn release_in_transaction(&mut self) -> Result<(), StoreError> {
        let path = self.path.clone();
        let fail = |error| failure(&path, error);
        let mut tx = self.connection.begin_with("BEGIN IMMEDIATE").await.map_err(fail)?;
        lease::release(&mut tx, &path, self.lease.epoch).await?;
        tx.commit().await.map_err(fail)
    }
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
        self.noted(committed)?;
        self.notices.send_replace(commit.revision);
        Ok(())
    }

    async fn keep(&mut self, patterns: &PatternWrites) -> Result<(), StoreError> {
        self.trusted().await?;
        let done = self.keep_in_transaction(patterns).await;
        self.noted(done)
    }

    async fn probe(&mut self) -> Result<(), StoreError> {
        self.trusted().await?;
        let probed = self.probe_in_transaction().await;
        self.noted(probed)
    }

    async fn maintain(&mut self, now: TimeMs) -> Result<(), StoreError> {
        if self.maintained.is_some_and(|at| at.elapsed() < self.kept.maintain_every) {
            return Ok(());
        }
        self.trusted().await?;
        let done = self.maintain_in_transaction(now).await;
        let full = self.noted(done)?;
        self.maintained = (!full).then(Instant::now);
        Ok(())
    }

    async fn release(&mut self) -> Result<(), StoreError> {
        self.trusted().await?;
        let released = self.release_in_transaction().await;
        self.noted(released)
    }

    fn reader(&self) -> Arc<dyn Reader> {
        self.reader.clone()
    }
}

/// Beside the database and its `-wal` and `-shm`.
fn lock_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-lock");
    PathBuf::from(name)
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
        actor: match (row.try_get("actor")?, row.try_get::<Option<&str>, _>("actor_role")?) {
            (Some(name), Some(role)) => {
                let role = serde_json::from_str(role).map_err(|error| decode(format!("role {role:?}: {error}")))?;
                Some(EventActor { name, role })
            }
            (None, _) | (_, None) => None,
        },
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
    use drover_control::interface::{Object, Write};
    use drover_model::intent::Tenant;

    const KEPT: Kept = Kept { events_max: 100, changes_max: 100, maintain_every: SqliteStore::MAINTAIN_EVERY };

    #[tokio::test]
    async fn a_full_disk_is_told_from_a_broken_one_and_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = SqliteStore::open(&dir.path().join("store.sqlite"), KEPT).await.unwrap();
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
            ..Commit::default()
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
