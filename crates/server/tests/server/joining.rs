//! How hosts join and agents connect: who is let in, who is not, and what they are told.

use crate::support::{Cluster, DEADLINE, Identity, eventually, facts, hello};
use drover_api::agent::{FromAgent, Hello, PROTOCOL_VERSION, ToAgent};
use drover_api::join::JoinTokenText;
use drover_api::v1::CreateJoinToken;
use drover_model::intent::Host;
use drover_model::world::HostState;
use rcgen::{CertificateParams, DnType, KeyPair};

#[tokio::test]
async fn a_host_joins_connects_and_is_up() {
    let cluster = Cluster::start().await;
    let _agent = cluster.host("h1").await;
    let operator = cluster.operator();
    let host = eventually("h1 is up", async || {
        operator.of::<Host>().get("h1").await.ok().filter(|host| host.state == HostState::Up && host.load.is_some())
    })
    .await;
    assert!(host.connected);
    assert_eq!(host.capacity.unwrap().cpu_millis, 4_000);
    assert_eq!(host.facts.unwrap().qemu_version, "7.2.22");
}

#[tokio::test]
async fn a_join_token_works_once_for_its_host_only() {
    let cluster = Cluster::start().await;
    let token = cluster.join_token("h1").await;
    let wrong_host = cluster.join_with("h2", &token).await.err().unwrap();
    assert_eq!(wrong_host.status, 401, "{wrong_host}");
    assert!(wrong_host.detail.contains("drover host token"), "{wrong_host}");

    cluster.join_with("h1", &token).await.unwrap();
    let reused = cluster.join_with("h1", &token).await.err().unwrap();
    assert_eq!(reused.status, 401, "{reused}");
}

#[tokio::test]
async fn a_join_token_with_another_secret_is_refused() {
    let cluster = Cluster::start().await;
    let mut token: JoinTokenText = cluster.join_token("h1").await.parse().unwrap();
    token.secret = "0".repeat(64);
    let refused = cluster.join_with("h1", &token.to_string()).await.err().unwrap();
    assert_eq!(refused.status, 401, "{refused}");
    for nonsense in ["", "a.b", "join-x", "join-x.1234.5678"] {
        let refused = cluster.join_with("h1", nonsense).await.err().unwrap();
        assert_eq!((refused.status, refused.field.as_deref()), (422, Some("token")), "{nonsense}: {refused}");
    }
}

#[tokio::test]
async fn an_expired_join_token_is_refused() {
    let cluster = Cluster::start().await;
    let ask = CreateJoinToken { expires_s: Some(1) };
    let created = cluster.operator().create_join_token("h1", &ask).await.unwrap();
    eventually("the token has expired", async || (drover_server::shell::now().0 > created.expires_at_ms).then_some(()))
        .await;
    let refused = cluster.join_with("h1", &created.token).await.err().unwrap();
    assert_eq!(refused.status, 401, "{refused}");
    assert!(refused.detail.contains("drover host token h1"), "{refused}");
}

#[tokio::test]
async fn the_token_carries_the_fingerprint_of_the_ca_that_the_server_gives() {
    let cluster = Cluster::start().await;
    let token: JoinTokenText = cluster.join_token("h1").await.parse().unwrap();
    let url = format!("{}/v1/ca", cluster.server());
    let pem = cluster.raw().get(url).send().await.unwrap().text().await.unwrap();
    let der: rustls::pki_types::CertificateDer<'_> =
        rustls::pki_types::pem::PemObject::from_pem_slice(pem.as_bytes()).unwrap();
    assert_eq!(drover_server::secret::sha256_hex(&der), token.ca_sha256);
}

#[tokio::test]
async fn a_client_certificate_of_another_ca_is_refused_at_tls() {
    let cluster = Cluster::start().await;
    cluster.join("h1").await;
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "h1");
    let forged = Identity {
        host: "h1".parse().unwrap(),
        certificate_pem: params.self_signed(&key).unwrap().pem(),
        key_pem: key.serialize_pem(),
    };
    assert!(cluster.dial(Some(&forged)).await.is_err());
    assert!(cluster.dial(None).await.is_err());
}

#[tokio::test]
async fn an_agent_that_calls_itself_otherwise_is_refused() {
    let cluster = Cluster::start().await;
    let identity = cluster.join("h1").await;
    cluster.join("h2").await;
    let mut link = cluster.dial(Some(&identity)).await.unwrap();
    link.say(hello(&"h2".parse().unwrap())).await;
    let why = link.refusal().await;
    assert!(why.contains("h1") && why.contains("h2"), "{why}");
    assert!(link.hear().await.is_none());
}

