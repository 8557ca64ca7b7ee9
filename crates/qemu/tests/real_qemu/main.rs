//! Everything that is only true if a real QEMU says so. No kernel and no network are needed.

mod drive;
mod methods;
mod migration;
mod process;
mod recovery;
mod support;
mod tls;
