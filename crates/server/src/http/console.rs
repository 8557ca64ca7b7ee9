//! A vm's serial console over a WebSocket: binary frames both ways.

use super::problem::Failure;
use super::read::{At, Caller, Credential, Params};
use super::{Api, crud, permit};
use crate::hub::{Console, ConsoleEvent};
use axum::body::Bytes;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{Extension, State};
use axum::response::Response;
use drover_api::problem::ProblemType;
use drover_api::v1::{CONSOLE_FRAME_MAX, TenantQuery};
use drover_model::intent::Vm;
use futures_util::{SinkExt as _, StreamExt as _};
use std::time::Duration;
use tokio::time::timeout;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// A client that takes no frame for this long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// A client is asked for a sign of life this often ...
const PING_EVERY: Duration = Duration::from_secs(20);
/// ... and is gone if none came for this long.
const IDLE_MAX: Duration = Duration::from_secs(60);

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(console))
}

/// A vm's serial console (WebSocket, binary frames both ways)
#[utoipa::path(get, path = "/v1/vms/{vm}/console", tag = "vms",
    params(("vm" = String, Path, description = "Its id or name"), TenantQuery),
    responses((status = 101, description = "The connection is a WebSocket from here on")))]
async fn console(
    State(api): State<Api>,
    Caller(actor): Caller,
    Extension(credential): Extension<Credential>,
    At(reference): At<String>,
    Params(query): Params<TenantQuery>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Failure> {
    let upgrade = upgrade.map_err(|rejection| Failure::new(ProblemType::Malformed, rejection.body_text()))?;
    let vm = crud::find::<Vm>(&api, &actor, reference, query).await?;
    let id = vm.clone();
    let host = api.shell.query(move |control| control.vm(&id).and_then(|vm| vm.host.clone())).await?;
    let host = host.ok_or_else(|| {
        Failure::new(ProblemType::Conflict, format!("vm {vm} is on no host now; `drover explain vm/{vm}` says why"))
    })?;
    let permit = permit(&api.0.consoles, "consoles are open")?;
    let console =
        api.hub.open_console(&host, &vm).map_err(|error| Failure::new(ProblemType::Unavailable, error.to_string()))?;
    Ok(upgrade.max_message_size(CONSOLE_FRAME_MAX).max_frame_size(CONSOLE_FRAME_MAX).on_upgrade(async move |socket| {
        let _permit = permit;
        attend(socket, console, &api, &credential).await;
    }))
}

/// Passes bytes both ways until one side ends.
async fn attend(socket: WebSocket, mut console: Console, api: &Api, credential: &Credential) {
    let (mut sink, mut stream) = socket.split();
    let mut ping = tokio::time::interval(PING_EVERY);
    let mut heard = tokio::time::Instant::now();
    let why = loop {
        let frame = tokio::select! {
            output = console.next() => match output {
                Some(ConsoleEvent::Output(data)) => Message::Binary(data.into()),
                Some(ConsoleEvent::Closed(why)) => break why,
                None => break "the host is gone, or the output was not read fast enough".to_owned(),
            },
            input = stream.next() => {
                heard = tokio::time::Instant::now();
                match input {
                    Some(Ok(Message::Binary(data))) if console.input(data.to_vec()) => continue,
                    Some(Ok(Message::Text(text))) if console.input(text.as_bytes().to_vec()) => continue,
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                    Some(Ok(Message::Binary(_) | Message::Text(_))) => break "the host is gone".to_owned(),
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                }
            }
            _ = ping.tick() => {
                if heard.elapsed() > IDLE_MAX {
                    return;
                }
                if !credential.holds(api).await {
                    break "the token is no longer valid".to_owned();
                }
                Message::Ping(Bytes::new())
            }
            () = api.ending.cancelled() => break "the server ends".to_owned(),
        };
        match timeout(WRITE_TIMEOUT, sink.send(frame)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    };
    let close = CloseFrame { code: close_code::NORMAL, reason: bounded(&why).into() };
    // It may be gone already; then there is nobody to tell.
    let _told = timeout(WRITE_TIMEOUT, sink.send(Message::Close(Some(close)))).await;
}

/// A close frame holds 125 bytes, 2 of them the code (RFC 6455 section 5.5).
fn bounded(why: &str) -> String {
    let mut end = why.len().min(123);
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    why[..end].to_owned()
}
