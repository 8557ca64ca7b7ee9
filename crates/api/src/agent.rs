//! What server and agents say to each other: one WebSocket, text frames, one serde message a frame.
//!
//! The agent dials [`PATH`] on the server's agent port over mutually authenticated TLS; its
//! certificate's common name is its [`HostId`]. It says [`FromAgent::Hello`] first and is answered
//! with [`ToAgent::Welcome`]; after that both sides speak when they have something to say. The agent
//! sends a [`FromAgent::Report`] at least every [`Welcome::report_every`], and at once when a vm changes
//! state, so that a lost frame costs a second and never the truth.
//!
//! Frames are bounded by [`FRAME_MAX`] and [`TO_AGENT_FRAME_MAX`]; a longer one ends the connection.

use drover_model::command::{Command, CommandOutcome, CommandRefusal, MigrationUpdate};
use drover_model::inventory::{HostFacts, VmInventory};
use drover_model::load::{HostSample, VmSample};
use drover_model::network::HostNetwork;
use drover_model::{CommandId, HostId, MigrationId, Millis, TimeMs, VmId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Raised when the two sides would no longer understand each other. Both refuse another one by name.
pub const PROTOCOL_VERSION: u32 = 2;

/// Path of the WebSocket on the server's agent port.
pub const PATH: &str = "/agent/v1";

/// Longest frame the server accepts.
pub const FRAME_MAX: usize = 1 << 20;

/// Longest frame an agent accepts: a host's networks are told whole.
pub const TO_AGENT_FRAME_MAX: usize = 16 << 20;

/// Console bytes in one frame at most, before base64.
pub const CONSOLE_CHUNK_MAX: usize = crate::v1::CONSOLE_FRAME_MAX;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "message")]
pub enum FromAgent {
    Hello(Hello),
    Report(Report),
    /// To a [`ToAgent::Command`]; exactly one per command while the connection lasts.
    Answer {
        id: CommandId,
        answer: Result<CommandOutcome, CommandRefusal>,
    },
    Migration {
        vm: VmId,
        migration: MigrationId,
        update: MigrationUpdate,
    },
    ConsoleOutput {
        session: u64,
        data: ConsoleBytes,
    },
    /// The console ended; `why` is for people.
    ConsoleClosed {
        session: u64,
        why: String,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "message")]
pub enum ToAgent {
    Welcome(Welcome),
    /// The connection will not be served; `why` says what to do. The agent waits longer before it tries again.
    Refused {
        why: String,
    },
    Command {
        id: CommandId,
        command: Box<Command>,
    },
    /// Replaces all that the host was told of networks before. Stands, or has failed, before a command that came after it
    /// makes a vm start or arrive; not answered, the reports say what stands.
    Network {
        network: HostNetwork,
    },
    /// Attach to a vm's serial console. One session per vm; a new one takes over.
    ConsoleOpen {
        session: u64,
        vm: VmId,
    },
    ConsoleInput {
        session: u64,
        data: ConsoleBytes,
    },
    ConsoleClose {
        session: u64,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    pub protocol: u32,
    pub host: HostId,
    pub facts: HostFacts,
    /// What is there before anything is asked: the server resolves what it left half-done from this.
    pub vms: Vec<VmInventory>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    pub report_every: Millis,
    /// The server's clock, to notice when the two disagree.
    pub now: TimeMs,
}

/// The host as a whole: inventory always, load with it when a sampling interval ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Grows by one; starts at 1 with each connection.
    pub seq: u64,
    /// The agent's clock.
    pub at: TimeMs,
    pub vms: Vec<VmInventory>,
    pub load: Option<Load>,
    /// Generation of the newest [`HostNetwork`] that stands; 0: none.
    #[serde(default)]
    pub network: u64,
    /// Why a newer one could not be set up.
    #[serde(default)]
    pub network_error: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Load {
    pub host: HostSample,
    pub vms: BTreeMap<VmId, VmSample>,
}

/// Bytes of a serial console; base64 (RFC 4648 section 4) in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ConsoleBytes(pub Vec<u8>);

impl From<ConsoleBytes> for String {
    fn from(bytes: ConsoleBytes) -> String {
        base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes.0)
    }
}

impl TryFrom<String> for ConsoleBytes {
    type Error = base64::DecodeError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).map(ConsoleBytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_wire() {
        let sent = FromAgent::Answer {
            id: CommandId(7),
            answer: Err(CommandRefusal::StaleGeneration { known: drover_model::Generation(3) }),
        };
        let text = serde_json::to_string(&sent).unwrap();
        assert_eq!(serde_json::from_str::<FromAgent>(&text).unwrap(), sent);
        let sent = ToAgent::ConsoleInput { session: 1, data: ConsoleBytes(vec![0, 255, b'x']) };
        let text = serde_json::to_string(&sent).unwrap();
        assert_eq!(serde_json::from_str::<ToAgent>(&text).unwrap(), sent);
    }
}
