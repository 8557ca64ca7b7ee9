//! Events and changes of objects as they come. A stream outlives the connections it is made of:
//!
//! ```text
//!            ┌──────── broke: wait, longer each time ────────┐
//!            ▼                                               │
//!  start ─▶ opening (Last-Event-ID: the last one seen) ─▶ open ──▶ events
//!            │ refused, or too many failures in a row
//!            ▼
//!          ended, with one last error
//! ```

use super::sse::{Message, Parser};
use super::{ApiError, Client, limits};
use crate::v1::{ChangeView, EventQuery, EventView, SSE_CHANGE, SSE_EVENT, SSE_LIST_ANEW, SSE_REVISION};
use drover_model::event::Severity;
use drover_model::{EventSeq, Revision};
use futures_util::{Stream, stream};
use reqwest::header::ACCEPT;
use reqwest::{Method, Response};
use serde::de::DeserializeOwned;
use std::collections::VecDeque;
use std::time::Duration;

/// Which events a stream gives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventStreamStart {
    /// Everything after this one; without it, what happens from now on.
    pub after: Option<EventSeq>,
    /// Only events of this object.
    pub object: Option<String>,
    /// Only events of this severity or a higher one; without it, all.
    pub severity: Option<Severity>,
}

/// Which changes of objects a stream gives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WatchStart {
    /// Everything after this one; without it, what changes from now on.
    pub after: Option<Revision>,
    /// Only objects of these kinds; if empty, of all.
    pub kinds: Vec<String>,
}

/// What a watch gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Watched {
    /// Everything up to here was seen. The first item of each connection: objects that are listed from here on
    /// are at this revision or a later one.
    Upto(Revision),
    /// May come twice after a lost connection.
    Change(ChangeView),
    /// The last item: older changes are no longer kept. List the objects, and watch from this revision on.
    ListAnew(Revision),
}

impl Client {
    /// Every event once and in order, over any number of reconnects. Ends after its first error.
    pub fn event_stream(
        &self,
        start: EventStreamStart,
    ) -> impl Stream<Item = Result<EventView, ApiError>> + Send + use<> {
        let severity = start.severity.map(|severity| severity.to_string());
        let query = vec![("object", start.object), ("severity", severity)];
        let mut state = ResumedStream::new(self.clone(), "events", query, read_event);
        state.after = start.after.map(|after| after.0);
        state.starts_at_newest_event = true;
        state.into_stream()
    }

    /// Every change of objects in order, over any number of reconnects. Ends after its first error, and after
    /// [`Watched::ListAnew`].
    pub fn watch(&self, start: WatchStart) -> impl Stream<Item = Result<Watched, ApiError>> + Send + use<> {
        let kinds = (!start.kinds.is_empty()).then(|| start.kinds.join(","));
        let mut state = ResumedStream::new(self.clone(), "watch", vec![("kinds", kinds)], read_change);
        state.after = start.after.map(|after| after.0);
        state.into_stream()
    }
}

/// What a message comes to.
enum Read<T> {
    /// Of another sort, or seen before.
    Nothing,
    Item(T),
    /// Nothing follows.
    Last(T),
}

/// Reads a message; `after` moves on with what was seen.
type Reading<T> = fn(&Client, &Message, &mut Option<u64>) -> Result<Read<T>, ApiError>;

struct ResumedStream<T> {
    client: Client,
    noun: &'static str,
    query: Vec<(&'static str, Option<String>)>,
    /// `Last-Event-ID`.
    after: Option<u64>,
    starts_at_newest_event: bool,
    read: Reading<T>,
    open: Option<Connection>,
    waiting: VecDeque<Message>,
    /// In a row.
    failures: u32,
    ended: bool,
}

struct Connection {
    response: Response,
    parser: Parser,
}

impl<T> ResumedStream<T> {
    /// From now on.
    fn new(client: Client, noun: &'static str, query: Vec<(&'static str, Option<String>)>, read: Reading<T>) -> Self {
        let (open, waiting) = (None, VecDeque::new());
        let (after, starts_at_newest_event) = (None, false);
        Self { client, noun, query, after, starts_at_newest_event, read, open, waiting, failures: 0, ended: false }
    }

    fn into_stream(self) -> impl Stream<Item = Result<T, ApiError>> + Send + use<T> {
        stream::unfold(self, |mut state| async move {
            let item = state.next().await?;
            state.ended |= item.is_err();
            Some((item, state))
        })
    }

    async fn next(&mut self) -> Option<Result<T, ApiError>> {
        if self.ended {
            return None;
        }
        loop {
            if let Some(message) = self.waiting.pop_front() {
                match (self.read)(&self.client, &message, &mut self.after) {
                    Ok(Read::Nothing) => continue,
                    Ok(Read::Item(item)) => return Some(Ok(item)),
                    Ok(Read::Last(item)) => {
                        self.ended = true;
                        return Some(Ok(item));
                    }
                    Err(error) => return Some(Err(error)),
                }
            }
            if let Err(error) = self.advance().await {
                self.open = None;
                self.failures += 1;
                if !may_pass(&error) || self.failures > limits::RECONNECTS_MAX {
                    return Some(Err(error));
                }
                tokio::time::sleep(reconnect_wait(self.failures)).await;
            }
        }
    }

