//! The client against a small real server on loopback.

use axum::body::{Body, Bytes};
use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use drover_api::client::{ApiError, Client, ClientConfig, ConsoleOutput, EventStreamStart};
use drover_api::problem::{MEDIA_TYPE, Problem, ProblemType};
use drover_api::v1::{CreateTenant, EventQuery, ImagePart, TenantQuery};
use drover_model::intent::Host;
use drover_model::intent::Tenant;
use drover_model::intent::Vm;
use drover_model::{EventSeq, Revision};
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;

fn token() -> String {
    format!("drover_ops_{}", "0a".repeat(32))
}

async fn serve(router: Router) -> Client {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    Client::new(&ClientConfig { server, ca_pem: None, token: Some(token()) }).unwrap()
}

fn problem(kind: ProblemType, detail: &str) -> Response {
    let problem = Problem::new(kind, detail);
    let status = StatusCode::from_u16(problem.status).unwrap();
    (status, [("content-type", MEDIA_TYPE)], Json(problem).into_response().into_body()).into_response()
}

fn event(seq: u64) -> Value {
    json!({
        "seq": seq, "at_ms": 1, "severity": "info", "object": "cluster", "tenant": null, "kind": "test", "text": "t",
    })
}

#[tokio::test]
async fn a_refusal_arrives_as_the_problem_it_is() {
    let router = Router::new()
        .route("/v1/hosts/{host}", get(|| async { problem(ProblemType::NotFound, "there is no host h9") }))
        .route("/v1/cluster", get(|| async { (StatusCode::BAD_GATEWAY, "<html>") }))
        .route("/v1/whoami", get(|| async { "{\"name\": 5}" }));
    let client = serve(router).await;
    match client.of::<Host>().get("h9").await.unwrap_err() {
        ApiError::Problem(problem) => {
            assert_eq!((problem.status, problem.detail.as_str()), (404, "there is no host h9"));
        }
        other => panic!("{other:?}"),
    }
    let error = client.cluster().await.unwrap_err();
    assert_eq!(error.status(), Some(502), "{error}");
    let error = client.whoami().await.unwrap_err().to_string();
    assert!(error.contains("does not fit"), "{error}");
}

#[tokio::test]
async fn requests_carry_the_token_and_what_makes_them_conditional_and_repeatable() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let keep = seen.clone();
    let record = move |uri: Uri, headers: HeaderMap, body: String| {
        let header = |name: &str| headers.get(name).map(|v| v.to_str().unwrap().to_owned());
        let row = (uri.to_string(), header("authorization"), header("idempotency-key"), header("if-match"), body);
        keep.lock().unwrap().push(row);
        async { (StatusCode::CREATED, Json(json!({"id": "tn-1", "name": "acme", "revision": 4, "created_at_ms": 1}))) }
    };
    let client = serve(Router::new().route("/v1/tenants", post(record))).await;
    let keyed = client.with_idempotency_key("run-1").unwrap().with_if_match(Revision(3));
    let (name, labels, quota) = ("acme".parse().unwrap(), Default::default(), Default::default());
    let create = CreateTenant { labels, quota, ..CreateTenant::named(name) };
    let tenant = keyed.of::<Tenant>().create(&create).await.unwrap();
    assert_eq!(tenant.revision, Revision(4));
    let (uri, authorization, key, if_match, body) = seen.lock().unwrap().remove(0);
    assert_eq!(uri, "/v1/tenants");
    assert_eq!(authorization.unwrap(), format!("Bearer {}", token()));
    assert_eq!(key.as_deref(), Some("run-1"));
    assert_eq!(if_match.as_deref(), Some("\"3\""));
    assert_eq!(body, "{\"name\":\"acme\"}");
    for bad in ["", "a b", "é", &"x".repeat(129)] {
        assert!(client.with_idempotency_key(bad).is_none(), "{bad:?}");
    }
}

