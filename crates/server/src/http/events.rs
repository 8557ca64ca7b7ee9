//! The event log, in pieces or as a stream of server-sent events (WHATWG HTML, section 9.2). Read from the store,
//! as far back as it is kept there, and not from the state machine.
//!
//! A stream is a cursor over the log, not a queue: a client that reads slowly holds nothing up and costs
//! nothing. One that falls behind what is kept is told so by an event named `gap` and goes on from there.

use super::problem::Failure;
use super::read::{Caller, Credential, Params};
use super::{Api, permit};
use axum::Json;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, header};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use drover_api::v1::{EVENTS_LIMIT_DEFAULT, EVENTS_LIMIT_MAX, EventQuery, EventView, List, SSE_EVENT};
use drover_control::journal::EventRange;
use drover_model::event::Severity;
use drover_model::intent::Vm;
use drover_model::{EventSeq, TimeMs};
use futures_util::stream;
use std::collections::VecDeque;
use std::convert::Infallible;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Read from the log at once by a stream.
const BATCH_MAX: usize = 256;
/// `event:` field of the notice that events are missing.
const SSE_GAP: &str = "gap";

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(list_events))
}

/// Events, oldest first; with `Accept: text/event-stream` as they happen
///
/// A stream resumes after the header `Last-Event-ID`. An event named `gap` says that some are no longer kept.
#[utoipa::path(get, path = "/v1/events", tag = "events",
    params(EventQuery, ("Last-Event-ID" = Option<u64>, Header, description = "Streams: the last event that was seen")),
    responses((status = 200, description = "Oldest first", content(
        (List<EventView> = "application/json"), (String = "text/event-stream")))))]
async fn list_events(
    State(api): State<Api>,
    caller: Caller,
    Extension(credential): Extension<Credential>,
    Params(query): Params<EventQuery>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let limit = query.limit.unwrap_or(EVENTS_LIMIT_DEFAULT);
    if !(1..=EVENTS_LIMIT_MAX).contains(&limit) {
        return Err(Failure::invalid("limit", format!("must lie between 1 and {EVENTS_LIMIT_MAX}")));
    }
    let object = match query.object {
        Some(object) => Some(by_id(&api, &caller, object).await?),
        None => None,
    };
    let range = EventRange {
        after: query.after.map(EventSeq),
        before: query.before.map(EventSeq),
        since: query.since_ms.map(TimeMs),
        severity: query.severity.unwrap_or(Severity::Info),
        object,
        tenant: caller.tenant().cloned(),
        limit,
    };
    let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("");
    if accepts.contains("text/event-stream") {
        let after = last_event_id(&headers)?.map(EventSeq).or(range.after);
        return stream_events(&api, credential, range, after);
    }
    let events = api.shell.reader().events(&range).await?;
    let list: List<EventView> = events.iter().map(|event| EventView::new(event, caller.tenant())).collect();
    Ok(Json(list).into_response())
}

/// Events name vms by id; people by name. What is no vm's name (any more) stays as it is.
async fn by_id(api: &Api, caller: &Caller, object: String) -> Result<String, Failure> {
    let Some(name) = object.strip_prefix("vm/").map(str::to_owned) else { return Ok(object) };
    let actor = caller.0.clone();
    let found =
        api.shell.query(move |control| control.find::<Vm>(&name, &actor, None).map(|row| row.value.id.clone())).await?;
    Ok(found.map_or(object, |id| format!("vm/{id}")))
}

pub(super) fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, Failure> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let seq = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    seq.map(Some).ok_or_else(|| Failure::invalid("Last-Event-ID", "must be the id of an event, e.g. 42"))
}

struct Cursor {
    api: Api,
    credential: Credential,
    range: EventRange,
    after: EventSeq,
    ready: VecDeque<SseEvent>,
    newest: watch::Receiver<EventSeq>,
    ending: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

fn stream_events(
    api: &Api,
    credential: Credential,
    range: EventRange,
    after: Option<EventSeq>,
) -> Result<Response, Failure> {
    let permit = permit(&api.0.event_streams, "event streams are open")?;
    let newest = api.shell.newest_event();
    let after = after.unwrap_or(*newest.borrow());
    let cursor = Cursor {
        api: api.clone(),
        credential,
        range,
        after,
        ready: VecDeque::new(),
        newest,
        ending: api.ending.clone(),
        _permit: permit,
    };
    let events = stream::unfold(cursor, async |mut cursor| {
        let event = cursor.next().await?;
        Some((Ok::<_, Infallible>(event), cursor))
    });
    let keep_alive = KeepAlive::new().interval(api.intervals.event_keep_alive());
    Ok(Sse::new(events).keep_alive(keep_alive).into_response())
}

impl Cursor {
    /// `None` ends the stream: the server ends, can't read its log, or the token is no longer valid. The client
    /// resumes later, if it may.
    async fn next(&mut self) -> Option<SseEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            // Marked as seen before reading, so that what comes meanwhile wakes the wait below.
            let newest = *self.newest.borrow_and_update();
            if newest > self.after {
                if !self.credential.holds(&self.api).await {
                    return None;
                }
                self.read(newest).await.ok()?;
                if self.after < newest || !self.ready.is_empty() {
                    continue;
                }
            }
            tokio::select! {
                changed = self.newest.changed() => changed.ok()?,
                () = self.ending.cancelled() => return None,
            }
        }
    }

    /// Everything up to `newest` is durable, or was not when it was announced and never will be.
    async fn read(&mut self, newest: EventSeq) -> Result<(), Failure> {
        // Within the cursor's own filter; `before` and `since` are for lists.
        let range =
            EventRange { after: Some(self.after), before: None, since: None, limit: BATCH_MAX, ..self.range.clone() };
        let reader = self.api.shell.reader();
        let events = reader.events(&range).await?;
        // Looked at after reading, so that what was deleted meanwhile is noticed.
        if reader.oldest_event().await?.is_some_and(|oldest| oldest > self.after.next()) {
            let text = "events are missing here: they are no longer kept";
            self.ready.push_back(SseEvent::default().event(SSE_GAP).data(text));
        }
        let last = events.last().map_or(self.after, |event| event.seq);
        self.after = if events.len() < BATCH_MAX { last.max(newest) } else { last };
        for event in &events {
            let id = event.seq.to_string();
            let view = EventView::new(event, self.range.tenant.as_ref());
            match SseEvent::default().event(SSE_EVENT).id(id).json_data(&view) {
                Ok(event) => self.ready.push_back(event),
                Err(error) => tracing::error!(%error, "an event can't be written as JSON"),
            }
        }
        Ok(())
    }
}
