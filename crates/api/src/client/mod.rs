//! The typed client: one method per route of [`crate::v1`].
//!
//! ```text
//!  mod.rs      configuration, and one request: encode, send, bound, decode
//!  objects.rs  what every kind of object has: list, get, create, patch, remove
//!  calls.rs    the other routes
//!  stream.rs   events as they come, over reconnects          sse.rs  their wire format
//!  console.rs  a vm's serial console
//!  error.rs    what can go wrong
//! ```
//!
//! Every wait and every size is bounded by a constant of [`limits`]. Only GETs are repeated by themselves.

mod calls;
mod console;
mod error;
mod objects;
mod sse;
mod stream;

pub use calls::Tagged;
pub use console::{Console, ConsoleOutput, ConsoleReader, ConsoleWriter};
pub use error::{ApiError, BadConfig};
pub use objects::Objects;
pub use stream::{EventStreamStart, WatchStart, Watched};

use crate::problem::Problem;
use crate::v1;
use bytes::{Bytes, BytesMut};
use drover_model::Revision;
use reqwest::header::{AUTHORIZATION, ETAG, HeaderValue, IF_MATCH};
use reqwest::{Method, RequestBuilder, Response, Url};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// How long and how much, in one place.
pub mod limits {
    use std::time::Duration;

    pub const CONNECT: Duration = Duration::from_secs(5);
    /// One request and its whole answer.
    pub const REQUEST: Duration = Duration::from_secs(30);
    /// One upload of an image file.
    pub const UPLOAD: Duration = Duration::from_secs(3600);
    /// Longest JSON answer.
    pub const ANSWER_BYTES: usize = 16 << 20;
    /// Longest description of a cluster: some hundred thousand vms with their load.
    pub const EXPORT_BYTES: usize = 256 << 20;
    /// Waits before a GET that did not get through is repeated.
    pub const GET_RETRIES: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(600)];
    /// A stream that says nothing for so long, not even a keep-alive (the server sends one a minute at the least), is dead.
    pub const STREAM_SILENCE: Duration = Duration::from_secs(90);
    /// First and longest wait before a broken stream is opened again.
    pub const RECONNECT_FIRST: Duration = Duration::from_millis(200);
    pub const RECONNECT_WAIT_MAX: Duration = Duration::from_secs(5);
    /// Failures in a row after which a stream is given up; about two minutes.
    pub const RECONNECTS_MAX: u32 = 28;
    /// Longest message of an event stream.
    pub const STREAM_MESSAGE_BYTES: usize = 1 << 20;
}

/// Where the server is and who is asking.
#[derive(Clone, Default)]
pub struct ClientConfig {
    /// `https://host:port`; `http://` on the loopback addresses only.
    pub server: String,
    /// The cluster's CA certificate; nothing else vouches for the server. Required with `https`.
    pub ca_pem: Option<String>,
    /// Without one only the public routes answer.
    pub token: Option<String>,
}

/// Never the token: this type ends up in logs.
impl fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientConfig").field("server", &self.server).finish_non_exhaustive()
    }
}

/// A connection to one server, cheap to clone.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    idempotency_key: Option<HeaderValue>,
    if_match: Option<Revision>,
}

struct Shared {
    /// As given, for messages.
    server: String,
    base: Url,
    authorization: Option<HeaderValue>,
    http: reqwest::Client,
    /// For the console, whose WebSocket does not go through `http`.
    tls: Arc<rustls::ClientConfig>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("server", &self.shared.server).finish_non_exhaustive()
    }
}