#[tokio::test]
async fn a_name_can_not_reach_another_route() {
    let router = Router::new().fallback(|uri: Uri| async move { problem(ProblemType::NotFound, uri.path()) });
    let client = serve(router).await;
    for (name, path) in [("../hosts", "/v1/vms/..%2Fhosts"), ("a?b=c#d", "/v1/vms/a%3Fb=c%23d")] {
        let error = client.of::<Vm>().get(name).await.unwrap_err();
        assert_eq!(error.to_string(), path);
    }
}

#[tokio::test]
async fn a_get_is_repeated_until_it_gets_through_and_then_given_up() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let client = Client::new(&ClientConfig { server: server.clone(), ..ClientConfig::default() }).unwrap();
    match client.health().await.unwrap_err() {
        ApiError::Unreachable { server: named, .. } => assert_eq!(named, server),
        other => panic!("{other:?}"),
    }
    // A server that hangs up on the first try.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        drop(listener.accept().await);
        let router = Router::new().route("/healthz", get(|| async { Json(json!({"status": "ok"})) }));
        axum::serve(listener, router).await
    });
    let client = Client::new(&ClientConfig { server, ..ClientConfig::default() }).unwrap();
    assert_eq!(client.health().await.unwrap().status, "ok");
}

#[tokio::test]
async fn an_answer_without_end_is_cut_off() {
    let endless = || async {
        let chunk = Bytes::from(vec![b' '; 1 << 20]);
        Body::from_stream(futures_util::stream::repeat_with(move || Ok::<_, std::io::Error>(chunk.clone())))
    };
    let client = serve(Router::new().route("/v1/cluster", get(endless))).await;
    let error = client.cluster().await.unwrap_err();
    assert!(matches!(error, ApiError::TooLong { .. }), "{error}");
}

/// Each connection gives two events and breaks off; the third one is refused.
#[derive(Clone, Default)]
struct Broken {
    resumed_after: Arc<Mutex<Vec<Option<String>>>>,
}

async fn events_in_pieces(State(broken): State<Broken>, headers: HeaderMap) -> Response {
    if headers.get("accept").is_none_or(|accept| accept != "text/event-stream") {
        return Json(json!({"items": [event(40)]})).into_response();
    }
    let last = headers.get("last-event-id").map(|id| id.to_str().unwrap().to_owned());
    let next = last.as_deref().map_or(1, |id| id.parse::<u64>().unwrap() + 1);
    let count = {
        let mut resumed = broken.resumed_after.lock().unwrap();
        resumed.push(last);
        resumed.len()
    };
    if count == 3 {
        return problem(ProblemType::Unauthorized, "the token has expired");
    }
    // The first one again on the second connection: seen events must not come twice.
    let from = if count == 2 { next - 1 } else { next };
    let text: String = (from..next + 2).map(|n| format!("id: {n}\nevent: event\ndata: {}\n\n", event(n))).collect();
    // The last message is cut in the middle and must not count.
    format!(": keep-alive\n\nevent: other\ndata: {{}}\n\n{text}id: 99\nevent: event\ndata: {{").into_response()
}

#[tokio::test]
async fn an_event_stream_resumes_where_it_broke_and_ends_when_refused() {
    let broken = Broken::default();
    let client = serve(Router::new().route("/v1/events", get(events_in_pieces)).with_state(broken.clone())).await;
    let start = EventStreamStart { after: Some(EventSeq(6)), ..EventStreamStart::default() };
    let items: Vec<_> = client.event_stream(start).collect().await;
    let (last, events) = items.split_last().unwrap();
    let seqs: Vec<u64> = events.iter().map(|event| event.as_ref().unwrap().seq.0).collect();
    assert_eq!(seqs, [7, 8, 9, 10]);
    assert!(matches!(last, Err(ApiError::Problem(problem)) if problem.status == 401), "{last:?}");
    let resumed = broken.resumed_after.lock().unwrap().clone();
    assert_eq!(resumed, ["6", "8", "10"].map(|id| Some(id.to_owned())));
}

#[tokio::test]
async fn from_now_on_means_after_the_newest_event() {
    let broken = Broken::default();
    let client = serve(Router::new().route("/v1/events", get(events_in_pieces)).with_state(broken)).await;
    let first = Box::pin(client.event_stream(EventStreamStart::default())).next().await.unwrap().unwrap();
    assert_eq!(first.seq, EventSeq(41));
    let listed = client.events(&EventQuery::default()).await.unwrap();
    assert_eq!(listed.items[0].seq, EventSeq(40));
}