#[tokio::test]
async fn another_protocol_version_is_refused_by_name() {
    let cluster = Cluster::start().await;
    let identity = cluster.join("h1").await;
    let mut link = cluster.dial(Some(&identity)).await.unwrap();
    let newer = Hello { protocol: PROTOCOL_VERSION + 1, host: identity.host.clone(), facts: facts(), vms: Vec::new() };
    link.say(FromAgent::Hello(newer)).await;
    assert!(link.refusal().await.contains(&format!("protocol {}", PROTOCOL_VERSION + 1)));
    // Even one whose hello looks otherwise.
    let mut link = cluster.dial(Some(&identity)).await.unwrap();
    link.say_text(r#"{"message":"hello","protocol":9,"node":"h1"}"#).await;
    assert!(link.refusal().await.contains("protocol 9"));
}

#[tokio::test]
async fn what_is_no_hello_is_refused() {
    let cluster = Cluster::start().await;
    let identity = cluster.join("h1").await;
    for text in ["nonsense", "{}", r#"{"message":"console-closed","session":1,"why":"x"}"#] {
        let mut link = cluster.dial(Some(&identity)).await.unwrap();
        link.say_text(text).await;
        assert!(!link.refusal().await.is_empty());
    }
}

#[tokio::test]
async fn a_removed_host_is_disconnected_and_refused_until_it_joins_again() {
    let cluster = Cluster::start().await;
    let identity = cluster.join("h1").await;
    let mut link = cluster.dial(Some(&identity)).await.unwrap();
    link.say(hello(&identity.host)).await;
    assert!(matches!(link.hear().await, Some(ToAgent::Welcome(_))));
    let operator = cluster.operator();
    eventually("h1 is connected", async || operator.of::<Host>().get("h1").await.ok().filter(|host| host.connected))
        .await;
    operator.of::<Host>().remove("h1").await.unwrap();
    assert!(link.refusal().await.contains("removed"));

    let mut link = cluster.dial(Some(&identity)).await.unwrap();
    link.say(hello(&identity.host)).await;
    assert!(link.refusal().await.contains("drover host token h1"));
    let again = cluster.join("h1").await;
    let _agent = cluster.agent(&again).await;
}

#[tokio::test]
async fn a_newer_connection_of_a_host_takes_the_place_of_the_older() {
    let cluster = Cluster::start().await;
    let identity = cluster.join("h1").await;
    let mut older = cluster.dial(Some(&identity)).await.unwrap();
    older.say(hello(&identity.host)).await;
    assert!(matches!(older.hear().await, Some(ToAgent::Welcome(_))));
    let mut newer = cluster.dial(Some(&identity)).await.unwrap();
    newer.say(hello(&identity.host)).await;
    assert!(matches!(newer.hear().await, Some(ToAgent::Welcome(_))));
    assert!(older.refusal().await.contains("newer connection"));
    assert!(cluster.operator().of::<Host>().get("h1").await.unwrap().connected);
}

#[tokio::test]
async fn a_silent_agent_is_disconnected() {
    let cluster = Cluster::with("[intervals]\nagent_idle_s = 2").await;
    let identity = cluster.join("h1").await;
    let mut link = cluster.dial(Some(&identity)).await.unwrap();
    link.say(hello(&identity.host)).await;
    assert!(matches!(link.hear().await, Some(ToAgent::Welcome(_))));
    // Nobody reads this side, so nobody answers the server's pings.
    let operator = cluster.operator();
    eventually("h1 is disconnected", async || {
        operator.of::<Host>().get("h1").await.ok().filter(|host| !host.connected)
    })
    .await;
}

#[tokio::test]
async fn a_frame_that_is_too_long_ends_the_connection() {
    let cluster = Cluster::start().await;
    let identity = cluster.join("h1").await;
    let mut link = cluster.dial(Some(&identity)).await.unwrap();
    link.say(hello(&identity.host)).await;
    assert!(matches!(link.hear().await, Some(ToAgent::Welcome(_))));
    link.say_text(&" ".repeat(drover_api::agent::FRAME_MAX + 1)).await;
    // What the server had to say before it read the frame comes first.
    let end = async { while link.hear().await.is_some() {} };
    tokio::time::timeout(DEADLINE, end).await.expect("the connection ends");
}

#[tokio::test]
async fn a_handshake_that_is_never_made_is_cut_off() {
    use tokio::io::AsyncReadExt as _;
    let cluster = Cluster::with("[limits]\nhandshake_timeout_s = 1").await;
    let mut silent = tokio::net::TcpStream::connect(cluster.agents).await.unwrap();
    let mut byte = [0];
    let read = tokio::time::timeout(DEADLINE, silent.read(&mut byte)).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}

#[tokio::test]
async fn no_more_agents_connect_than_allowed() {
    let cluster = Cluster::with("[limits]\nagents_max = 1").await;
    let (one, two) = (cluster.join("h1").await, cluster.join("h2").await);
    let first = cluster.agent(&one).await;
    let mut second = Box::pin(cluster.dial(Some(&two)));
    // It waits in the kernel's queue while the first is served and heard.
    let operator = cluster.operator();
    let first_is_up = eventually("h1 is up", async || {
        operator.of::<Host>().get("h1").await.ok().filter(|host| host.state == HostState::Up && host.load.is_some())
    });
    tokio::select! {
        _ = &mut second => panic!("a second connection was served"),
        _ = first_is_up => {}
    }
    drop(first);
    assert!(second.await.is_ok());
}
