//! Watching objects: the ordered log of their changes as a stream of server-sent events (WHATWG HTML, section 9.2).
//!
//! A stream is a cursor over the log in the store, not a queue, as for events. It says what changed, and not how the
//! object looks: whoever wants to know reads the object. The way to follow all objects of a kind without a gap:
//!
//! 1. open the stream without `after`, and wait for its first message: `revision`,
//! 2. list the objects,
//! 3. apply each `change` that comes; after a broken connection go on with `Last-Event-ID`,
//! 4. at `list-anew`, the last message of a stream that lags too far behind, begin again.

use super::events::last_event_id;
use super::problem::Failure;
use super::read::{Caller, Credential, Params};
use super::{Api, permit};
use axum::extract::{Extension, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use drover_api::v1::{ChangeView, SSE_CHANGE, SSE_LIST_ANEW, SSE_REVISION, WatchQuery};
use drover_control::interface::Object;
use drover_control::journal::{Changed, Changes};
use drover_model::{Revision, TenantName};
use futures_util::stream;
use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Read from the log at once.
const BATCH_MAX: usize = 256;
/// The log is looked at again after this time, whether or not a notice has come.
const POLL: Duration = Duration::from_secs(5);
/// The server's own memory of answers: no object that anybody can read.
const INTERNAL: &str = "idempotency";

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(watch_objects))
}

/// Changes of objects, in order and as they happen
///
/// `change` carries a [`ChangeView`] and the revision as its `id`; `revision` says how far the log was read; `list-anew`,
/// always the last message, that older changes are no longer kept.
#[utoipa::path(get, path = "/v1/watch", tag = "events",
    params(WatchQuery, ("Last-Event-ID" = Option<u64>, Header, description = "The last revision that was seen")),
    responses((status = 200, description = "In order of revisions", content((String = "text/event-stream")))))]
async fn watch_objects(
    State(api): State<Api>,
    caller: Caller,
    Extension(credential): Extension<Credential>,
    Params(query): Params<WatchQuery>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let after = last_event_id(&headers)?.or(query.after).map(Revision);
    let filter = Filter { tenant: caller.tenant().cloned(), kinds: kinds(query.kinds.as_deref())? };
    let permit = permit(&api.0.event_streams, "event streams are open")?;
    let notices = api.shell.reader().notices();
    let newest = *notices.borrow();
    let cursor = Cursor {
        credential,
        filter,
        after: after.unwrap_or(newest),
        told: None,
        ready: VecDeque::new(),
        behind: false,
        notices,
        ending: api.ending.clone(),
        _permit: permit,
        api: api.clone(),
    };
    let messages = stream::unfold(cursor, async |mut cursor| {
        let message = cursor.next().await?;
        Some((Ok::<_, Infallible>(message), cursor))
    });
    let keep_alive = KeepAlive::new().interval(api.intervals.event_keep_alive());
    Ok(Sse::new(messages).keep_alive(keep_alive).into_response())
}

fn kinds(text: Option<&str>) -> Result<Option<BTreeSet<&'static str>>, Failure> {
    let Some(text) = text else { return Ok(None) };
    let known = || Object::KINDS.iter().copied().filter(|kind| *kind != INTERNAL);
    let find = |word: &str| {
        known().find(|kind| *kind == word).ok_or_else(|| {
            let word: String = word.chars().take(80).collect();
            let words: Vec<&str> = known().collect();
            Failure::invalid("kinds", format!("there is no kind {word:?}; name some of {}", words.join(",")))
        })
    };
    text.split(',').map(find).collect::<Result<_, _>>().map(Some)
}

/// Which changes somebody sees.
struct Filter {
    /// `None`: everybody's.
    tenant: Option<TenantName>,
    /// `None`: of all kinds.
    kinds: Option<BTreeSet<&'static str>>,
}

impl Filter {
    fn shows(&self, change: &Changed) -> bool {
        change.kind != INTERNAL
            && self.tenant.as_ref().is_none_or(|tenant| change.tenant.as_ref() == Some(tenant))
            && self.kinds.as_ref().is_none_or(|kinds| kinds.contains(change.kind.as_str()))
    }
}

