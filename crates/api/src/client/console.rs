//! A vm's serial console: a WebSocket with binary frames both ways.

use super::{ApiError, Client, limits};
use crate::v1::{CONSOLE_FRAME_MAX, TenantQuery};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use reqwest::header::AUTHORIZATION;
use rustls_pki_types::ServerName;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

type Socket = WebSocketStream<Box<dyn Duplex>>;

/// An open console, in two halves that work at the same time.
pub struct Console {
    pub reader: ConsoleReader,
    pub writer: ConsoleWriter,
}

pub struct ConsoleReader {
    vm: String,
    stream: SplitStream<Socket>,
}

pub struct ConsoleWriter {
    vm: String,
    sink: SplitSink<Socket, Message>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsoleOutput {
    Bytes(Vec<u8>),
    /// The other side is done; why, in words for people (may be empty).
    Closed(String),
}

impl Client {
    /// Attaches to a vm's serial console; whoever was attached before is detached.
    pub async fn console(&self, vm: &str, query: &TenantQuery) -> Result<Console, ApiError> {
        let opening = self.open_console(vm, query);
        let socket = tokio::time::timeout(limits::REQUEST, opening)
            .await
            .map_err(|_| ApiError::TimedOut { server: self.shared.server.clone(), after: limits::REQUEST })??;
        let (sink, stream) = socket.split();
        Ok(Console {
            reader: ConsoleReader { vm: vm.to_owned(), stream },
            writer: ConsoleWriter { vm: vm.to_owned(), sink },
        })
    }

    async fn open_console(&self, vm: &str, query: &TenantQuery) -> Result<Socket, ApiError> {
        let mut url = self.url(&["v1", "vms", vm, "console"], &[("tenant", query.tenant.as_deref())]);
        let scheme = if url.scheme() == "https" { "wss" } else { "ws" };
        url.set_scheme(scheme).expect("from http to ws and from https to wss are allowed changes");
        let mut request = url.as_str().into_client_request().map_err(|error| self.console_error(vm, error))?;
        if let Some(authorization) = &self.shared.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        let config = WebSocketConfig::default()
            .max_message_size(Some(CONSOLE_FRAME_MAX))
            .max_frame_size(Some(CONSOLE_FRAME_MAX));
        let transport = self.open_transport().await?;
        let (socket, _) = tokio_tungstenite::client_async_with_config(request, transport, Some(config))
            .await
            .map_err(|error| self.console_error(vm, error))?;
        Ok(socket)
    }

    async fn open_transport(&self) -> Result<Box<dyn Duplex>, ApiError> {
        let base = &self.shared.base;
        let server = || self.shared.server.clone();
        let host = base.host_str().expect("base_url() refuses an address without a host").trim_matches(['[', ']']);
        let port = base.port_or_known_default().expect("http and https have a default port");
        let unreachable = |source: std::io::Error| ApiError::Unreachable { server: server(), source: Box::new(source) };
        let tcp = tokio::time::timeout(limits::CONNECT, TcpStream::connect((host, port)))
            .await
            .map_err(|late| unreachable(late.into()))?
            .map_err(unreachable)?;
        // Keystrokes are small and can't wait for each other.
        tcp.set_nodelay(true).map_err(unreachable)?;
        if base.scheme() == "http" {
            return Ok(Box::new(tcp));
        }
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| ApiError::Config(super::BadConfig::Server { server: server() }))?;
        let tls = TlsConnector::from(self.shared.tls.clone())
            .connect(name, tcp)
            .await
            .map_err(|source| ApiError::Untrusted { server: server(), source: Box::new(source) })?;
        Ok(Box::new(tls))
    }

    fn console_error(&self, vm: &str, error: WsError) -> ApiError {
        match error {
            WsError::Http(response) => {
                let body = response.body().as_deref().unwrap_or_default();
                self.refusal(response.status().as_u16(), body)
            }
            other => ApiError::ConsoleBroke { vm: vm.to_owned(), source: Box::new(other) },
        }
    }
}

impl ConsoleReader {
    /// What the guest wrote next.
    pub async fn read(&mut self) -> Result<ConsoleOutput, ApiError> {
        loop {
            match self.stream.next().await {
                None => return Ok(ConsoleOutput::Closed(String::new())),
                Some(Ok(Message::Binary(bytes))) => return Ok(ConsoleOutput::Bytes(bytes.into())),
                Some(Ok(Message::Close(frame))) => {
                    let why = frame.map(|frame| frame.reason.as_str().to_owned()).unwrap_or_default();
                    return Ok(ConsoleOutput::Closed(why));
                }
                // Answered by the library as they are read.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Text(_) | Message::Frame(_))) => {}
                Some(Err(source)) => {
                    return Err(ApiError::ConsoleBroke { vm: self.vm.clone(), source: Box::new(source) });
                }
            }
        }
    }
}

impl ConsoleWriter {
    /// Types into the guest.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), ApiError> {
        for chunk in bytes.chunks(CONSOLE_FRAME_MAX) {
            self.send(Message::binary(chunk.to_vec())).await?;
        }
        Ok(())
    }

    pub async fn close(mut self) -> Result<(), ApiError> {
        self.send(Message::Close(None)).await
    }

    /// Bounded, so that a server that reads no more is noticed.
    async fn send(&mut self, message: Message) -> Result<(), ApiError> {
        const WRITE_WAIT_MAX: Duration = limits::REQUEST;
        let broke = |source| ApiError::ConsoleBroke { vm: self.vm.clone(), source };
        match tokio::time::timeout(WRITE_WAIT_MAX, self.sink.send(message)).await {
            Ok(sent) => sent.map_err(|error| broke(Box::new(error))),
            Err(late) => Err(broke(Box::new(late))),
        }
    }
}
