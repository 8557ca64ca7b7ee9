//! Connections between agents and the server: first in, first out, each way, with delays; a cut loses what is under
//! way, and each end learns of it in its own time.

use crate::dice::Dice;
use drover_control::interface::AgentMessage;
use drover_model::command::Command;
use drover_model::network::HostNetwork;
use drover_model::{CommandId, HostId, TimeMs};
use std::collections::VecDeque;

/// Messages under way on one connection, each way.
pub const UNDER_WAY_MAX: usize = 4_000;
const DELAY_MS: (u64, u64) = (1, 300);

#[derive(Debug)]
pub enum ToAgent {
    Command(CommandId, Box<Command>),
    Network(HostNetwork),
}

#[derive(Debug)]
pub struct Link {
    pub host: HostId,
    /// The runs of agent and server at its two ends.
    pub agent_run: u64,
    pub server_run: u64,
    to_server: Lane<AgentMessage>,
    to_agent: Lane<ToAgent>,
    pub cut: bool,
    /// Nothing arrives before this.
    stalled_until: TimeMs,
}

#[derive(Debug)]
struct Lane<T> {
    messages: VecDeque<T>,
    last: TimeMs,
}

impl<T> Lane<T> {
    fn new() -> Self {
        Self { messages: VecDeque::new(), last: TimeMs::ZERO }
    }

    /// When it will arrive: never before the one before it.
    fn push(&mut self, message: T, now: TimeMs, stalled_until: TimeMs, dice: &mut Dice) -> TimeMs {
        let delay = dice.between(DELAY_MS.0, DELAY_MS.1);
        // Most messages of a good network are quick.
        let delay = if dice.chance(0.7) { delay / 10 + 1 } else { delay };
        self.last = self.last.max(TimeMs(now.0 + delay)).max(stalled_until);
        self.messages.push_back(message);
        self.last
    }
}

impl Link {
    pub fn new(host: HostId, agent_run: u64, server_run: u64) -> Self {
        let (to_server, to_agent) = (Lane::new(), Lane::new());
        Self { host, agent_run, server_run, to_server, to_agent, cut: false, stalled_until: TimeMs::ZERO }
    }

    /// `None`: it is cut, and the message lost.
    pub fn send_to_server(&mut self, message: AgentMessage, now: TimeMs, dice: &mut Dice) -> Option<TimeMs> {
        (!self.cut).then(|| self.to_server.push(message, now, self.stalled_until, dice))
    }

    pub fn send_to_agent(&mut self, message: ToAgent, now: TimeMs, dice: &mut Dice) -> Option<TimeMs> {
        (!self.cut).then(|| self.to_agent.push(message, now, self.stalled_until, dice))
    }

    pub fn next_to_server(&mut self) -> Option<AgentMessage> {
        self.to_server.messages.pop_front()
    }

    pub fn next_to_agent(&mut self) -> Option<ToAgent> {
        self.to_agent.messages.pop_front()
    }

    pub fn longest(&self) -> usize {
        self.to_server.messages.len().max(self.to_agent.messages.len())
    }

    pub fn cut(&mut self) {
        self.cut = true;
        self.to_server.messages.clear();
        self.to_agent.messages.clear();
    }

    /// Nothing new arrives until then; what is under way already does.
    pub fn stall(&mut self, until: TimeMs) {
        self.stalled_until = self.stalled_until.max(until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_in_the_order_they_were_sent() {
        let mut dice = Dice::new(1, 1);
        let mut link = Link::new("h1".parse().unwrap(), 1, 1);
        let times: Vec<TimeMs> = (0..100)
            .map(|n| link.send_to_server(AgentMessage::Disconnected, TimeMs(n * 10), &mut dice).unwrap())
            .collect();
        assert!(times.is_sorted(), "{times:?}");
        link.cut();
        assert_eq!(link.next_to_server(), None);
        assert_eq!(link.send_to_server(AgentMessage::Disconnected, TimeMs(0), &mut dice), None);
    }
}
