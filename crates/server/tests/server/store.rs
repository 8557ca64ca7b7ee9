//! SQLite against the contract that all stores keep, its files of older versions, and what the shell does when a
//! store fails.

use crate::support::{create_tenant, eventually};
use async_trait::async_trait;
use drover_control::Settings;
use drover_control::interface::{
    Action, Actor, Commit, Draft, Object, PatternWrites, PersistedState, RefusalKind, Write,
};
use drover_control::journal::{Append, Changes, EventRange, Owner, Position, Record, RecordRange, Stream, Topic};
use drover_model::event::{Event, Severity};
use drover_model::intent::{Role, Tenant};
use drover_model::{EventSeq, Revision, TenantName, TimeMs};
use drover_server::hub::Hub;
use drover_server::metrics::Metrics;
use drover_server::power::PowerDrivers;
use drover_server::shell::{Change, Shell, ShellError, ShellHandle, Surroundings};
use drover_server::store::sqlite::{Kept, SqliteStore};
use drover_server::store::{Reader, Store, StoreError};
use drover_sim::contract::{self, CHANGES_KEPT, Refused, ServerId, Subject};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Looks for what is old with every call.
const KEPT: Kept = Kept { events_max: 100, changes_max: CHANGES_KEPT, maintain_every: Duration::ZERO };

async fn open(dir: &Path) -> SqliteStore {
    SqliteStore::open(&dir.join("store.sqlite"), KEPT).await.unwrap()
}

fn tenant(name: &str, at: u64) -> Object {
    let (id, name) = (format!("tn-{name}").parse().unwrap(), name.parse().unwrap());
    let (created_at, labels, quota) = (TimeMs(at), Default::default(), Default::default());
    Object::Tenant(Tenant { id, name, created_at, labels, quota, provider_networks: Default::default() })
}

fn put(name: &str, at: u64, expected: Option<u64>) -> Write {
    Write::Put { object: tenant(name, at), expected: expected.map(Revision) }
}

fn commit(revision: u64, writes: Vec<Write>) -> Commit {
    Commit { revision: Revision(revision), writes, ..Commit::default() }
}

fn event(seq: u64) -> Event {
    Event {
        seq: EventSeq(seq),
        at: TimeMs(1_000 + seq),
        severity: [Severity::Info, Severity::Warning, Severity::Escalation][seq as usize % 3],
        object: "cluster".to_owned(),
        tenant: seq.is_multiple_of(2).then(|| "acme".parse().unwrap()),
        kind: "test".to_owned(),
        text: format!("event {seq} with 'quotes', \"more\" and ünïcode"),
        actor: None,
    }
}

/// A database file, and the servers that were started on it.
struct File {
    runtime: tokio::runtime::Runtime,
    dir: tempfile::TempDir,
    servers: Vec<Option<SqliteStore>>,
    /// A connection past all stores, as a person's.
    outside: Option<sqlx::SqliteConnection>,
}

impl File {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { runtime, dir: tempfile::tempdir().unwrap(), servers: Vec::new(), outside: None }
    }

    fn server(&mut self, server: ServerId) -> (&tokio::runtime::Runtime, &mut SqliteStore) {
        (&self.runtime, self.servers[server.0].as_mut().expect("it was killed"))
    }
}

fn refused(error: StoreError) -> Refused {
    match error {
        StoreError::RevisionConflict { .. } => Refused::Revision,
        StoreError::Conflict { .. } => Refused::Object,
        StoreError::RecordConflict { .. } => Refused::Record,
        StoreError::LeaseHeld { .. } => Refused::LeaseHeld,
        StoreError::LeaseLost { .. } => Refused::LeaseLost,
        StoreError::Full { .. }
        | StoreError::Io { .. }
        | StoreError::Lock { .. }
        | StoreError::Migration { .. }
        | StoreError::Unreadable { .. }
        | StoreError::Schema { .. } => panic!("{error:?}"),
    }
}

async fn outside(dir: &Path) -> sqlx::SqliteConnection {
    let url = format!("sqlite:{}", dir.join("store.sqlite").display());
    <sqlx::SqliteConnection as sqlx::Connection>::connect(&url).await.unwrap()
}

