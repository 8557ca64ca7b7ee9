//! How a guest is to be moved, and what QEMU must be told of that at both ends.

use super::pre_copy::DOWNTIME_LIMIT_CLOSED_MS;
use super::tls;
use crate::machine::Machine;
use crate::qmp::QmpError;
use serde_json::{Value, json};
use std::path::PathBuf;
use tokio::sync::watch;

/// Stands for no limit, in bytes per second; QEMU's own default would be 128 MiB/s.
pub(super) const BANDWIDTH_UNLIMITED: u64 = 1 << 40;
/// Next to nothing, in bytes per second. QEMU counts in tenths of a second, where less becomes 0, which is no limit. It
/// then sends a page each tenth.
pub(super) const BANDWIDTH_HELD: u64 = 10;
/// Most channels that QEMU can be told.
const CHANNELS_MAX: u8 = 16;
/// Throttling begins with this much, in percent, and grows by the step.
const THROTTLE_FIRST: u8 = 20;
const THROTTLE_STEP: u8 = 10;
const THROTTLE_LIMIT: u8 = 99;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Rounds while the guest runs, then a short stop for the rest.
    PreCopy,
    /// Part of a round, then the guest runs at the destination and fetches what is missing. Always ends.
    PostCopy,
    /// The guest stands still from the first byte to the last.
    StopAndCopy,
}

/// How fast a migration may send, in bytes per second; 0 is no limit.
///
/// The first round goes at `min`, each further one at the rate the guest dirtied memory in the one before plus a
/// constant, and `max` bounds all but the last copy (Clark et al., "Live Migration of Virtual Machines", NSDI 2005, section 5.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pace {
    pub min: u64,
    pub max: u64,
    /// Sends next to nothing until told otherwise; that time does not count for [`super::Limits::total_max`].
    pub paused: bool,
}

impl Pace {
    pub(super) fn limit(self) -> u64 {
        if self.max == 0 { BANDWIDTH_UNLIMITED } else { self.max.max(BANDWIDTH_HELD) }
    }
}

/// Mutually authenticated TLS on all channels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Holds `ca-cert.pem`, `server-cert.pem`, `server-key.pem`, `client-cert.pem` and `client-key.pem`.
    pub directory: PathBuf,
    /// At the source: the name that the destination's certificate must be valid for. At the destination: the common
    /// name of the one source that is admitted; its subject has nothing else.
    pub peer: String,
}

/// How a guest is moved. Both ends get the same, but for the peer of [`Tls`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Strategy {
    pub method: Method,
    /// Connections that memory is sent over, 1 to 16. QEMU 7.2 takes more than one with pre-copy and stop-and-copy only.
    pub channels: u8,
    /// With zstd; only with more than one channel.
    pub compress: bool,
    /// How far the guest may be slowed down so that pre-copy ends, in percent, up to 99; 0: not at all.
    pub throttle_max: u8,
    pub tls: Option<Tls>,
    pub pace: Pace,
}

impl Strategy {
    /// The plainest: one connection without limits, not encrypted.
    pub const PRE_COPY: Self = Self {
        method: Method::PreCopy,
        channels: 1,
        compress: false,
        throttle_max: 0,
        tls: None,
        pace: Pace { min: 0, max: 0, paused: false },
    };

    fn has_channels(&self) -> bool {
        self.channels > 1 && self.method != Method::PostCopy
    }

    pub(super) fn throttle_max(&self) -> u8 {
        if self.method == Method::PreCopy { self.throttle_max.min(THROTTLE_LIMIT) } else { 0 }
    }

    /// Sets what both ends must agree on. What is not named keeps QEMU's default, off.
    async fn set_capabilities(&self, machine: &Machine) -> Result<(), QmpError> {
        let capabilities = [
            ("events", true),
            ("pause-before-switchover", true),
            ("return-path", false),
            ("multifd", self.has_channels()),
            ("postcopy-ram", self.method == Method::PostCopy),
            // Requested pages have a connection of their own, past what waits to be sent.
            ("postcopy-preempt", self.method == Method::PostCopy),
            ("xbzrle", false),
            ("auto-converge", self.throttle_max() > 0),
        ];
        // Those that go out first: QEMU checks each whole set, and post-copy and multifd may exclude each other.
        let (off, on): (Vec<_>, Vec<_>) = capabilities.into_iter().partition(|(_, state)| !state);
        let capabilities: Vec<_> = off
            .into_iter()
            .chain(on)
            .map(|(capability, state)| json!({ "capability": capability, "state": state }))
            .collect();
        machine.qmp().execute("migrate-set-capabilities", json!({ "capabilities": capabilities })).await.map(drop)
    }

    fn shared_parameters(&self) -> Vec<(&'static str, Value)> {
        if !self.has_channels() {
            return Vec::new();
        }
        let compression = if self.compress { "zstd" } else { "none" };
        vec![("multifd-channels", json!(self.channels.min(CHANNELS_MAX))), ("multifd-compression", json!(compression))]
    }

    pub(super) async fn set_up_source(&self, machine: &Machine) -> Result<(), QmpError> {
        self.set_capabilities(machine).await?;
        let mut parameters = self.shared_parameters();
        parameters.push(("downtime-limit", json!(DOWNTIME_LIMIT_CLOSED_MS)));
        parameters.push(("max-bandwidth", json!(BANDWIDTH_HELD)));
        parameters.push(("max-postcopy-bandwidth", json!(post_copy_limit(self.pace))));
        if self.throttle_max() > 0 {
            parameters.push(("max-cpu-throttle", json!(self.throttle_max())));
            parameters.push(("cpu-throttle-initial", json!(THROTTLE_FIRST.min(self.throttle_max()))));
            parameters.push(("cpu-throttle-increment", json!(THROTTLE_STEP)));
        }
        parameters.extend(tls::set_up_source(machine, self.tls.as_ref()).await?);
        set_parameters(machine, parameters).await
    }

    pub(super) async fn set_up_destination(&self, machine: &Machine) -> Result<(), QmpError> {
        self.set_capabilities(machine).await?;
        let mut parameters = self.shared_parameters();
        parameters.extend(tls::set_up_destination(machine, self.tls.as_ref()).await?);
        set_parameters(machine, parameters).await
    }
}

/// QEMU's parameter for what flows after the switch-over; there 0 is no limit, too.
pub(super) fn post_copy_limit(pace: Pace) -> u64 {
    if pace.paused {
        BANDWIDTH_HELD
    } else if pace.max == 0 {
        0
    } else {
        pace.max.max(BANDWIDTH_HELD)
    }
}

pub(super) async fn set_parameters(machine: &Machine, parameters: Vec<(&str, Value)>) -> Result<(), QmpError> {
    if parameters.is_empty() {
        return Ok(());
    }
    let parameters: serde_json::Map<_, _> =
        parameters.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    machine.qmp().execute("migrate-set-parameters", Value::Object(parameters)).await.map(drop)
}

/// Changes the pace of a migration under way. Outlives it without effect.
#[derive(Debug, Clone)]
pub struct Adjust(pub(super) watch::Sender<Pace>);

impl Adjust {
    pub fn pace(&self, pace: Pace) {
        self.0.send_replace(pace);
    }
}
