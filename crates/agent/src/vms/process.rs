//! The QEMU process of a vm, and what surrounds it on the host: tap, control group, disk.

use super::task::{VmTask, failed};
use super::{Attached, subject};
use crate::net::NetError;
use drover_model::VmId;
use drover_model::command::{CommandRefusal, VmRun};
use drover_qemu::process::{ProcessError, launch};
use drover_qemu::{LaunchOptions, Machine, Nic, QemuProcess, QmpError, VmConfig, disk};
use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
enum SurroundingsError {
    #[error(
        "network {0} is not configured on this host: map it to a bridge under [networks] in the agent's configuration"
    )]
    UnknownNetwork(String),
    #[error("the image {image} has no {file} in {}: add the image again", dir.display())]
    NoImageFile { image: String, file: &'static str, dir: PathBuf },
    #[error("the vm's disk {} is not there: check that shared_dir is the same storage on all hosts", .0.display())]
    NoDisk(PathBuf),
    #[error("can't remove the disk {}", path.display())]
    RemoveDisk {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("can't make the directory {}", path.display())]
    DiskDir {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

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
        let disk = self.prepare_disk(run, incoming).await?;
        let nic = self.prepare_nic(run).await?;
        let config = self.vm_config(run, disk, nic, incoming)?;
        let options = LaunchOptions { binary: PathBuf::from(&self.host().config.qemu), log: self.dir.qemu_log() };
        self.guest_shut_down = false;
        self.process = Some(launch(&config, &options).await.map_err(|error| failed(&error))?);
        let machine = self.attach(run).await.map_err(|error| failed(&error))?;
        tracing::info!(vm = %self.vm, label = run.label, pid = self.process.as_ref().map(QemuProcess::pid), incoming, "QEMU started");
        Ok(machine)
    }

    fn vm_config(
        &self,
        run: &VmRun,
        disk: Option<PathBuf>,
        nic: Option<Nic>,
        incoming: bool,
    ) -> Result<VmConfig, CommandRefusal> {
        Ok(VmConfig {
            id: run.vm.to_string(),
            label: run.label.clone(),
            accel: self.host().accel,
            vcpus: run.vcpus,
            memory_mib: run.memory.0 >> 20,
            kernel: self.image_file(run, run.kernel, "kernel")?,
            initrd: self.image_file(run, run.initrd, "initrd")?,
            cmdline: run.cmdline.clone(),
            disk,
            nic,
            qmp_socket: self.dir.qmp_socket(),
            serial_socket: self.dir.serial_socket(),
            serial_log: self.dir.serial_log(),
            pid_file: self.dir.pid_file(),
            incoming,
        })
    }

    fn image_file(&self, run: &VmRun, wanted: bool, file: &'static str) -> Result<Option<PathBuf>, CommandRefusal> {
        if !wanted {
            return Ok(None);
        }
        let dir = self.host().config.shared_dir.join("images").join(run.image.as_str());
        let path = dir.join(file);
        if path.is_file() {
            return Ok(Some(path));
        }
        Err(failed(&SurroundingsError::NoImageFile { image: run.image.to_string(), file, dir }))
    }

    fn disk_path(&self) -> PathBuf {
        self.host().config.shared_dir.join("disks").join(format!("{}.qcow2", self.vm))
    }

    /// The vm's own disk over its image's. Made once; a vm that arrives brings none, it is shared.
    async fn prepare_disk(&self, run: &VmRun, incoming: bool) -> Result<Option<PathBuf>, CommandRefusal> {
        let Some(backing) = self.image_file(run, run.disk, "disk")? else {
            return Ok(None);
        };
        let path = self.disk_path();
        if incoming {
            if !path.is_file() {
                return Err(failed(&SurroundingsError::NoDisk(path)));
            }
            return Ok(Some(path));
        }
        if let Some(dir) = path.parent() {
            let made = tokio::fs::create_dir_all(dir).await;
            made.map_err(|source| failed(&SurroundingsError::DiskDir { path: dir.to_owned(), source }))?;
        }
        disk::create_disk(&backing, &path).await.map_err(|error| failed(&error))?;
        Ok(Some(path))
    }

    pub(super) async fn prepare_nic(&self, run: &VmRun) -> Result<Option<Nic>, CommandRefusal> {
        let Some(nic) = &run.nic else { return Ok(None) };
        let Some(bridge) = self.host().config.networks.get(&nic.network) else {
            return Err(failed(&SurroundingsError::UnknownNetwork(nic.network.to_string())));
        };
        let tap = self.host().net.attach(&self.vm, &nic.mac, bridge).await.map_err(|error| failed(&error))?;
        Ok(Some(Nic { mac: nic.mac.clone(), tap }))
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
        self.attached = Some(Attached { machine: machine.clone(), subject, disk: run.disk });
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

    pub(super) async fn detach_nic(&self) -> Result<(), NetError> {
        self.host().net.detach(&self.vm).await
    }

    pub(super) fn remove_disk(&self) -> Result<(), CommandRefusal> {
        let path = self.disk_path();
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed(&SurroundingsError::RemoveDisk { path, source: error }))
            }
            Ok(()) | Err(_) => Ok(()),
        }
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
