//! Runs and live-migrates QEMU processes. Knows QEMU and nothing of drover's loops.
//!
//! | module | what it does |
//! |---|---|
//! | [`command_line`] | a vm's description to QEMU's arguments |
//! | [`disk`] | thin copies of an image |
//! | [`process`] | start a detached process, find it again after a restart, wait for its end |
//! | [`qmp`] | the machine protocol: calls, events, a clean end |
//! | [`machine`] | what a running vm can be asked and told |
//! | [`migration`] | both ends of a live migration: pre-copy, post-copy, stop-and-copy |
//! | [`probe`] | which accelerator works here, which QEMU is installed, and how it can migrate |
//!
//! QEMU 7.2 is what it is made for; later versions are tolerated: unknown events, fields and
//! states pass through.

pub mod command_line;
pub mod disk;
pub mod machine;
pub mod migration;
pub mod probe;
pub mod process;
pub mod qmp;

pub use command_line::{Accel, Nic, VmConfig};
pub use machine::{Machine, RunStatus};
pub use process::{LaunchOptions, QemuProcess};
pub use qmp::{Qmp, QmpError, QmpEvent};
