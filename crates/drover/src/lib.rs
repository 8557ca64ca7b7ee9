//! The `drover` command: server, agent and client verbs in one binary.
//!
//! The library part exists for its second users: [`top`] draws the cluster for the demo too, and tests call [`cli`].

pub mod cli;
pub mod top;
