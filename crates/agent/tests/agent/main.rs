//! A whole agent against a server of the test's own: real TLS, real WebSocket, real QEMU. Needs root and QEMU.

mod server;
mod whole_agent;
