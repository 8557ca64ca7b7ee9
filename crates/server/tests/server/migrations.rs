//! Moving a vm through the public API: what it would take, and what can be asked of it while it waits.

use crate::support::{Cluster, eventually, problem, small_vm};
use drover_api::v1::{ForecastQuery, MigrateVm, MigrationView, SetPriority, TenantQuery};
use drover_model::intent::{Host, Vm};
use drover_model::migration::{Method, MigrationRecord, Priority};
use serde_json::json;

#[tokio::test]
async fn a_move_is_forecast_begun_held_given_priority_and_cancelled() {
    let cluster = Cluster::start().await;
    let _agents = (cluster.host("h1").await, cluster.host("h2").await);
    let (acme, operator) = (cluster.tenant("acme").await, cluster.operator());
    cluster.image("small").await;
    operator.patch_policy(&json!({"mode": "observe"})).await.unwrap();
    let query = TenantQuery::default();
    eventually("both hosts are up", async || {
        let hosts = operator.of::<Host>().all().await.ok()?.items;
        hosts.iter().all(|host| host.connected && host.capacity.is_some()).then_some(())
    })
    .await;
    let vm = acme.of::<Vm>().create(&small_vm("web")).await.unwrap();
    let running =
        eventually("it runs", async || acme.of::<Vm>().get("web").await.ok().filter(|vm| vm.phase == "running"));
    let from = running.await.host.unwrap();
    let to = if from.as_str() == "h1" { "h2" } else { "h1" };

    let forecast = async |method| {
        let query = ForecastQuery { tenant: None, to: Some(to.to_owned()), method };
        operator.forecast_migration(vm.id.as_str(), &query).await.unwrap()
    };
    let ask = |method| MigrateVm { to: Some(to.to_owned()), method };
    let migrate = async |method| operator.migrate_vm(vm.id.as_str(), &query, &ask(method)).await;
    // These agents have said of no way to migrate that they know it.
    let plain = forecast(None).await;
    assert!(matches!(&plain.forbidden[..], [why] if why.contains("migration_tls")), "{:?}", plain.forbidden);
    let refused = problem(migrate(None).await);
    assert_eq!((refused.status, Some(&refused.detail)), (409, plain.forbidden.first()));
    let revision = operator.of::<Vm>().get(vm.id.as_str()).await.unwrap().revision;
    operator.patch_policy(&json!({"migration_tls": false})).await.unwrap();
    let plain = forecast(None).await;
    assert!(plain.forbidden.is_empty() && plain.waits_for.is_none() && !plain.strategy.tls, "{plain:?}");
    let total = plain.prediction.total_ms;
    assert!(0 < total.low && total.low <= total.expected && total.expected <= total.high, "{total:?}");
    let post_copy = forecast(Some(Method::PostCopy)).await;
    assert!(matches!(&post_copy.forbidden[..], [why] if why.contains("userfaultfd")), "{:?}", post_copy.forbidden);
    assert_eq!(problem(migrate(Some(Method::PostCopy)).await).status, 409);
    let nobody = ForecastQuery { to: Some("h9".to_owned()), ..ForecastQuery::default() };
    let refused = problem(operator.forecast_migration(vm.id.as_str(), &nobody).await);
    assert_eq!((refused.status, refused.field.as_deref()), (404, Some("to")), "{refused}");
    assert_eq!(problem(acme.forecast_migration("web", &ForecastQuery::default()).await).status, 403);
    assert_eq!(operator.of::<Vm>().get(vm.id.as_str()).await.unwrap().revision, revision, "nothing was changed");

    let begun = migrate(Some(Method::StopAndCopy)).await.unwrap();
    assert_eq!((begun.strategy.method, begun.priority, begun.held), (Method::StopAndCopy, Priority::Normal, false));
    assert!(begun.prediction.is_some() && begun.finish_eta_at_ms.is_some() && begun.stage == "reserve", "{begun:?}");
    assert!(operator.pause_migration(begun.id).await.unwrap().held);
    let high = SetPriority { priority: Priority::High };
    assert_eq!(operator.prioritise_migration(begun.id, high).await.unwrap().priority, Priority::High);
    assert!(!operator.resume_migration(begun.id).await.unwrap().held);
    for refused in [
        problem(acme.pause_migration(begun.id).await),
        problem(acme.resume_migration(begun.id).await),
        problem(acme.prioritise_migration(begun.id, high).await),
    ] {
        assert_eq!(refused.status, 403, "{refused}");
    }
    operator.cancel_migration(begun.id).await.unwrap();
    let over = async || {
        operator.of::<MigrationRecord>().get(&begun.id.to_string()).await.ok().filter(|view: &MigrationView| view.over)
    };
    assert_eq!(eventually("it is over", over).await.phase, "cancelled");
    for refused in [
        problem(operator.pause_migration(begun.id).await),
        problem(operator.prioritise_migration(begun.id, high).await),
        problem(operator.cancel_migration(begun.id).await),
    ] {
        assert_eq!(refused.status, 409, "{refused}");
    }
}

#[tokio::test]
async fn a_drained_host_tells_how_far_it_is_from_being_empty() {
    let cluster = Cluster::start().await;
    let _agent = cluster.host("h1").await;
    let (acme, operator) = (cluster.tenant("acme").await, cluster.operator());
    cluster.image("small").await;
    operator.patch_policy(&json!({"mode": "observe"})).await.unwrap();
    eventually("a host is known", async || acme.of::<Vm>().create(&small_vm("web")).await.ok()).await;
    eventually("it runs", async || acme.of::<Vm>().get("web").await.ok().filter(|vm| vm.phase == "running")).await;
    assert_eq!(operator.of::<Host>().get("h1").await.unwrap().evacuation, None);
    operator.drain_host("h1").await.unwrap();
    let evacuation = eventually("its standing", async || operator.of::<Host>().get("h1").await.ok()?.evacuation).await;
    let counts = (evacuation.total, evacuation.done, evacuation.moving, evacuation.waiting, evacuation.stuck);
    assert_eq!(counts, (1, 0, 0, 1, 1), "there is no other host");
    assert_eq!((evacuation.finish_eta_at_ms, evacuation.finished_at_ms), (None, None));
    operator.undrain_host("h1").await.unwrap();
    eventually("it is in use", async || {
        operator.of::<Host>().get("h1").await.ok().filter(|host| host.evacuation.is_none())
    })
    .await;
}
