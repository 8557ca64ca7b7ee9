//! QEMU processes that outlive whoever started them.
//!
//! A process is started in a session of its own (`setsid`), its output in a log file, so that neither the end of
//! its launcher nor of a terminal reaches it. `-daemonize` would do the same, but forks after the sandbox is up, and
//! therefore forbids to deny children and privileges in it.
//!
//! A launcher that comes back finds the process by its pid file, and trusts it only if the process's own arguments
//! carry the vm's identity: pids are reused. From then on the process is held by a pidfd, which is never reused.
//! QEMU locks its pid file, so two QEMUs with one pid file cannot run.

use crate::command_line::{VmConfig, identity};
use crate::machine::Machine;
use crate::qmp::QmpError;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

/// QEMU under this name is looked for in `PATH`.
pub const QEMU_BINARY: &str = "qemu-system-x86_64";
/// The package that has it, on Debian.
pub const QEMU_PACKAGE: &str = "qemu-system-x86";

/// Longest wait from the start of QEMU until its monitor answers.
pub const LAUNCH_MAX: Duration = Duration::from_secs(30);
/// Longest wait for the end of a process that was killed. The kernel may first have to finish its writes.
pub const KILL_MAX: Duration = Duration::from_secs(10);
/// How often a monitor that is not there yet is looked for; nothing tells when it is.
const LAUNCH_POLL: Duration = Duration::from_millis(20);
/// How much of a log goes into an error.
const LOG_TAIL_BYTES: u64 = 2 << 10;
/// `sun_path` of unix(7), less the final zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// The exit status of `setsid` when it cannot find the program.
const PROGRAM_NOT_FOUND: i32 = 127;

#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("{} can't be used for a vm: {problem}", path.display())]
    BadPath { path: PathBuf, problem: &'static str },
    #[error("cannot open the log {}: check that its directory exists and the disk is not full", path.display())]
    Log { path: PathBuf, source: io::Error },
    #[error("cannot start setsid: install Debian's util-linux")]
    Setsid { source: io::Error },
    #[error("{} is not installed: install Debian's {QEMU_PACKAGE}", binary.display())]
    NotInstalled { binary: PathBuf },
    #[error("QEMU ended at start ({status}): {log}")]
    EndedAtStart { status: ExitStatus, log: String },
    #[error(
        "QEMU (pid {pid}) was not ready within {} s and was killed; its log {} may say why",
        LAUNCH_MAX.as_secs(), log.display()
    )]
    NotReady { pid: u32, log: PathBuf, source: QmpError },
    #[error("cannot watch process {pid}: Linux 5.3 or newer with pidfd is needed")]
    Watch { pid: u32, source: io::Error },
    #[error("cannot signal QEMU (pid {pid}): run as the user that started it")]
    Signal { pid: u32, source: io::Error },
    #[error("QEMU (pid {pid}) was killed and is still there after {} s: look for storage that hangs", KILL_MAX.as_secs())]
    Unkillable { pid: u32 },
}

/// What a start needs besides the vm itself.
#[derive(Debug, Clone)]
pub struct LaunchOptions {
    /// Usually [`QEMU_BINARY`].
    pub binary: PathBuf,
    /// QEMU's own messages, appended to.
    pub log: PathBuf,
}

/// A QEMU process that was verified to be a certain vm's. Clones are the same process.
#[derive(Debug, Clone)]
pub struct QemuProcess {
    pid: u32,
    id: String,
    /// A pidfd, not a pipe: this is tokio's one way, without unsafe code, to await any descriptor. Only its
    /// readiness is used.
    end: Arc<pipe::Receiver>,
}

/// Starts QEMU and returns once its monitor answers, or with what QEMU said against it.
/// Dropped half-way, it may leave a process behind: [`QemuProcess::find_by_pid_file`] tells.
pub async fn launch(config: &VmConfig, options: &LaunchOptions) -> Result<QemuProcess, ProcessError> {
    check_paths(config)?;
    let (mut child, log_start) = spawn(config, options)?;
    let pid = child.id().expect("a child that was not waited for has a pid");
    let ready = tokio::select! {
        status = child.wait() => {
            return Err(ended_at_start(status.map_err(|source| ProcessError::Watch { pid, source })?, options, log_start));
        }
        ready = monitor_answers(&config.qmp_socket, pid) => ready,
    };
    if let Err(source) = ready {
        let _ = child.kill().await;
        return Err(ProcessError::NotReady { pid, log: options.log.clone(), source });
    }
    let process = QemuProcess::open(pid, &config.id)?;
    // Only to collect its exit status while this process lives.
    tokio::spawn(async move { child.wait().await });
    Ok(process)
}

fn spawn(config: &VmConfig, options: &LaunchOptions) -> Result<(Child, u64), ProcessError> {
    let broken_log = |source| ProcessError::Log { path: options.log.clone(), source };
    let log = OpenOptions::new().create(true).append(true).open(&options.log).map_err(broken_log)?;
    let log_start = log.metadata().map_err(broken_log)?.len();
    let log_too = log.try_clone().map_err(broken_log)?;
    // The child leads no process group, so setsid does not fork: the child's pid is QEMU's.
    let child = Command::new("setsid")
        .arg(&options.binary)
        .args(config.arguments())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log_too)
        .stderr(log)
        .kill_on_drop(false)
        .spawn()
        .map_err(|source| ProcessError::Setsid { source })?;
    Ok((child, log_start))
}