impl Subject for File {
    fn open(&mut self) -> Result<ServerId, Refused> {
        let path = self.dir.path().join("store.sqlite");
        // Nobody waits for a disk here: thousands of commits in one clause.
        let store = self.runtime.block_on(SqliteStore::open(&path, KEPT)).map_err(refused)?;
        self.servers.push(Some(store));
        Ok(ServerId(self.servers.len() - 1))
    }

    fn kill(&mut self, server: ServerId) {
        self.servers[server.0] = None;
    }

    fn hang(&mut self, _server: ServerId) {
        // The database's clock can't be put on: the end of the term is put back.
        self.runtime.block_on(async {
            if self.outside.is_none() {
                self.outside = Some(outside(self.dir.path()).await);
            }
            let connection = self.outside.as_mut().unwrap();
            sqlx::query("UPDATE leases SET expires_at = 1").execute(connection).await.unwrap();
        });
    }

    fn release(&mut self, server: ServerId) -> Result<(), Refused> {
        let (runtime, store) = self.server(server);
        runtime.block_on(store.release()).map_err(refused)
    }

    fn commit(&mut self, server: ServerId, commit: &Commit) -> Result<(), Refused> {
        let (runtime, store) = self.server(server);
        runtime.block_on(store.commit(commit)).map_err(refused)
    }

    fn keep(&mut self, server: ServerId, patterns: &PatternWrites) -> Result<(), Refused> {
        let (runtime, store) = self.server(server);
        runtime.block_on(store.keep(patterns)).map_err(refused)
    }

    fn maintain(&mut self, server: ServerId, now: TimeMs) -> Result<(), Refused> {
        let (runtime, store) = self.server(server);
        runtime.block_on(store.maintain(now)).map_err(refused)
    }

    fn load(&mut self, server: ServerId) -> PersistedState {
        let (runtime, store) = self.server(server);
        runtime.block_on(store.load()).unwrap()
    }

    fn events(&mut self, server: ServerId, range: &EventRange) -> Vec<Event> {
        let (runtime, store) = self.server(server);
        runtime.block_on(store.reader().events(range)).unwrap()
    }

    fn changes(&mut self, server: ServerId, after: Revision, limit: usize) -> Changes {
        let (runtime, store) = self.server(server);
        runtime.block_on(store.reader().changes(after, limit)).unwrap()
    }

    fn records(&mut self, server: ServerId, stream: &Stream, range: &RecordRange) -> Vec<Record> {
        let (runtime, store) = self.server(server);
        runtime.block_on(store.reader().records(stream, range)).unwrap()
    }
}

#[test]
fn sqlite_keeps_the_contract_of_all_stores() {
    for (name, clause) in contract::CLAUSES {
        println!("{name}");
        clause(&mut File::new());
    }
}

#[tokio::test]
async fn a_second_server_is_told_who_holds_the_store_and_a_first_one_that_ends_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.sqlite");
    let first = open(dir.path()).await;
    let error = SqliteStore::open(&path, KEPT).await.err().unwrap();
    let me = format!("process {}", std::process::id());
    assert!(matches!(&error, StoreError::LeaseHeld { holder, .. } if *holder == me), "{error}");
    assert!(error.to_string().contains(&format!("in use by {me}: stop that server")), "{error}");
    // A first one that ends meanwhile is waited for, and not for the whole of its term.
    let (opened, ()) = tokio::join!(SqliteStore::open_when_free(&path, KEPT), async {
        // It takes this long to end.
        tokio::time::sleep(Duration::from_millis(500)).await;
        drop(first);
    });
    let mut second = opened.unwrap();
    // One that shows life is not.
    let refused = tokio::select! {
        refused = SqliteStore::open_when_free(&path, KEPT) => refused,
        () = async {
            loop {
                second.maintain(TimeMs(1)).await.unwrap();
            }
        } => unreachable!("it never ends"),
    };
    assert!(matches!(refused, Err(StoreError::LeaseHeld { .. })));
}

