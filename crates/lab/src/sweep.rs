//! Getting rid of everything that a lab made, also when the lab itself can't any more.
//!
//! Order matters: processes first, since control groups and namespaces live as long as they do, and
//! the lab's directory last, since it is what a later sweep finds the lab by.

use crate::limits::{CGROUP_WAIT_MAX, POLL};
use crate::place::{self, CGROUP, Place};
use crate::{netns, process};
use anyhow::{Context, Result};
use serde::Serialize;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What there still is of a lab, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Leftovers {
    pub namespaces: Vec<String>,
    pub processes: Vec<String>,
    pub cgroups: Vec<String>,
}

impl Leftovers {
    pub fn of(place: &Place) -> Self {
        Self {
            namespaces: namespaces(place).into_iter().map(|namespace| namespace.name().to_owned()).collect(),
            processes: processes(place).into_iter().map(|p| format!("{} {}", p.pid, p.program)).collect(),
            cgroups: cgroups(place).into_iter().map(|path| path.display().to_string()).collect(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.namespaces.is_empty() && self.processes.is_empty() && self.cgroups.is_empty()
    }
}

/// Removes everything of this lab. Fine to call when there is nothing.
pub fn sweep(place: &Place) -> Result<()> {
    let pids: Vec<u32> = processes(place).into_iter().map(|seen| seen.pid).collect();
    // Guests are not worth a farewell: the lab ends with them.
    process::end_all(&pids, Duration::ZERO)?;
    for cgroup in cgroups(place) {
        remove_cgroup(&cgroup)?;
    }
    for namespace in namespaces(place) {
        namespace.delete()?;
    }
    place.remove()
}

/// Removes the labs whose owner is gone; those that were kept only if told so.
pub fn sweep_abandoned(kept_too: bool) -> Result<Vec<String>> {
    let mut swept = Vec::new();
    for place in place::all() {
        if place.is_abandoned() && (kept_too || !place.is_kept()) {
            sweep(&place).with_context(|| format!("can't clean up after lab {}", place.name()))?;
            swept.push(place.name().to_owned());
        }
    }
    Ok(swept)
}

fn namespaces(place: &Place) -> Vec<netns::Namespace> {
    netns::with_prefix(&format!("{}-", place.namespace_prefix()))
}

/// Programs that a lab starts. Others that name its directory (a pager, an editor) are somebody else's.
fn is_ours(program: &str) -> bool {
    program == "drover" || program == "drover-demo" || program.starts_with("qemu-system-")
}

/// What runs of the lab, except the lab itself.
fn processes(place: &Place) -> Vec<process::Seen> {
    let dir = place.dir().display().to_string();
    let mine = std::process::id();
    process::all()
        .into_iter()
        .filter(|seen| seen.pid != mine && is_ours(&seen.program) && names(&seen.args, &dir))
        .collect()
}

/// Whether an argument names the directory or something in it, and not one whose name only begins alike.
fn names(args: &[String], dir: &str) -> bool {
    args.iter().any(|arg| {
        arg.match_indices(dir).any(|(at, _)| {
            let next = arg[at + dir.len()..].chars().next();
            next.is_none_or(|c| !c.is_ascii_alphanumeric() && c != '-')
        })
    })
}

/// The lab's group in every mounted hierarchy.
fn cgroups(place: &Place) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    hierarchies(&mounts).map(|root| root.join(place.cgroup())).filter(|path| path.exists()).collect()
}

/// Mount points of all hierarchies, of both versions (proc_pid_mountinfo(5)).
fn hierarchies(mountinfo: &str) -> impl Iterator<Item = PathBuf> {
    mountinfo.lines().filter_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let kind = filesystem.split(' ').next()?;
        matches!(kind, "cgroup" | "cgroup2").then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// With all groups below it. One whose last process has just ended is busy for a moment.
fn remove_cgroup(path: &Path) -> Result<()> {
    let deadline = Instant::now() + CGROUP_WAIT_MAX;
    loop {
        match remove_tree(path) {
            Ok(()) => break,
            Err(problem) if Instant::now() > deadline => {
                return Err(problem).with_context(|| format!("can't remove control group {}", path.display()));
            }
            Err(_) => std::thread::sleep(POLL),
        }
    }
    // Shared by all labs, and goes with the last of them.
    if let Some(shared) = path.parent().filter(|parent| parent.ends_with(CGROUP)) {
        let _ = fs::remove_dir(shared);
    }
    Ok(())
}

/// The files of a control group are no files: only its directories are removed.
fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path).into_iter().flatten() {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(problem) if problem.kind() != io::ErrorKind::NotFound => Err(problem),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_the_labs_if_an_argument_names_its_directory() {
        let args = |text: &str| vec!["qemu".to_owned(), text.to_owned()];
        assert!(names(&args("unix:/var/tmp/l/demo-1-1/h1/vms/x.sock,server=on"), "/var/tmp/l/demo-1-1"));
        assert!(names(&args("/var/tmp/l/demo-1-1"), "/var/tmp/l/demo-1-1"));
        assert!(!names(&args("/var/tmp/l/demo-1-11/h1"), "/var/tmp/l/demo-1-1"));
        assert!(!names(&args("/var/tmp/l/demo-1-1-old/h1"), "/var/tmp/l/demo-1-1"));
    }

    #[test]
    fn only_programs_of_a_lab_are_ended() {
        assert!(is_ours("qemu-system-x86_64") && is_ours("drover"));
        assert!(!is_ours("less") && !is_ours("qemu-img") && !is_ours("drover_lab-0123"));
    }

    #[test]
    fn hierarchies_of_both_versions_are_found() {
        let mounts = "32 31 0:29 / /cg/cpu rw shared:9 - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /cg/unified rw - cgroup2 cgroup2 rw\n\
                      50 31 0:40 / /tmp rw - tmpfs tmpfs rw\n";
        let found: Vec<_> = hierarchies(mounts).collect();
        assert_eq!(found, [PathBuf::from("/cg/cpu"), PathBuf::from("/cg/unified")]);
    }
}