fn ended_at_start(status: ExitStatus, options: &LaunchOptions, log_start: u64) -> ProcessError {
    if status.code() == Some(PROGRAM_NOT_FOUND) {
        return ProcessError::NotInstalled { binary: options.binary.clone() };
    }
    let log = read_log(&options.log, log_start).unwrap_or_default();
    let log = if log.is_empty() { "it said nothing".to_owned() } else { log };
    ProcessError::EndedAtStart { status, log }
}

async fn monitor_answers(socket: &Path, pid: u32) -> Result<(), QmpError> {
    let deadline = tokio::time::Instant::now() + LAUNCH_MAX;
    loop {
        let answer = match Machine::attach(socket).await {
            // Another QEMU's: ours is about to end, because the pid file is locked.
            Ok(machine) if machine.qmp().peer_pid() != Some(pid) => Err(QmpError::Silent { path: socket.to_owned() }),
            Ok(machine) => machine.status().await.map(drop),
            Err(error) => Err(error),
        };
        match answer {
            Ok(()) => return Ok(()),
            Err(error) if tokio::time::Instant::now() >= deadline => return Err(error),
            Err(_) => tokio::time::sleep(LAUNCH_POLL).await,
        }
    }
}

fn check_paths(config: &VmConfig) -> Result<(), ProcessError> {
    let sockets = [&config.qmp_socket, &config.serial_socket];
    let files = [&config.serial_log, &config.pid_file];
    let optional = [&config.kernel, &config.initrd, &config.disk];
    for path in sockets.into_iter().chain(files).chain(optional.into_iter().flatten()) {
        let problem = match path.to_str() {
            None => "its name is not UTF-8; rename it",
            Some(_) if !path.is_absolute() => "give it from the root directory on",
            Some(text) if sockets.contains(&path) && text.len() > SOCKET_PATH_BYTES_MAX => {
                "a socket's path may have 107 bytes; use a shorter directory"
            }
            Some(_) => continue,
        };
        return Err(ProcessError::BadPath { path: path.clone(), problem });
    }
    Ok(())
}

impl QemuProcess {
    /// The process `pid`, if it exists and really is the QEMU of the vm `id`.
    pub fn find(pid: u32, id: &str) -> Result<Option<Self>, ProcessError> {
        match Self::open(pid, id) {
            Ok(process) => Ok(process.is_alive().then_some(process)),
            Err(ProcessError::Watch { source, .. }) if source.raw_os_error() == Some(NO_SUCH_PROCESS) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// As [`Self::find`], with the pid that QEMU wrote. No file, or one that is no pid, is no process.
    pub fn find_by_pid_file(pid_file: &Path, id: &str) -> Result<Option<Self>, ProcessError> {
        let pid = std::fs::read_to_string(pid_file).ok().and_then(|text| text.trim().parse().ok());
        pid.map_or(Ok(None), |pid| Self::find(pid, id))
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it still executes; a process that ended and was not collected yet does not.
    pub fn is_alive(&self) -> bool {
        let Ok(arguments) = std::fs::read(format!("/proc/{}/cmdline", self.pid)) else {
            return false;
        };
        let identity = identity(&self.id);
        let mut arguments = arguments.split(|byte| *byte == 0);
        arguments.any(|argument| argument == b"-smbios") && arguments.next() == Some(identity.as_bytes())
    }

    /// Returns once the process has ended. May wait forever: whoever calls bounds it.
    pub async fn exited(&self) {
        // A pidfd becomes readable at the end of its process and stays so. An error means that
        // the runtime shuts down.
        let _ = self.end.readable().await;
    }

    /// Ends the process at once and waits until it is gone. Done already is done.
    pub async fn kill(&self) -> Result<(), ProcessError> {
        match pidfd_send_signal(&*self.end, Signal::KILL) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == NO_SUCH_PROCESS => return Ok(()),
            Err(error) => return Err(ProcessError::Signal { pid: self.pid, source: error.into() }),
        }
        tokio::time::timeout(KILL_MAX, self.exited()).await.map_err(|_| ProcessError::Unkillable { pid: self.pid })
    }

    fn open(pid: u32, id: &str) -> Result<Self, ProcessError> {
        let failed = |source| ProcessError::Watch { pid, source };
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or_else(|| failed(io::Error::from_raw_os_error(NO_SUCH_PROCESS)))?;
        let fd = pidfd_open(raw, PidfdFlags::NONBLOCK).map_err(|error| failed(error.into()))?;
        let end = pipe::Receiver::from_owned_fd_unchecked(fd).map_err(failed)?;
        Ok(Self { pid, id: id.to_owned(), end: Arc::new(end) })
    }
}

const NO_SUCH_PROCESS: i32 = rustix::io::Errno::SRCH.raw_os_error();

/// The end of a log, for an error text. Empty when there is none.
pub fn log_tail(log: &Path) -> String {
    read_log(log, 0).unwrap_or_default()
}

/// The last bytes of a log, nothing from before `start`.
fn read_log(path: &Path, start: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let from = start.max(file.metadata()?.len().saturating_sub(LOG_TAIL_BYTES));
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}