/// A file as versions of drover before the migrations left it.
async fn old_file(dir: &Path, version: u8) {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(dir.join("store.sqlite")).create_if_missing(true);
    let mut connection = <sqlx::SqliteConnection as sqlx::Connection>::connect_with(&options).await.unwrap();
    let text = match version {
        1 => include_str!("old/schema_1.sql"),
        _ => concat!(include_str!("old/schema_1.sql"), include_str!("old/schema_2.sql")),
    };
    sqlx::raw_sql(text).execute(&mut connection).await.unwrap();
}

#[tokio::test]
async fn a_file_of_an_older_version_is_taken_over_without_loss() {
    for version in [1, 2] {
        let dir = tempfile::tempdir().unwrap();
        old_file(dir.path(), version).await;
        let mut store = open(dir.path()).await;
        let loaded = store.load().await.unwrap();
        assert_eq!(loaded.revision, Revision(7));
        assert_eq!((loaded.objects.len(), loaded.objects[0].revision), (1, Revision(5)), "version {version}");
        // Its name was its id.
        let Object::Tenant(acme) = &loaded.objects[0].object else { panic!("{loaded:?}") };
        assert_eq!((acme.id.as_str(), acme.name.as_str(), acme.created_at), ("acme", "acme", TimeMs(1)));
        let events: Vec<_> = loaded.events.iter().map(|event| (event.seq.0, event.actor.is_some())).collect();
        assert_eq!(events, [(1, false), (2, false)]);
        assert_eq!(loaded.patterns.len(), usize::from(version) - 1);
        // The log of changes begins here.
        let reader = store.reader();
        assert_eq!(reader.changes(Revision(6), 9).await.unwrap(), Changes::ListAnew { newest: Revision(7) });
        store.commit(&commit(8, vec![put("acme", 8, Some(5))])).await.unwrap();
        let Changes::Read { changes, .. } = reader.changes(Revision(7), 9).await.unwrap() else { panic!("gone") };
        assert_eq!(changes.len(), 1);
        drop((store, reader));
        assert_eq!(open(dir.path()).await.load().await.unwrap().revision, Revision(8));
    }
}

#[tokio::test]
async fn a_take_over_that_ended_half_way_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    old_file(dir.path(), 2).await;
    drop(open(dir.path()).await);
    // As if it had ended after the first of the two versions was noted.
    let mut connection = outside(dir.path()).await;
    for step in [
        "DELETE FROM _sqlx_migrations WHERE version > 1",
        "UPDATE schema_version SET version = 2",
        "DROP TABLE records; DROP TABLE streams; DROP TABLE changes; DROP TABLE leases",
        "DROP INDEX events_by_object; DROP INDEX events_by_tenant",
        "ALTER TABLE events DROP COLUMN actor; ALTER TABLE events DROP COLUMN actor_role",
        "ALTER TABLE meta DROP COLUMN compacted",
    ] {
        sqlx::raw_sql(step).execute(&mut connection).await.unwrap();
    }
    drop(connection);
    assert_eq!(open(dir.path()).await.load().await.unwrap().patterns.len(), 1);
}

