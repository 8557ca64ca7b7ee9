//! Events as they come. A stream outlives the connections it is made of:
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
use crate::v1::{EventQuery, EventView, SSE_EVENT};
use drover_model::EventSeq;
use futures_util::{Stream, stream};
use reqwest::header::ACCEPT;
use reqwest::{Method, Response};
use std::collections::VecDeque;
use std::time::Duration;

/// Which events a stream gives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventStreamStart {
    /// Everything after this one; without it, what happens from now on.
    pub after: Option<EventSeq>,
    /// Only events of this object.
    pub object: Option<String>,
}

impl Client {
    /// Every event once and in order, over any number of reconnects. Ends after its first error.
    pub fn event_stream(
        &self,
        start: EventStreamStart,
    ) -> impl Stream<Item = Result<EventView, ApiError>> + Send + use<> {
        let state = EventStream {
            client: self.clone(),
            start,
            open: None,
            waiting: VecDeque::new(),
            failures: 0,
            ended: false,
        };
        stream::unfold(state, |mut state| async move {
            let item = state.next().await?;
            state.ended = item.is_err();
            Some((item, state))
        })
    }
}

struct EventStream {
    client: Client,
    /// `after` moves on with each event.
    start: EventStreamStart,
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

impl EventStream {
    async fn next(&mut self) -> Option<Result<EventView, ApiError>> {
        if self.ended {
            return None;
        }
        loop {
            if let Some(message) = self.waiting.pop_front() {
                match self.event(&message) {
                    Ok(Some(event)) => return Some(Ok(event)),
                    Ok(None) => continue,
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
            let after = match self.start.after {
                Some(after) => after,
                None => self.newest().await?,
            };
            self.start.after = Some(after);
            self.open = Some(self.connect(after).await?);
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
    async fn newest(&self) -> Result<EventSeq, ApiError> {
        let newest = self.client.events(&EventQuery { limit: Some(1), ..EventQuery::default() }).await?;
        Ok(newest.items.last().map_or(EventSeq(0), |event| event.seq))
    }

    async fn connect(&self, after: EventSeq) -> Result<Connection, ApiError> {
        let query = [("object", self.start.object.as_deref())];
        let request = self
            .client
            .request(Method::GET, &["v1", "events"], &query)
            .header(ACCEPT, "text/event-stream")
            .header("last-event-id", after.0)
            // The whole answer takes as long as there are events: only its beginning is bounded, below.
            .timeout(Duration::MAX);
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

    /// The event in a message, unless it is of another kind or was seen before.
    fn event(&mut self, message: &Message) -> Result<Option<EventView>, ApiError> {
        if !matches!(message.event.as_str(), "" | SSE_EVENT) {
            return Ok(None);
        }
        let event: EventView = serde_json::from_str(&message.data)
            .map_err(|error| self.client.unexpected(200, format!("an event that does not fit ({error})")))?;
        if self.start.after.is_some_and(|after| event.seq <= after) {
            return Ok(None);
        }
        self.start.after = Some(event.seq);
        Ok(Some(event))
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
