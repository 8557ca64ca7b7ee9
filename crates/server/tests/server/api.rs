//! The public API as a client meets it: a whole server on loopback, the typed client, agents that obey.

use crate::support::{Cluster, create_image, create_tenant, eventually, problem, small_vm};
use drover_api::client::EventStreamStart;
use drover_api::problem::{MEDIA_TYPE, Problem};
use drover_api::v1::{
    CreateToken, CreateVm, EventQuery, ImagePart, ListQuery, MigrateVm, RoleName, SetPower, TenantQuery, WhyView,
};
use drover_model::intent::{ApiToken, Host, Image, Tenant, Vm};
use drover_model::plan::PlanRecord;
use drover_model::{MigrationId, PlanId, Revision};
use futures_util::StreamExt as _;
use reqwest::{Method, StatusCode};
use serde_json::json;
use std::collections::BTreeSet;

#[tokio::test]
async fn a_vm_is_made_placed_run_stopped_started_and_removed() {
    let cluster = Cluster::start().await;
    let _agent = cluster.host("h1").await;
    let acme = cluster.tenant("acme").await;
    cluster.image("small").await;
    let query = TenantQuery::default();
    let made = eventually("a host is known", async || acme.of::<Vm>().create(&small_vm("web")).await.ok()).await;
    assert!(made.id.as_str().starts_with("vm-"), "{}", made.id);
    let running = async |phase: &str| {
        eventually(phase, async || acme.of::<Vm>().get("web").await.ok().filter(|vm| vm.phase == phase)).await
    };
    let vm = running("running").await;
    assert_eq!(vm.host.as_ref().map(|host| host.as_str()), Some("h1"));
    assert_eq!(vm.nic.unwrap().address.as_deref(), Some("10.78.0.11/24"));
    acme.stop_vm("web", &query).await.unwrap();
    let stopped = running("stopped").await;
    acme.start_vm("web", &query).await.unwrap();
    let again = running("running").await;
    assert!(again.generation > stopped.generation);
    let explained = acme.explain("vm/web", &query).await.unwrap();
    assert!(!explained.answer.is_empty() && explained.why.is_none());
    let operator = cluster.operator();
    let host = operator.explain("host/h1", &query).await.unwrap();
    assert!(
        matches!(host.why, Some(WhyView::HostOn { ref sentence, .. }) if host.because.contains(sentence)),
        "{host:?}"
    );
    let of_acme = TenantQuery { tenant: Some("acme".to_owned()) };
    let vm = operator.explain("vm/web", &of_acme).await.unwrap();
    assert!(matches!(vm.why, Some(WhyView::VmStays { ref sentence, .. }) if vm.because.contains(sentence)), "{vm:?}");
    acme.of::<Vm>().remove(made.id.as_str()).await.unwrap();
    eventually("the vm is gone", async || acme.of::<Vm>().get("web").await.err()).await;
}

#[tokio::test]
async fn without_a_valid_token_nothing_is_told() {
    let cluster = Cluster::start().await;
    let operator = cluster.operator();
    let expiring = CreateToken { id: None, role: RoleName::Operator, tenant: None, expires_s: Some(1) };
    let expired = operator.create_token(&expiring).await.unwrap();
    let removed = CreateToken { id: Some("gone".to_owned()), expires_s: None, ..expiring };
    let removed = operator.create_token(&removed).await.unwrap();
    operator.of::<ApiToken>().remove("gone").await.unwrap();
    let unknown = format!("drover_nobody_{}", "0".repeat(64));
    for token in [None, Some(unknown), Some(removed.token)] {
        let refused = problem(cluster.client(token.clone()).whoami().await);
        assert_eq!(refused.status, 401, "{token:?}: {refused}");
    }
    let client = cluster.client(Some(expired.token));
    eventually("the token has expired", async || client.whoami().await.err().filter(|e| e.status() == Some(401))).await;

    let raw = cluster.raw();
    for header in ["Basic YTpi", "Bearer", "", "drover_x"] {
        let url = format!("{}/v1/whoami", cluster.server());
        let response = raw.get(url).header("authorization", header).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{header:?}");
        assert!(response.headers().contains_key("www-authenticate"));
    }
}