#[tokio::test]
async fn a_commit_given_up_half_way_is_there_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).await;
    store.commit(&commit(1, vec![put("a", 1, None)])).await.unwrap();
    let many: Vec<Write> = (0..200).map(|n| put(&format!("t{n}"), 1, None)).collect();
    let stream = Stream { topic: Topic::Audit, owner: Owner::Cluster };
    let record = Append { stream: stream.clone(), key: "k".to_owned(), body: "{}".to_owned(), at: TimeMs(1) };
    let big = Commit { events: vec![event(1)], appends: vec![record], ..commit(2, many) };
    let reader = store.reader();
    let all = RecordRange { after: Position(0), between: None, limit: 9 };
    // Polled a few times and dropped in the middle, as a task that is aborted; once more each time.
    let mut given_up = 0;
    for polls in 1.. {
        let mut commit = Box::pin(store.commit(&big));
        let mut left = polls;
        let finished = std::future::poll_fn(|context| {
            if left == 0 {
                return std::task::Poll::Ready(false);
            }
            left -= 1;
            commit.as_mut().poll(context).map(|result| {
                result.unwrap();
                true
            })
        })
        .await;
        drop(commit);
        let loaded = store.load().await.unwrap();
        let found = (loaded.revision, loaded.objects.len());
        let beside = (loaded.events.len(), reader.records(&stream, &all).await.unwrap().len());
        let Changes::Read { changes, .. } = reader.changes(Revision(0), 9_999).await.unwrap() else { panic!("gone") };
        if finished || found.0 == Revision(2) {
            assert_eq!(found, (Revision(2), 201), "after {polls} polls");
            assert_eq!((beside, changes.len()), ((1, 1), 201), "after {polls} polls");
            break;
        }
        assert_eq!(found, (Revision(1), 1), "after {polls} polls");
        assert_eq!((beside, changes.len()), ((0, 0), 1), "after {polls} polls");
        given_up += 1;
    }
    assert!(given_up > 0, "the commit was over before it could be given up");
}

#[tokio::test]
async fn old_events_go_and_the_newest_stay_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).await;
    for n in 1..=50 {
        let events = (0..5).map(|i| event((n - 1) * 5 + i + 1)).collect();
        store.commit(&Commit { revision: Revision(n), events, ..Commit::default() }).await.unwrap();
    }
    let events = store.load().await.unwrap().events;
    assert_eq!(events.len() as u64, KEPT.events_max);
    assert_eq!((events[0].seq, events.last().unwrap().seq), (EventSeq(151), EventSeq(250)));
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.sqlite");
    drop(open(dir.path()).await);
    let mut connection = outside(dir.path()).await;
    sqlx::query("UPDATE schema_version SET version = 99").execute(&mut connection).await.unwrap();
    drop(connection);
    let error = SqliteStore::open(&path, KEPT).await.err().unwrap();
    assert!(matches!(error, StoreError::Schema { found: 99, .. }), "{error}");
    let mut connection = outside(dir.path()).await;
    for step in [
        "UPDATE schema_version SET version = 3",
        "INSERT INTO _sqlx_migrations SELECT 77, 'new', installed_on, success, checksum, 0 FROM _sqlx_migrations LIMIT 1",
    ] {
        sqlx::query(step).execute(&mut connection).await.unwrap();
    }
    drop(connection);
    let error = SqliteStore::open(&path, KEPT).await.err().unwrap();
    assert!(matches!(error, StoreError::Schema { found: 77, .. }), "{error}");
}

#[tokio::test]
async fn a_file_that_is_no_store_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("store.sqlite"), vec![b'x'; 8192]).unwrap();
    let error = SqliteStore::open(&dir.path().join("store.sqlite"), KEPT).await.err().unwrap();
    assert!(error.to_string().contains("store.sqlite"), "{error}");
}

/// SQLite, whose next commits fail as often as is told.
struct Failing {
    inner: SqliteStore,
    failures: Arc<AtomicU32>,
}

#[async_trait]
impl Store for Failing {
    async fn load(&mut self) -> Result<PersistedState, StoreError> {
        self.inner.load().await
    }

    async fn commit(&mut self, commit: &Commit) -> Result<(), StoreError> {
        self.fail()?;
        self.inner.commit(commit).await
    }

    async fn keep(&mut self, patterns: &PatternWrites) -> Result<(), StoreError> {
        self.fail()?;
        self.inner.keep(patterns).await
    }

    async fn maintain(&mut self, now: TimeMs) -> Result<(), StoreError> {
        self.inner.maintain(now).await
    }

    async fn release(&mut self) -> Result<(), StoreError> {
        self.inner.release().await
    }

    fn reader(&self) -> Arc<dyn Reader> {
        self.inner.reader()
    }

    async fn probe(&mut self) -> Result<(), StoreError> {
        self.fail()?;
        self.inner.probe().await
    }
}

