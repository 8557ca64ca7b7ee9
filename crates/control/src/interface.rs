//! What goes into the control plane's state machine and what comes out of it.
//!
//! The shell around [`crate::Control`] (the server's, or the simulator's) owns time, the store and
//! the wires. It feeds one [`Input`] at a time and carries out the [`Effect`]s **in order**:
//! an [`Effect::Commit`] must be durable before any effect after it is carried out. If a commit fails,
//! the shell drops the effects after it, answers the open requests itself, and rebuilds `Control`
//! from the store: what was never committed never happened.

pub use crate::kinds::{Draft, Object};
pub use drover_model::kind::ObjectKey;

use crate::journal::{Append, Retention};
use drover_model::command::{Command, CommandOutcome, CommandRefusal, MigrationUpdate};
use drover_model::event::{Event, EventActor};
use drover_model::intent::{ApiToken, Image, JoinToken, Role, RunIntent, VmSpec};
use drover_model::inventory::{HostFacts, VmInventory};
use drover_model::kind::{Kind, Owner};
use drover_model::load::{HostSample, VmSample};
use drover_model::migration::{Method, Priority};
use drover_model::network::HostNetwork;
use drover_model::policy::Policy;
use drover_model::{
    CommandId, HostId, MigrationId, Millis, PlanId, Revision, SecurityGroupId, TenantName, TimeMs, TokenId, VmId,
};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// One agent connection; grows with each. Messages of an older one are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// One request of the API, until it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub u64);

#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// Time has passed. At least five times a second, and never slower than the shell promised.
    Tick,
    Request(Request),
    Agent {
        host: HostId,
        connection: ConnectionId,
        message: AgentMessage,
    },
    /// A power driver has finished.
    Power {
        host: HostId,
        op: PowerOp,
        result: Result<PowerStatus, String>,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub enum AgentMessage {
    Connected {
        facts: HostFacts,
        vms: Vec<VmInventory>,
    },
    Report {
        at: TimeMs,
        vms: Vec<VmInventory>,
        load: Option<(HostSample, BTreeMap<VmId, VmSample>)>,
        network: NetworkReport,
    },
    Answer {
        id: CommandId,
        answer: Result<CommandOutcome, CommandRefusal>,
    },
    Migration {
        vm: VmId,
        migration: MigrationId,
        update: MigrationUpdate,
    },
    Disconnected,
}

/// How far a host has got with [`Effect::Network`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkReport {
    /// Of the newest [`HostNetwork`] that stands there; 0: none since its agent started.
    pub generation: u64,
    /// Why a newer one could not be set up.
    pub error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PowerOp {
    On,
    Off,
    Status,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerStatus {
    On,
    Off,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    Commit(Commit),
    Send {
        host: HostId,
        connection: ConnectionId,
        id: CommandId,
        command: Command,
    },
    /// Replaces all that the host was told of networks before. Not answered: its reports say what stands there.
    Network {
        host: HostId,
        connection: ConnectionId,
        network: HostNetwork,
    },
    /// Action the host's power driver; answered by [`Input::Power`].
    Power {
        host: HostId,
        op: PowerOp,
    },
    Reply {
        request: RequestId,
        result: Result<Reply, Refusal>,
    },
    /// What was learned of vms' daily patterns, in a step that has no commit of its own.
    StorePatterns(PatternWrites),
    /// End this connection: the host was removed, or a newer connection took its place.
    Disconnect {
        host: HostId,
        connection: ConnectionId,
        why: String,
    },
}

/// What was learned of one vm; the store does not look into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPattern {
    pub vm: VmId,
    pub json: String,
}

/// Changes of the daily patterns, beside the objects and in no revision. Lost, they are learned anew.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PatternWrites {
    pub kept: Vec<StoredPattern>,
    pub forgotten: BTreeSet<VmId>,
}

/// One transaction: everything in it becomes durable, or nothing does.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Commit {
    /// The store's revision after it; its own must be exactly one less before it.
    pub revision: Revision,
    pub writes: Vec<Write>,
    pub events: Vec<Event>,
    pub appends: Vec<Append>,
    pub retention: Vec<Retention>,
    /// Written along, because the transaction costs the same with them.
    pub patterns: PatternWrites,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// `expected`: the revision the object must have now, `None` if it must not exist.
    Put { object: Object, expected: Option<Revision> },
    Delete {
        key: ObjectKey,
        expected: Revision,
        /// Whose it was: the change log shows the deletion to the same readers as the changes before it.
        tenant: Option<TenantName>,
    },
}

/// The remembered answer to a request that carried an idempotency key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Idempotency {
    /// `<token id>/<key>`.
    pub key: String,
    /// Of the request's body; another body under the same key is refused.
    pub fingerprint: String,
    pub reply: Reply,
    pub at: TimeMs,
}

impl Kind for Idempotency {
    const NAME: &'static str = "idempotency";
    type Key = String;

    fn key(&self) -> String {
        self.key.clone()
    }

    fn owner(&self) -> Owner<'_> {
        Owner::Cluster
    }
}

/// An object as the store gives it back at start-up.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    pub revision: Revision,
    pub object: Object,
}

/// All that a store holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PersistedState {
    pub objects: Vec<Stored>,
    /// The newest, oldest first.
    pub events: Vec<Event>,
    pub revision: Revision,
    pub patterns: Vec<StoredPattern>,
}

