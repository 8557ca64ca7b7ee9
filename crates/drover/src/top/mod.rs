//! The cluster on one screen.
//!
//! [`Snapshot`] is what is known at one moment, [`render`] draws it and does nothing else; [`live`] fetches one a
//! second and owns the terminal. Whoever has a cluster and a terminal may draw with the first two.

pub mod live;
mod render;
mod snapshot;

pub use render::render;
pub use snapshot::{Focus, Snapshot, Trends, View};
