//! One agent's connection.
//!
//! ```text
//!  TLS with the host's certificate ─▶ Hello ─▶ checked ─▶ Welcome ─▶ frames both ways ─▶ ended ─▶ Disconnected
//!                                        └──────────────▶ Refused
//! ```
//! Reading and writing are two tasks, so that a host that reads slowly is still heard.

use super::{End, Hub};
use crate::ca::common_name;
use crate::config::Intervals;
use crate::serve::Peer;
use crate::shell::{ShellHandle, now};
use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Extension, State};
use axum::response::Response;
use axum::routing::get;
use drover_api::agent::{FRAME_MAX, FromAgent, Hello, PATH, PROTOCOL_VERSION, ToAgent, Welcome};
use drover_control::interface::{AgentMessage, ConnectionId, NetworkReport};
use drover_model::HostId;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

/// From the end of the handshake to the agent's first word.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// A frame that can't be written for this long means the agent is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub struct AgentPort {
    pub hub: Arc<Hub>,
    pub shell: ShellHandle,
    pub intervals: Intervals,
}

impl AgentPort {
    pub fn router(self) -> Router {
        Router::new().route(PATH, get(upgrade)).with_state(self)
    }
}

async fn upgrade(State(port): State<AgentPort>, Extension(peer): Extension<Peer>, ws: WebSocketUpgrade) -> Response {
    ws.max_message_size(FRAME_MAX).max_frame_size(FRAME_MAX).on_upgrade(async move |socket| {
        port.serve(socket, peer).await;
    })
}

impl AgentPort {
    async fn serve(self, socket: WebSocket, peer: Peer) {
        let (mut sink, mut stream) = socket.split();
        let hello = match self.admit(&mut stream, &peer).await {
            Ok(hello) => hello,
            Err(why) => {
                tracing::warn!(address = %peer.address, %why, "agent refused");
                refuse(&mut sink, why).await;
                return;
            }
        };
        let Hello { host, facts, vms, .. } = hello;
        let registered = self.hub.register(host.clone());
        let id = registered.id;
        tracing::info!(%host, address = %peer.address, "agent connected");
        let welcome = ToAgent::Welcome(Welcome { report_every: self.intervals.report(), now: now() });
        // Welcome first: the queue may hold commands as soon as the state machine knows the connection.
        let why = if send(&mut sink, &welcome).await.is_ok() {
            self.shell.agent(&host, id, AgentMessage::Connected { facts, vms }, Instant::now()).await;
            let ping_every = self.intervals.agent_idle() / 3;
            let mut writer = tokio::spawn(write(sink, registered.outgoing, registered.end, ping_every));
            let why = tokio::select! {
                why = self.read(&mut stream, &host, id) => why,
                written = &mut writer => written.unwrap_or_else(|error| error.to_string()),
            };
            writer.abort();
            why
        } else {
            "it closed the connection".to_owned()
        };
        self.hub.unregister(id);
        self.shell.agent(&host, id, AgentMessage::Disconnected, Instant::now()).await;
        tracing::info!(%host, %why, "agent disconnected");
    }

    /// The agent's first word, if it may stay; else what it is told.
    async fn admit(&self, stream: &mut SplitStream<WebSocket>, peer: &Peer) -> Result<Hello, String> {
        let certified: HostId = peer
            .certificate
            .as_ref()
            .and_then(common_name)
            .and_then(|name| name.parse().ok())
            .ok_or("the certificate names no host; let the host join again")?;
        let first = timeout(HELLO_TIMEOUT, next_frame(stream))
            .await
            .map_err(|_| format!("no hello within {} s", HELLO_TIMEOUT.as_secs()))??;
        let hello = match serde_json::from_str(&first) {
            Ok(FromAgent::Hello(hello)) => hello,
            Ok(_) => return Err("the first message must be hello".to_owned()),
            // A hello of another version may not even parse; its number still does.
            Err(error) => return Err(protocol_mismatch(&first).unwrap_or_else(|| format!("not understood: {error}"))),
        };
        if hello.protocol != PROTOCOL_VERSION {
            return Err(mismatch(hello.protocol));
        }
        if hello.host != certified {
            return Err(format!(
                "the certificate is that of {certified}, the agent calls itself {}; set `host` to the name it joined by",
                hello.host
            ));
        }
        if !self.shell.serving() {
            return Err("the server's store can't be used at the moment".to_owned());
        }
        let host = certified.clone();
        match self.shell.query(move |control| control.host(&host).is_some()).await {
            Ok(true) => Ok(hello),
            Ok(false) => Err(format!(
                "host {certified} is not part of this cluster (any more); make a token with `drover host token \
                 {certified}` and let it join again"
            )),
            Err(refusal) => Err(refusal.detail),
        }
    }

