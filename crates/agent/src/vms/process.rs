//! The QEMU process of a vm, and its control group. Its tap is in [`super::network`], its disk in [`super::files`].

use super::files::{self, VmFiles};
use super::task::{VmTask, failed};
use super::{Attached, subject};
use crate::net::Coming;
use drover_model::VmId;
use drover_model::command::{CommandRefusal, VmRun};
use drover_qemu::process::{ProcessError, launch};
use drover_qemu::{LaunchOptions, Machine, Nic, QemuProcess, QmpError, VmConfig};
use std::path::{Path, PathBuf};
use tokio::time::Instant;

impl VmTask {
    /// Starts QEMU with all that it needs and attaches to it. On failure nothing of it is left.
    pub(super) async fn launch(&mut self, run: &VmRun, incoming: bool) -> Result<Machine, CommandRefusal> {
        let launched = self.launch_whole(run, incoming).await;
        if launched.is_err() {
            if let Err(refusal) = self.end_process().await {
                tracing::error!(vm = %self.vm, %refusal, "a QEMU that failed at start is still there");
            }
            self.clear_host().await;
        }
        launched
    }

    async fn launch_whole(&mut self, run: &VmRun, incoming: bool) -> Result<Machine, CommandRefusal> {
        let files = self.files(run)?;
        // A vm that arrives brings none: it is shared.
        if !incoming {
            files.make_disk().await.map_err(|error| failed(&error))?;
        }
        let nic = self.prepare_nic(run, if incoming { Coming::Incoming } else { Coming::Fresh }).await?;
        let config = self.vm_config(run, files, nic, incoming);
        let options = LaunchOptions { binary: PathBuf::from(&self.host().config.qemu), log: self.dir.qemu_log() };
        self.guest_shut_down = false;
        self.process = Some(launch(&config, &options).await.map_err(|error| failed(&error))?);
        let machine = self.attach(run).await.map_err(|error| failed(&error))?;
        tracing::info!(vm = %self.vm, label = run.label, pid = self.process.as_ref().map(QemuProcess::pid), incoming, "QEMU started");
        Ok(machine)
    }

    pub(super) fn files(&self, run: &VmRun) -> Result<VmFiles, CommandRefusal> {
        VmFiles::find(&self.host().config.shared_dir, run).map_err(|error| failed(&error))
    }

    fn vm_config(&self, run: &VmRun, files: VmFiles, nic: Option<Nic>, incoming: bool) -> VmConfig {
        VmConfig {
            id: run.vm.to_string(),
            label: run.label.clone(),
            accel: self.host().accel,
            vcpus: run.vcpus,
            memory_mib: run.memory.0 >> 20,
            kernel: files.kernel,
            initrd: files.initrd,
            cmdline: run.cmdline.clone(),
            disk: files.disk,
            nic,
            qmp_socket: self.dir.qmp_socket(),
            serial_socket: self.dir.serial_socket(),
            serial_log: self.dir.serial_log(),
            pid_file: self.dir.pid_file(),
            incoming,
        }
    }

    /// Attaches to the process's monitor and puts its threads where they belong.
    pub(super) async fn attach(&mut self, run: &VmRun) -> Result<Machine, AttachError> {
        let Some(process) = &self.process else { return Err(AttachError::NoProcess) };
        let pid = process.pid();
        let machine = Machine::attach(&self.dir.qmp_socket()).await?;
        let events = machine.events();
        let vcpu_threads = machine.vcpu_threads().await?;
        if let Some(cgroup) = &self.host().cgroup {
            cgroup.place(&self.vm, pid, &vcpu_threads)?;
        }
        let subject = subject(run, pid, vcpu_threads);
        self.events = Some(events);
        self.attached = Some(Attached { machine: machine.clone(), subject, disk: run.disk, since: Instant::now() });
        Ok(machine)
    }

    /// Ends the process at once, if there is one, and whatever drove it.
    pub(super) async fn end_process(&mut self) -> Result<(), CommandRefusal> {
        self.driver = None;
        self.forget_dirty_rate();
        self.attached = None;
        self.events = None;
        self.stop_by = None;
        self.handed_over = None;
        if let Some(process) = &self.process {
            process.kill().await.map_err(|error| failed(&error))?;
        }
        self.process = None;
        Ok(())
    }

    /// Removes what only a running vm needs.
    pub(super) async fn clear_host(&self) {
        if let Err(error) = self.detach_nic().await {
            tracing::warn!(vm = %self.vm, error = crate::error_chain::chain(&error), "a tap is left over");
        }
        if let Some(cgroup) = &self.host().cgroup {
            cgroup.remove(&self.vm);
        }
    }

    pub(super) fn remove_disk(&self) -> Result<(), CommandRefusal> {
        files::remove_disk(&self.host().config.shared_dir, self.vm.as_str()).map_err(|error| failed(&error))
    }

    /// The vm's process on this host, by the file that QEMU wrote; else by looking at all of them: an agent may have
    /// died before QEMU wrote it.
    pub(super) fn find_process(&self) -> Result<Option<QemuProcess>, ProcessError> {
        let pid_file = self.dir.pid_file();
        let known = QemuProcess::find_by_pid_file(&pid_file, self.vm.as_str())?;
        Ok(known.filter(|process| started_with(process.pid(), &pid_file)).or_else(|| scan(&self.vm, &pid_file)))
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum AttachError {
    #[error("there is no QEMU process")]
    NoProcess,
    #[error(transparent)]
    Monitor(#[from] QmpError),
    #[error(transparent)]
    Cgroup(#[from] crate::cgroup::CgroupError),
}

fn scan(vm: &VmId, pid_file: &Path) -> Option<QemuProcess> {
    let entries = std::fs::read_dir("/proc").ok()?;
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| started_with(*pid, pid_file))
        // A process that can't be looked at is not ours.
        .find_map(|pid| QemuProcess::find(pid, vm.as_str()).ok().flatten())
}

/// Whether the process was given this pid file. Hosts that share a machine see each other's processes, and during a
/// migration both have one of the same vm: the pid file's path tells whose it is.
fn started_with(pid: u32, pid_file: &Path) -> bool {
    let Ok(arguments) = std::fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    arguments.split(|byte| *byte == 0).any(|argument| argument == pid_file.as_os_str().as_encoded_bytes())
}
