//! Hosts.

use super::{HostAttributes, schema};
use crate::intent::{Host, PowerIntent};
use crate::inventory::{Accelerator, Capacity, HostFacts};
use crate::kind::{Access, Exposed, Fixed, Kind, Owner};
use crate::load::HostSample;
use crate::plan::Heat;
use crate::world::HostState;
use crate::{HostId, NetworkId, Revision, TokenId, VmId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use utoipa::ToSchema;

impl Kind for Host {
    const NAME: &'static str = "host";
    type Key = HostId;

    fn key(&self) -> HostId {
        self.id.clone()
    }

    fn owner(&self) -> Owner<'_> {
        Owner::Cluster
    }
}

impl Exposed for Host {
    const TITLE: &'static str = "host";
    const PLURAL: &'static str = "hosts";
    const TAG: &'static str = "hosts";
    const ACCESS: Access = Access::OPERATORS;
    /// A host comes about by joining.
    type Create = Fixed;
    type View = HostView;
    type Settings = HostAttributes;
    const CREATABLE: bool = false;
    const STATES: &'static [&'static str] = schema::HOST_STATES;
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostView {
    pub id: HostId,
    #[schema(value_type = u64)]
    pub revision: Revision,
    pub joined_at_ms: u64,
    #[schema(schema_with = schema::host_state)]
    pub state: HostState,
    pub state_since_ms: u64,
    /// Whether its agent is connected now.
    pub connected: bool,
    pub last_report_at_ms: Option<u64>,
    /// Drained by command: its vms leave, none come, until it is given back.
    pub maintenance: bool,
    /// When a person declared it lost; `null`: it is not.
    #[serde(default)]
    pub lost_at_ms: Option<u64>,
    /// What was asked of its power: `asleep` by the planner, `off` by command.
    #[schema(schema_with = schema::power_intent)]
    pub power: PowerIntent,
    /// Whether drover can switch it: a power driver is configured.
    pub power_managed: bool,
    /// Why it is not counted on to wake, though drover can switch it; `null`: it is.
    #[serde(default)]
    pub wake_problem: Option<String>,
    /// Since when it is off by drover's doing.
    #[serde(default)]
    pub off_since_ms: Option<u64>,
    /// How often drover has switched it off.
    #[serde(default)]
    pub power_cycles: u32,
    /// Measured time from power-on to the agent's first word.
    pub boot_time_ms: Option<u64>,
    /// `null` until its agent first reported.
    pub capacity: Option<CapacityView>,
    /// What its agent said when it last connected; `null` if it has not since the server started.
    pub facts: Option<HostFactsView>,
    /// The newest sample; `null` if there is none.
    pub load: Option<HostLoad>,
    #[schema(schema_with = schema::heat)]
    pub heat: Heat,
    /// The vms that it has the right to run.
    pub vms: BTreeSet<VmId>,
    /// Memory that was promised to those vms.
    pub memory_promised_mib: u64,
    /// How far it is from being empty, while it is drained and had vms.
    pub evacuation: Option<EvacuationView>,
    #[serde(flatten)]
    pub attributes: HostAttributes,
}

/// A drained host on its way to being empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EvacuationView {
    pub since_ms: u64,
    /// Vms that were there, or came to be since.
    pub total: usize,
    pub done: usize,
    pub moving: usize,
    pub waiting: usize,
    /// Of those that wait: there is no place for them yet.
    pub stuck: usize,
    /// When the last will have left, by the schedule and what is measured; `null` while that can't be said.
    pub finish_eta_at_ms: Option<u64>,
    /// What was said first, or after the last slip.
    pub promised_at_ms: Option<u64>,
    /// How often the promise could not be kept; each is an event.
    pub slips: u32,
    pub finished_at_ms: Option<u64>,
}

/// What a host can give to vms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CapacityView {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    pub memory_mib: u64,
}

impl From<&Capacity> for CapacityView {
    fn from(capacity: &Capacity) -> Self {
        Self { cpu_millis: capacity.cpu.0, memory_mib: capacity.memory.0 >> 20 }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostFactsView {
    pub agent_version: String,
    pub qemu_version: String,
    pub kernel: String,
    #[schema(schema_with = schema::accelerator)]
    pub accelerator: Accelerator,
    /// Why that one.
    pub accelerator_why: String,
    pub cpu_model: String,
    pub networks: BTreeSet<NetworkId>,
    /// Where other hosts send frames of overlay networks to; `null`: it takes part in none.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub overlay_address: Option<IpAddr>,
    /// Changes at each start of the host.
    pub boot_id: String,
    /// Changes at each start of the agent.
    pub agent_run: String,
}

impl From<&HostFacts> for HostFactsView {
    fn from(facts: &HostFacts) -> Self {
        Self {
            agent_version: facts.agent_version.clone(),
            qemu_version: facts.qemu_version.clone(),
            kernel: facts.kernel.clone(),
            accelerator: facts.accelerator,
            accelerator_why: facts.accelerator_why.clone(),
            cpu_model: facts.cpu_model.clone(),
            networks: facts.networks.clone(),
            overlay_address: facts.overlay_address,
            boot_id: facts.boot_id.clone(),
            agent_run: facts.agent_run.clone(),
        }
    }
}

/// One second of a host.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostLoad {
    /// Processor time its vms got, in thousandths of a core.
    pub cpu_used_millis: u64,
    /// What they would have used with nobody in the way; may pass the capacity.
    pub cpu_wanted_millis: u64,
    pub memory_used_mib: u64,
    /// Share of the second in which some task stalled on memory.
    pub memory_pressure: f64,
    pub net_rx_bytes_s: u64,
    pub net_tx_bytes_s: u64,
    pub disk_latency_us: u64,
}

impl From<&HostSample> for HostLoad {
    fn from(sample: &HostSample) -> Self {
        Self {
            cpu_used_millis: sample.cpu_used.0,
            cpu_wanted_millis: sample.cpu_wanted.0,
            memory_used_mib: sample.memory_used.0 >> 20,
            memory_pressure: sample.memory_pressure.0,
            net_rx_bytes_s: sample.net_rx.0,
            net_tx_bytes_s: sample.net_tx.0,
            disk_latency_us: sample.disk_latency_us,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetPower {
    /// `false` needs a host without vms: drain it first.
    pub on: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateJoinToken {
    /// Seconds from now, 1 to 604800 (a week); an hour when left out.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 604800)]
    pub expires_s: Option<u64>,
}

impl CreateJoinToken {
    pub const EXPIRES_S_DEFAULT: u64 = 3600;
    pub const EXPIRES_S_MAX: u64 = 7 * 86_400;
}

/// The only answer that ever carries the join token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreatedJoinToken {
    pub id: TokenId,
    pub host: HostId,
    pub expires_at_ms: u64,
    /// Handed to `drover agent` in the file named by `join_token_file`.
    pub token: String,
}

/// Never the secret: this type ends up in logs.
impl fmt::Debug for CreatedJoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CreatedJoinToken({} for {})", self.id, self.host)
    }
}
