//! Where a lab keeps its things, and whether anybody still owns it.
//!
//! ```text
//! /var/tmp/drover-lab/<lab>/
//!     owner           process that runs the lab, and when that process began
//!     kept            there if the lab is to outlive its owner
//!     lab.json        what the power switch must know (power.rs)
//!     shared/         images, seen by server and hosts
//!     server.toml server.log server/
//!     h1.toml h1.log h1.join h1/
//! ```

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Short, because paths of unix sockets below it are limited to 107 bytes.
pub const LABS: &str = "/var/tmp/drover-lab";
/// Of every namespace that a lab makes.
pub const NAMESPACE_PREFIX: &str = "drlab-";
/// Above every control group that a lab makes.
pub const CGROUP: &str = "drover-lab";

const OWNER: &str = "owner";
const KEPT: &str = "kept";

/// A lab's name and directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    labs: PathBuf,
    name: String,
}

impl Place {
    /// A name no other lab has: `<kind>-<pid>-<n>`.
    pub fn new(kind: &str) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(1);
        let name = format!("{kind}-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        Self { labs: LABS.into(), name }
    }

    /// The place of a lab by its directory.
    pub fn at(dir: &Path) -> Result<Self> {
        match (dir.parent(), dir.file_name().and_then(|name| name.to_str())) {
            (Some(labs), Some(name)) if dir.is_absolute() => Ok(Self { labs: labs.to_owned(), name: name.to_owned() }),
            _ => bail!("{} is not a lab's directory: give its absolute path", dir.display()),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn dir(&self) -> PathBuf {
        self.labs.join(&self.name)
    }

    pub fn shared_dir(&self) -> PathBuf {
        self.dir().join("shared")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    pub fn namespace_prefix(&self) -> String {
        format!("{NAMESPACE_PREFIX}{}", self.name)
    }

    /// Of the namespace of server, demo and test.
    pub fn switch_name(&self) -> String {
        format!("{}-sw", self.namespace_prefix())
    }

    /// Relative to the root of each hierarchy.
    pub fn cgroup(&self) -> PathBuf {
        Path::new(CGROUP).join(&self.name)
    }

    /// Makes the directory, owned by this process from its first moment on.
    pub fn create(&self) -> Result<()> {
        let dir = self.dir();
        let new = self.labs.join(format!("{NEW}{}", self.name));
        fs::create_dir_all(&new)
            .and_then(|()| fs::write(new.join(OWNER), Owner::this().to_text()))
            .and_then(|()| fs::create_dir(new.join("shared")))
            .and_then(|()| fs::rename(&new, &dir))
            .with_context(|| format!("can't make the lab's directory {}: is the disk full?", dir.display()))
    }

    pub fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(self.dir()) {
            Err(problem) if problem.kind() != std::io::ErrorKind::NotFound => {
                Err(problem).with_context(|| format!("can't remove {}", self.dir().display()))
            }
            _ => Ok(()),
        }
    }

    /// Lets the lab outlive its owner.
    pub fn keep(&self) -> Result<()> {
        fs::write(self.file(KEPT), "").with_context(|| format!("can't write {}", self.file(KEPT).display()))
    }

    pub fn is_kept(&self) -> bool {
        self.file(KEPT).exists()
    }

    /// Whether the process that ran it is gone.
    pub fn is_abandoned(&self) -> bool {
        match fs::read_to_string(self.file(OWNER)) {
            Ok(text) => !Owner::from_text(&text).is_some_and(|owner| owner.lives()),
            // Just being made, or half removed.
            Err(_) => fs::metadata(self.dir())
                .and_then(|dir| dir.modified())
                .is_ok_and(|at| at.elapsed().is_ok_and(|age| age > UNOWNED_MAX)),
        }
    }
}

/// While a lab's directory is being made, its name begins like this.
const NEW: &str = "new-";
/// A lab's directory has an owner from a moment after it was made until a moment before it is gone.
const UNOWNED_MAX: Duration = Duration::from_secs(60);

/// Every lab that left something, from whatever process.
pub fn all() -> Vec<Place> {
    let names = fs::read_dir(LABS).into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut places: Vec<Place> = names.map(|name| Place { labs: LABS.into(), name }).collect();
    places.sort_by(|a, b| a.name.cmp(&b.name));
    places
}

/// A process, told from a later one that got the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Owner {
    pid: u32,
    /// In clock ticks since the machine started (proc_pid_stat(5), field 22).
    began: u64,
}

impl Owner {
    fn this() -> Self {
        let pid = std::process::id();
        Self { pid, began: began(pid).unwrap_or(0) }
    }

    fn lives(self) -> bool {
        began(self.pid) == Some(self.began)
    }

    fn to_text(self) -> String {
        format!("{} {}\n", self.pid, self.began)
    }

    fn from_text(text: &str) -> Option<Self> {
        let (pid, began) = text.trim().split_once(' ')?;
        Some(Self { pid: pid.parse().ok()?, began: began.parse().ok()? })
    }
}

fn began(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; fields 3 and on follow the last one.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_labs_of_one_process_have_their_own_names() {
        assert_ne!(Place::new("test").name(), Place::new("test").name());
    }

    #[test]
    fn a_place_is_found_again_by_its_directory() {
        let place = Place::new("test");
        assert_eq!(Place::at(&place.dir()).unwrap(), place);
        assert!(Place::at(Path::new("relative/dir")).is_err());
        assert!(Place::at(Path::new("/")).is_err());
    }

    #[test]
    fn an_owner_is_alive_only_as_the_process_it_was() {
        let this = Owner::this();
        assert!(this.lives());
        assert!(!Owner { began: this.began + 1, ..this }.lives());
        assert_eq!(Owner::from_text(&this.to_text()), Some(this));
        assert_eq!(Owner::from_text(""), None);
    }

    #[test]
    fn sockets_below_a_lab_have_paths_that_fit() {
        let path = Place::new("failover").dir().join("h200/vms/vm-aaaaaaaaaaaa/serial.sock");
        assert!(path.as_os_str().len() <= 107, "{}", path.display());
    }
}
