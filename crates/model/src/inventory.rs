//! What an agent sees on its host. Reported whole, once a second and at every change, so that the
//! server never has to guess what it missed.

use crate::{Bytes, CpuMillis, Generation, MigrationId, NetworkId, VmId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What a host can give to vms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    pub cpu: CpuMillis,
    pub memory: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accelerator {
    Kvm,
    /// QEMU's own translation: the processor offers no virtualization, or the start-up probe failed.
    Tcg,
}

/// What not every QEMU or kernel can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationFeature {
    /// The kernel has userfaultfd and QEMU may use it.
    PostCopy,
    /// Several connections.
    Multifd,
    /// Compression on them.
    MultifdZstd,
    /// TLS with certificates on the migration channel.
    Tls,
}

/// What an agent says of its host when it connects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    pub agent_version: String,
    pub qemu_version: String,
    pub kernel: String,
    pub accelerator: Accelerator,
    /// Why that one, for `host show`.
    pub accelerator_why: String,
    pub cpu_model: String,
    pub capacity: Capacity,
    /// Networks this host can attach a vm to.
    pub networks: BTreeSet<NetworkId>,
    /// Where other hosts send frames of overlay networks to; `None`: it can't take part in any.
    #[serde(default)]
    pub overlay_address: Option<std::net::IpAddr>,
    /// Machine types its QEMU has, of those drover uses. A vm moves only between hosts that share its type.
    #[serde(default)]
    pub machine_types: BTreeSet<String>,
    /// What a guest sees of the processor, by Linux's names of features; empty under TCG, which offers the same everywhere.
    #[serde(default)]
    pub cpu_features: BTreeSet<String>,
    /// Ways to migrate that its QEMU and kernel can be asked for.
    #[serde(default)]
    pub migration_features: BTreeSet<MigrationFeature>,
    /// Changes at each start of the host.
    pub boot_id: String,
    /// Changes at each start of the agent: tells a reconnect from a restart.
    pub agent_run: String,
}

/// One vm as its host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmInventory {
    pub vm: VmId,
    /// The generation this host was given for it.
    pub generation: Generation,
    pub state: VmState,
    /// Of the qemu process, while there is one.
    pub pid: Option<u32>,
}

/// The states of a vm on one host.
///
/// ```text
///  Starting ──▶ Running ──▶ Stopping ──▶ Stopped
///                 │  ▲                     ▲
///     MigrateOut  │  │ cancelled, failed   │ guest switched itself off, qemu died (Failed)
///                 ▼  │
///               Outgoing ──commit──▶ HandedOver ──Release──▶ (gone)
///  Incoming ──stream complete──▶ Running
///           ──post-copy begins─▶ Completing ──last page──▶ Running
///           ──stream broken────▶ IncomingFailed ──Release──▶ (gone)
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum VmState {
    Starting,
    Running,
    /// Asked to power down, not yet gone.
    Stopping,
    /// No qemu process, and it ended as asked or by the guest's own wish.
    Stopped,
    /// No qemu process, or it can't run; `why` is for people.
    Failed {
        why: String,
    },
    /// Waiting for or receiving memory from another host. Does not run the guest.
    Incoming {
        migration: MigrationId,
    },
    /// The stream broke before it was complete: never ran here, never will at this generation.
    IncomingFailed {
        migration: MigrationId,
        why: String,
    },
    /// Runs here by post-copy while part of its memory is still at the source, and needs the source until that has come.
    Completing {
        migration: MigrationId,
        /// The connection to the source broke: the guest waits wherever it touches what has not come.
        stalled: bool,
    },
    /// Runs here while its memory is being sent away.
    Outgoing {
        migration: MigrationId,
        phase: OutgoingPhase,
    },
    /// All memory was sent and the guest is stopped here for good, kept only until the destination is seen running.
    HandedOver {
        migration: MigrationId,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutgoingPhase {
    /// Pre-copy rounds; the guest runs.
    PreCopy,
    /// The guest is paused before the switch-over and waits for the commit.
    AtSwitchOver,
    /// Committed; the last state is on its way. The guest does not run here.
    SwitchingOver,
    /// The guest runs at the destination, its remaining memory is sent from here. It never runs here again.
    PostCopy,
    /// The connection broke during post-copy; QEMU keeps the memory and waits to be connected anew.
    PostCopyPaused,
}

impl VmState {
    /// Whether the guest executes instructions on this host in this state. Paused at the
    /// switch-over counts: it may be resumed here.
    pub fn runs_guest(&self) -> bool {
        match self {
            Self::Starting | Self::Running | Self::Stopping | Self::Completing { .. } => true,
            Self::Outgoing { phase, .. } => match phase {
                OutgoingPhase::PreCopy | OutgoingPhase::AtSwitchOver => true,
                OutgoingPhase::SwitchingOver | OutgoingPhase::PostCopy | OutgoingPhase::PostCopyPaused => false,
            },
            Self::Stopped
            | Self::Failed { .. }
            | Self::Incoming { .. }
            | Self::IncomingFailed { .. }
            | Self::HandedOver { .. } => false,
        }
    }

    pub fn migration(&self) -> Option<MigrationId> {
        match self {
            Self::Incoming { migration }
            | Self::IncomingFailed { migration, .. }
            | Self::Completing { migration, .. }
            | Self::Outgoing { migration, .. }
            | Self::HandedOver { migration } => Some(*migration),
            Self::Starting | Self::Running | Self::Stopping | Self::Stopped | Self::Failed { .. } => None,
        }
    }

    /// One word for tables.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed { .. } => "failed",
            Self::Incoming { .. } => "incoming",
            Self::IncomingFailed { .. } => "incoming-failed",
            Self::Completing { .. } => "completing",
            Self::Outgoing { .. } => "migrating",
            Self::HandedOver { .. } => "handed-over",
        }
    }
}
