//! Measuring a vm through the public API.

use crate::support::{Cluster, DIRTY_RATE, eventually, problem, small_vm};
use drover_api::v1::{MeasureVm, TenantQuery};
use drover_model::intent::Vm;

#[tokio::test]
async fn a_running_vm_is_measured_when_asked_and_no_other() {
    let cluster = Cluster::start().await;
    let _agent = cluster.host("h1").await;
    let (acme, globex) = (cluster.tenant("acme").await, cluster.tenant("globex").await);
    cluster.image("small").await;
    let (query, ask) = (TenantQuery::default(), MeasureVm::default());
    let made = eventually("a host is known", async || acme.of::<Vm>().create(&small_vm("web")).await.ok()).await;
    let in_phase = async |phase: &str| {
        eventually(phase, async || acme.of::<Vm>().get("web").await.ok().filter(|vm| vm.phase == phase)).await
    };
    let before = in_phase("running").await;
    assert_eq!(before.load, None);
    for seconds in [0, MeasureVm::SECONDS_MAX + 1] {
        let refused = problem(acme.measure_vm("web", &query, MeasureVm { seconds }).await);
        assert_eq!((refused.status, refused.field.as_deref()), (422, Some("seconds")), "{refused}");
    }
    let refused = problem(globex.measure_vm(made.id.as_str(), &query, ask).await);
    assert_eq!(refused.status, 404, "{refused}");

    let measured = async || Some(acme.of::<Vm>().get("web").await.ok()?.load?.dirty_bytes_s?);
    for client in [&acme, &cluster.operator()] {
        let vm = client.measure_vm("web", &query, ask).await.unwrap();
        assert_eq!((&vm.id, vm.revision), (&made.id, before.revision), "nothing of it is stored");
        assert_eq!(eventually("it is measured", measured).await, DIRTY_RATE.0);
    }
    acme.stop_vm("web", &query).await.unwrap();
    in_phase("stopped").await;
    let refused = problem(acme.measure_vm("web", &query, ask).await);
    assert_eq!(refused.status, 409, "{refused}");
}
