//! A cluster on one machine, out of real parts: for the demo and for the end-to-end tests.
//!
//! Hosts are network namespaces joined by bridges, with a processor quota and a memory size each;
//! the server, the agents and QEMU are the real programs. The test or demo itself runs inside the
//! namespace that stands for the network's switch ([`run`]), so plain sockets reach server and guests.
//!
//! ```text
//!             namespace <lab>-sw                                    namespace <lab>-h1
//!   server, demo/test, tick sink                                agent, qemu x n
//!   mgmt 10.77.0.1/24 ──────────── veth h1m ═══════ eth0 10.77.0.11/24
//!   prov 10.78.0.1/24 ──────────── veth h1p ═══════ eth1 ── br-prov ── taps of the vms
//! ```
//!
//! Everything a lab makes carries its name, and everything is gone after it: on return, on a panic,
//! on Ctrl-C, and after `kill -9` when the next lab begins ([`sweep`]).
//!
//! | module | is about |
//! |---|---|
//! | [`lab`] | a whole lab, from start to clean-up |
//! | [`cluster`] | the server and the agents, and what tests do to them |
//! | [`config`] | the configurations they are given |
//! | [`vms`] | the vms: image, creation, load, where they run |
//! | [`net`], [`netns`] | namespaces, bridges, links |
//! | [`shaping`] | the speed of links |
//! | [`process`] | starting and ending programs |
//! | [`probe`], [`ticks`] | what can be seen of the guests from outside |
//! | [`power`] | the hosts' power switch |
//! | [`faults`] | who dies in which phase of a migration |
//! | [`place`], [`sweep`] | where a lab keeps its things, and getting rid of them |

pub mod cluster;
pub mod config;
pub mod faults;
pub mod lab;
pub mod limits;
pub mod net;
pub mod netns;
pub mod place;
pub mod power;
pub mod probe;
pub mod process;
pub mod shaping;
pub mod sweep;
pub mod ticks;
pub mod vms;

pub use cluster::Cluster;
pub use lab::{Interrupted, Lab, LabOptions, LabOutcome, run};
pub use sweep::Leftovers;
