//! The agents' side of the server: who is connected, and the bounded queues towards them.
//!
//! [`connection`] is one agent's connection from its first word to its last; this registry is what the
//! rest of the server sees of it. Nothing here waits: an agent that does not keep up is disconnected,
//! and says hello again with all it knows.

pub mod connection;
pub mod console;

use drover_api::agent::ToAgent;
use drover_control::interface::ConnectionId;
use drover_model::HostId;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::{mpsc, watch};

pub use console::{Console, ConsoleError, ConsoleEvent};

/// Why the server ends a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The agent is told why and waits longer before it tries again.
    Refused(String),
    /// The agent may come back at once.
    Closed(&'static str),
}

/// All agent connections.
#[derive(Debug)]
pub struct Hub {
    queue_max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next_connection: u64,
    next_session: u64,
    connections: BTreeMap<ConnectionId, Entry>,
}

#[derive(Debug)]
struct Entry {
    host: HostId,
    queue: mpsc::Sender<ToAgent>,
    end: watch::Sender<Option<End>>,
    consoles: BTreeMap<u64, mpsc::Sender<ConsoleEvent>>,
}

impl Entry {
    /// Queues a message; an agent that has let its queue fill up is disconnected.
    fn send(&self, message: ToAgent) -> bool {
        match self.queue.try_send(message) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                tracing::warn!(host = %self.host, "the agent does not read what it is sent; disconnecting it");
                self.end(End::Closed("it did not read what it was sent"));
                false
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }

    fn end(&self, end: End) {
        self.end.send_if_modified(|present| {
            let first = present.is_none();
            if first {
                *present = Some(end);
            }
            first
        });
    }
}

/// What a connection's task gets when it is registered.
#[derive(Debug)]
pub struct Registered {
    pub id: ConnectionId,
    pub outgoing: mpsc::Receiver<ToAgent>,
    pub end: watch::Receiver<Option<End>>,
}

impl Hub {
    pub fn new(queue_max: usize) -> Self {
        Self { queue_max, state: Mutex::default() }
    }

    // Every change to the state is complete when a guard goes, so a panic elsewhere leaves it sound.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, host: HostId) -> Registered {
        let (queue, outgoing) = mpsc::channel(self.queue_max);
        let (end_sender, end) = watch::channel(None);
        let mut state = self.state();
        state.next_connection += 1;
        let id = ConnectionId(state.next_connection);
        state.connections.insert(id, Entry { host, queue, end: end_sender, consoles: BTreeMap::new() });
        Registered { id, outgoing, end }
    }

    /// Console sessions of the connection see their channel close.
    fn unregister(&self, connection: ConnectionId) {
        self.state().connections.remove(&connection);
    }

    /// Queues a message for a connection. One that is gone has lost it: the loops look again.
    pub fn send(&self, connection: ConnectionId, message: ToAgent) {
        if let Some(entry) = self.state().connections.get(&connection) {
            entry.send(message);
        }
    }

    pub fn disconnect(&self, connection: ConnectionId, end: End) {
        if let Some(entry) = self.state().connections.get(&connection) {
            entry.end(end);
        }
    }

    /// Every agent says hello again.
    pub fn disconnect_all(&self, why: &'static str) {
        for entry in self.state().connections.values() {
            entry.end(End::Closed(why));
        }
    }

    pub fn connected(&self) -> usize {
        self.state().connections.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_model::VmId;

    fn hub() -> (Hub, HostId, VmId) {
        (Hub::new(16), "h1".parse().unwrap(), "vm-abcdefghijkl".parse().unwrap())
    }

    #[test]
    fn connection_ids_grow() {
        let (hub, host, _) = hub();
        let first = hub.register(host.clone());
        hub.unregister(first.id);
        assert!(hub.register(host).id > first.id);
    }

    #[test]
    fn an_agent_that_does_not_read_is_disconnected() {
        let (hub, host, _) = hub();
        let registered = hub.register(host);
        for session in 0..17 {
            hub.send(registered.id, ToAgent::ConsoleClose { session });
        }
        assert!(matches!(*registered.end.borrow(), Some(End::Closed(_))));
    }

    #[test]
    fn the_first_reason_to_end_stands() {
        let (hub, host, _) = hub();
        let registered = hub.register(host);
        hub.disconnect(registered.id, End::Refused("the host was removed".to_owned()));
        hub.disconnect_all("the server ends");
        assert_eq!(*registered.end.borrow(), Some(End::Refused("the host was removed".to_owned())));
    }

    #[tokio::test]
    async fn a_console_is_routed_and_closed_on_both_sides() {
        let (hub, host, vm) = hub();
        let hub = std::sync::Arc::new(hub);
        let mut registered = hub.register(host.clone());
        let mut console = hub.open_console(&host, &vm).unwrap();
        let Some(ToAgent::ConsoleOpen { session, vm: opened }) = registered.outgoing.recv().await else {
            panic!("no ConsoleOpen")
        };
        assert_eq!(opened, vm);
        hub.console_output(registered.id, session, b"login: ".to_vec());
        assert_eq!(console.next().await, Some(ConsoleEvent::Output(b"login: ".to_vec())));
        assert!(console.input(b"root\n".to_vec()));
        assert!(matches!(registered.outgoing.recv().await, Some(ToAgent::ConsoleInput { .. })));
        hub.console_closed(registered.id, session, "the vm stopped".to_owned());
        assert_eq!(console.next().await, Some(ConsoleEvent::Closed("the vm stopped".to_owned())));
        assert_eq!(console.next().await, None);
        drop(console);
        assert_eq!(registered.outgoing.recv().await, Some(ToAgent::ConsoleClose { session }));
    }

    #[test]
    fn a_console_on_a_host_that_is_not_connected_is_refused() {
        let (hub, host, vm) = hub();
        let hub = std::sync::Arc::new(hub);
        assert!(matches!(hub.open_console(&host, &vm), Err(ConsoleError::NotConnected { .. })));
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_loses_its_console() {
        let (hub, host, vm) = hub();
        let hub = std::sync::Arc::new(hub);
        let registered = hub.register(host.clone());
        let mut console = hub.open_console(&host, &vm).unwrap();
        for _ in 0..=console::OUTPUT_QUEUE_MAX {
            hub.console_output(registered.id, console.session(), b"x".to_vec());
        }
        let mut got = 0;
        while console.next().await.is_some() {
            got += 1;
        }
        assert_eq!(got, console::OUTPUT_QUEUE_MAX);
    }
}
