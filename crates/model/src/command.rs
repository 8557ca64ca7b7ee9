//! What the server tells an agent to do. Every command is idempotent and carries the generation it
//! was decided at: an agent that knows a newer one refuses, and executing one twice changes nothing.

use crate::intent::{Nic, VmSpec};
use crate::migration::{MigrationProgress, MigrationReport, Pace, Strategy};
use crate::policy::MigrationPolicy;
use crate::{Bytes, Generation, HostId, ImageId, MigrationId, Millis, TimeMs, VmId};
use serde::{Deserialize, Serialize};

/// All that a host must know to run a vm; two hosts given the same value build the same virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRun {
    pub vm: VmId,
    /// For process names, logs and the guest's host name.
    pub label: String,
    pub image: ImageId,
    pub kernel: bool,
    pub initrd: bool,
    pub disk: bool,
    /// Complete kernel command line.
    pub cmdline: String,
    pub vcpus: u32,
    pub memory: Bytes,
    pub nic: Option<Nic>,
}

impl VmRun {
    pub fn new(vm: &VmId, spec: &VmSpec, image: &crate::intent::Image) -> Self {
        let mut cmdline = image.cmdline.clone();
        let mut add = |key: &str, value: &str| {
            if !cmdline.is_empty() {
                cmdline.push(' ');
            }
            cmdline.push_str(&format!("drover.{key}={value}"));
        };
        add("name", spec.name.as_str());
        if let Some(address) = spec.nic.as_ref().and_then(|nic| nic.address.as_deref()) {
            add("address", address);
        }
        for (key, value) in &spec.guest_args {
            add(key, value);
        }
        Self {
            vm: vm.clone(),
            label: format!("{}-{}", spec.tenant, spec.name),
            image: image.id.clone(),
            kernel: image.kernel.is_some(),
            initrd: image.initrd.is_some(),
            disk: image.disk.is_some(),
            cmdline,
            vcpus: spec.vcpus,
            memory: spec.memory,
            // What guards the card and limits it reaches the host by itself, and may change while the vm runs.
            nic: spec.nic.clone().map(|nic| Nic {
                security_groups: Default::default(),
                bandwidth: Default::default(),
                ..nic
            }),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "command")]
pub enum Command {
    /// Be running this vm at this generation. Adopts the qemu process if there is one.
    Run { run: VmRun, generation: Generation },
    /// Power the guest down; end the process once `grace` has passed. Leaves the state `Stopped`.
    Stop { vm: VmId, generation: Generation, grace: Millis },
    /// The right to run has left this host, or the vm is gone: end the process at once and forget the vm.
    /// `delete_disk` only when the vm is gone for good.
    Release { vm: VmId, generation: Generation, delete_disk: bool },
    /// Start a qemu that waits for memory from `from`. `generation` is the one the vm will have here.
    PrepareIncoming { run: VmRun, generation: Generation, migration: MigrationId, from: HostId, strategy: Strategy },
    /// Send the vm away: pre-copy, pause, tell [`MigrationUpdate::AtSwitchOver`], wait for
    /// [`Command::CommitSwitchOver`] at most `limits.commit_wait_max`, else take the guest back.
    MigrateOut {
        vm: VmId,
        generation: Generation,
        migration: MigrationId,
        target: MigrationTarget,
        limits: MigrationPolicy,
        strategy: Strategy,
    },
    /// To the source of a migration under way: change how fast it may send. Forgotten at its end.
    AdjustMigration { vm: VmId, migration: MigrationId, pace: Pace },
    /// To the destination whose post-copy stalled: listen for the source once more. Answered by
    /// [`CommandOutcome::Listening`].
    RecoverIncoming { vm: VmId, generation: Generation, migration: MigrationId },
    /// To the source whose post-copy stalled: connect anew and go on.
    RecoverOutgoing { vm: VmId, generation: Generation, migration: MigrationId, target: MigrationTarget },
    /// To the source: the new generation is committed, finish the switch-over.
    CommitSwitchOver { vm: VmId, generation: Generation, migration: MigrationId },
    /// To the source: stop sending, run on; refused past the commit. To the destination: end the waiting qemu; refused
    /// once the guest is complete there, which may have run.
    CancelMigration { vm: VmId, migration: MigrationId },
    /// To the source past a commit whose destination is proven never to have run: run the guest here again, at this generation.
    TakeBack { vm: VmId, generation: Generation, migration: MigrationId },
    /// Measure for `span` how fast the running guest writes to its memory; done once the measurement is under way. The
    /// result stands in [`VmSample::dirty_rate`](crate::load::VmSample::dirty_rate). One under way answers this one, too.
    MeasureDirtyRate {
        vm: VmId,
        generation: Generation,
        /// [`Command::MEASURE_SPAN_MIN`] to [`Command::MEASURE_SPAN_MAX`], in whole seconds.
        span: Millis,
    },
}

impl Command {
    /// What QEMU can measure a dirty rate for.
    pub const MEASURE_SPAN_MIN: Millis = Millis::secs(1);
    pub const MEASURE_SPAN_MAX: Millis = Millis::secs(60);