#[tokio::test]
async fn a_tenant_is_kept_out_of_what_is_the_operators() {
    let cluster = Cluster::start().await;
    let acme = cluster.tenant("acme").await;
    assert_eq!(acme.whoami().await.unwrap().tenant.unwrap().as_str(), "acme");
    let vm = TenantQuery::default();
    let image = create_image("x", vec![ImagePart::Disk]);
    for refused in [
        problem(acme.cluster().await),
        problem(acme.metrics().await),
        problem(acme.of::<Tenant>().all().await),
        problem(acme.of::<Tenant>().create(&create_tenant("mine")).await),
        problem(acme.of::<Tenant>().remove("acme").await),
        problem(acme.of::<ApiToken>().all().await),
        problem(acme.of::<ApiToken>().remove("x").await),
        problem(acme.of::<Host>().all().await),
        problem(acme.of::<Host>().get("h1").await),
        problem(acme.drain_host("h1").await),
        problem(acme.power_host("h1", SetPower { on: false }).await),
        problem(acme.create_join_token("h1", &Default::default()).await),
        problem(acme.create_image(&image).await),
        problem(acme.of::<Image>().remove("small").await),
        problem(acme.migrate_vm("web", &vm, &MigrateVm::default()).await),
        problem(acme.of::<PlanRecord>().all().await),
        problem(acme.plan_now().await),
        problem(acme.approve_plan(PlanId(1)).await),
        problem(acme.cancel_migration(MigrationId(1)).await),
        problem(acme.policy().await),
        problem(acme.patch_policy(&json!({"mode": "observe"})).await),
    ] {
        assert_eq!(refused.status, 403, "{refused}");
    }
}

#[tokio::test]
async fn another_tenants_vm_does_not_exist() {
    let cluster = Cluster::start().await;
    let _agent = cluster.host("h1").await;
    let (acme, globex) = (cluster.tenant("acme").await, cluster.tenant("globex").await);
    cluster.image("small").await;
    let vm = eventually("a host is known", async || acme.of::<Vm>().create(&small_vm("web")).await.ok()).await;
    // The same name in another tenant is another vm.
    let theirs = CreateVm { address: Some("10.78.0.12/24".to_owned()), ..small_vm("web") };
    let other = globex.of::<Vm>().create(&theirs).await.unwrap();
    assert_ne!(vm.id, other.id);
    let (id, query) = (vm.id.as_str(), TenantQuery::default());
    let forged = TenantQuery { tenant: Some("acme".to_owned()) };
    for refused in [
        problem(globex.of::<Vm>().get(id).await),
        problem(globex.of::<Vm>().within(forged.tenant.as_deref()).get(id).await),
        problem(globex.stop_vm(id, &query).await),
        problem(globex.start_vm(id, &query).await),
        problem(globex.of::<Vm>().remove(id).await),
        problem(globex.explain(&format!("vm/{id}"), &query).await),
        problem(globex.console(id, &query).await.map(|_| ())),
    ] {
        assert_eq!(refused.status, 404, "{refused}");
    }
    let refused =
        problem(globex.of::<Vm>().create(&CreateVm { tenant: Some("acme".to_owned()), ..small_vm("x") }).await);
    assert_eq!((refused.status, refused.field.as_deref()), (422, Some("tenant")));
    let seen: Vec<_> =
        globex.of::<Vm>().list(&ListQuery::default()).await.unwrap().items.into_iter().map(|vm| vm.id).collect();
    assert_eq!(seen, vec![other.id]);
    let events = globex.events(&EventQuery::default()).await.unwrap().items;
    assert!(!events.is_empty());
    assert!(events.iter().all(|event| event.tenant.as_ref().is_some_and(|tenant| tenant.as_str() == "globex")));

    // An operator must say whose, where a name is not unique.
    let operator = cluster.operator();
    assert_eq!(problem(operator.of::<Vm>().get("web").await).status, 409);
    assert_eq!(operator.of::<Vm>().within(forged.tenant.as_deref()).get("web").await.unwrap().id, vm.id);
    assert_eq!(operator.of::<Vm>().list(&ListQuery::default()).await.unwrap().items.len(), 2);
}

