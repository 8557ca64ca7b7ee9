//! Accepting connections: TLS handshakes off the accept path, with a time limit and a cap on how many
//! are under way; then HTTP/1.1 with a time limit on the request's head.
//!
//! ```text
//!  accept ──permit──▶ handshake (own task, bounded) ──▶ HTTP (same task) ──▶ closed
//!                        └─ refused, too slow ─────────────────────────────▶ closed
//! ```
//! HTTP/1.1 only: the clients are drover's own, and WebSockets need it.

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::CertificateDer;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// After an accept fails for want of file descriptors, the next try waits this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long open connections may finish what they do when the server ends.
const DRAIN: Duration = Duration::from_secs(3);

/// Who is at the other end; an extension of every request.
#[derive(Debug, Clone)]
pub struct Peer {
    pub address: SocketAddr,
    /// The certificate it proved to have the key of, where the listener asks for one.
    pub certificate: Option<CertificateDer<'static>>,
    /// Its place among the listener's connections. A WebSocket outlives the HTTP connection that it was: it keeps this.
    _slot: Arc<OwnedSemaphorePermit>,
}

#[derive(Debug, Clone, Copy)]
pub struct ServeLimits {
    pub connections_max: usize,
    pub handshakes_at_once_max: usize,
    pub handshake_timeout: Duration,
    pub header_timeout: Duration,
}

/// Serves until `ending` is cancelled, then lets open connections finish, bounded.
pub async fn serve(
    name: &'static str,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    router: Router,
    limits: ServeLimits,
    ending: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let connections = Arc::new(Semaphore::new(limits.connections_max));
    let handshakes = Arc::new(Semaphore::new(limits.handshakes_at_once_max));
    let mut tasks = JoinSet::new();
    loop {
        // While all permits are out, further clients wait in the kernel's queue.
        let accepted = tokio::select! {
            accepted = accept(&listener, &connections) => accepted,
            () = ending.cancelled() => break,
            Some(_) = tasks.join_next() => continue,
        };
        let (stream, address, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(listener = name, %error, "a connection can't be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (acceptor, handshakes, router, ending) =
            (acceptor.clone(), handshakes.clone(), router.clone(), ending.clone());
        tasks.spawn(async move {
            match handshake(&acceptor, &handshakes, stream, limits.handshake_timeout).await {
                Ok(stream) => speak(stream, address, permit, router, limits.header_timeout, ending).await,
                Err(error) => tracing::debug!(listener = name, %address, %error, "TLS handshake failed"),
            }
        });
    }
    drop(listener);
    let drained = tokio::time::timeout(DRAIN, async { while tasks.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::debug!(listener = name, left = tasks.len(), "connections cut off at the end");
    }
}

async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = connections.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, address) = listener.accept().await?;
    Ok((stream, address, permit))
}

async fn handshake(
    acceptor: &TlsAcceptor,
    handshakes: &Semaphore,
    stream: TcpStream,
    limit: Duration,
) -> std::io::Result<tokio_rustls::server::TlsStream<TcpStream>> {
    // Frames are small and each is awaited by somebody.
    stream.set_nodelay(true)?;
    tokio::time::timeout(limit, async {
        let _permit = handshakes.acquire().await.map_err(std::io::Error::other)?;
        acceptor.accept(stream).await
    })
    .await
    .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

async fn speak(
    stream: tokio_rustls::server::TlsStream<TcpStream>,
    address: SocketAddr,
    slot: OwnedSemaphorePermit,
    router: Router,
    header_timeout: Duration,
    ending: CancellationToken,
) {
    let certificate =
        stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(|first| first.clone().into_owned());
    let peer = Peer { address, certificate, _slot: Arc::new(slot) };
    let service = router.into_service().map_request(move |request: Request<hyper::body::Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer.clone());
        request
    });
    let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(header_timeout);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = ending.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%address, %error, "connection ended");
    }
}
