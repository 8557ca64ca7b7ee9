//! Everything that is only true if a real QEMU says so. No kernel and no network are needed.

mod migration;
mod process;
mod support;