impl Client {
    /// Checks the configuration; connects with the first request.
    pub fn new(config: &ClientConfig) -> Result<Self, BadConfig> {
        let base = base_url(&config.server)?;
        let tls = tls_config(&base, config.ca_pem.as_deref())?;
        let authorization = config.token.as_deref().map(bearer).transpose()?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls.clone())
            .connect_timeout(limits::CONNECT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .user_agent(concat!("drover/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(BadConfig::Http)?;
        let server = base.as_str().trim_end_matches('/').to_owned();
        let shared = Shared { server, base, authorization, http, tls: Arc::new(tls) };
        Ok(Self { shared: Arc::new(shared), idempotency_key: None, if_match: None })
    }

    /// The server's address, for messages.
    pub fn server(&self) -> &str {
        &self.shared.server
    }

    /// A client whose POSTs carry this key: repeating one changes nothing and gives the first answer.
    pub fn with_idempotency_key(&self, key: &str) -> Option<Self> {
        let usable = (1..=v1::IDEMPOTENCY_KEY_MAX).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic());
        let value = HeaderValue::from_str(key).ok().filter(|_| usable)?;
        Some(Self { idempotency_key: Some(value), ..self.clone() })
    }

    /// A client whose changes are refused (412) when the object is not at this revision any more.
    #[must_use]
    pub fn with_if_match(&self, revision: Revision) -> Self {
        Self { if_match: Some(revision), ..self.clone() }
    }

    fn url(&self, path: &[&str], query: Query<'_>) -> Url {
        let mut url = self.shared.base.clone();
        // Each segment is percent-encoded, so a name can't reach another route.
        url.path_segments_mut().expect("base_url() lets only http and https through").pop_if_empty().extend(path);
        for (key, value) in query {
            if let Some(value) = value {
                url.query_pairs_mut().append_pair(key, value);
            }
        }
        url
    }

    fn request(&self, method: Method, path: &[&str], query: Query<'_>) -> RequestBuilder {
        let changes = method != Method::GET;
        let posts = method == Method::POST;
        let mut request = self.shared.http.request(method, self.url(path, query)).timeout(limits::REQUEST);
        if let Some(authorization) = &self.shared.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        if let Some(key) = self.idempotency_key.as_ref().filter(|_| posts) {
            request = request.header(v1::IDEMPOTENCY_KEY, key.clone());
        }
        if let Some(revision) = self.if_match.filter(|_| changes) {
            request = request.header(IF_MATCH, format!("\"{revision}\""));
        }
        request
    }

    async fn get<T: DeserializeOwned>(&self, path: &[&str], query: Query<'_>) -> Result<T, ApiError> {
        let answer = self.get_answer(path, query).await?;
        self.decode(&answer)
    }

    /// A GET changes nothing, so it is sent again when it did not get through.
    async fn get_answer(&self, path: &[&str], query: Query<'_>) -> Result<Answer, ApiError> {
        for wait in limits::GET_RETRIES {
            match self.send(self.request(Method::GET, path, query)).await {
                Err(ApiError::Unreachable { .. }) => tokio::time::sleep(wait).await,
                done => return done,
            }
        }
        self.send(self.request(Method::GET, path, query)).await
    }

    async fn change<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        query: Query<'_>,
        body: &impl Serialize,
    ) -> Result<T, ApiError> {
        let answer = self.send(self.request(method, path, query).json(body)).await?;
        self.decode(&answer)
    }

    /// A POST without a body.
    async fn act<T: DeserializeOwned>(&self, path: &[&str], query: Query<'_>) -> Result<T, ApiError> {
        let answer = self.send(self.request(Method::POST, path, query)).await?;
        self.decode(&answer)
    }

    /// Sends once; a refusal becomes [`ApiError::Problem`].
    async fn send(&self, request: RequestBuilder) -> Result<Answer, ApiError> {
        let response = request.send().await.map_err(|error| self.transport_error(error))?;
        self.answer(response, limits::ANSWER_BYTES).await
    }

