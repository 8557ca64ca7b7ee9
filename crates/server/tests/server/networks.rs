//! Networks, security groups and ports as clients meet them.

use crate::support::{Cluster, eventually, problem, small_vm};
use drover_api::client::Client;
use drover_api::v1::{
    CreateNetwork, CreatePort, CreateSecurityGroup, CreateVm, NetworkView, SecurityRule, SetSecurityGroups,
    SetSecurityRules, TenantQuery,
};
use drover_model::intent::Host;
use drover_model::intent::Image;
use drover_model::intent::Tenant;
use drover_model::intent::Vm;
use drover_model::network::Network;
use drover_model::network::Port;
use drover_model::network::SecurityGroup;
use drover_model::network::{Direction, Protocol};

fn lan() -> CreateNetwork {
    CreateNetwork {
        name: "net".to_owned(),
        subnet: "10.1.0.0/24".to_owned(),
        router: Some("10.1.0.1".to_owned()),
        ..CreateNetwork::default()
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

fn on_lan(name: &str) -> CreateVm {
    CreateVm { network: Some("net".to_owned()), address: None, ..small_vm(name) }
}

async fn seen(client: &Client, network: &str) -> NetworkView {
    client.of::<Network>().get(network).await.unwrap()
}

#[tokio::test]
async fn a_vm_runs_on_its_tenants_network_guarded_by_its_groups() {
    let cluster = Cluster::start().await;
    let _agent = cluster.of::<Host>().get("h1").await;
    let (operator, acme) = (cluster.operator(), cluster.of::<Tenant>().get("acme").await);
    cluster.of::<Image>().get("small").await;
    let query = TenantQuery::default();
    let network = acme.of::<Network>().create(&lan()).await.unwrap();
    assert!(network.id.as_str().starts_with("net-"), "{}", network.id);
    assert_eq!((network.mtu, network.hosts), (1450, None));
    let group = CreateSecurityGroup { name: "web".to_owned(), tenant: None, rules: vec![rule()] };
    let group = acme.of::<SecurityGroup>().create(&group).await.unwrap();
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
    let rules = SetSecurityRules { rules: Vec::new() };
    assert!(
        acme.of::<SecurityGroup>()
            .within(query.tenant.as_deref())
            .patch("web", &serde_json::json!({"rules": rules.rules}))
            .await
            .unwrap()
            .rules
            .is_empty()
    );
    acme.of::<SecurityGroup>().within(query.tenant.as_deref()).remove("web").await.unwrap();
    assert_eq!(problem(acme.of::<Network>().within(query.tenant.as_deref()).remove("net").await).status, 409);
    acme.of::<Vm>().remove("web").await.unwrap();
    eventually("the network is free", async || {
        acme.of::<Network>().within(query.tenant.as_deref()).remove("net").await.ok()
    })
    .await;
    assert!(acme.of::<Network>().within(query.tenant.as_deref()).all().await.unwrap().items.is_empty());
}

#[tokio::test]
async fn what_is_another_tenants_does_not_exist() {
    let cluster = Cluster::start().await;
    let _agent = cluster.of::<Host>().get("h1").await;
    let (operator, acme, globex) =
        (cluster.operator(), cluster.of::<Tenant>().get("acme").await, cluster.of::<Tenant>().get("globex").await);
    cluster.of::<Image>().get("small").await;
    let network = acme.of::<Network>().create(&lan()).await.unwrap();
    let group = CreateSecurityGroup { name: "web".to_owned(), ..CreateSecurityGroup::default() };
    acme.of::<SecurityGroup>().create(&group).await.unwrap();
    let (own, forged) = (TenantQuery::default(), TenantQuery { tenant: Some("acme".to_owned()) });
    for query in [&own, &forged] {
        assert_eq!(problem(globex.of::<Network>().within(query.tenant.as_deref()).get("net").await).status, 404);
        assert_eq!(
            problem(globex.of::<Network>().within(query.tenant.as_deref()).get(network.id.as_str()).await).status,
            404
        );
        assert_eq!(problem(globex.of::<Network>().within(query.tenant.as_deref()).remove("net").await).status, 404);
        assert_eq!(problem(globex.of::<SecurityGroup>().within(query.tenant.as_deref()).get("web").await).status, 404);
        assert_eq!(
            problem(
                globex
                    .of::<SecurityGroup>()
                    .within(query.tenant.as_deref())
                    .patch("web", &serde_json::json!({"rules": SetSecurityRules::default().rules}))
                    .await
            )
            .status,
            404
        );
        assert_eq!(
            problem(globex.of::<SecurityGroup>().within(query.tenant.as_deref()).remove("web").await).status,
            404
        );
        assert!(globex.of::<Network>().within(query.tenant.as_deref()).all().await.unwrap().items.is_empty());
        assert!(globex.of::<SecurityGroup>().within(query.tenant.as_deref()).all().await.unwrap().items.is_empty());
    }
    let theirs = CreateNetwork { tenant: Some("acme".to_owned()), ..lan() };
    assert_eq!(problem(globex.of::<Network>().create(&theirs).await).field.as_deref(), Some("tenant"));
    let by_id = CreateVm { network: Some(network.id.to_string()), ..on_lan("x") };
    assert_eq!(problem(globex.of::<Vm>().create(&by_id).await).status, 404);
    let in_theirs = CreateVm { security_groups: vec!["web".to_owned()], ..on_lan("x") };
    assert_eq!(problem(globex.of::<Vm>().create(&in_theirs).await).field.as_deref(), Some("security_groups"));
    // The same name and the same addresses are another network.
    let other = globex.of::<Network>().create(&lan()).await.unwrap();
    assert_ne!((other.id.as_str(), other.vni), (network.id.as_str(), network.vni));
    assert_eq!(problem(operator.of::<Network>().within(own.tenant.as_deref()).get("net").await).status, 409);
    assert_eq!(operator.of::<Network>().within(forged.tenant.as_deref()).get("net").await.unwrap().id, network.id);
    assert_eq!(operator.of::<Network>().within(own.tenant.as_deref()).all().await.unwrap().items.len(), 2);
}

#[tokio::test]
async fn ports_are_the_operators_and_repeatable() {
    let cluster = Cluster::start().await;
    let _agent = cluster.of::<Host>().get("h1").await;
    let (operator, acme) = (cluster.operator(), cluster.of::<Tenant>().get("acme").await);
    let keyed = |client: &Client| client.with_idempotency_key("once").unwrap();
    let made = keyed(&acme).of::<Network>().create(&lan()).await.unwrap();
    assert_eq!(keyed(&acme).of::<Network>().create(&lan()).await.unwrap().id, made.id);
    let port = CreatePort {
        name: "gw".to_owned(),
        network: "net".to_owned(),
        tenant: Some("acme".to_owned()),
        host: "h1".to_owned(),
        interface: "gw0".to_owned(),
        ..CreatePort::default()
    };
    assert_eq!(problem(acme.of::<Port>().create(&port).await).status, 403);
    assert_eq!(problem(acme.of::<Port>().all().await).status, 403);
    let bad = CreatePort { address: Some("10.1.0".to_owned()), ..port.clone() };
    assert_eq!(problem(operator.of::<Port>().create(&bad).await).field.as_deref(), Some("address"));
    let created =
        eventually("the host has an overlay address", async || keyed(&operator).of::<Port>().create(&port).await.ok());
    let created = created.await;
    assert_eq!(created.address.to_string(), "10.1.0.2");
    assert_eq!(keyed(&operator).of::<Port>().create(&port).await.unwrap(), created);
    assert_eq!(operator.of::<Port>().all().await.unwrap().items, std::slice::from_ref(&created));
    assert_eq!(operator.of::<Port>().get("gw").await.unwrap(), created);
    assert_eq!(problem(operator.of::<Host>().remove("h1").await).status, 409);
    operator.of::<Port>().remove("gw").await.unwrap();
    assert_eq!(problem(operator.of::<Port>().get("gw").await).status, 404);
}
