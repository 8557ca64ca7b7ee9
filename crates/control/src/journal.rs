//! What a store keeps beside the newest state of each object: append-only records in streams, and the ordered
//! log of changes of objects. The types here are the contract that all stores share.

use drover_model::event::Severity;
use drover_model::v1::ChangeOp;
use drover_model::{EventSeq, Millis, Revision, TenantName, TimeMs};
use std::fmt;
use std::str::FromStr;

/// The name of a stream of records: what it is about, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stream {
    pub topic: Topic,
    pub owner: Owner,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// What was used, per resource, meter and interval.
    Usage,
    /// Entries of an account.
    Ledger,
    /// Who asked for what, and what became of it.
    Audit,
}

impl Topic {
    pub const ALL: [Self; 3] = [Self::Usage, Self::Ledger, Self::Audit];

    pub fn word(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::Ledger => "ledger",
            Self::Audit => "audit",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    Cluster,
    Tenant(TenantName),
}

/// `usage/cluster`, `ledger/tenant/acme`: the name in the store.
impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.owner {
            Owner::Cluster => write!(f, "{}/cluster", self.topic.word()),
            Owner::Tenant(tenant) => write!(f, "{}/tenant/{tenant}", self.topic.word()),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a stream: write e.g. usage/cluster or ledger/tenant/acme")]
pub struct BadStream(pub String);

impl FromStr for Stream {
    type Err = BadStream;

    fn from_str(text: &str) -> Result<Self, BadStream> {
        let bad = || BadStream(text.chars().take(160).collect());
        let (topic, owner) = text.split_once('/').ok_or_else(bad)?;
        let topic = Topic::ALL.into_iter().find(|known| known.word() == topic).ok_or_else(bad)?;
        let owner = match owner.split_once('/') {
            None if owner == "cluster" => Owner::Cluster,
            Some(("tenant", tenant)) => Owner::Tenant(tenant.parse().map_err(|_| bad())?),
            None | Some(_) => return Err(bad()),
        };
        Ok(Self { topic, owner })
    }
}

/// A record to be added to a stream, in the same transaction as the objects it belongs to.
///
/// Within a stream the key is unique for as long as the record is kept: a record with a known key and the same
/// body changes nothing, so that it may be emitted again after a crash; with another body the commit is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Append {
    pub stream: Stream,
    pub key: String,
    /// JSON; the store does not look into it.
    pub body: String,
    /// Retention goes by it. Of a record that is emitted again, the first one's counts.
    pub at: TimeMs,
}

/// Records of the stream that are older than this are deleted, in small batches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    pub stream: Stream,
    /// `None`: kept for good, as in a stream of which nothing was said.
    pub keep_for: Option<Millis>,
}

/// A record's place in its stream: grows in the order of commits, with gaps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position(pub u64);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub position: Position,
    pub key: String,
    pub body: String,
    pub at: TimeMs,
}

/// Which records of a stream are read, in the order of their positions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordRange {
    pub after: Position,
    /// Only those at or after the first and before the second.
    pub between: Option<(TimeMs, TimeMs)>,
    /// At most so many.
    pub limit: usize,
}

/// An entry of the change log. A deletion leaves one, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    pub revision: Revision,
    pub kind: String,
    pub id: String,
    pub op: ChangeOp,
    /// Whose the object is, or was; `None`: the cluster's.
    pub tenant: Option<TenantName>,
}

/// What a reader of the change log gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changes {
    /// Ordered by revision, then by kind and id. A revision is never cut in two.
    Read {
        changes: Vec<Changed>,
        /// The reader has seen everything up to here, and goes on after it.
        seen: Revision,
        /// There are more already.
        more: bool,
    },
    /// What follows the reader's revision is no longer kept, or the store is at an older one: it has to list anew.
    ListAnew { newest: Revision },
}

/// Which events are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRange {
    /// Oldest first from here on; without it, the newest ones are meant.
    pub after: Option<EventSeq>,
    pub before: Option<EventSeq>,
    pub since: Option<TimeMs>,
    /// This one and higher ones.
    pub severity: Severity,
    pub object: Option<String>,
    /// `None`: of everybody.
    pub tenant: Option<TenantName>,
    /// At most so many.
    pub limit: usize,
}

impl EventRange {
    /// All events after this one.
    pub fn after(after: EventSeq, limit: usize) -> Self {
        Self { after: Some(after), ..Self::newest(limit) }
    }

    pub fn newest(limit: usize) -> Self {
        Self { after: None, before: None, since: None, severity: Severity::Info, object: None, tenant: None, limit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_read_back_from_its_name() {
        for topic in Topic::ALL {
            for owner in [Owner::Cluster, Owner::Tenant("cluster".parse().unwrap())] {
                let stream = Stream { topic, owner };
                assert_eq!(stream.to_string().parse(), Ok(stream));
            }
        }
        for bad in
            ["", "usage", "usage/", "usage/acme", "usage/tenant/", "usage/tenant/A", "mail/cluster", "usage/cluster/x"]
        {
            assert!(bad.parse::<Stream>().is_err(), "{bad}");
        }
    }
}
