//! The event log as far back as it is stored, who caused what, and watching objects.

use crate::support::{Cluster, create_tenant, eventually};
use drover_api::client::{ApiError, EventStreamStart, WatchStart, Watched};
use drover_api::v1::{ChangeOp, ChangeView, CreateNetwork, EventQuery, RoleName};
use drover_model::event::Severity;
use drover_model::intent::Tenant;
use drover_model::network::Network;
use drover_model::{EventSeq, Revision};
use futures_util::{Stream, StreamExt as _};
use serde_json::json;
use std::collections::BTreeSet;

fn lan() -> CreateNetwork {
    serde_json::from_value(json!({ "name": "private", "subnet": "10.1.0.0/16" })).unwrap()
}

/// Writes events into the file of a server that is not running, older than all that follow.
async fn old_events(cluster: &Cluster, count: u64) {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(cluster.config.data_dir.join("store.sqlite"));
    let mut connection = <sqlx::SqliteConnection as sqlx::Connection>::connect_with(&options).await.unwrap();
    sqlx::query("UPDATE events SET seq = seq + ?").bind(count as i64).execute(&mut connection).await.unwrap();
    let many = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?)
        INSERT INTO events (seq, at, severity, object, tenant, kind, text)
        SELECT n, n, iif(n % 100 = 0, 'warning', 'info'), 'host/h' || (n % 7), NULL, 'old', 'number ' || n FROM n";
    sqlx::query(many).bind(count as i64).execute(&mut connection).await.unwrap();
}

#[tokio::test]
async fn events_are_read_as_far_back_as_they_are_stored() {
    const OLD: u64 = 20_000;
    let mut cluster = Cluster::start().await;
    cluster.kill_and_edit(async |cluster| old_events(cluster, OLD).await).await;
    let operator = cluster.operator();
    let read = async |query: EventQuery| -> Vec<u64> {
        operator.events(&query).await.unwrap().items.iter().map(|event| event.seq.0).collect()
    };
    let all = EventQuery::default;
    // Far older than what the state machine keeps in memory.
    assert_eq!(read(EventQuery { after: Some(0), limit: Some(3), ..all() }).await, [1, 2, 3]);
    assert_eq!(read(EventQuery { before: Some(3), ..all() }).await, [1, 2]);
    let severity = Some(Severity::Warning);
    assert_eq!(read(EventQuery { before: Some(301), severity, limit: Some(2), ..all() }).await, [200, 300]);
    let object = Some("host/h3".to_owned());
    assert_eq!(read(EventQuery { before: Some(20), object, ..all() }).await, [3, 10, 17]);
    let since_ms = Some(OLD - 1);
    assert_eq!(read(EventQuery { since_ms, before: Some(OLD + 1), ..all() }).await, [OLD - 1, OLD]);
    // A stream goes on from there, too, and says when something is missing.
    let start = EventStreamStart { after: Some(EventSeq(40)), severity, ..EventStreamStart::default() };
    let mut stream = Box::pin(operator.event_stream(start));
    assert_eq!(stream.next().await.unwrap().unwrap().seq, EventSeq(100));
}

#[tokio::test]
async fn a_stream_that_begins_before_what_is_kept_says_so() {
    let mut cluster = Cluster::with("[limits]\nevents_kept_max = 100").await;
    cluster.kill_and_edit(async |cluster| old_events(cluster, 500).await).await;
    // The next event lets the old ones go.
    cluster.operator().of::<Tenant>().create(&create_tenant("next")).await.unwrap();
    let url = format!("{}/v1/events?after=7", cluster.server());
    let request = cluster.raw().get(url).bearer_auth(cluster.operator_token()).header("accept", "text/event-stream");
    let mut response = request.send().await.unwrap();
    let mut text = String::new();
    while !text.contains("event: event") {
        text.push_str(std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap());
    }
    assert!(text.starts_with("event: gap\ndata: events are missing here"), "{text}");
}