    /// Passes on what the agent says until the connection ends; gives the reason.
    async fn read(&self, stream: &mut SplitStream<WebSocket>, host: &HostId, id: ConnectionId) -> String {
        let idle = self.intervals.agent_idle();
        loop {
            let message = match timeout(idle, stream.next()).await {
                Err(_) => return format!("nothing was heard for {} s", idle.as_secs()),
                Ok(None) => return "it closed the connection".to_owned(),
                Ok(Some(Err(error))) => return error.to_string(),
                Ok(Some(Ok(message))) => message,
            };
            let received = Instant::now();
            let text = match message {
                Message::Text(text) => text,
                Message::Ping(_) | Message::Pong(_) => continue,
                Message::Binary(_) => return "it sent a binary frame".to_owned(),
                Message::Close(_) => return "it closed the connection".to_owned(),
            };
            let message = match serde_json::from_str(&text) {
                Ok(message) => message,
                Err(error) => return format!("it sent what is not understood: {error}"),
            };
            let message = match message {
                FromAgent::Hello(_) => return "it said hello twice".to_owned(),
                FromAgent::Report(report) => AgentMessage::Report {
                    at: report.at,
                    vms: report.vms,
                    load: report.load.map(|load| (load.host, load.vms)),
                    network: NetworkReport { generation: report.network, error: report.network_error },
                },
                FromAgent::Answer { id, answer } => AgentMessage::Answer { id, answer },
                FromAgent::Migration { vm, migration, update } => AgentMessage::Migration { vm, migration, update },
                FromAgent::ConsoleOutput { session, data } => {
                    self.hub.console_output(id, session, data.0);
                    continue;
                }
                FromAgent::ConsoleClosed { session, why } => {
                    self.hub.console_closed(id, session, why);
                    continue;
                }
            };
            self.shell.agent(host, id, message, received).await;
        }
    }
}

async fn next_frame(stream: &mut SplitStream<WebSocket>) -> Result<String, String> {
    loop {
        match stream.next().await {
            Some(Ok(Message::Text(text))) => return Ok(text.to_string()),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Binary(_))) => return Err("the first frame must be text".to_owned()),
            Some(Ok(Message::Close(_))) | None => return Err("it closed the connection".to_owned()),
            Some(Err(error)) => return Err(error.to_string()),
        }
    }
}

fn mismatch(spoken: u32) -> String {
    format!("the agent speaks protocol {spoken}, this server {PROTOCOL_VERSION}; install the same version on both")
}

fn protocol_mismatch(hello: &str) -> Option<String> {
    let value: serde_json::Value = serde_json::from_str(hello).ok()?;
    let spoken = u32::try_from(value.get("protocol")?.as_u64()?).ok()?;
    (spoken != PROTOCOL_VERSION).then(|| mismatch(spoken))
}

async fn send(sink: &mut SplitSink<WebSocket, Message>, message: &ToAgent) -> Result<(), String> {
    let text = serde_json::to_string(message).map_err(|error| error.to_string())?;
    send_frame(sink, Message::Text(text.into())).await
}

async fn send_frame(sink: &mut SplitSink<WebSocket, Message>, frame: Message) -> Result<(), String> {
    match timeout(WRITE_TIMEOUT, sink.send(frame)).await {
        Ok(sent) => sent.map_err(|error| error.to_string()),
        Err(_) => Err(format!("a frame could not be sent within {} s", WRITE_TIMEOUT.as_secs())),
    }
}

async fn refuse(sink: &mut SplitSink<WebSocket, Message>, why: String) {
    // It may be gone already; then there is nobody to tell.
    if send(sink, &ToAgent::Refused { why }).await.is_ok() {
        let _closed = send_frame(sink, Message::Close(None)).await;
    }
}

async fn ended(end: &mut watch::Receiver<Option<End>>) -> Option<End> {
    end.wait_for(Option::is_some).await.ok().and_then(|end| end.clone())
}

/// Sends what is queued until the connection ends; gives the reason.
async fn write(
    mut sink: SplitSink<WebSocket, Message>,
    mut outgoing: mpsc::Receiver<ToAgent>,
    mut end: watch::Receiver<Option<End>>,
    ping_every: Duration,
) -> String {
    let mut ping = tokio::time::interval(ping_every);
    ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let sent = tokio::select! {
            ended = ended(&mut end) => {
                return match ended {
                    Some(End::Refused(why)) => {
                        refuse(&mut sink, why.clone()).await;
                        why
                    }
                    Some(End::Closed(why)) => {
                        let _closed = send_frame(&mut sink, Message::Close(None)).await;
                        why.to_owned()
                    }
                    None => "the connection was let go".to_owned(),
                };
            }
            message = outgoing.recv() => match message {
                Some(message) => send(&mut sink, &message).await,
                None => return "the connection was let go".to_owned(),
            },
            _ = ping.tick() => send_frame(&mut sink, Message::Ping(Default::default())).await,
        };
        if let Err(why) = sent {
            return why;
        }
    }
}