impl PersistedState {
    /// The newest time of the cluster clock in it. A server that starts goes on from no earlier time, or what happened
    /// before would lie in its future: see [`crate::Now`].
    pub fn newest_time(&self) -> TimeMs {
        let newest = |stored: &Stored| match &stored.object {
            Object::Idempotency(record) => Some(record.at),
            Object::Migration(record) => Some(record.started_at).max(record.finished_at),
            Object::Plan(record) => Some(record.plan.made_at).max(record.finished_at),
            Object::Host(host) => host.off_since.max(host.drained_at),
            Object::Vm(vm) => vm.left.iter().map(|(at, _)| *at).max(),
            Object::Tenant(_)
            | Object::ApiToken(_)
            | Object::JoinToken(_)
            | Object::Image(_)
            | Object::Policy(_)
            | Object::Network(_)
            | Object::SecurityGroup(_)
            | Object::Port(_)
            | Object::PlacementRule(_) => None,
        };
        self.objects.iter().filter_map(newest).max().unwrap_or_default()
    }
}

/// Somebody asks for a change. Reading goes past the state machine, by [`crate::Control`]'s accessors.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub id: RequestId,
    pub actor: Actor,
    /// Repeating a request with the same key gives the first one's answer and changes nothing.
    pub idempotency_key: Option<String>,
    /// Only if the object concerned is still at this revision.
    pub if_match: Option<Revision>,
    /// 12 random lower-case letters, for an id.
    pub fresh: String,
    pub action: Action,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// Shown in events: the token's id, or `server` for its own configuration.
    pub name: String,
    pub role: Role,
}

impl From<&Actor> for EventActor {
    fn from(actor: &Actor) -> Self {
        Self { name: actor.name.clone(), role: actor.role.clone() }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "ask")]
pub enum Action {
    /// Makes an object of a kind that can be made by its draft alone.
    Create(Draft),
    /// Changes an object's settings by a JSON merge patch (RFC 7396).
    Patch {
        key: ObjectKey,
        patch: serde_json::Value,
    },
    Remove {
        key: ObjectKey,
    },

    CreateToken {
        token: ApiToken,
    },

    CreateJoinToken {
        token: JoinToken,
    },
    /// By the joining host itself, with nothing but its token. Consumes the token.
    Join {
        host: HostId,
        token: TokenId,
        secret_sha256: String,
    },
    DrainHost {
        host: HostId,
    },
    UndrainHost {
        host: HostId,
    },
    /// A person knows that the host and all that ran on it are gone.
    DeclareHostLost {
        host: HostId,
    },
    PowerHost {
        host: HostId,
        on: bool,
    },

    CreateImage {
        image: Image,
    },

    /// `id` is fresh, from the shell's randomness.
    CreateVm {
        id: VmId,
        spec: VmSpec,
    },
    SetRun {
        vm: VmId,
        run: RunIntent,
    },
    RemoveVm {
        vm: VmId,
    },
    /// `to` `None`: the planner chooses.
    MigrateVm {
        vm: VmId,
        to: Option<HostId>,
        /// `None`: the one that is expected to do best.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        method: Option<Method>,
    },
    CancelMigration {
        id: MigrationId,
    },
    /// It sends next to nothing, or does not begin, until it is let go on.
    HoldMigration {
        id: MigrationId,
        held: bool,
    },
    PrioritiseMigration {
        id: MigrationId,
        priority: Priority,
    },
    /// Measure how fast the guest writes to its memory, for this long. Changes nothing that is stored.
    MeasureVm {
        vm: VmId,
        span: Millis,
    },

    /// Takes a vm out of the groups it is in, and puts it into these.
    SetSecurityGroups {
        vm: VmId,
        groups: BTreeSet<SecurityGroupId>,
    },

    /// Make a plan at once, whatever the loop's timing.
    PlanNow,
    ApprovePlan {
        id: PlanId,
    },
    RejectPlan {
        id: PlanId,
    },
    SetPolicy {
        policy: Box<Policy>,
    },
}

/// What was changed; the shell reads the object itself when it needs more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "reply", content = "of")]
pub enum Reply {
    Done,
    /// It was made or changed.
    Object(ObjectKey),
    Vm(VmId),
    Host(HostId),
    Migration(MigrationId),
    Plan(PlanId),
    /// A join token.
    Token(TokenId),
    /// [`Action::PlanNow`] found nothing worth doing, and why.
    NoPlan(String),
    Policy,
}

/// Why a request changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Refusal {
    pub kind: RefusalKind,
    /// The request's field that is wrong, where there is one.
    pub field: Option<Cow<'static, str>>,
    /// What is wrong and what to do instead.
    pub detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RefusalKind {
    /// The request makes no sense as it stands. HTTP 422.
    Invalid,
    /// There is no such thing, or it is another tenant's. HTTP 404.
    NotFound,
    /// The caller's role does not allow it. HTTP 403.
    Forbidden,
    /// The token is unknown, used or expired. HTTP 401.
    Unauthorized,
    /// Not as things stand now. HTTP 409.
    Conflict,
    /// The object has changed since. HTTP 412.
    Precondition,
    /// The cluster has no room. HTTP 507.
    NoRoom,
    /// Not at the moment, try again. HTTP 503.
    Unavailable,
}
