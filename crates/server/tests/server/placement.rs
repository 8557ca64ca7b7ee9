//! What is said of hosts, rules of placement, and the cluster as text, as clients meet them.

use crate::support::{Cluster, eventually, problem, small_vm};
use drover_api::v1::{CreatePlacementRule, CreateVm, HostAttributes, RuleWord, TenantQuery};
use drover_model::intent::{Host, Vm};
use drover_model::placement::{PlacementRule, Scope};
use serde_json::json;

fn rule(name: &str, rule: RuleWord, vms: &[&str]) -> CreatePlacementRule {
    CreatePlacementRule {
        name: name.parse().unwrap(),
        rule,
        vms: vms.iter().map(|vm| (*vm).to_owned()).collect(),
        within: None,
        hosts: Default::default(),
        racks: Default::default(),
        zones: Default::default(),
        labels: Default::default(),
        hosts_max: None,
    }
}

#[tokio::test]
async fn a_host_is_what_its_operator_says_key_by_key() {
    let cluster = Cluster::start().await;
    let _agent = cluster.host("h1").await;
    let (operator, acme) = (cluster.operator(), cluster.tenant("acme").await);
    let curve: Vec<u32> = (80..91).collect();
    let host = operator.of::<Host>().patch("h1", &json!({"rack": "r1", "power_curve_watts": curve})).await.unwrap();
    assert_eq!(host.attributes.rack.as_deref(), Some("r1"));
    let patch = json!({"rack": null, "labels": ["ssd"], "disk_mib": 1024});
    let host = operator.of::<Host>().patch("h1", &patch).await.unwrap();
    let labels = ["ssd".to_owned()].into();
    let power_curve_watts = Some(std::array::from_fn(|n| 80.0 + n as f64));
    let expected = HostAttributes { labels, disk_mib: Some(1024), power_curve_watts, ..HostAttributes::default() };
    assert_eq!(host.attributes, expected);
    for (patch, field) in [
        (json!({"rak": "r1"}), Some("rak")),
        (json!({"maintenance": true}), Some("maintenance")),
        (json!({"zone": "Zone 1"}), Some("zone")),
        (json!({"link_bytes_s": 0}), Some("link_bytes_s")),
        (json!({"power_cycle_price_micro": -1}), Some("power_cycle_price_micro")),
        (json!({"disk_mib": "much"}), Some("disk_mib")),
        (json!({"disk_mib": "much", "rack": "r1"}), Some("body")),
        (json!(["rack"]), Some("body")),
    ] {
        let refused = problem(operator.of::<Host>().patch("h1", &patch).await);
        assert_eq!((refused.status, refused.field.as_deref()), (422, field), "{patch}: {refused}");
    }
    assert_eq!(operator.of::<Host>().get("h1").await.unwrap().attributes, expected);
    assert_eq!(problem(operator.of::<Host>().patch("h9", &json!({})).await).status, 404);
    assert_eq!(problem(acme.of::<Host>().patch("h1", &json!({"rack": "r9"})).await).status, 403);
    let stale = operator.with_if_match(drover_model::Revision(1));
    assert_eq!(problem(stale.of::<Host>().patch("h1", &json!({"rack": "r9"})).await).status, 412);
}

#[tokio::test]
async fn a_rule_is_made_shown_kept_and_removed() {
    let cluster = Cluster::start().await;
    let _agents = [cluster.host("h1").await, cluster.host("h2").await];
    let (operator, acme) = (cluster.operator(), cluster.tenant("acme").await);
    cluster.image("small").await;
    for (name, address) in [("a", "10.78.0.11/24"), ("b", "10.78.0.12/24")] {
        let vm = CreateVm { address: Some(address.to_owned()), ..small_vm(name) };
        eventually("a host is known", async || acme.of::<Vm>().create(&vm).await.ok()).await;
    }
    let apart = CreatePlacementRule { within: Some(Scope::Rack), ..rule("apart", RuleWord::Apart, &["acme/a", "b"]) };
    assert_eq!(problem(acme.of::<PlacementRule>().create(&apart).await).status, 403);
    let made = operator.of::<PlacementRule>().create(&apart).await.unwrap();
    assert_eq!((made.rule, made.within, made.vms.len()), (RuleWord::Apart, Some(Scope::Rack), 2));
    assert_eq!(operator.of::<PlacementRule>().get("apart").await.unwrap(), made);
    assert_eq!(operator.of::<PlacementRule>().all().await.unwrap().items, [made]);

    for (ask, status, field) in [
        (apart.clone(), 409, Some("name")),
        (rule("r", RuleWord::Apart, &["acme/a", "acme/nobody"]), 422, Some("vms")),
        (rule("r", RuleWord::Together, &["a"]), 422, Some("vms")),
        (rule("r", RuleWord::On, &["a"]), 422, Some("hosts")),
        (
            CreatePlacementRule { labels: ["gpu".parse().unwrap()].into(), ..rule("r", RuleWord::On, &["a"]) },
            422,
            Some("labels"),
        ),
        (
            CreatePlacementRule { hosts: ["h9".parse().unwrap()].into(), ..rule("r", RuleWord::NotOn, &["a"]) },
            422,
            Some("hosts"),
        ),
        (rule("r", RuleWord::HostsMax, &["a"]), 422, Some("hosts_max")),
        (CreatePlacementRule { hosts_max: Some(1), ..rule("r", RuleWord::On, &["a"]) }, 422, Some("hosts_max")),
    ] {
        let refused = problem(operator.of::<PlacementRule>().create(&ask).await);
        assert_eq!((refused.status, refused.field.as_deref()), (status, field), "{ask:?}: {refused}");
    }
    let explained = operator.explain("vm/a", &TenantQuery { tenant: Some("acme".to_owned()) }).await.unwrap();
    assert!(explained.because.iter().any(|line| line.contains("placement rule apart")), "{explained:?}");
    let text = operator.export().await.unwrap();
    assert!(text.lines().any(|line| line.starts_with("rule") && line.contains("within=rack")), "{text}");
    let world = drover_planner::text::native::parse(&text).unwrap();
    assert_eq!((world.hosts.len(), world.vms.len(), world.rules.len()), (2, 2, 1));
    assert_eq!(problem(acme.export().await).status, 403);
    operator.of::<PlacementRule>().remove("apart").await.unwrap();
    assert_eq!(problem(operator.of::<PlacementRule>().get("apart").await).status, 404);
}

#[tokio::test]
async fn no_more_processor_is_reserved_than_a_vm_has() {
    let cluster = Cluster::start().await;
    let _agent = cluster.host("h1").await;
    let acme = cluster.tenant("acme").await;
    cluster.image("small").await;
    let reserved = |millis| CreateVm { cpu_reserved_millis: millis, ..small_vm("web") };
    let refused = problem(acme.of::<Vm>().create(&reserved(1_001)).await);
    assert_eq!((refused.status, refused.field.as_deref()), (422, Some("cpu_reserved_millis")), "{refused}");
    let made = eventually("a host is known", async || acme.of::<Vm>().create(&reserved(500)).await.ok()).await;
    assert_eq!(made.cpu_reserved_millis, 500);
}
