//! What happened, for people and for `events --follow`. Appended in the same transaction as the change it tells of.

use crate::intent::Role;
use crate::{EventSeq, TenantName, TimeMs};
use serde::{Deserialize, Serialize};
use std::fmt;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub seq: EventSeq,
    pub at: TimeMs,
    pub severity: Severity,
    /// `host/h1`, `vm/vm-..`, `plan/42`, `migration/7`, `cluster`, ...
    pub object: String,
    /// Who may see it besides operators.
    pub tenant: Option<TenantName>,
    /// A stable word for programs: `vm-created`, `host-hot`, `migration-done`, ...
    pub kind: String,
    /// One sentence for people; where something failed, it says what to do.
    pub text: String,
    /// Whose request caused it. `None`: drover's own loops, or an event from before actors were recorded.
    #[serde(default)]
    pub actor: Option<EventActor>,
}

/// Who made the request that an event tells of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventActor {
    /// The token's id, `host/<id>` for a host that joins, or `server` for the server's own configuration.
    pub name: String,
    /// As it was at the time of the request.
    pub role: Role,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    Info,
    Warning,
    /// A person has to act: drover has tried what it may.
    Escalation,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Escalation => "escalation",
        })
    }
}