    pub fn vm(&self) -> &VmId {
        match self {
            Self::Run { run, .. } | Self::PrepareIncoming { run, .. } => &run.vm,
            Self::Stop { vm, .. }
            | Self::Release { vm, .. }
            | Self::MigrateOut { vm, .. }
            | Self::CommitSwitchOver { vm, .. }
            | Self::CancelMigration { vm, .. }
            | Self::AdjustMigration { vm, .. }
            | Self::RecoverIncoming { vm, .. }
            | Self::RecoverOutgoing { vm, .. }
            | Self::TakeBack { vm, .. }
            | Self::MeasureDirtyRate { vm, .. } => vm,
        }
    }

    /// Whether the vm stays what it is: where it runs, and what its host says of it, does not depend on the outcome.
    pub fn only_looks(&self) -> bool {
        match self {
            Self::MeasureDirtyRate { .. } => true,
            Self::Run { .. }
            | Self::Stop { .. }
            | Self::Release { .. }
            | Self::PrepareIncoming { .. }
            | Self::MigrateOut { .. }
            | Self::CommitSwitchOver { .. }
            | Self::CancelMigration { .. }
            | Self::AdjustMigration { .. }
            | Self::RecoverIncoming { .. }
            | Self::RecoverOutgoing { .. }
            | Self::TakeBack { .. } => false,
        }
    }
}

/// Where the destination's qemu listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationTarget {
    /// Its certificate carries this name.
    pub host: HostId,
    pub address: std::net::IpAddr,
    pub port: u16,
    /// Tunnel end point that frames to the vm are relayed to while it moves; `None`: on no overlay network.
    pub relay: Option<std::net::IpAddr>,
}

/// An agent's answer to a command: taken and done (or, for [`Command::MigrateOut`] and
/// [`Command::MeasureDirtyRate`], under way), or refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
pub enum CommandOutcome {
    Done,
    /// Answer to [`Command::PrepareIncoming`].
    Listening {
        target: MigrationTarget,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case", tag = "refusal")]
pub enum CommandRefusal {
    #[error("this host already knows generation {known}")]
    StaleGeneration { known: Generation },
    #[error("the same generation was given before with other content")]
    Conflict,
    #[error("this host does not have the vm")]
    UnknownVm,
    #[error("not possible while the vm is {state}")]
    WrongState { state: String },
    #[error("{why}")]
    Failed { why: String },
}

/// What a migrating host tells on its own account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "update")]
pub enum MigrationUpdate {
    /// Source: memory is flowing.
    Progress { progress: MigrationProgress },
    /// Source: the guest stands still since `stopped_at` (the source's clock) and waits for the commit.
    AtSwitchOver { stopped_at: TimeMs },
    /// Source: pre-copy will not come to an end within the limits, so it was given up and the guest runs on here; with
    /// post-copy it would move.
    WillNotConverge { why: String },
    /// Source or destination: post-copy lost its connection, the memory is kept at both ends.
    Stalled { why: String },
    /// Source: everything was sent; the guest will not run here again by itself. Figures as measured there.
    HandedOver { report: MigrationReport },
    /// Source: it did not work, the guest runs here.
    SourceResumed { why: String },
    /// Destination: the guest runs here since `at` (the destination's clock).
    Running { at: TimeMs },
    /// Destination: the stream broke; the guest never ran here.
    IncomingFailed { why: String },
}
