//! What every store must keep to, held against SQLite; and what the shell does when a store fails.

use crate::support::{create_tenant, eventually};
use async_trait::async_trait;
use drover_control::Settings;
use drover_control::interface::{
    Action, Actor, Commit, Draft, Object, ObjectKey, PersistedState, RefusalKind, StoredPattern, Write,
};
use drover_model::event::{Event, Severity};
use drover_model::intent::{Role, Tenant};
use drover_model::{EventSeq, Revision, TenantName, TimeMs, VmId};
use drover_server::hub::Hub;
use drover_server::metrics::Metrics;
use drover_server::power::PowerDrivers;
use drover_server::shell::{Change, Shell, ShellError, ShellHandle, Surroundings};
use drover_server::store::sqlite::SqliteStore;
use drover_server::store::{Store, StoreError};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const KEPT_MAX: u64 = 100;

async fn open(dir: &Path) -> SqliteStore {
    SqliteStore::open(&dir.join("store.sqlite"), KEPT_MAX).await.unwrap()
}

fn tenant(name: &str, at: u64) -> Object {
    let (id, name) = (format!("tn-{name}").parse().unwrap(), name.parse().unwrap());
    let (created_at, labels, quota) = (TimeMs(at), Default::default(), Default::default());
    Object::Tenant(Tenant { id, name, created_at, labels, quota, provider_networks: Default::default() })
}

fn put(name: &str, at: u64, expected: Option<u64>) -> Write {
    Write::Put { object: tenant(name, at), expected: expected.map(Revision) }
}

fn delete(name: &str, expected: u64) -> Write {
    Write::Delete { key: ObjectKey::of::<Tenant>(&name.parse().unwrap()), expected: Revision(expected) }
}

fn commit(revision: u64, writes: Vec<Write>) -> Commit {
    Commit { revision: Revision(revision), writes, events: Vec::new() }
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
    }
}

/// Ids and revisions of what is there.
fn rows(loaded: &PersistedState) -> Vec<(String, u64)> {
    loaded.objects.iter().map(|stored| (stored.object.key().id, stored.revision.0)).collect()
}

#[tokio::test]
async fn what_was_committed_is_there_after_opening_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).await;
    assert_eq!(store.load().await.unwrap(), PersistedState::default());
    let first = Commit {
        revision: Revision(1),
        writes: vec![put("a", 1, None), put("b", 1, None)],
        events: vec![event(1), event(2)],
    };
    store.commit(&first).await.unwrap();
    store.commit(&commit(2, vec![put("a", 2, Some(1)), delete("b", 1)])).await.unwrap();
    // Dropped without a word, as a crash would.
    drop(store);
    let loaded = open(dir.path()).await.load().await.unwrap();
    assert_eq!(loaded.revision, Revision(2));
    assert_eq!(loaded.objects.len(), 1);
    assert_eq!(loaded.objects[0].object, tenant("a", 2));
    assert_eq!(loaded.objects[0].revision, Revision(2));
    assert_eq!(loaded.events, vec![event(1), event(2)]);
}

#[tokio::test]
async fn a_conflict_anywhere_changes_nothing_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).await;
    store.commit(&commit(1, vec![put("a", 1, None), put("b", 1, None)])).await.unwrap();
    let before = store.load().await.unwrap();
    for (what, writes) in [
        ("put at an old revision", vec![put("c", 9, None), put("a", 9, Some(0))]),
        ("put of what must not exist", vec![put("c", 9, None), put("a", 9, None)]),
        ("put of what must exist", vec![delete("a", 1), put("c", 9, Some(1))]),
        ("delete at an old revision", vec![put("a", 9, Some(1)), delete("b", 0)]),
        ("delete of what is not there", vec![put("a", 9, Some(1)), delete("c", 1)]),
    ] {
        let with_event = Commit { revision: Revision(2), writes, events: vec![event(1)] };
        let error = store.commit(&with_event).await.unwrap_err();
        assert!(matches!(error, StoreError::Conflict { .. }), "{what}: {error}");
        assert_eq!(store.load().await.unwrap(), before, "{what}");
    }
    store.commit(&commit(2, vec![put("a", 2, Some(1))])).await.unwrap();
}