impl Failing {
    fn fail(&self) -> Result<(), StoreError> {
        let left = self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        match left {
            Ok(_) => Err(StoreError::Full { path: "store.sqlite".to_owned(), source: sqlx::Error::WorkerCrashed }),
            Err(_) => Ok(()),
        }
    }
}

struct Running {
    handle: ShellHandle,
    failures: Arc<AtomicU32>,
    task: tokio::task::JoinHandle<Result<(), ShellError>>,
    ending: CancellationToken,
    dir: tempfile::TempDir,
}

async fn shell(store_retries_max: u32) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let failures = Arc::new(AtomicU32::new(0));
    let store = Failing { inner: open(dir.path()).await, failures: failures.clone() };
    let (results, _) = tokio::sync::mpsc::channel(1);
    let around = Surroundings {
        hub: Arc::new(Hub::new(16)),
        power: PowerDrivers::start(&BTreeMap::new(), results),
        metrics: Arc::new(Metrics::default()),
        tick: Duration::from_millis(20),
        queue_max: 16,
        store_retries_max,
    };
    let (shell, handle) = Shell::start(Box::new(store), Settings::default(), around).await.unwrap();
    let ending = CancellationToken::new();
    let task = tokio::spawn(shell.run(ending.clone()));
    Running { handle, failures, task, ending, dir }
}

fn create(name: &str) -> Change {
    let actor = Actor { name: "test".to_owned(), role: Role::Operator };
    Change::new(actor, Action::Create(Draft::Tenant(create_tenant(name))))
}

async fn tenants(handle: &ShellHandle) -> Vec<TenantName> {
    handle.query(|control| control.tenants().map(|tenant| tenant.name.clone()).collect()).await.unwrap()
}

#[tokio::test]
async fn a_change_that_could_not_be_stored_never_happened() {
    let running = shell(10).await;
    let handle = &running.handle;
    handle.submit(create("before")).await.unwrap();
    running.failures.store(2, Ordering::SeqCst);
    let refusal = handle.submit(create("lost")).await.unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Unavailable);
    assert!(refusal.detail.contains("full") && refusal.detail.contains("free space"), "{}", refusal.detail);
    assert!(!handle.serving());
    // What is durable can still be read; further changes are refused with the same advice.
    assert_eq!(tenants(handle).await, vec!["before".parse().unwrap()]);
    let refusal = handle.submit(create("refused")).await.unwrap_err();
    assert!(refusal.detail.contains("free space"), "{}", refusal.detail);
    eventually("the store is used again", async || handle.serving().then_some(())).await;
    handle.submit(create("lost")).await.unwrap();
    assert_eq!(tenants(handle).await.len(), 2);
    running.ending.cancel();
    running.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_store_that_stays_broken_ends_the_server_with_an_error() {
    let running = shell(1).await;
    running.handle.submit(create("before")).await.unwrap();
    running.failures.store(u32::MAX, Ordering::SeqCst);
    running.handle.submit(create("lost")).await.unwrap_err();
    let error = running.task.await.unwrap().unwrap_err();
    assert!(matches!(error, ShellError::Store { tries: 2, .. }), "{error}");
    let refusal = running.handle.submit(create("after")).await.unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Unavailable);
}

#[tokio::test]
async fn a_server_whose_store_was_taken_over_changes_nothing_more_and_ends() {
    let running = shell(10).await;
    running.handle.submit(create("before")).await.unwrap();
    let mut connection = outside(running.dir.path()).await;
    // As another process would, after this one has hung for the whole of its term.
    let taken = "UPDATE leases SET epoch = epoch + 1, holder = 'process 1'";
    sqlx::query(taken).execute(&mut connection).await.unwrap();
    let refusal = running.handle.submit(create("lost")).await.unwrap_err();
    assert!(refusal.detail.contains("taken over by process 1"), "{}", refusal.detail);
    let error = running.task.await.unwrap().unwrap_err();
    assert!(matches!(error, ShellError::LeaseLost { .. }), "{error}");
    let objects: i64 = sqlx::query_scalar("SELECT count(*) FROM objects WHERE kind = 'tenant'")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(objects, 1);
}