struct Cursor {
    api: Api,
    credential: Credential,
    filter: Filter,
    after: Revision,
    /// The newest revision that the client was told.
    told: Option<Revision>,
    ready: VecDeque<SseEvent>,
    /// Told to list anew: nothing follows.
    behind: bool,
    notices: watch::Receiver<Revision>,
    ending: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Cursor {
    /// `None` ends the stream: the server ends, can't read its log, the token is no longer valid, or the client has
    /// to list anew. In all other cases it resumes later.
    async fn next(&mut self) -> Option<SseEvent> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Some(message);
            }
            if self.behind || !self.credential.holds(&self.api).await {
                return None;
            }
            // Marked as seen before reading, so that what comes meanwhile wakes the wait below.
            self.notices.mark_unchanged();
            if self.read().await.ok()? || !self.ready.is_empty() {
                continue;
            }
            tokio::select! {
                noticed = tokio::time::timeout(POLL, self.notices.changed()) => match noticed {
                    Ok(changed) => changed.ok()?,
                    // Nothing to show for a while: so that a later connection need not begin so far back.
                    Err(_quiet) => self.tell_revision(),
                },
                () = self.ending.cancelled() => return None,
            }
        }
    }

    /// Whether there is more to read at once.
    async fn read(&mut self) -> Result<bool, Failure> {
        match self.api.shell.reader().changes(self.after, BATCH_MAX).await? {
            Changes::ListAnew { newest } => {
                let text = format!("changes after revision {} are not kept: list the objects anew", self.after);
                let message = SseEvent::default().event(SSE_LIST_ANEW).id(newest.to_string()).data(text);
                self.ready.push_back(message);
                self.behind = true;
                Ok(false)
            }
            Changes::Read { changes, seen, more } => {
                if self.told.is_none() {
                    self.tell_revision();
                }
                let shown: Vec<Changed> = changes.into_iter().filter(|change| self.filter.shows(change)).collect();
                for (at, change) in shown.iter().enumerate() {
                    // Only the last change of a revision carries its id: a client that lost the connection in the middle
                    // of a revision gets all of it again.
                    let last = shown.get(at + 1).is_none_or(|next| next.revision > change.revision);
                    self.show(change, last);
                }
                self.after = seen;
                Ok(more)
            }
        }
    }

    fn show(&mut self, change: &Changed, last_of_revision: bool) {
        let Changed { revision, kind, id, op, tenant: _ } = change;
        let view = ChangeView { revision: *revision, kind: kind.clone(), id: id.clone(), op: *op };
        let message = SseEvent::default().event(SSE_CHANGE);
        let message = if last_of_revision {
            self.told = Some(*revision);
            message.id(revision.to_string())
        } else {
            message
        };
        match message.json_data(&view) {
            Ok(message) => self.ready.push_back(message),
            Err(error) => tracing::error!(%error, "a change can't be written as JSON"),
        }
    }

    fn tell_revision(&mut self) {
        if self.told.is_none_or(|told| told < self.after) {
            let id = self.after.to_string();
            self.ready.push_back(SseEvent::default().event(SSE_REVISION).id(id.clone()).data(id));
            self.told = Some(self.after);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_api::v1::ChangeOp;

    fn change(kind: &str, tenant: Option<&str>) -> Changed {
        let tenant = tenant.map(|tenant| tenant.parse().unwrap());
        Changed { revision: Revision(1), kind: kind.to_owned(), id: "x".to_owned(), op: ChangeOp::Put, tenant }
    }

    #[test]
    fn a_tenant_sees_its_own_and_nobody_sees_what_is_internal() {
        let acme = Filter { tenant: Some("acme".parse().unwrap()), kinds: None };
        let all = Filter { tenant: None, kinds: None };
        let hosts = Filter { tenant: None, kinds: kinds(Some("host,plan")).unwrap() };
        for (change, by_acme, by_operator, of_hosts) in [
            (change("vm", Some("acme")), true, true, false),
            (change("vm", Some("globex")), false, true, false),
            (change("host", None), false, true, true),
            (change(INTERNAL, None), false, false, false),
            (change(INTERNAL, Some("acme")), false, false, false),
        ] {
            let shown = [&acme, &all, &hosts].map(|filter| filter.shows(&change));
            assert_eq!(shown, [by_acme, by_operator, of_hosts], "{change:?}");
        }
    }

    #[test]
    fn a_kind_that_is_not_there_is_refused() {
        for bad in ["", "vm,", "vms", INTERNAL] {
            assert!(kinds(Some(bad)).is_err(), "{bad}");
        }
    }
}
