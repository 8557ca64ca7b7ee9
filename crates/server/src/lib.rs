//! The control plane's process: the store, the API, the agents' connections, the power drivers, and the task
//! that gives the state machine of `drover-control` time and hands.
//!
//! ```text
//!   clients ──HTTPS──▶ http ──┐                      ┌──▶ store (SQLite)
//!                             ├──▶ shell ⟷ Control ──┤
//!   agents ──mTLS, WebSocket──▶ hub ──┘   ▲          ├──▶ hub ──▶ agents
//!                                         └── power ◀┘
//! ```
//! - [`shell`] is the only task that touches the state machine and the store.
//! - [`http`] is the only way in for people and programs; it has no private door.
//! - Nothing here decides anything about vms or hosts.

pub mod ca;
pub mod config;
pub mod datadir;
pub mod http;
pub mod hub;
pub mod metrics;
pub mod power;
pub mod secret;
pub mod serve;
pub mod shell;
mod start;
pub mod store;

pub use http::openapi_json;
pub use start::{Running, run, start};
