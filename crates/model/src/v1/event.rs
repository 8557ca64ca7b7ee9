//! The event log.

use super::{RoleName, schema};
use crate::event::{Event, Severity};
use crate::intent::Role;
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
    /// Whose request caused it; `null`: drover did it by itself.
    #[serde(default)]
    pub actor: Option<ActorView>,
}

/// Who made a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ActorView {
    pub role: RoleName,
    /// The token's id; `null` to a tenant when the token is not one of its own.
    pub name: Option<String>,
}

impl EventView {
    /// As `reader` may see it: `None` is an operator, who sees all; a tenant sees the names of its own tokens only.
    pub fn new(event: &Event, reader: Option<&TenantName>) -> Self {
        let visible = |role: &Role| match (reader, role) {
            (None, _) => true,
            (Some(_), Role::Operator) => false,
            (Some(reader), Role::Tenant { tenant }) => tenant == reader,
        };
        let actor = event.actor.as_ref().map(|actor| ActorView {
            role: RoleName::from(&actor.role),
            name: visible(&actor.role).then(|| actor.name.clone()),
        });
        Self {
            seq: event.seq,
            at_ms: event.at.0,
            severity: event.severity,
            object: event.object.clone(),
            tenant: event.tenant.clone(),
            kind: event.kind.clone(),
            text: event.text.clone(),
            actor,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventQuery {
    /// Only events with a greater sequence number, oldest first. Without it: the newest; a stream starts with what comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// Only events with a smaller sequence number. Not for streams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<u64>,
    /// Only events at or after this time, in milliseconds since 1970-01-01 UTC. Not for streams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
    /// Only events of this severity or a higher one: info, warning, escalation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(schema_with = schema::severity)]
    pub severity: Option<Severity>,
    /// 1 to 1000, 100 when left out. Not for streams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<usize>,
    /// Only events of this object, e.g. `vm/vm-abcdefghijkl` or `cluster`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
}
