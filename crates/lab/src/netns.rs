//! Network namespaces, entered by thread.
//!
//! A thread that has entered one hands it to the threads and processes it starts; the rest of the
//! process stays where it was. Only the network changes: `ip netns exec` would also hide the mounts
//! below `/sys`, the control groups among them.

use crate::limits::IP_WAIT_MAX;
use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Where iproute2 keeps named namespaces.
const NAMED: &str = "/run/netns";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn create(&self) -> Result<()> {
        ip(&["netns", "add", &self.name])?;
        self.ip(&["link", "set", "lo", "up"])
    }

    pub fn exists(&self) -> bool {
        self.path().exists()
    }

    /// What is in it goes with it, once its last process has ended.
    pub fn delete(&self) -> Result<()> {
        match ip(&["netns", "delete", &self.name]) {
            // Somebody else may be cleaning up, too.
            Err(problem) if self.exists() => Err(problem),
            _ => Ok(()),
        }
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(NAMED).join(&self.name)
    }

    /// Runs `ip` on the inside.
    pub fn ip(&self, args: &[&str]) -> Result<()> {
        ip(&[&["-n", &self.name], args].concat())
    }

    /// Names of the interfaces on the inside.
    pub fn interfaces(&self) -> Result<Vec<String>> {
        self.within(|| {
            // One line each after two of headings (proc_pid_net(5)).
            let table = std::fs::read_to_string("/proc/thread-self/net/dev").context("can't read the interfaces")?;
            let names = table.lines().skip(2).filter_map(|line| line.split_once(':'));
            Ok(names.map(|(name, _)| name.trim().to_owned()).collect())
        })
    }

    /// Runs `tc` on the inside.
    pub fn tc(&self, args: &[&str]) -> Result<()> {
        iproute2("tc", &[&["-n", &self.name], args].concat())
    }

    /// Moves the calling thread in. There is no way back: meant for threads made for it.
    pub fn enter(&self) -> Result<()> {
        let path = self.path();
        let file = File::open(&path).with_context(|| format!("network namespace {} is gone", self.name))?;
        setns(file, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("can't enter network namespace {}: this needs root", self.name))
    }

    /// Does this on the inside, on a thread of its own, and waits for it.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name(self.name.clone()).spawn_scoped(scope, || {
                self.enter()?;
                work()
            });
            match thread.context("can't start a thread")?.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

/// All named namespaces whose name begins like this.
pub fn with_prefix(prefix: &str) -> Vec<Namespace> {
    let mut found: Vec<Namespace> = std::fs::read_dir(NAMED)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .map(Namespace::named)
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// Runs iproute2's `ip` by argument list.
pub fn ip(args: &[&str]) -> Result<()> {
    iproute2("ip", args)
}

fn iproute2(program: &str, args: &[&str]) -> Result<()> {
    let shown = format!("{program} {}", args.join(" "));
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("can't run `{shown}`: install iproute2 (`cargo xtask setup`)"))?;
    let deadline = Instant::now() + IP_WAIT_MAX;
    let status = loop {
        if let Some(status) = child.try_wait().with_context(|| format!("lost sight of `{shown}`"))? {
            break status;
        }
        if Instant::now() > deadline {
            // Killed or ended this moment: either way it is over.
            let _ = child.kill();
            let _ = child.wait();
            bail!("`{shown}` did not end within {} s", IP_WAIT_MAX.as_secs());
        }
        // Most calls take a few milliseconds.
        std::thread::sleep(Duration::from_millis(2));
    };
    if status.success() {
        return Ok(());
    }
    let mut said = String::new();
    if let Some(stderr) = child.stderr.take() {
        // What can't be read can't be shown; the status stands.
        let _ = stderr.take(4_096).read_to_string(&mut said);
    }
    Err(anyhow!("`{shown}` failed ({status}): {}", said.trim()))
}