    async fn answer(&self, mut response: Response, max: usize) -> Result<Answer, ApiError> {
        let status = response.status();
        let revision = response.headers().get(ETAG).and_then(revision_of_etag);
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.transport_error(error))? {
            if body.len() + chunk.len() > max {
                return Err(ApiError::TooLong { server: self.shared.server.clone(), max });
            }
            body.extend_from_slice(&chunk);
        }
        if status.is_success() {
            Ok(Answer { status: status.as_u16(), revision, body: body.freeze() })
        } else {
            Err(self.refusal(status.as_u16(), &body))
        }
    }

    /// What an answer that is no success means.
    fn refusal(&self, status: u16, body: &[u8]) -> ApiError {
        match serde_json::from_slice::<Problem>(body) {
            Ok(problem) => ApiError::Problem(problem),
            Err(_) => self.unexpected(status, "no problem document"),
        }
    }

    fn unexpected(&self, status: u16, what: impl Into<String>) -> ApiError {
        ApiError::Unexpected { server: self.shared.server.clone(), status, what: what.into() }
    }

    fn decode<T: DeserializeOwned>(&self, answer: &Answer) -> Result<T, ApiError> {
        serde_json::from_slice(&answer.body)
            .map_err(|error| self.unexpected(answer.status, format!("JSON that does not fit ({error})")))
    }

    fn transport_error(&self, error: reqwest::Error) -> ApiError {
        let server = self.shared.server.clone();
        // The address is in the message already.
        let source = Box::new(error.without_url());
        if root_cause(&*source).is::<rustls::Error>() {
            ApiError::Untrusted { server, source }
        } else if source.is_timeout() && !source.is_connect() {
            ApiError::TimedOut { server, after: limits::REQUEST }
        } else {
            ApiError::Unreachable { server, source }
        }
    }
}

/// Query parameters; those that are `None` are left out.
type Query<'a> = &'a [(&'a str, Option<&'a str>)];

/// A successful answer, read to its end.
struct Answer {
    status: u16,
    revision: Option<Revision>,
    body: Bytes,
}

/// The innermost cause: what people can act on. Sees through `io::Error`s, which hide what they carry.
fn root_cause<'e>(error: &'e (dyn Error + 'static)) -> &'e (dyn Error + 'static) {
    let mut cause = error;
    loop {
        let inner = cause.downcast_ref::<std::io::Error>().and_then(|io| io.get_ref());
        cause = match (inner, cause.source()) {
            (Some(inner), _) => inner,
            (None, Some(source)) => source,
            (None, None) => return cause,
        };
    }
}

/// `"<revision>"` (RFC 9110 section 8.8.3).
fn revision_of_etag(value: &HeaderValue) -> Option<Revision> {
    value.to_str().ok()?.strip_prefix('"')?.strip_suffix('"')?.parse().ok()
}

fn base_url(server: &str) -> Result<Url, BadConfig> {
    let bad = || BadConfig::Server { server: server.chars().take(200).collect() };
    let url = Url::parse(server).map_err(|_| bad())?;
    let plain = url.path() == "/" && url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    if !plain || url.password().is_some() {
        return Err(bad());
    }
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(bad)?;
    match url.scheme() {
        "https" => Ok(url),
        // The token would travel in the clear.
        "http" if matches!(host, "127.0.0.1" | "[::1]" | "localhost") => Ok(url),
        "http" => Err(BadConfig::NotEncrypted { server: server.to_owned() }),
        _ => Err(bad()),
    }
}

fn tls_config(base: &Url, ca_pem: Option<&str>) -> Result<rustls::ClientConfig, BadConfig> {
    let mut roots = rustls::RootCertStore::empty();
    match ca_pem {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                roots.add(certificate.map_err(|_| BadConfig::Ca)?).map_err(|_| BadConfig::Ca)?;
            }
            if roots.is_empty() {
                return Err(BadConfig::Ca);
            }
        }
        None if base.scheme() == "https" => return Err(BadConfig::NoCa),
        None => {}
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

fn bearer(token: &str) -> Result<HeaderValue, BadConfig> {
    let token = token.trim();
    let shaped = token.strip_prefix("drover_").and_then(|rest| rest.rsplit_once('_')).is_some_and(|(id, secret)| {
        !id.is_empty() && secret.len() == 64 && secret.bytes().all(|b| b.is_ascii_hexdigit())
    });
    let value = HeaderValue::from_str(&format!("Bearer {token}")).ok().filter(|_| shaped);
    let mut value = value.ok_or(BadConfig::Token)?;
    // Keeps it out of debug output and out of header compression.
    value.set_sensitive(true);
    Ok(value)
}
