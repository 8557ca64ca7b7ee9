//! The event log.

use super::schema;
use crate::event::{Event, Severity};
use crate::{EventSeq, TenantName};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Most events one answer holds, and how many it holds when nothing is said.
pub const EVENTS_LIMIT_MAX: usize = 1000;
pub const EVENTS_LIMIT_DEFAULT: usize = 100;

/// `event:` field of every server-sent event that carries an [`EventView`].
pub const SSE_EVENT: &str = "event";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventView {
    #[schema(value_type = u64)]
    pub seq: EventSeq,
    pub at_ms: u64,
    #[schema(schema_with = schema::severity)]
    pub severity: Severity,
    /// `host/h1`, `vm/vm-..`, `plan/42`, `migration/7`, `cluster`, ...
    pub object: String,
    /// Who may see it besides operators.
    pub tenant: Option<TenantName>,
    /// A stable word for programs: `vm-created`, `host-hot`, `migration-done`, ...
    pub kind: String,
    /// One sentence for people.
    pub text: String,
}

impl From<&Event> for EventView {
    fn from(event: &Event) -> Self {
        Self {
            seq: event.seq,
            at_ms: event.at.0,
            severity: event.severity,
            object: event.object.clone(),
            tenant: event.tenant.clone(),
            kind: event.kind.clone(),
            text: event.text.clone(),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventQuery {
    /// Only events with a greater sequence number. Without it: the newest `limit`; a stream starts with what comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// 1 to 1000, 100 when left out. Not for streams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<usize>,
    /// Only events of this object, e.g. `vm/vm-abcdefghijkl` or `cluster`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
}
