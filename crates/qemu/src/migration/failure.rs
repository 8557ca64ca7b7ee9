//! Why a migration ended without success, and what the guest then does at the source.

use super::{CONNECT_MAX, GATE_MAX, RECOVER_MAX, SWITCH_OVER_MAX, Stalled};
use crate::machine::RunStatus;
use crate::qmp::QmpError;

/// Why a migration ended without success.
#[derive(Debug, thiserror::Error)]
pub enum FailureCause {
    #[error(
        "the guest dirties {dirty_rate} bytes/s, the migration carries {throughput} bytes/s, and after {after_s} s it \
         does not converge: move it when it is quieter, or raise downtime_max, total_max or bandwidth_max"
    )]
    NotConverging { dirty_rate: u64, throughput: u64, after_s: u64 },
    #[error(
        "after {rounds} rounds {remaining} bytes are left each time, which at {throughput} bytes/s is more downtime than \
         downtime_max allows: move it by post-copy, or raise downtime_max or bandwidth_max"
    )]
    WillNotConverge { rounds: u64, remaining: u64, dirty_rate: u64, throughput: u64 },
    #[error("nothing was left to be copied after the switch-over: move it by pre-copy, which comes to its end")]
    NothingLeft,
    #[error("the network could not be opened to both hosts ({why}): the guest runs on at the source")]
    Gate { why: String },
    #[error("the network was not opened to both hosts within {} s: look at both agents' logs", GATE_MAX.as_secs())]
    GateStuck,
    #[error(
        "no memory flowed within {} s: check that this host reaches the destination's migration address",
        CONNECT_MAX.as_secs()
    )]
    NoConnection,
    #[error("cancelled by {by}")]
    Cancelled { by: String },
    #[error("the commit did not come within {waited_ms} ms: check that the server is reachable, then migrate again")]
    NoCommit { waited_ms: u128 },
    /// QEMU's words, where it gave any (7.2 gives none for a broken stream).
    #[error("QEMU could not send the guest ({desc}): look at the destination's QEMU and the network between")]
    Stream { desc: String },
    #[error(
        "the last state was not sent within {} s of the commit: end the source's QEMU once the destination is seen running",
        SWITCH_OVER_MAX.as_secs()
    )]
    SwitchOverStuck,
    #[error("QEMU is in the migration state {status}, which this driver never asks for: someone else drives this QEMU")]
    Foreign { status: String },
    #[error(transparent)]
    Monitor(#[from] QmpError),
}

/// What the guest does at the source after a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceGuest {
    RunsHere,
    /// The process is there; the guest is not executed.
    StandsStill(RunStatus),
    /// QEMU closed its monitor: its process has ended or is ending.
    Gone,
    /// QEMU did not answer.
    Unknown,
}

/// A migration that did not hand over.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub struct OutgoingFailed {
    pub cause: FailureCause,
    /// Verified, not assumed.
    pub guest: SourceGuest,
}

/// A migration could not be begun; the guest runs as before.
#[derive(Debug, thiserror::Error)]
#[error("cannot begin the migration")]
pub struct StartError(#[from] pub QmpError);

/// Taking a guest back did not work.
#[derive(Debug, thiserror::Error)]
pub enum TakeBackError {
    #[error("the guest can't be taken back while QEMU is {0}: only one that was handed over can")]
    WrongStatus(RunStatus),
    #[error("the guest ran at the destination, so its memory here is old: start it anew if the destination is lost")]
    AfterPostCopy,
    #[error(transparent)]
    Monitor(#[from] QmpError),
}

#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    #[error("QEMU did not reach the destination ({desc}): let it listen anew and try again with its new port")]
    NotReached { desc: String },
    #[error("the two ends did not agree within {} s: look at both QEMUs' logs, then try again", RECOVER_MAX.as_secs())]
    TookTooLong,
    #[error(transparent)]
    Monitor(#[from] QmpError),
}

/// The post-copy is stalled as before, and can be tried again.
#[derive(Debug, thiserror::Error)]
#[error("cannot go on with the post-copy")]
pub struct RecoverFailed {
    pub stalled: Stalled,
    #[source]
    pub cause: RecoverError,
}
