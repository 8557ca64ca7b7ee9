//! Networks, security groups and ports as clients meet them.

use crate::support::{Cluster, eventually, problem, small_vm};
use drover_api::client::Client;
use drover_api::v1::{
    CreateNetwork, CreatePort, CreateSecurityGroup, CreateVm, NetworkView, SecurityRule, SetSecurityGroups, TenantQuery,
};
use drover_model::intent::{Host, Vm};
use drover_model::network::{Direction, Network, Port, Protocol, SecurityGroup};
use serde_json::json;

fn lan() -> CreateNetwork {
    CreateNetwork {
        name: "net".parse().unwrap(),
        tenant: None,
        subnet: "10.1.0.0/24".parse().unwrap(),
        router: Some("10.1.0.1".parse().unwrap()),
        dns: Vec::new(),
        mtu: None,
        labels: Default::default(),
    }
}

fn rule() -> SecurityRule {
    SecurityRule {
        direction: Direction::Ingress,
        protocol: Protocol::Tcp,
        first_port: Some(80),
        last_port: None,
        subnet: None,
        group: Some("web".to_owned()),
    }
}

fn web(rules: Vec<SecurityRule>) -> CreateSecurityGroup {
    CreateSecurityGroup { name: "web".parse().unwrap(), tenant: None, rules, labels: Default::default() }
}

fn on_lan(name: &str) -> CreateVm {
    CreateVm { network: Some("net".to_owned()), address: None, ..small_vm(name) }
}

async fn seen(client: &Client, network: &str) -> NetworkView {
    client.of::<Network>().get(network).await.unwrap()
}

#[tokio::test]
async fn a_vm_runs_on_its_tenants_network_guarded_by_its_groups() {
    let cluster = Cluster::start().await;
    let _agent = cluster.host("h1").await;
    let (operator, acme) = (cluster.operator(), cluster.tenant("acme").await);
    cluster.image("small").await;
    let network = acme.of::<Network>().create(&lan()).await.unwrap();
    assert!(network.id.as_str().starts_with("net-"), "{}", network.id);
    assert_eq!((network.mtu, network.hosts), (1450, None));
    let group = acme.of::<SecurityGroup>().create(&web(vec![rule()])).await.unwrap();
    assert_eq!((group.rules[0].first_port, group.rules[0].last_port), (Some(80), Some(80)));

    let guarded =
        CreateVm { security_groups: vec!["web".to_owned()], egress_max_bytes_s: Some(1 << 20), ..on_lan("web") };
    eventually("a host is known", async || acme.of::<Vm>().create(&guarded).await.ok()).await;
    let vm = eventually("it runs", async || acme.of::<Vm>().get("web").await.ok().filter(|vm| vm.phase == "running"));
    let nic = vm.await.nic.unwrap();
    assert_eq!((nic.network.as_str(), nic.address.as_deref()), (network.id.as_str(), Some("10.1.0.2/24")));
    assert_eq!(nic.network_name.map(|name| name.to_string()).as_deref(), Some("net"));
    assert_eq!((nic.ingress_max_bytes_s, nic.egress_max_bytes_s), (None, Some(1 << 20)));

    let hosts = eventually("the host has set it up", async || {
        seen(&operator, network.id.as_str()).await.hosts.filter(|hosts| hosts.iter().all(|host| host.applied))
    })
    .await;
    assert_eq!(hosts.len(), 1);
    assert_eq!(seen(&acme, "net").await.hosts, None);
    assert_eq!(seen(&acme, "net").await.vms, 1);

    let none = SetSecurityGroups { security_groups: Vec::new() };
    let free = acme.set_security_groups("web", &TenantQuery::default(), &none).await.unwrap();
    assert!(free.nic.unwrap().security_groups.is_empty());
    let (groups, networks) = (acme.of::<SecurityGroup>(), acme.of::<Network>());
    assert!(groups.patch("web", &json!({"rules": []})).await.unwrap().rules.is_empty());
    assert_eq!(groups.remove("web").await.unwrap(), None);
    assert_eq!(problem(networks.remove("net").await).status, 409);
    acme.of::<Vm>().remove("web").await.unwrap();
    eventually("the network is free", async || networks.remove("net").await.ok()).await;
    assert!(networks.all().await.unwrap().items.is_empty());
}