    /// Opens the connection, or reads one piece from it.
    async fn advance(&mut self) -> Result<(), ApiError> {
        let Some(open) = &mut self.open else {
            if self.after.is_none() && self.starts_at_newest_event {
                self.after = Some(self.newest_event().await?);
            }
            self.open = Some(self.connect().await?);
            return Ok(());
        };
        let broke = |source: Box<dyn std::error::Error + Send + Sync>| ApiError::Unreachable {
            server: self.client.shared.server.clone(),
            source,
        };
        let chunk = tokio::time::timeout(limits::STREAM_SILENCE, open.response.chunk())
            .await
            .map_err(|silence| broke(silence.into()))?
            .map_err(|error| broke(error.without_url().into()))?
            .ok_or_else(|| broke("the event stream was closed".into()))?;
        self.failures = 0;
        let messages = open
            .parser
            .feed(&chunk)
            .map_err(|bad| self.client.unexpected(200, format!("{bad} in the event stream")))?;
        self.waiting.extend(messages);
        Ok(())
    }

    /// Where "from now on" begins: fixed before the first connection, so that its loss loses nothing.
    async fn newest_event(&self) -> Result<u64, ApiError> {
        let newest = self.client.events(&EventQuery { limit: Some(1), ..EventQuery::default() }).await?;
        Ok(newest.items.last().map_or(0, |event| event.seq.0))
    }

    async fn connect(&self) -> Result<Connection, ApiError> {
        let query: Vec<_> = self.query.iter().map(|(key, value)| (*key, value.as_deref())).collect();
        let mut request = self
            .client
            .request(Method::GET, &["v1", self.noun], &query)
            .header(ACCEPT, "text/event-stream")
            // The whole answer takes as long as there is something to say: only its beginning is bounded, below.
            .timeout(Duration::MAX);
        if let Some(after) = self.after {
            request = request.header("last-event-id", after);
        }
        let response = match tokio::time::timeout(limits::REQUEST, request.send()).await {
            Ok(sent) => sent.map_err(|error| self.client.transport_error(error))?,
            Err(_) => {
                let server = self.client.shared.server.clone();
                return Err(ApiError::TimedOut { server, after: limits::REQUEST });
            }
        };
        if response.status().is_success() {
            Ok(Connection { response, parser: Parser::default() })
        } else {
            let status = response.status().as_u16();
            Err(self
                .client
                .answer(response, limits::ANSWER_BYTES)
                .await
                .err()
                .unwrap_or_else(|| self.client.unexpected(status, "no events")))
        }
    }
}

fn decode<T: DeserializeOwned>(client: &Client, message: &Message, what: &str) -> Result<T, ApiError> {
    serde_json::from_str(&message.data)
        .map_err(|error| client.unexpected(200, format!("{what} that does not fit ({error})")))
}

fn read_event(client: &Client, message: &Message, after: &mut Option<u64>) -> Result<Read<EventView>, ApiError> {
    if !matches!(message.event.as_str(), "" | SSE_EVENT) {
        return Ok(Read::Nothing);
    }
    let event: EventView = decode(client, message, "an event")?;
    if after.is_some_and(|after| event.seq.0 <= after) {
        return Ok(Read::Nothing);
    }
    *after = Some(event.seq.0);
    Ok(Read::Item(event))
}

fn read_change(client: &Client, message: &Message, after: &mut Option<u64>) -> Result<Read<Watched>, ApiError> {
    let revision = match message.id.as_deref().map(str::parse::<u64>) {
        Some(Ok(revision)) => Some(revision),
        Some(Err(_)) => return Err(client.unexpected(200, "a change whose id is no revision".to_owned())),
        None => None,
    };
    // Only the last change of a revision has an id: what was seen before it is asked for again.
    *after = revision.or(*after);
    match (message.event.as_str(), revision.map(Revision)) {
        (SSE_CHANGE, _) => Ok(Read::Item(Watched::Change(decode(client, message, "a change")?))),
        (SSE_REVISION, Some(revision)) => Ok(Read::Item(Watched::Upto(revision))),
        (SSE_LIST_ANEW, Some(revision)) => Ok(Read::Last(Watched::ListAnew(revision))),
        (_, _) => Ok(Read::Nothing),
    }
}

/// Whether trying again can help: the server restarts, or is busy.
fn may_pass(error: &ApiError) -> bool {
    match error {
        ApiError::Unreachable { .. } | ApiError::TimedOut { .. } => true,
        ApiError::Problem(problem) => matches!(problem.status, 429 | 503 | 504),
        ApiError::Untrusted { .. }
        | ApiError::TooLong { .. }
        | ApiError::Unexpected { .. }
        | ApiError::ConsoleBroke { .. }
        | ApiError::File { .. }
        | ApiError::Config(_) => false,
    }
}

fn reconnect_wait(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    (limits::RECONNECT_FIRST * (1 << doublings)).min(limits::RECONNECT_WAIT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound() {
        let waits: Vec<u128> = (1..=7).map(|n| reconnect_wait(n).as_millis()).collect();
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(reconnect_wait(u32::MAX), limits::RECONNECT_WAIT_MAX);
    }
}
