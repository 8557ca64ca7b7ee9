//! The wire: what the server and its clients, and the server and its agents, say to each other.

pub mod agent;
pub mod client;
pub mod join;
pub mod problem;
pub use drover_model::v1;