#[tokio::test]
async fn the_revision_of_the_whole_store_moves_by_one_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).await;
    for wrong in [0, 2, 7] {
        let error = store.commit(&commit(wrong, vec![put("a", 1, None)])).await.unwrap_err();
        assert!(matches!(error, StoreError::RevisionConflict { .. }), "{wrong}: {error}");
    }
    store.commit(&commit(1, vec![put("a", 1, None)])).await.unwrap();
    let again = store.commit(&commit(1, vec![put("b", 1, None)])).await.unwrap_err();
    assert!(matches!(again, StoreError::RevisionConflict { .. }), "{again}");
    assert_eq!(rows(&store.load().await.unwrap()), vec![("a".to_owned(), 1)]);
}

#[tokio::test]
async fn a_commit_given_up_half_way_is_there_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).await;
    store.commit(&commit(1, vec![put("a", 1, None)])).await.unwrap();
    let many: Vec<Write> = (0..200).map(|n| put(&format!("t{n}"), 1, None)).collect();
    let big = commit(2, many);
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
        if finished || found.0 == Revision(2) {
            assert_eq!(found, (Revision(2), 201), "after {polls} polls");
            break;
        }
        assert_eq!(found, (Revision(1), 1), "after {polls} polls");
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
        store.commit(&Commit { revision: Revision(n), writes: Vec::new(), events }).await.unwrap();
    }
    let events = store.load().await.unwrap().events;
    assert_eq!(events.len() as u64, KEPT_MAX);
    assert_eq!((events[0].seq, events.last().unwrap().seq), (EventSeq(151), EventSeq(250)));
}

#[tokio::test]
async fn what_was_learned_is_kept_in_no_revision() {
    let dir = tempfile::tempdir().unwrap();
    let vm = |name: &str| -> VmId { name.parse().unwrap() };
    let pattern = |name: &str, json: &str| StoredPattern { vm: vm(name), json: json.to_owned() };
    let mut store = open(dir.path()).await;
    store.commit(&commit(1, vec![put("a", 1, None)])).await.unwrap();
    store.keep(&[pattern("vm-a", "1"), pattern("vm-b", "2")], &BTreeSet::new()).await.unwrap();
    store.keep(&[pattern("vm-b", "3")], &[vm("vm-a"), vm("vm-c")].into()).await.unwrap();
    drop(store);
    let mut store = open(dir.path()).await;
    let loaded = store.load().await.unwrap();
    assert_eq!((loaded.revision, loaded.patterns), (Revision(1), vec![pattern("vm-b", "3")]));
    store.commit(&commit(2, vec![put("b", 1, None)])).await.unwrap();
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.sqlite");
    drop(open(dir.path()).await);
    let url = format!("sqlite:{}", path.display());
    let mut connection = <sqlx::SqliteConnection as sqlx::Connection>::connect(&url).await.unwrap();
    sqlx::query("UPDATE schema_version SET version = 99").execute(&mut connection).await.unwrap();
    drop(connection);
    let error = SqliteStore::open(&path, KEPT_MAX).await.err().unwrap();
    assert!(matches!(error, StoreError::Schema { found: 99, .. }), "{error}");
}

#[tokio::test]
async fn a_file_that_is_no_store_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("store.sqlite"), vec![b'x'; 8192]).unwrap();
    let error = SqliteStore::open(&dir.path().join("store.sqlite"), KEPT_MAX).await.err().unwrap();
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

    async fn keep(&mut self, kept: &[StoredPattern], forgotten: &BTreeSet<VmId>) -> Result<(), StoreError> {
        self.fail()?;
        self.inner.keep(kept, forgotten).await
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
    _dir: tempfile::TempDir,
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
    Running { handle, failures, task, ending, _dir: dir }
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
