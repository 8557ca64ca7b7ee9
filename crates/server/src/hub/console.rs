//! Serial consoles: one session between an API client and an agent, bounded both ways.

use super::{Entry, Hub};
use drover_api::agent::{ConsoleBytes, ToAgent};
use drover_control::interface::ConnectionId;
use drover_model::{HostId, VmId};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Chunks waiting for a client; one that reads more slowly loses its session.
pub const OUTPUT_QUEUE_MAX: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsoleEvent {
    Output(Vec<u8>),
    /// The host ended it; nothing follows.
    Closed(String),
}

#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    #[error("the agent of host {host} is not connected; try again once `drover host ls` shows it up")]
    NotConnected { host: HostId },
    #[error("the agent of host {host} is too busy; try again in a moment")]
    Busy { host: HostId },
}

/// An open session. Dropping it tells the agent.
#[derive(Debug)]
pub struct Console {
    hub: Arc<Hub>,
    connection: ConnectionId,
    session: u64,
    output: mpsc::Receiver<ConsoleEvent>,
}

impl Console {
    pub fn session(&self) -> u64 {
        self.session
    }

    /// `None`: the host is gone, or this side did not read fast enough.
    pub async fn next(&mut self) -> Option<ConsoleEvent> {
        self.output.recv().await
    }

    /// Whether the agent could take it.
    pub fn input(&self, data: Vec<u8>) -> bool {
        let message = ToAgent::ConsoleInput { session: self.session, data: ConsoleBytes(data) };
        self.hub.state().connections.get(&self.connection).is_some_and(|entry| entry.send(message))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(entry) = self.hub.state().connections.get_mut(&self.connection) {
            entry.consoles.remove(&self.session);
            entry.send(ToAgent::ConsoleClose { session: self.session });
        }
    }
}

impl Hub {
    pub fn open_console(self: &Arc<Self>, host: &HostId, vm: &VmId) -> Result<Console, ConsoleError> {
        let mut state = self.state();
        state.next_session += 1;
        let session = state.next_session;
        // The newest connection of the host is the one that counts.
        let (connection, entry) = state
            .connections
            .iter_mut()
            .rev()
            .find(|(_, entry)| entry.host == *host)
            .ok_or_else(|| ConsoleError::NotConnected { host: host.clone() })?;
        if !entry.send(ToAgent::ConsoleOpen { session, vm: vm.clone() }) {
            return Err(ConsoleError::Busy { host: host.clone() });
        }
        let (sender, output) = mpsc::channel(OUTPUT_QUEUE_MAX);
        entry.consoles.insert(session, sender);
        Ok(Console { hub: self.clone(), connection: *connection, session, output })
    }

    pub(super) fn console_output(&self, connection: ConnectionId, session: u64, data: Vec<u8>) {
        self.console_event(connection, session, |sender| sender.try_send(ConsoleEvent::Output(data)).is_ok());
    }

    pub(super) fn console_closed(&self, connection: ConnectionId, session: u64, why: String) {
        self.console_event(connection, session, |sender| {
            // A client whose queue is full learns of the end by the channel's.
            let _told = sender.try_send(ConsoleEvent::Closed(why));
            false
        });
    }

    /// `deliver` says whether the session goes on.
    fn console_event(
        &self,
        connection: ConnectionId,
        session: u64,
        deliver: impl FnOnce(&mpsc::Sender<ConsoleEvent>) -> bool,
    ) {
        let mut state = self.state();
        let Some(Entry { consoles, .. }) = state.connections.get_mut(&connection) else { return };
        if consoles.get(&session).is_some_and(|sender| !deliver(sender)) {
            consoles.remove(&session);
        }
    }
}