/// Method, path, content type, body; expected status and field.
type BadRequest = (Method, &'static str, &'static str, String, u16, Option<&'static str>);

fn bad_requests() -> Vec<BadRequest> {
    let vm = |extra: serde_json::Value| {
        let mut body = json!({"name": "web", "tenant": "acme", "image": "small", "vcpus": 1, "memory_mib": 64});
        for (key, value) in extra.as_object().unwrap() {
            body[key] = value.clone();
        }
        body.to_string()
    };
    let json = "application/json";
    let post = || Method::POST;
    vec![
        (Method::GET, "/v1/nothing", "", String::new(), 404, None),
        (Method::GET, "/", "", String::new(), 404, None),
        (Method::DELETE, "/v1/policy", "", String::new(), 405, None),
        (Method::GET, "/v1/hosts/h9", "", String::new(), 404, None),
        (Method::GET, "/v1/hosts/NO%2F", "", String::new(), 404, None),
        (Method::GET, "/v1/vms/%FF", "", String::new(), 404, None),
        (Method::GET, "/v1/plans/7", "", String::new(), 404, None),
        (Method::GET, "/v1/plans/first", "", String::new(), 404, None),
        (Method::GET, "/v1/migrations/18446744073709551616", "", String::new(), 404, None),
        (Method::GET, "/v1/explain/cow/1", "", String::new(), 404, None),
        (Method::GET, "/v1/events?limit=0", "", String::new(), 422, Some("limit")),
        (Method::GET, "/v1/events?colour=red", "", String::new(), 422, Some("colour")),
        (Method::GET, "/v1/vms?host=H1", "", String::new(), 422, Some("host")),
        (Method::GET, "/v1/vms/web/console", "", String::new(), 400, None),
        (Method::PUT, "/v1/images/x/files/firmware", "", "x".to_owned(), 404, None),
        (Method::PUT, "/v1/images/X/files/disk", "", "x".to_owned(), 422, Some("image")),
        (Method::PUT, "/v1/images/x/files/disk", "", String::new(), 422, None),
        (post(), "/v1/tenants", "text/plain", "{}".to_owned(), 415, None),
        (post(), "/v1/tenants", json, "{".to_owned(), 400, None),
        (post(), "/v1/tenants", json, "{\"name\": \"a\"} x".to_owned(), 400, None),
        (post(), "/v1/tenants", json, "\u{0}".to_owned(), 400, None),
        (post(), "/v1/tenants", json, "{}".to_owned(), 422, Some("name")),
        (post(), "/v1/tenants", json, "{\"name\": 7}".to_owned(), 422, Some("name")),
        (post(), "/v1/tenants", json, "{\"name\": \"A B\"}".to_owned(), 422, Some("name")),
        (post(), "/v1/tenants", json, format!("{{\"name\": \"{}\"}}", "x".repeat(64)), 422, Some("name")),
        (post(), "/v1/tenants", json, format!("\"{}\"", "x".repeat(2 << 20)), 413, None),
        (Method::PATCH, "/v1/policy", json, "[".repeat(100_000), 400, None),
        (post(), "/v1/tokens", json, json!({"role": "king"}).to_string(), 422, Some("role")),
        (post(), "/v1/tokens", json, json!({"role": "tenant"}).to_string(), 422, Some("tenant")),
        (post(), "/v1/tokens", json, json!({"role": "tenant", "tenant": "nobody"}).to_string(), 404, Some("tenant")),
        (post(), "/v1/tokens", json, json!({"role": "operator", "expires_s": 0}).to_string(), 422, Some("expires_s")),
        (post(), "/v1/hosts/h9/drain", "", String::new(), 404, None),
        (post(), "/v1/hosts/h9/token", json, json!({"expires_s": 999_999_999}).to_string(), 422, Some("expires_s")),
        (post(), "/v1/images", json, json!({"name": "x", "files": []}).to_string(), 422, Some("files")),
        (post(), "/v1/images", json, json!({"name": "x", "files": ["disk"]}).to_string(), 422, Some("files")),
        (post(), "/v1/images", json, json!({"name": "x", "files": ["floppy"]}).to_string(), 422, Some("files[0]")),
        (post(), "/v1/vms", json, vm(json!({"colour": "red"})), 422, Some("colour")),
        (post(), "/v1/vms", json, vm(json!({"vcpus": -1})), 422, Some("vcpus")),
        (post(), "/v1/vms", json, vm(json!({"vcpus": 65})), 422, Some("vcpus")),
        (post(), "/v1/vms", json, vm(json!({"memory_mib": 1})), 422, Some("memory_mib")),
        (post(), "/v1/vms", json, vm(json!({"tenant": "nobody"})), 404, Some("tenant")),
        (post(), "/v1/vms", json, vm(json!({"image": "nothing"})), 404, Some("image")),
        (post(), "/v1/vms", json, vm(json!({"pinned_to": ["h9"]})), 422, Some("pinned_to")),
        (post(), "/v1/vms", json, vm(json!({"guest_args": {"a": "b c"}})), 422, Some("guest_args.a")),
        (post(), "/v1/vms", json, vm(json!({"memory_mib": 1_000_000})), 422, None),
        (post(), "/v1/vms/nothing/start", "", String::new(), 404, None),
        (post(), "/v1/plans/7/approve", "", String::new(), 404, None),
        (post(), "/v1/migrations/7/cancel", "", String::new(), 404, None),
        (Method::PATCH, "/v1/policy", json, json!({"hot_above": 2.0}).to_string(), 422, Some("hot_above")),
        (Method::PATCH, "/v1/policy", json, json!({"hot_abov": 0.8}).to_string(), 422, Some("hot_abov")),
        (Method::PATCH, "/v1/policy", json, json!([]).to_string(), 422, None),
        (Method::PUT, "/v1/policy", json, json!({"horizon_ms": 0}).to_string(), 422, Some("horizon_ms")),
        (Method::PUT, "/v1/policy", json, json!({"mode": "wild"}).to_string(), 422, Some("mode")),
    ]
}

#[tokio::test]
async fn bad_requests_are_refused_by_name_and_change_nothing() {
    let cluster = Cluster::start().await;
    let _agent = cluster.host("h1").await;
    cluster.tenant("acme").await;
    cluster.image("small").await;
    let operator = cluster.operator();
    eventually("h1 is known", async || {
        operator.of::<Host>().get("h1").await.ok().filter(|host| host.capacity.is_some())
    })
    .await;
    let policy = operator.policy().await.unwrap();
    let raw = cluster.raw();
    for (method, path, content_type, body, status, field) in bad_requests() {
        let shown: String = body.chars().take(100).collect();
        let what = format!("{method} {path} {shown}");
        let mut request =
            raw.request(method, format!("{}{path}", cluster.server())).bearer_auth(cluster.operator_token()).body(body);
        if !content_type.is_empty() {
            request = request.header("content-type", content_type);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{what}");
        assert_eq!(response.headers()["content-type"], MEDIA_TYPE, "{what}");
        let problem: Problem = response.json().await.unwrap();
        assert_eq!((problem.status, problem.field.as_deref()), (status, field), "{what}: {problem}");
        assert!(problem.detail.len() > 10, "{what}: {problem:?}");
    }
    assert_eq!(operator.of::<Tenant>().all().await.unwrap().items.len(), 1);
    assert!(operator.of::<Vm>().list(&ListQuery::default()).await.unwrap().items.is_empty());
    assert_eq!(operator.of::<Image>().all().await.unwrap().items.len(), 1);
    assert_eq!(operator.policy().await.unwrap().value, policy.value);
}

#[tokio::test]
async fn a_name_twice_is_a_conflict() {
    let cluster = Cluster::start().await;
    let _agent = cluster.host("h1").await;
    let acme = cluster.tenant("acme").await;
    cluster.image("small").await;
    let operator = cluster.operator();
    eventually("a host is known", async || acme.of::<Vm>().create(&small_vm("web")).await.ok()).await;
    let token = CreateToken { id: Some("ci".to_owned()), role: RoleName::Operator, tenant: None, expires_s: None };
    operator.create_token(&token).await.unwrap();
    let file = cluster.dir.path().join("kernel");
    let refused = problem(operator.of::<Tenant>().create(&create_tenant("acme")).await);
    assert_eq!((refused.status, refused.field.as_deref()), (409, Some("name")));
    for refused in [
        problem(acme.of::<Vm>().create(&small_vm("web")).await),
        problem(operator.create_token(&token).await),
        problem(operator.stage_image_file("small", ImagePart::Kernel, &file, |_| ()).await),
        problem(operator.of::<Image>().remove("small").await),
        problem(operator.of::<Tenant>().remove("acme").await),
    ] {
        assert_eq!(refused.status, 409, "{refused}");
    }
}

#[tokio::test]
async fn a_request_repeated_with_its_key_gives_the_first_answer() {
    let cluster = Cluster::start().await;
    let _agent = cluster.host("h1").await;
    let acme = cluster.tenant("acme").await;
    cluster.image("small").await;
    eventually("a host is known", async || {
        cluster.operator().of::<Host>().get("h1").await.ok().filter(|h| h.capacity.is_some())
    })
    .await;
    let keyed = acme.with_idempotency_key("key-1").unwrap();
    let first = keyed.of::<Vm>().create(&small_vm("web")).await.unwrap();
    let again = keyed.of::<Vm>().create(&small_vm("web")).await.unwrap();
    assert_eq!(again.id, first.id);
    let other = problem(keyed.of::<Vm>().create(&small_vm("mail")).await);
    assert_eq!((other.status, other.field.as_deref()), (422, Some("Idempotency-Key")));
    assert_eq!(acme.of::<Vm>().list(&ListQuery::default()).await.unwrap().items.len(), 1);

    // A secret is told once; the repetition makes no second token.
    let operator = cluster.operator().with_idempotency_key("key-2").unwrap();
    let ask = CreateToken { id: Some("ci".to_owned()), role: RoleName::Operator, tenant: None, expires_s: None };
    operator.create_token(&ask).await.unwrap();
    problem(operator.create_token(&ask).await);
    let tokens = operator.of::<ApiToken>().all().await.unwrap().items;
    assert_eq!(tokens.iter().filter(|token| token.id.as_str() == "ci").count(), 1);

    // An image's files are gone from the staging area by then; the answer is remembered all the same.
    let operator = cluster.operator().with_idempotency_key("key-3").unwrap();
    let file = cluster.dir.path().join("kernel");
    operator.stage_image_file("tiny", ImagePart::Kernel, &file, |_| ()).await.unwrap();
    let create = create_image("tiny", vec![ImagePart::Kernel]);
    let first = operator.create_image(&create).await.unwrap();
    assert_eq!(operator.create_image(&create).await.unwrap(), first);
}

#[tokio::test]
async fn a_condition_that_no_longer_holds_is_refused() {
    let cluster = Cluster::start().await;
    let operator = cluster.operator();
    let read = operator.policy().await.unwrap();
    let revision = read.revision.unwrap();
    let guarded = operator.with_if_match(revision);
    let changed = guarded.patch_policy(&json!({"mode": "observe"})).await.unwrap();
    assert_eq!(changed.mode, drover_model::policy::Mode::Observe);
    let refused = problem(guarded.patch_policy(&json!({"mode": "act"})).await);
    assert_eq!(refused.status, 412, "{refused}");
    let refused = problem(guarded.set_policy(&read.value).await);
    assert_eq!(refused.status, 412, "{refused}");
    let now = operator.policy().await.unwrap();
    assert_eq!(now.value, changed);
    assert!(now.revision.unwrap() > revision);
    operator.of::<Tenant>().create(&create_tenant("acme")).await.unwrap();
    let refused = problem(operator.with_if_match(Revision(1_000_000)).of::<Tenant>().remove("acme").await);
    assert_eq!(refused.status, 412, "{refused}");

    let url = format!("{}/v1/policy", cluster.server());
    let response = cluster
        .raw()
        .patch(url)
        .bearer_auth(cluster.operator_token())
        .header("if-match", "W/\"1\"")
        .json(&json!({}))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn patches_made_at_the_same_time_all_stay() {
    let cluster = Cluster::start().await;
    let operator = cluster.operator();
    let patches = [json!({"hosts_up_min": 2}), json!({"spare_hosts": 1}), json!({"settle_ms": 7_000})];
    let patched = futures_util::future::join_all(patches.iter().map(|patch| operator.patch_policy(patch))).await;
    assert!(patched.iter().all(Result::is_ok), "{patched:?}");
    let policy = operator.policy().await.unwrap().value;
    assert_eq!((policy.hosts_up_min, policy.spare_hosts, policy.settle_ms), (2, 1, 7_000));
}

#[tokio::test]
async fn an_image_is_what_was_uploaded() {
    let cluster = Cluster::with("[limits]\nimage_file_bytes_max = 100000").await;
    let operator = cluster.operator();
    let content: Vec<u8> = (0..90_000_u32).map(|n| (n % 251) as u8).collect();
    let file = cluster.dir.path().join("disk");
    std::fs::write(&file, &content).unwrap();
    let staged = operator.stage_image_file("big", ImagePart::Disk, &file, |_| ()).await.unwrap();
    assert_eq!(staged.sha256, drover_server::secret::sha256_hex(&content));
    let create = create_image("big", vec![ImagePart::Disk]);
    let image = operator.create_image(&create).await.unwrap();
    assert_eq!(image.disk.unwrap().size_bytes, 90_000);
    let images = cluster.config.shared_dir.join("images");
    assert_eq!(std::fs::read(images.join("big/disk")).unwrap(), content);
    assert!(!images.join(".staging/big").exists());

    std::fs::write(&file, vec![0; 100_001]).unwrap();
    let refused = problem(operator.stage_image_file("huge", ImagePart::Disk, &file, |_| ()).await);
    assert_eq!(refused.status, 413, "{refused}");
    let left: Vec<_> = std::fs::read_dir(images.join(".staging")).unwrap().flatten().collect();
    let files = left.iter().filter_map(|dir| std::fs::read_dir(dir.path()).ok()).flatten().count();
    assert_eq!(files, 0);

    operator.of::<Image>().remove("big").await.unwrap();
    assert!(!images.join("big").exists());
}

#[tokio::test]
async fn events_are_streamed_and_resumed_without_loss() {
    let cluster = Cluster::start().await;
    let operator = cluster.operator();
    let make = async |id: &str| operator.of::<Tenant>().create(&create_tenant(id)).await.unwrap();
    make("one").await;
    let before = operator.events(&EventQuery::default()).await.unwrap().items.last().unwrap().seq;
    let mut stream =
        Box::pin(operator.event_stream(EventStreamStart { after: Some(before), ..EventStreamStart::default() }));
    make("two").await;
    let two = stream.next().await.unwrap().unwrap();
    assert_eq!((two.kind.as_str(), two.object.as_str()), ("tenant-created", "tenant/two"));
    drop(stream);
    make("three").await;
    make("four").await;
    let mut stream =
        Box::pin(operator.event_stream(EventStreamStart { after: Some(two.seq), ..EventStreamStart::default() }));
    assert_eq!(stream.next().await.unwrap().unwrap().object, "tenant/three");
    assert_eq!(stream.next().await.unwrap().unwrap().object, "tenant/four");
    let object = Some("tenant/four".to_owned());
    let only = EventStreamStart { after: Some(before), object, ..EventStreamStart::default() };
    let mut stream = Box::pin(operator.event_stream(only));
    assert_eq!(stream.next().await.unwrap().unwrap().object, "tenant/four");
    // A page starts where it is told to.
    let page = EventQuery { after: Some(two.seq.0), limit: Some(1), ..EventQuery::default() };
    assert_eq!(operator.events(&page).await.unwrap().items[0].object, "tenant/three");
}

#[tokio::test]
async fn an_idle_event_stream_is_kept_alive_and_ends_with_the_server() {
    let cluster = Cluster::with("[intervals]\nevent_keep_alive_s = 1").await;
    let url = format!("{}/v1/events", cluster.server());
    let mut response = cluster
        .raw()
        .get(url)
        .bearer_auth(cluster.operator_token())
        .header("accept", "text/event-stream")
        .send()
        .await
        .unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let comment = response.chunk().await.unwrap().unwrap();
    assert!(comment.starts_with(b":"), "{comment:?}");
    cluster.stop().await.unwrap();
    while let Ok(Some(_)) = response.chunk().await {}
}

#[tokio::test]
async fn too_many_event_streams_are_refused() {
    let cluster = Cluster::with("[limits]\nevent_streams_max = 1").await;
    let open = async || {
        let url = format!("{}/v1/events", cluster.server());
        let request = cluster.raw().get(url).bearer_auth(cluster.operator_token());
        request.header("accept", "text/event-stream").send().await.unwrap()
    };
    let first = open().await;
    assert_eq!(first.status(), StatusCode::OK);
    assert_eq!(open().await.status(), StatusCode::TOO_MANY_REQUESTS);
    drop(first);
    eventually("the place is free again", async || (open().await.status() == StatusCode::OK).then_some(())).await;
}

#[tokio::test]
async fn a_console_carries_bytes_both_ways() {
    use drover_api::client::ConsoleOutput;
    let cluster = Cluster::start().await;
    let _agent = cluster.host("h1").await;
    let acme = cluster.tenant("acme").await;
    cluster.image("small").await;
    let query = TenantQuery::default();
    eventually("a host is known", async || acme.of::<Vm>().create(&small_vm("web")).await.ok()).await;
    eventually("running", async || acme.of::<Vm>().get("web").await.ok().filter(|vm| vm.phase == "running")).await;
    let mut console = acme.console("web", &query).await.unwrap();
    let heard = console.reader.read().await.unwrap();
    assert!(matches!(heard, ConsoleOutput::Bytes(bytes) if bytes == b"login: "));
    console.writer.write(b"root\n").await.unwrap();
    let heard = console.reader.read().await.unwrap();
    assert!(matches!(heard, ConsoleOutput::Bytes(bytes) if bytes == b"root\n"));
    console.writer.write(b"exit\n").await.unwrap();
    let heard = console.reader.read().await.unwrap();
    assert!(matches!(heard, ConsoleOutput::Closed(why) if why == "the guest hung up"));
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill() {
    let mut cluster = Cluster::start().await;
    let agent = cluster.host("h1").await;
    let acme = cluster.tenant("acme").await;
    cluster.image("small").await;
    let vm = eventually("a host is known", async || acme.of::<Vm>().create(&small_vm("web")).await.ok()).await;
    cluster.operator().patch_policy(&json!({"mode": "propose"})).await.unwrap();
    let tokens = cluster.operator().of::<ApiToken>().all().await.unwrap().items.len();
    let ca = cluster.ca_pem();
    drop(agent);
    cluster.kill_and_start().await;
    assert_eq!(cluster.ca_pem(), ca);
    let operator = cluster.operator();
    let found = operator.of::<Vm>().get(vm.id.as_str()).await.unwrap();
    assert_eq!((found.name, found.tenant), (vm.name, vm.tenant));
    assert_eq!(operator.policy().await.unwrap().value.mode, drover_model::policy::Mode::Propose);
    // No second operator token was made.
    assert_eq!(operator.of::<ApiToken>().all().await.unwrap().items.len(), tokens);
    assert_eq!(operator.of::<Host>().all().await.unwrap().items.len(), 1);
    let kinds: BTreeSet<String> =
        operator.events(&EventQuery::default()).await.unwrap().items.into_iter().map(|event| event.kind).collect();
    assert!(kinds.contains("vm-created"), "{kinds:?}");
}

#[tokio::test]
async fn metrics_show_hosts_vms_and_commits() {
    let cluster = Cluster::start().await;
    let _agent = cluster.host("h1").await;
    let page = eventually("a host is up", async || {
        cluster.operator().metrics().await.ok().filter(|page| page.contains("drover_hosts{state=\"up\"} 1"))
    })
    .await;
    for line in ["drover_agents_connected 1", "drover_store_commit_duration_seconds_count", "# EOF"] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
    assert!(!page.contains("drover_process_resident_memory_bytes 0\n"));
}

#[tokio::test]
async fn only_one_server_has_a_directory_and_a_port() {
    let cluster = Cluster::start().await;
    let error = drover_server::start(cluster.config.clone()).await.unwrap_err().to_string();
    assert!(error.contains("another server runs"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let mut config = crate::support::config(dir.path(), "");
    config.listen = cluster.api;
    let error = drover_server::start(config).await.unwrap_err().to_string();
    assert!(error.contains("listen") && error.contains("in use"), "{error}");
}

#[tokio::test]
async fn the_operators_files_work_and_are_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let cluster = Cluster::start().await;
    for file in ["operator.token", "client.toml", "pki/ca.key", "pki/server.key"] {
        let mode = std::fs::metadata(cluster.config.data_dir.join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let client: toml::Table =
        std::fs::read_to_string(cluster.config.data_dir.join("client.toml")).unwrap().parse().unwrap();
    assert_eq!(client["server"].as_str().unwrap(), cluster.server());
    assert!(std::path::Path::new(client["ca_file"].as_str().unwrap()).exists());
    assert_eq!(cluster.operator().whoami().await.unwrap().role, RoleName::Operator);
    let health = cluster.client(None).health().await.unwrap();
    assert_eq!(health.status, "ok");
}

/// A body that begins and never ends.
fn endless() -> reqwest::Body {
    let first = futures_util::stream::iter([Ok::<_, std::io::Error>("{")]);
    reqwest::Body::wrap_stream(first.chain(futures_util::stream::pending()))
}

#[tokio::test]
async fn a_client_that_stops_sending_is_cut_off() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let limits = "[limits]\nrequest_timeout_s = 1\nupload_idle_timeout_s = 1\nheader_timeout_s = 1";
    let cluster = Cluster::with(limits).await;
    for (method, path) in [(Method::POST, "/v1/tenants"), (Method::PUT, "/v1/images/x/files/disk")] {
        let request = cluster
            .raw()
            .request(method, format!("{}{path}", cluster.server()))
            .bearer_auth(cluster.operator_token())
            .header("content-type", "application/json")
            .body(endless());
        let problem: Problem = request.send().await.unwrap().json().await.unwrap();
        assert_eq!(problem.status, 504, "{path}: {problem}");
    }
    let mut half = cluster.tls().await;
    half.write_all(b"GET /v1/whoami HTTP/1.1\r\nHost: x").await.unwrap();
    let mut rest = Vec::new();
    let read = tokio::time::timeout(crate::support::DEADLINE, half.read_to_end(&mut rest)).await;
    assert!(read.is_ok(), "the connection stayed open");
}

#[tokio::test]
async fn a_stream_ends_when_its_token_is_removed() {
    let cluster = Cluster::start().await;
    let operator = cluster.operator();
    let ask = CreateToken { id: Some("ci".to_owned()), role: RoleName::Operator, tenant: None, expires_s: None };
    let token = operator.create_token(&ask).await.unwrap().token;
    let url = format!("{}/v1/events", cluster.server());
    let request = cluster.raw().get(url).bearer_auth(token).header("accept", "text/event-stream");
    let mut response = request.send().await.unwrap();
    operator.of::<ApiToken>().remove("ci").await.unwrap();
    let mut heard = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        heard.extend_from_slice(&chunk);
    }
    let heard = String::from_utf8(heard).unwrap();
    assert!(!heard.contains("token-removed"), "{heard}");
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let cluster = Cluster::with("[limits]\nimage_file_bytes_max = 100000").await;
    let acme = cluster.tenant("acme").await;
    let file = cluster.dir.path().join("disk");
    std::fs::write(&file, vec![7; 20 << 20]).unwrap();
    for _ in 0..10 {
        let too_large = cluster.operator().stage_image_file("big", ImagePart::Disk, &file, |_| ()).await;
        assert_eq!(problem(too_large).status, 413);
        let forbidden = acme.stage_image_file("big", ImagePart::Disk, &file, |_| ()).await;
        assert_eq!(problem(forbidden).status, 403);
        let create = CreateVm { image: "x".repeat(20 << 20), ..small_vm("web") };
        assert_eq!(problem(cluster.operator().of::<Vm>().create(&create).await).status, 413);
    }
}