#[tokio::test]
async fn an_image_file_is_uploaded_as_it_is() {
    let stage = |Path((image, part)): Path<(String, String)>, body: Bytes| async move {
        let sum = body.iter().map(|b| u64::from(*b)).sum::<u64>();
        Json(json!({"image": image, "part": part, "size_bytes": body.len(), "sha256": sum.to_string()}))
    };
    let client = serve(Router::new().route("/v1/images/{image}/files/{part}", put(stage))).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![1; 300_000]).unwrap();
    let sent = Arc::new(Mutex::new(0));
    let keep = sent.clone();
    let staged = client
        .stage_image_file("tiny", ImagePart::Initrd, file.path(), move |bytes| *keep.lock().unwrap() = bytes)
        .await
        .unwrap();
    assert_eq!((staged.size_bytes, staged.sha256.as_str(), staged.part), (300_000, "300000", ImagePart::Initrd));
    assert_eq!(*sent.lock().unwrap(), 300_000);
    let missing = std::path::Path::new("/no/such/file");
    let error = client.stage_image_file("tiny", ImagePart::Disk, missing, |_| ()).await.unwrap_err();
    assert_eq!(error.to_string(), "/no/such/file can't be read");
}

#[tokio::test]
async fn a_console_carries_bytes_both_ways_until_it_is_closed_with_a_reason() {
    async fn console(headers: HeaderMap, upgrade: WebSocketUpgrade) -> Response {
        assert!(headers.contains_key("authorization"));
        upgrade.on_upgrade(|mut socket| async move {
            while let Some(Ok(Message::Binary(typed))) = socket.recv().await {
                if typed.ends_with(b"\x04") {
                    let why = axum::extract::ws::CloseFrame { code: 1000, reason: "the vm has stopped".into() };
                    let _ = socket.send(Message::Close(Some(why))).await;
                    return;
                }
                let _ = socket.send(Message::Binary(typed.to_ascii_uppercase().into())).await;
            }
        })
    }
    let router = Router::new()
        .route("/v1/vms/web-1/console", get(console))
        .route("/v1/vms/web-2/console", get(|| async { problem(ProblemType::Conflict, "web-2 is stopped") }));
    let client = serve(router).await;
    let mut open = client.console("web-1", &TenantQuery::default()).await.unwrap();
    open.writer.write(b"login").await.unwrap();
    assert_eq!(open.reader.read().await.unwrap(), ConsoleOutput::Bytes(b"LOGIN".to_vec()));
    open.writer.write(b"\x04").await.unwrap();
    assert_eq!(open.reader.read().await.unwrap(), ConsoleOutput::Closed("the vm has stopped".to_owned()));
    let refused = client.console("web-2", &TenantQuery::default()).await.err().unwrap();
    assert_eq!(refused.to_string(), "web-2 is stopped");
}

#[test]
fn a_configuration_that_can_not_work_is_refused_with_what_to_do() {
    let config = |server: &str, token: Option<&str>| ClientConfig {
        server: server.to_owned(),
        ca_pem: None,
        token: token.map(str::to_owned),
    };
    for (config, said) in [
        (config("10.0.0.1:7443", None), "https://"),
        (config("https://10.0.0.1/v1", None), "not an address"),
        (config("http://10.0.0.1:7443", None), "use https://"),
        (config("https://10.0.0.1:7443", None), "--ca-file"),
        (config("http://127.0.0.1:1", Some("secret")), "check the token file"),
        (ClientConfig { ca_pem: Some("nothing".to_owned()), ..config("https://10.0.0.1:7443", None) }, "PEM"),
    ] {
        let error = Client::new(&config).err().unwrap().to_string();
        assert!(error.contains(said), "{error}");
    }
    let shown = format!("{:?}", config("https://h", Some(&token())));
    assert!(!shown.contains("0a0a"), "{shown}");
}
