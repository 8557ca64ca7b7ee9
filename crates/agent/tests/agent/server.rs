//! A server as the wire describes it, which says only what the test tells it to.

use drover_api::agent::{FromAgent, PATH, ToAgent, Welcome};
use drover_api::join::{JoinRequest, JoinResponse, JoinTokenText};
use drover_model::{Millis, TimeMs};
use futures_util::{SinkExt, StreamExt};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Callback, ErrorResponse, Request, Response};

/// No test waits longer for anything that must happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub const SECRET: &str = "5e";

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { pem: certificate.pem(), der: certificate.der().clone(), issuer: Issuer::new(params, key) }
    }

    fn server_identity(&self) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.der().clone(), PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap())
    }
}

pub struct Server {
    authority: Arc<Authority>,
    pub api_port: u16,
    agents: TcpListener,
    acceptor: TlsAcceptor,
    /// How often an agent has joined.
    pub joined: Arc<Mutex<u32>>,
}

impl Server {
    pub async fn start() -> Self {
        let authority = Arc::new(Authority::new());
        let api = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let agents = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (api_port, agent_port) = (api.local_addr().unwrap().port(), agents.local_addr().unwrap().port());
        let joined = Arc::new(Mutex::new(0));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = || {
            ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions().unwrap()
        };
        let (certificate, key) = authority.server_identity();
        let api_tls = builder().with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
        let api_acceptor = TlsAcceptor::from(Arc::new(api_tls));
        tokio::spawn(serve_api(api, api_acceptor, Arc::clone(&authority), agent_port, Arc::clone(&joined)));

        let mut roots = RootCertStore::empty();
        roots.add(authority.der.clone()).unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
        let (certificate, key) = authority.server_identity();
        let agent_tls = builder().with_client_cert_verifier(verifier).with_single_cert(vec![certificate], key).unwrap();
        Self { authority, api_port, agents, acceptor: TlsAcceptor::from(Arc::new(agent_tls)), joined }
    }

    pub fn token(&self) -> String {
        let ca_sha256: String = Sha256::digest(&self.authority.der).iter().map(|byte| format!("{byte:02x}")).collect();
        JoinTokenText { id: "join-a1".parse().unwrap(), secret: SECRET.repeat(32), ca_sha256 }.to_string()
    }

    /// The next connection of an agent, after both handshakes.
    pub async fn accept(&self) -> Connection {
        let accepted = async {
            let (tcp, _) = self.agents.accept().await.unwrap();
            let tls = self.acceptor.accept(tcp).await.expect("a client certificate of this cluster");
            let socket = tokio_tungstenite::accept_hdr_async(tls, ChecksPath).await.unwrap();
            Connection { socket }
        };
        timeout(PATIENCE, accepted).await.expect("the agent to dial")
    }

    /// A connection that has been welcomed, with what the agent said first.
    pub async fn welcome(&self) -> (Connection, drover_api::agent::Hello) {
        let mut connection = self.accept().await;
        let FromAgent::Hello(hello) = connection.hear().await else { panic!("not a hello") };
        connection.say(ToAgent::Welcome(Welcome { report_every: Millis(100), now: TimeMs(0) })).await;
        (connection, hello)
    }
}

struct ChecksPath;

impl Callback for ChecksPath {
    fn on_request(self, request: &Request, response: Response) -> Result<Response, ErrorResponse> {
        assert_eq!(request.uri().path(), PATH);
        Ok(response)
    }
}

pub struct Connection {
    socket: WebSocketStream<TlsStream<TcpStream>>,
}

impl Connection {
    pub async fn say(&mut self, message: ToAgent) {
        self.socket.send(Message::text(serde_json::to_string(&message).unwrap())).await.unwrap();
    }

    pub async fn hear(&mut self) -> FromAgent {
        loop {
            let message = timeout(PATIENCE, self.socket.next()).await.expect("word from the agent");
            if let Message::Text(text) = message.expect("an agent that stays").unwrap() {
                return serde_json::from_str(&text).unwrap();
            }
        }
    }

    /// The first message that `pick` finds what it looks for in.
    pub async fn hear_until<T>(&mut self, what: &str, mut pick: impl FnMut(FromAgent) -> Option<T>) -> T {
        let heard = async {
            loop {
                if let Some(found) = pick(self.hear().await) {
                    return found;
                }
            }
        };
        timeout(PATIENCE, heard).await.unwrap_or_else(|_| panic!("waited for {what}"))
    }
}

async fn serve_api(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    authority: Arc<Authority>,
    agent_port: u16,
    joined: Arc<Mutex<u32>>,
) {
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        // An agent that does not trust this server ends the handshake.
        let Ok(mut tls) = acceptor.accept(tcp).await else { continue };
        let Some((line, body)) = read_request(&mut tls).await else { continue };
        let (status, kind, answer) = if line.starts_with("GET /v1/ca ") {
            ("200 OK", "application/x-pem-file", authority.pem.clone())
        } else if line.starts_with("POST /v1/join ") {
            join(&authority, &body, agent_port, &joined)
        } else {
            ("404 Not Found", "text/plain", String::new())
        };
        let response = format!(
            "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{answer}",
            answer.len()
        );
        tls.write_all(response.as_bytes()).await.unwrap();
        let _ = tls.shutdown().await;
    }
}

/// One token, good once.
fn join(
    authority: &Authority,
    body: &[u8],
    agent_port: u16,
    joined: &Mutex<u32>,
) -> (&'static str, &'static str, String) {
    let request: JoinRequest = serde_json::from_slice(body).unwrap();
    let mut joined = joined.lock().unwrap();
    if *joined > 0 || request.token != format!("join-a1.{}", SECRET.repeat(32)) {
        let problem = r#"{"title": "Forbidden", "detail": "the token was used already: make a new one"}"#;
        return ("403 Forbidden", "application/problem+json", problem.to_owned());
    }
    *joined += 1;
    let csr = CertificateSigningRequestParams::from_pem(&request.csr_pem).unwrap();
    let certificate = csr.signed_by(&authority.issuer).unwrap();
    let response = JoinResponse { certificate_pem: certificate.pem(), ca_pem: authority.pem.clone(), agent_port };
    ("200 OK", "application/json", serde_json::to_string(&response).unwrap())
}

async fn read_request(stream: &mut (impl AsyncReadExt + Unpin)) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        let mut chunk = [0; 4096];
        let count = stream.read(&mut chunk).await.ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&chunk[..count]);
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(bytes[..end].to_vec()).ok()?;
        let length = head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .map_or(0, |(_, value)| value.trim().parse().unwrap());
        if bytes.len() >= end + 4 + length {
            return Some((head.lines().next()?.to_owned(), bytes[end + 4..].to_vec()));
        }
    }
}
