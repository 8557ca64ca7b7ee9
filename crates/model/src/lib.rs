//! The nouns of drover: identities, units, intent, inventory, load, findings, plans, migrations, events.
//!
//! Three kinds of fact are kept apart everywhere:
//! - **intent**: what somebody decided (kept in the store, changed by compare-and-swap): [`intent`];
//! - **inventory**: what an agent sees on its host, with the time it was seen: [`inventory`];
//! - **load**: measured samples in bounded windows, never stored: [`load`].
//!
//! Beside the nouns stands one set of rules, which command an agent may carry out: [`admission`].
//!
//! Nothing here does I/O, reads a clock or draws a random number: time and identities are passed in.

pub mod admission;
pub mod command;
pub mod event;
pub mod ids;
pub mod intent;
pub mod inventory;
pub mod kind;
pub mod load;
pub mod migration;
pub mod network;
pub mod placement;
pub mod plan;
pub mod policy;
pub mod units;
pub mod v1;
pub mod world;

pub use ids::*;
pub use units::*;
