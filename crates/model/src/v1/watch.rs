//! The ordered log of changes of objects, as it is watched.

use crate::{BadName, Revision};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// `event:` field of a message whose `data` is a [`ChangeView`].
pub const SSE_CHANGE: &str = "change";
/// `event:` field of a message whose `id` says how far the log was read: it has no change to show.
pub const SSE_REVISION: &str = "revision";
/// `event:` field of the last message of a stream whose reader has to list the objects anew.
pub const SSE_LIST_ANEW: &str = "list-anew";

/// What became of an object. The object itself is read with a GET: by then it may have changed again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChangeView {
    /// Of the whole cluster's objects; several objects may change in one.
    #[schema(value_type = u64)]
    pub revision: Revision,
    /// `vm`, `host`, `tenant`, `network`, ...
    pub kind: String,
    pub id: String,
    pub op: ChangeOp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeOp {
    /// Created or changed.
    Put,
    Delete,
}

impl ChangeOp {
    pub fn word(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Delete => "delete",
        }
    }
}

impl std::str::FromStr for ChangeOp {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        [Self::Put, Self::Delete]
            .into_iter()
            .find(|op| op.word() == text)
            .ok_or_else(|| BadName { what: "kind of change", value: text.chars().take(80).collect() })
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WatchQuery {
    /// Only changes after this revision. Without it: what changes from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// Only objects of these kinds, separated by commas: `vm,host`. Without it: of all kinds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kinds: Option<String>,
}
