//! The event log, in pieces or as a stream of server-sent events (WHATWG HTML, section 9.2).
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
use drover_control::Control;
use drover_model::event::Event;
use drover_model::intent::Vm;
use drover_model::{EventSeq, TenantName};
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

/// Which events somebody sees.
#[derive(Debug, Clone)]
struct Filter {
    /// `None`: everybody's.
    tenant: Option<TenantName>,
    object: Option<String>,
}

impl Filter {
    fn shows(&self, event: &Event) -> bool {
        self.tenant.as_ref().is_none_or(|tenant| event.tenant.as_ref() == Some(tenant))
            && self.object.as_ref().is_none_or(|object| event.object == *object)
    }
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
    let object = match query.object {
        Some(object) => Some(by_id(&api, &caller, object).await?),
        None => None,
    };
    let filter = Filter { tenant: caller.tenant().cloned(), object };
    let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("");
    if accepts.contains("text/event-stream") {
        let after = last_event_id(&headers)?.or(query.after).map(EventSeq);
        return stream_events(&api, credential, filter, after);
    }
    let limit = query.limit.unwrap_or(EVENTS_LIMIT_DEFAULT);
    if !(1..=EVENTS_LIMIT_MAX).contains(&limit) {
        return Err(Failure::invalid("limit", format!("must lie between 1 and {EVENTS_LIMIT_MAX}")));
    }
    let list: List<EventView> = match query.after.map(EventSeq) {
        Some(after) => {
            let page = api.shell.query(move |control| page(control, &filter, after, limit)).await?;
            page.events.into_iter().collect()
        }
        None => api.shell.query(move |control| newest(control, &filter, limit)).await?.into_iter().collect(),
    };
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

fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, Failure> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let seq = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    seq.map(Some).ok_or_else(|| Failure::invalid("Last-Event-ID", "must be the id of an event, e.g. 42"))
}

struct Page {
    events: Vec<EventView>,
    /// Everything up to here was looked at.
    seen: EventSeq,
    /// Events after the cursor that are no longer kept.
    missing: bool,
}

fn page(control: &Control, filter: &Filter, after: EventSeq, limit: usize) -> Page {
    let kept = control.events(after, usize::MAX);
    let missing = kept.first().is_some_and(|first| first.seq > after.next());
    let mut page = Page { events: Vec::new(), seen: after, missing };
    for event in kept {
        if filter.shows(event) {
            if page.events.len() == limit {
                return page;
            }
            page.events.push(EventView::from(event));
        }
        page.seen = event.seq;
    }
    page
}

fn newest(control: &Control, filter: &Filter, limit: usize) -> Vec<EventView> {
    let kept = control.events(EventSeq(0), usize::MAX);
    let mut events: Vec<EventView> =
        kept.into_iter().rev().filter(|event| filter.shows(event)).take(limit).map(EventView::from).collect();
    events.reverse();
    events
}

struct Cursor {
    api: Api,
    credential: Credential,
    filter: Filter,
    after: EventSeq,
    ready: VecDeque<SseEvent>,
    newest: watch::Receiver<EventSeq>,
    ending: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

fn stream_events(
    api: &Api,
    credential: Credential,
    filter: Filter,
    after: Option<EventSeq>,
) -> Result<Response, Failure> {
    let permit = permit(&api.0.event_streams, "event streams are open")?;
    let newest = api.shell.newest_event();
    let after = after.unwrap_or(*newest.borrow());
    let cursor = Cursor {
        api: api.clone(),
        credential,
        filter,
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
                let (filter, after) = (self.filter.clone(), self.after);
                let read = self.api.shell.query(move |control| page(control, &filter, after, BATCH_MAX)).await.ok()?;
                self.fill(read);
                // Nothing new is kept of what was announced: the log was cut back to where it was durable.
                if self.after >= newest || !self.ready.is_empty() {
                    continue;
                }
                self.after = newest;
            }
            tokio::select! {
                changed = self.newest.changed() => changed.ok()?,
                () = self.ending.cancelled() => return None,
            }
        }
    }

    fn fill(&mut self, page: Page) {
        if page.missing {
            let text = "events are missing here: they are no longer kept";
            self.ready.push_back(SseEvent::default().event(SSE_GAP).data(text));
        }
        self.after = page.seen;
        for event in page.events {
            let id = event.seq.to_string();
            match SseEvent::default().event(SSE_EVENT).id(id).json_data(&event) {
                Ok(event) => self.ready.push_back(event),
                Err(error) => tracing::error!(%error, "an event can't be written as JSON"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_control::Settings;
    use drover_control::interface::PersistedState;
    use drover_model::event::Severity;
    use drover_model::{Revision, TimeMs};

    fn control(seqs: impl Iterator<Item = u64>) -> Control {
        let events = seqs.map(|seq| Event {
            seq: EventSeq(seq),
            at: TimeMs(seq),
            severity: Severity::Info,
            object: if seq % 2 == 0 { "vm/a" } else { "vm/b" }.to_owned(),
            tenant: Some(if seq % 2 == 0 { "even" } else { "odd" }.parse().unwrap()),
            kind: "test".to_owned(),
            text: "something happened".to_owned(),
        });
        let kept = PersistedState { events: events.collect(), revision: Revision(1), ..PersistedState::default() };
        Control::load(kept, Settings::default(), TimeMs(0))
    }

    fn seqs(events: &[EventView]) -> Vec<u64> {
        events.iter().map(|event| event.seq.0).collect()
    }

    const ALL: Filter = Filter { tenant: None, object: None };

    #[test]
    fn pages_go_on_where_the_last_one_ended_past_what_is_not_shown() {
        let control = control(1..=10);
        let even = Filter { tenant: Some("even".parse().unwrap()), object: None };
        let first = page(&control, &even, EventSeq(0), 2);
        assert_eq!((seqs(&first.events), first.missing), (vec![2, 4], false));
        let rest = page(&control, &even, first.seen, 10);
        assert_eq!((seqs(&rest.events), rest.seen), (vec![6, 8, 10], EventSeq(10)));
    }

    #[test]
    fn without_a_cursor_the_newest_come() {
        let control = control(1..=10);
        assert_eq!(seqs(&newest(&control, &ALL, 3)), vec![8, 9, 10]);
        let of_a = Filter { tenant: None, object: Some("vm/a".to_owned()) };
        assert_eq!(seqs(&newest(&control, &of_a, 2)), vec![8, 10]);
    }

    #[test]
    fn events_that_are_no_longer_kept_are_noticed() {
        let control = control(5..=10);
        assert!(page(&control, &ALL, EventSeq(3), 10).missing);
        assert!(!page(&control, &ALL, EventSeq(4), 10).missing);
        assert!(!page(&control, &ALL, EventSeq(10), 10).missing);
    }
}
