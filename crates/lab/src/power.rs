//! The hosts' power switch, for the server's `command` power driver: what stands here for pulling a
//! machine's plug is ending the host's agent and vms and taking its management link down.
//!
//! Runs as a program of its own, started by the server, and learns all it needs from the lab's directory.

use crate::config;
use crate::limits::{KILL_WAIT_MAX, TERMINATE_WAIT_MAX};
use crate::net::{HostNumber, LabNet};
use crate::place::Place;
use crate::process::{self, Daemon};
use crate::vms;
use anyhow::{Context, Result};
use drover_model::HostId;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerOp {
    On,
    Off,
    Status,
}

/// What a host's switch has to know of the lab, in its directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wiring {
    pub drover: PathBuf,
    /// In the order of their numbers.
    pub hosts: Vec<HostId>,
}

const WIRING: &str = "lab.json";

impl Wiring {
    pub fn write(&self, place: &Place) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).context("the lab's description can't be written as JSON")?;
        let path = place.file(WIRING);
        fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))
    }

    pub fn read(place: &Place) -> Result<Self> {
        let path = place.file(WIRING);
        let text =
            fs::read(&path).with_context(|| format!("{} is not the directory of a lab", place.dir().display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))
    }

    pub fn net(&self, place: &Place) -> Result<LabNet> {
        LabNet::new(place.namespace_prefix(), self.hosts.len())
    }

    pub fn number(&self, host: &HostId) -> Result<HostNumber> {
        let at = self.hosts.iter().position(|known| known == host);
        at.and_then(|at| HostNumber::new(at + 1)).with_context(|| format!("the lab has no host {host}"))
    }

    pub fn server(&self, place: &Place) -> Result<Daemon> {
        Ok(Daemon {
            program: self.drover.clone(),
            args: vec!["server", "--config"],
            config: config::server_file(place),
            log: place.file("server.log"),
            namespace: self.net(place)?.switch(),
        })
    }

    pub fn agent(&self, place: &Place, host: &HostId) -> Result<Daemon> {
        Ok(Daemon {
            program: self.drover.clone(),
            args: vec!["agent", "--config"],
            config: config::agent_file(place, host),
            log: place.file(&format!("{host}.log")),
            namespace: self.net(place)?.host(self.number(host)?),
        })
    }
}

/// Whether the host is on afterwards.
pub fn perform(op: PowerOp, state_dir: &Path, host: &HostId) -> Result<bool> {
    let place = Place::at(state_dir)?;
    let wiring = Wiring::read(&place)?;
    let net = wiring.net(&place)?;
    let number = wiring.number(host)?;
    let agent = wiring.agent(&place, host)?;
    match op {
        PowerOp::On => {
            net.link(number, true)?;
            agent.start()?;
            Ok(true)
        }
        PowerOp::Off => {
            // Asked first, so that what it was writing is whole; its vms are cut off with the power.
            agent.terminate()?;
            let vms: Vec<u32> =
                vms::running(&place).into_iter().filter(|vm| vm.host == *host).map(|vm| vm.pid).collect();
            process::end_all(&vms, Duration::ZERO)?;
            net.link(number, false)?;
            Ok(false)
        }
        PowerOp::Status => Ok(agent.pid().is_some()),
    }
}

/// The power driver's time-out leaves room for an agent that has to be killed.
const _: () = assert!(TERMINATE_WAIT_MAX.as_secs() + KILL_WAIT_MAX.as_secs() < config::POWER_TIMEOUT_S);
