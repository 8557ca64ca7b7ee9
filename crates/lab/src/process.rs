//! Starting and ending programs, and knowing whether they run.

use crate::limits::{KILL_WAIT_MAX, POLL, START_WAIT_MAX, TERMINATE_WAIT_MAX};
use crate::netns::Namespace;
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A program that runs in the background, in a namespace, told from its kind by its configuration
/// file: that stands on its command line, so it is found again whoever started it.
#[derive(Debug, Clone)]
pub struct Daemon {
    pub program: PathBuf,
    /// What comes before the configuration file.
    pub args: Vec<&'static str>,
    pub config: PathBuf,
    /// Output and error output are appended to it.
    pub log: PathBuf,
    pub namespace: Namespace,
}

impl Daemon {
    /// Starts it in a process group of its own: what is typed at our terminal does not reach it, and
    /// it may outlive us. Starting what runs already changes nothing.
    pub fn start(&self) -> Result<()> {
        if self.pid().is_some() {
            return Ok(());
        }
        let log = open_log(&self.log)?;
        let errors = log.try_clone().with_context(|| format!("can't write {}", self.log.display()))?;
        let mut child = self.namespace.within(|| {
            Command::new(&self.program)
                .args(&self.args)
                .arg(&self.config)
                .stdin(Stdio::null())
                .stdout(log)
                .stderr(errors)
                .process_group(0)
                .spawn()
                .with_context(|| format!("can't start {}: build it first", self.program.display()))
        })?;
        // It is known by its command line, which shows a moment after its program has begun.
        let deadline = Instant::now() + START_WAIT_MAX;
        while self.pid().is_none()
            && Instant::now() < deadline
            && child.try_wait().with_context(|| format!("lost sight of {}", self.program.display()))?.is_none()
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        // Nobody else waits for it, and without that it would stay in the process table. Its end is told by `pid`.
        std::thread::spawn(move || child.wait());
        Ok(())
    }

    /// While it runs.
    pub fn pid(&self) -> Option<u32> {
        let name = self.program.file_name()?.to_str()?;
        let config = self.config.to_str()?;
        all().into_iter().find(|seen| seen.program == name && seen.args.iter().any(|arg| arg == config)).map(|s| s.pid)
    }

    /// An error with the end of its log, if it does not run.
    pub fn expect_running(&self) -> Result<()> {
        if self.pid().is_none() {
            let end = last_lines(&self.log, LOG_LINES_SHOWN);
            bail!("{} {} does not run:\n{end}", self.program.display(), self.config.display());
        }
        Ok(())
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&self) -> Result<()> {
        end_all(&Vec::from_iter(self.pid()), Duration::ZERO)
    }

    /// Makes it stand still, or go on. What is sent to it meanwhile waits for it.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let pid = self.pid().with_context(|| format!("{} does not run", self.config.display()))?;
        signal(pid, if frozen { Signal::SIGSTOP } else { Signal::SIGCONT })
    }

    /// Asks it to end; kills it when it has not within [`TERMINATE_WAIT_MAX`].
    pub fn terminate(&self) -> Result<()> {
        end_all(&Vec::from_iter(self.pid()), TERMINATE_WAIT_MAX)
    }
}

fn open_log(path: &Path) -> Result<File> {
    OpenOptions::new().create(true).append(true).open(path).with_context(|| format!("can't write {}", path.display()))
}

/// Lines of a program's log that are quoted when it ended unexpectedly.
const LOG_LINES_SHOWN: usize = 20;

pub fn last_lines(path: &Path, lines: usize) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Sends a signal; a process that is gone already is fine.
pub fn signal(pid: u32, signal: Signal) -> Result<()> {
    match kill(as_pid(pid)?, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(problem) => Err(problem).with_context(|| format!("can't send {signal} to process {pid}")),
    }
}

fn as_pid(pid: u32) -> Result<Pid> {
    i32::try_from(pid).map(Pid::from_raw).with_context(|| format!("{pid} is not a process id"))
}

/// Ends processes that are nobody's children any more: asks, waits as long, kills, waits until they are gone.
pub fn end_all(pids: &[u32], grace: Duration) -> Result<()> {
    if !grace.is_zero() {
        pids.iter().try_for_each(|pid| signal(*pid, Signal::SIGTERM))?;
        wait_gone(pids, grace);
    }
    let left: Vec<u32> = pids.iter().copied().filter(|pid| runs(*pid)).collect();
    left.iter().try_for_each(|pid| signal(*pid, Signal::SIGKILL))?;
    if !wait_gone(&left, KILL_WAIT_MAX) {
        bail!("processes {left:?} were killed and are still there after {} s", KILL_WAIT_MAX.as_secs());
    }
    Ok(())
}

fn wait_gone(pids: &[u32], limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while pids.iter().any(|pid| runs(*pid)) {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(POLL);
    }
    true
}

/// Whether there is such a process. One that has ended and that nobody has waited for is not.
pub fn runs(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

/// A process of the machine, as far as it tells whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub pid: u32,
    /// File name of its program.
    pub program: String,
    pub args: Vec<String>,
}

/// Every process whose program is known and that has not ended.
pub fn all() -> Vec<Seen> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| runs(*pid)).filter_map(seen).collect()
}

fn seen(pid: u32) -> Option<Seen> {
    let link = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let name = link.file_name()?.to_string_lossy();
    // A program that was built anew since it was started.
    let program = name.trim_end_matches(" (deleted)").to_owned();
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let args = line.split(|b| *b == 0).map(|arg| String::from_utf8_lossy(arg).into_owned()).collect();
    Some(Seen { pid, program, args })
}

/// The directory of the programs built together with this one.
pub fn programs_dir() -> Result<PathBuf> {
    let this = std::env::current_exe().context("can't tell where this program is")?;
    let dir = this.parent().with_context(|| format!("{} lies in no directory", this.display()))?;
    // A test's program lies one further down.
    let dir = if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir };
    Ok(dir.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_ended_unwaited_does_not_run() {
        let mut child = Command::new("true").spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while runs(child.id()) {
            assert!(Instant::now() < deadline, "`true` still runs");
            std::thread::sleep(POLL);
        }
        assert!(fs::exists(format!("/proc/{}", child.id())).unwrap(), "it was waited for already");
        child.wait().unwrap();
    }

    #[test]
    fn a_process_that_ignores_being_asked_is_killed() {
        let script = "trap '' TERM; echo ready; while :; do sleep 1; done";
        let mut child = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = [0; 6];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        end_all(&[child.id()], Duration::from_millis(200)).unwrap();
        assert!(!runs(child.id()));
        child.wait().unwrap();
    }

    #[test]
    fn this_program_is_seen_with_its_arguments() {
        let this = all().into_iter().find(|seen| seen.pid == std::process::id()).unwrap();
        assert!(this.program.starts_with("drover_lab"), "{this:?}");
        assert!(!this.args.is_empty());
    }

    #[test]
    fn the_end_of_a_log_is_quoted() {
        let path = std::env::temp_dir().join(format!("drover-last-lines-{}", std::process::id()));
        fs::write(&path, "1\n2\n3\n").unwrap();
        let end = last_lines(&path, 2);
        fs::remove_file(&path).unwrap();
        assert_eq!(end, "2\n3");
        assert_eq!(last_lines(&path, 2), "");
    }
}