#[tokio::test]
async fn what_is_another_tenants_does_not_exist() {
    let cluster = Cluster::start().await;
    let _agent = cluster.host("h1").await;
    let (operator, acme, globex) = (cluster.operator(), cluster.tenant("acme").await, cluster.tenant("globex").await);
    cluster.image("small").await;
    let network = acme.of::<Network>().create(&lan()).await.unwrap();
    acme.of::<SecurityGroup>().create(&web(Vec::new())).await.unwrap();
    for tenant in [None, Some("acme")] {
        let (networks, groups) = (globex.of::<Network>().within(tenant), globex.of::<SecurityGroup>().within(tenant));
        for refused in [
            problem(networks.get("net").await),
            problem(networks.get(network.id.as_str()).await),
            problem(networks.get("acme/net").await),
            problem(networks.patch("net", &json!({"labels": {}})).await),
            problem(networks.remove("net").await),
            problem(groups.get("web").await),
            problem(groups.get("acme/web").await),
            problem(groups.patch("web", &json!({"rules": []})).await),
            problem(groups.remove("web").await),
        ] {
            assert_eq!(refused.status, 404, "{refused}");
        }
        assert!(networks.all().await.unwrap().items.is_empty());
        assert!(groups.all().await.unwrap().items.is_empty());
    }
    let theirs = CreateNetwork { tenant: Some("acme".parse().unwrap()), ..lan() };
    assert_eq!(problem(globex.of::<Network>().create(&theirs).await).field.as_deref(), Some("tenant"));
    let by_id = CreateVm { network: Some(network.id.to_string()), ..on_lan("x") };
    assert_eq!(problem(globex.of::<Vm>().create(&by_id).await).status, 404);
    let in_theirs = CreateVm { security_groups: vec!["web".to_owned()], ..on_lan("x") };
    assert_eq!(problem(globex.of::<Vm>().create(&in_theirs).await).field.as_deref(), Some("security_groups"));
    // The same name and the same addresses are another network.
    let other = globex.of::<Network>().create(&lan()).await.unwrap();
    assert_ne!((other.id.as_str(), other.vni), (network.id.as_str(), network.vni));
    let all = operator.of::<Network>();
    assert_eq!(problem(all.get("net").await).status, 409);
    assert_eq!(all.within(Some("acme")).get("net").await.unwrap().id, network.id);
    assert_eq!(all.get("acme/net").await.unwrap().id, network.id);
    assert_eq!(all.all().await.unwrap().items.len(), 2);
    assert_eq!(all.within(Some("acme")).all().await.unwrap().items.len(), 1);
}

#[tokio::test]
async fn ports_are_the_operators_and_repeatable() {
    let cluster = Cluster::start().await;
    let _agent = cluster.host("h1").await;
    let (operator, acme) = (cluster.operator(), cluster.tenant("acme").await);
    let keyed = |client: &Client| client.with_idempotency_key("once").unwrap();
    let made = keyed(&acme).of::<Network>().create(&lan()).await.unwrap();
    assert_eq!(keyed(&acme).of::<Network>().create(&lan()).await.unwrap().id, made.id);
    let port = CreatePort {
        name: "gw".parse().unwrap(),
        network: "net".to_owned(),
        tenant: Some("acme".parse().unwrap()),
        host: "h1".parse().unwrap(),
        interface: "gw0".to_owned(),
        mac: None,
        address: None,
        labels: Default::default(),
    };
    assert_eq!(problem(acme.of::<Port>().create(&port).await).status, 403);
    assert_eq!(problem(acme.of::<Port>().all().await).status, 403);
    let bad = CreatePort { address: Some("10.2.0.1".parse().unwrap()), ..port.clone() };
    eventually("the host has an overlay address", async || {
        let host = operator.of::<Host>().get("h1").await.ok()?;
        host.facts?.overlay_address
    })
    .await;
    assert_eq!(problem(operator.of::<Port>().create(&bad).await).field.as_deref(), Some("address"));
    let created = keyed(&operator).of::<Port>().create(&port).await.unwrap();
    assert_eq!(created.address.to_string(), "10.1.0.2");
    assert_eq!(keyed(&operator).of::<Port>().create(&port).await.unwrap(), created);
    assert_eq!(operator.of::<Port>().all().await.unwrap().items, std::slice::from_ref(&created));
    assert_eq!(operator.of::<Port>().get("gw").await.unwrap(), created);
    let labels =
        operator.of::<Port>().patch("gw", &json!({"labels": {"role": "router"}})).await.unwrap().labels.clone();
    assert_eq!(labels.to_string(), "role=router");
    assert_eq!(problem(operator.of::<Host>().remove("h1").await).status, 409);
    operator.of::<Port>().remove("gw").await.unwrap();
    assert_eq!(problem(operator.of::<Port>().get("gw").await).status, 404);
}
