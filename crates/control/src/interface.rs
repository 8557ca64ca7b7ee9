//! What goes into the control plane's state machine and what comes out of it.
//!
//! The shell around [`crate::Control`] (the server's, or the simulator's) owns time, the store and
//! the wires. It feeds one [`Input`] at a time and carries out the [`Effect`]s **in order**:
//! an [`Effect::Commit`] must be durable before any effect after it is carried out. If a commit fails,
//! the shell drops the effects after it, answers the open requests itself, and rebuilds `Control`
//! from the store: what was never committed never happened.

use crate::journal::{Append, Retention};
use drover_model::command::{Command, CommandOutcome, CommandRefusal, MigrationUpdate};
use drover_model::event::{Event, EventActor};
use drover_model::intent::{ApiToken, Host, HostAttributes, Image, JoinToken, Role, RunIntent, Tenant, Vm, VmSpec};
use drover_model::inventory::{HostFacts, VmInventory};
use drover_model::load::{HostSample, VmSample};
use drover_model::migration::{Method, MigrationRecord, Priority};
use drover_model::network::{HostNetwork, Network, Port, SecurityGroup, SecurityRule, Subnet};
use drover_model::placement::PlacementRule;
use drover_model::plan::PlanRecord;
use drover_model::policy::Policy;
use drover_model::{
    CommandId, HostId, ImageId, MigrationId, Millis, NetworkId, NetworkName, PlanId, PortId, Revision, RuleId,
    SecurityGroupId, TenantName, TimeMs, TokenId, VmId,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

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

/// An object of the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "value")]
pub enum Object {
    Tenant(Tenant),
    ApiToken(ApiToken),
    JoinToken(JoinToken),
    Host(Host),
    Image(Image),
    Vm(Vm),
    Migration(MigrationRecord),
    Plan(PlanRecord),
    Policy(Policy),
    Idempotency(Idempotency),
    Network(Network),
    SecurityGroup(SecurityGroup),
    Port(Port),
    PlacementRule(PlacementRule),
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

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectKey {
    /// One of [`Object`]'s kinds, as in its serialised form.
    pub kind: &'static str,
    pub id: String,
}

impl Object {
    pub const KINDS: [&'static str; 14] = [
        "tenant",
        "api-token",
        "join-token",
        "host",
        "image",
        "vm",
        "migration",
        "plan",
        "policy",
        "idempotency",
        "network",
        "security-group",
        "port",
        "placement-rule",
    ];

    pub fn key(&self) -> ObjectKey {
        let (kind, id) = match self {
            Self::Tenant(tenant) => (Self::KINDS[0], tenant.id.to_string()),
            Self::ApiToken(token) => (Self::KINDS[1], token.id.to_string()),
            Self::JoinToken(token) => (Self::KINDS[2], token.id.to_string()),
            Self::Host(host) => (Self::KINDS[3], host.id.to_string()),
            Self::Image(image) => (Self::KINDS[4], image.id.to_string()),
            Self::Vm(vm) => (Self::KINDS[5], vm.id.to_string()),
            Self::Migration(migration) => (Self::KINDS[6], migration.id.to_string()),
            Self::Plan(plan) => (Self::KINDS[7], plan.id.to_string()),
            Self::Policy(_) => (Self::KINDS[8], "cluster".to_owned()),
            Self::Idempotency(record) => (Self::KINDS[9], record.key.clone()),
            Self::Network(network) => (Self::KINDS[10], network.id.to_string()),
            Self::SecurityGroup(group) => (Self::KINDS[11], format!("{}/{}", group.tenant, group.id)),
            Self::Port(port) => (Self::KINDS[12], port.id.to_string()),
            Self::PlacementRule(rule) => (Self::KINDS[13], rule.id.to_string()),
        };
        ObjectKey { kind, id }
    }

    /// Whose it is, and who may see its changes besides operators. `None`: the cluster's.
    pub fn tenant(&self) -> Option<&TenantName> {
        match self {
            Self::Tenant(tenant) => Some(&tenant.id),
            Self::Vm(vm) => Some(&vm.spec.tenant),
            Self::Network(network) => Some(&network.tenant),
            Self::SecurityGroup(group) => Some(&group.tenant),
            Self::ApiToken(_)
            | Self::JoinToken(_)
            | Self::Host(_)
            | Self::Image(_)
            | Self::Migration(_)
            | Self::Plan(_)
            | Self::Policy(_)
            | Self::Idempotency(_)
            | Self::Port(_)
            | Self::PlacementRule(_) => None,
        }
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

/// Somebody asks for a change. Reading goes past the state machine, by [`crate::Control`]'s accessors.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub id: RequestId,
    pub actor: Actor,
    /// Repeating a request with the same key gives the first one's answer and changes nothing.
    pub idempotency_key: Option<String>,
    /// Only if the object concerned is still at this revision.
    pub if_match: Option<Revision>,
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
    CreateTenant {
        id: TenantName,
    },
    RemoveTenant {
        id: TenantName,
    },
    CreateToken {
        token: ApiToken,
    },
    RemoveToken {
        id: TokenId,
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
    RemoveHost {
        host: HostId,
    },
    DrainHost {
        host: HostId,
    },
    UndrainHost {
        host: HostId,
    },
    PowerHost {
        host: HostId,
        on: bool,
    },
    /// Replaces all that the operator has said of it.
    SetHostAttributes {
        host: HostId,
        attributes: HostAttributes,
    },

    CreateImage {
        image: Image,
    },
    RemoveImage {
        id: ImageId,
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

    /// `id` is fresh, from the shell's randomness.
    CreateNetwork {
        id: NetworkId,
        spec: NetworkSpec,
    },
    RemoveNetwork {
        id: NetworkId,
    },
    CreateSecurityGroup {
        group: SecurityGroup,
    },
    /// Replaces all rules of a group.
    SetSecurityRules {
        tenant: TenantName,
        id: SecurityGroupId,
        rules: Vec<SecurityRule>,
    },
    RemoveSecurityGroup {
        tenant: TenantName,
        id: SecurityGroupId,
    },
    /// Takes a vm out of the groups it is in, and puts it into these.
    SetSecurityGroups {
        vm: VmId,
        groups: BTreeSet<SecurityGroupId>,
    },
    CreatePort {
        spec: PortSpec,
    },
    RemovePort {
        id: PortId,
    },
    CreateRule {
        rule: PlacementRule,
    },
    RemoveRule {
        id: RuleId,
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

/// An overlay network as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkSpec {
    pub tenant: TenantName,
    pub name: NetworkName,
    pub subnet: Subnet,
    pub router: Option<Ipv4Addr>,
    pub dns: Vec<Ipv4Addr>,
    /// Bytes.
    pub mtu: u16,
}

/// A port as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PortSpec {
    pub id: PortId,
    pub network: NetworkId,
    pub host: HostId,
    pub interface: String,
    /// `None`: derived from the id.
    pub mac: Option<String>,
    /// `None`: the lowest free one.
    pub address: Option<Ipv4Addr>,
}

/// What was changed; the shell reads the object itself when it needs more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "reply", content = "of")]
pub enum Reply {
    Done,
    Tenant(TenantName),
    Token(TokenId),
    Host(HostId),
    Image(ImageId),
    Vm(VmId),
    Migration(MigrationId),
    Plan(PlanId),
    Network(NetworkId),
    SecurityGroup {
        tenant: TenantName,
        id: SecurityGroupId,
    },
    Port(PortId),
    Rule(RuleId),
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
    pub field: Option<&'static str>,
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