#[tokio::test]
async fn events_say_who_asked() {
    let cluster = Cluster::start().await;
    let _agent = cluster.host("h1").await;
    let acme = cluster.tenant("acme").await;
    acme.of::<Network>().create(&lan()).await.unwrap();
    let events = cluster.operator().events(&EventQuery::default()).await.unwrap().items;
    let of = |kind: &str| events.iter().find(|event| event.kind == kind).unwrap().actor.clone().unwrap();
    assert_eq!(of("tenant-created").role, RoleName::Operator);
    assert!(of("tenant-created").name.unwrap().starts_with("operator-"));
    assert_eq!(of("network-created").role, RoleName::Tenant);
    let own = of("network-created").name;
    // A tenant reads who of its own did something, and of operators that it was one.
    let theirs = CreateNetwork { name: "second".parse().unwrap(), tenant: Some("acme".parse().unwrap()), ..lan() };
    cluster.operator().of::<Network>().create(&theirs).await.unwrap();
    let seen = acme.events(&EventQuery::default()).await.unwrap().items.into_iter();
    let made: Vec<_> = seen.filter(|event| event.kind == "network-created").filter_map(|event| event.actor).collect();
    let [first, second] = &made[..] else { panic!("{made:?}") };
    assert_eq!((first.role, &first.name), (RoleName::Tenant, &own));
    assert_eq!((second.role, &second.name), (RoleName::Operator, &None));
    // What drover sees and decides by itself, after all these requests, has no actor.
    let _other = cluster.host("h2").await;
    eventually("h2 is seen", async || {
        let query = EventQuery { object: Some("host/h2".to_owned()), ..EventQuery::default() };
        let events = cluster.operator().events(&query).await.unwrap().items;
        events.iter().any(|event| event.actor.is_none()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn objects_are_watched_in_order_over_a_restart_and_by_tenant() {
    let mut cluster = Cluster::start().await;
    let (operator, acme) = (cluster.operator(), cluster.tenant("acme").await);
    let mut all = Box::pin(operator.watch(WatchStart::default()));
    let mut own = Box::pin(acme.watch(WatchStart::default()));
    let kinds = vec!["network".to_owned(), "image".to_owned()];
    let mut some = Box::pin(operator.watch(WatchStart { after: None, kinds }));
    let begin = all.next().await.unwrap().unwrap();
    let Watched::Upto(begin) = begin else { panic!("{begin:?}") };
    for watch in [own.next().await, some.next().await] {
        assert!(matches!(watch.unwrap().unwrap(), Watched::Upto(_)));
    }
    operator.of::<Tenant>().create(&create_tenant("globex")).await.unwrap();
    let made = acme.of::<Network>().create(&lan()).await.unwrap();
    acme.of::<Network>().remove("private").await.unwrap();
    // The operator sees all of it, each revision after the one before, and the deletion last.
    let mut seen: Vec<ChangeView> = Vec::new();
    while seen.last().is_none_or(|last| last.op != ChangeOp::Delete) {
        match all.next().await.unwrap().unwrap() {
            Watched::Change(change) => seen.push(change),
            Watched::Upto(_) => {}
            Watched::ListAnew(at) => panic!("list anew at {at}"),
        }
    }
    assert!(seen.iter().all(|change| change.revision > begin));
    assert!(seen.is_sorted_by_key(|change| change.revision), "{seen:?}");
    let ids = |seen: &[ChangeView]| -> BTreeSet<(String, String)> {
        seen.iter().map(|change| (change.kind.clone(), change.id.clone())).collect()
    };
    let (network, globex) = (("network".to_owned(), made.id.to_string()), ("tenant".to_owned(), "globex".to_owned()));
    assert_eq!(ids(&seen), [network.clone(), globex].into());
    // The tenant sees its network; by kind, only networks come.
    for watch in [&mut own, &mut some] as [&mut (dyn Stream<Item = Result<Watched, ApiError>> + Unpin + Send); 2] {
        let mut seen = Vec::new();
        while seen.last().is_none_or(|last: &ChangeView| last.op != ChangeOp::Delete) {
            match watch.next().await.unwrap().unwrap() {
                Watched::Change(change) => seen.push(change),
                Watched::Upto(_) => {}
                Watched::ListAnew(at) => panic!("list anew at {at}"),
            }
        }
        assert_eq!(ids(&seen), [network.clone()].into());
    }
    // From any revision on it is the same again, also after a restart.
    cluster.kill_and_start().await;
    let mut again = Box::pin(cluster.operator().watch(WatchStart { after: Some(begin), kinds: Vec::new() }));
    let mut repeated = Vec::new();
    while repeated.len() < seen.len() {
        if let Watched::Change(change) = again.next().await.unwrap().unwrap() {
            repeated.push(change);
        }
    }
    assert_eq!(repeated, seen);
    // What can't be told any more is said, as the last thing.
    let start = WatchStart { after: Some(Revision(1 << 40)), kinds: Vec::new() };
    let watched: Vec<_> = cluster.operator().watch(start).collect().await;
    assert!(matches!(watched[..], [Ok(Watched::ListAnew(_))]), "{watched:?}");
    let kinds = vec!["vms".to_owned()];
    let refused: Vec<_> = cluster.operator().watch(WatchStart { after: None, kinds }).collect().await;
    assert!(matches!(&refused[..], [Err(ApiError::Problem(problem))] if problem.field.as_deref() == Some("kinds")));
}
