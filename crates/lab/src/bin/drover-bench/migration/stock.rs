//! QEMU as it comes: two processes on a plain bridge, moved by one `migrate` with every setting at its default.
//!
//! The host's address is on the bridge that the vms are on, so the migration and the guest's packets share one link, as
//! they do on a host with one network card; QEMU announces the guest's new place itself. The guest's machine, kernel and
//! memory are those of drover's guest, but for the 8 KiB that drover leaves out: see `docs/decisions/0006`.

use super::workloads::{Guest, Workload};
use anyhow::{Context, Result, bail, ensure};
use drover_lab::limits::{KILL_WAIT_MAX, POLL};
use drover_lab::net::HOST_BRIDGE;
use drover_lab::netns::Namespace;
use drover_lab::process;
use drover_lab::vms::GuestImage;
use drover_qemu::Qmp;
use serde::Deserialize;
use serde_json::{Value, json};
use std::fs::File;
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const QEMU: &str = "qemu-system-x86_64";
const TAP: &str = "stock0";
const MAC: &str = "52:54:00:0b:00:01";
const MIGRATION_PORT: u16 = 4_444;
/// A size of the kind that decision 0006 avoids is a whole multiple of this; this much less is none.
const SHORT_KIB: u64 = 8;
/// Name of the saved state, and of the node it is in.
const SNAPSHOT: &str = "cold";
const LAUNCH_WAIT_MAX: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// From the end at the source until the guest runs at the destination.
const RESUME_WAIT_MAX: Duration = Duration::from_secs(30);
const CANCEL_WAIT_MAX: Duration = Duration::from_secs(30);

/// A host as the stock side needs it.
#[derive(Debug, Clone)]
pub struct StockHost {
    pub name: String,
    pub namespace: Namespace,
    /// On the bridge.
    pub address: IpAddr,
}

/// What a migration came to, as QEMU says.
#[derive(Debug, Clone, PartialEq)]
pub struct StockMove {
    pub completed: bool,
    pub why: Option<String>,
    pub total_ms: f64,
    pub downtime_ms: Option<f64>,
    pub transferred_bytes: u64,
    pub rounds: u64,
}

/// One vm.
#[derive(Debug)]
pub struct Stock {
    hosts: [StockHost; 2],
    dir: PathBuf,
    arguments: Vec<String>,
    at: usize,
    qemu: Qemu,
    /// Of the sockets and logs of the next process.
    launched: u32,
}

#[derive(Debug)]
struct Qemu {
    pid: u32,
    qmp: Qmp,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct MigrateInfo {
    status: String,
    error_desc: Option<String>,
    total_time: f64,
    downtime: Option<f64>,
    ram: Ram,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Ram {
    transferred: u64,
    dirty_sync_count: u64,
}

/// What the vm is made of.
#[derive(Debug, Clone)]
pub struct StockVm<'a> {
    pub image: &'a GuestImage,
    pub workload: Workload,
    /// In CIDR form.
    pub address: String,
    /// Whether it has 8 KiB less than a whole number, so that its memory survives (decision 0006).
    pub short_memory: bool,
}

impl Stock {
    /// Boots the vm on the first host. `dir` is the lab's, so that the lab ends what is left of it.
    pub async fn boot(hosts: [StockHost; 2], dir: &Path, vm: &StockVm<'_>) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
        let disk = dir.join("disk.qcow2");
        let guest = vm.workload.guest();
        if guest.disk {
            super::make_disk(&disk)?;
        }
        for host in &hosts {
            plug_tap(&host.namespace)?;
        }
        let arguments = arguments(vm, guest, &disk);
        let qemu = launch(&hosts[0], dir, &arguments, 0, None).await?;
        Ok(Self { hosts, dir: dir.to_owned(), arguments, at: 0, qemu, launched: 1 })
    }

    pub fn pid(&self) -> u32 {
        self.qemu.pid
    }

    pub fn host(&self) -> &str {
        &self.hosts[self.at].name
    }

    pub fn other_host(&self) -> &str {
        &self.hosts[1 - self.at].name
    }

    /// Moves the vm to the other host. One that is not done within the limit is cancelled and stays.
    pub async fn migrate(&mut self, limit: Duration) -> Result<StockMove> {
        let to = 1 - self.at;
        let host = &self.hosts[to];
        let listen = format!("tcp:{}:{MIGRATION_PORT}", host.address);
        let there = launch(host, &self.dir, &self.arguments, self.launched, Some(&listen)).await?;
        self.launched += 1;
        self.qemu.qmp.execute("migrate", json!({ "uri": listen })).await?;
        let deadline = Instant::now() + limit;
        let info = loop {
            let info: MigrateInfo = self.qemu.qmp.query("query-migrate", Value::Null).await?;
            match info.status.as_str() {
                "completed" | "failed" | "cancelled" => break info,
                _ if Instant::now() > deadline => break self.cancel(limit).await?,
                _ => tokio::time::sleep(LOOK_EVERY).await,
            }
        };
        let completed = info.status == "completed";
        if completed {
            wait_until_running(&there.qmp).await?;
            self.at = to;
            let here = std::mem::replace(&mut self.qemu, there);
            end(&here)?;
        } else {
            end(&there)?;
        }
        Ok(StockMove {
            completed,
            why: (!completed).then(|| info.error_desc.unwrap_or(info.status)),
            total_ms: info.total_time,
            downtime_ms: info.downtime.filter(|_| completed),
            transferred_bytes: info.ram.transferred,
            rounds: info.ram.dirty_sync_count,
        })
    }

    /// The figures up to the cancel.
    async fn cancel(&self, limit: Duration) -> Result<MigrateInfo> {
        let info: MigrateInfo = self.qemu.qmp.query("query-migrate", Value::Null).await?;
        self.qemu.qmp.execute("migrate_cancel", Value::Null).await?;
        let deadline = Instant::now() + CANCEL_WAIT_MAX;
        loop {
            let now: MigrateInfo = self.qemu.qmp.query("query-migrate", Value::Null).await?;
            match now.status.as_str() {
                // It may have ended by itself at the last moment.
                "completed" => return Ok(now),
                "cancelled" | "failed" => {
                    let why = format!("not done within {} s", limit.as_secs());
                    return Ok(MigrateInfo { status: now.status, error_desc: Some(why), ..info });
                }
                _ if Instant::now() > deadline => {
                    bail!("QEMU did not end a migration within {} s of its cancel", CANCEL_WAIT_MAX.as_secs())
                }
                _ => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }

    /// The guest stands still for so long and goes on. Gives how long it stood still.
    pub async fn pause(&self, length: Duration) -> Result<Duration> {
        self.qemu.qmp.execute("stop", Value::Null).await?;
        let began = Instant::now();
        tokio::time::sleep(length).await;
        self.resume(began).await
    }

    /// As [`Stock::pause`], and goes on with nothing translated; it stands still until that is so. Needs
    /// [`Stock::prepare_to_forget`].
    pub async fn pause_and_forget(&self, length: Duration) -> Result<Duration> {
        self.qemu.qmp.execute("stop", Value::Null).await?;
        let began = Instant::now();
        self.told(&format!("savevm {SNAPSHOT}")).await?;
        self.told(&format!("loadvm {SNAPSHOT}")).await?;
        tokio::time::sleep(length.saturating_sub(began.elapsed())).await;
        self.resume(began).await
    }

    async fn resume(&self, stopped: Instant) -> Result<Duration> {
        let stood_still = stopped.elapsed();
        self.qemu.qmp.execute("cont", Value::Null).await?;
        Ok(stood_still)
    }

    /// Gives QEMU a file to save its state in, which the guest does not see.
    pub async fn prepare_to_forget(&self) -> Result<()> {
        let file = self.dir.join("snapshot.qcow2");
        super::make_disk(&file)?;
        let file = json!({ "driver": "file", "filename": file.to_string_lossy() });
        let node = json!({ "driver": "qcow2", "node-name": SNAPSHOT, "file": file });
        self.qemu.qmp.execute("blockdev-add", node).await?;
        Ok(())
    }

    /// Before the next move: the file would have to go along.
    pub async fn done_forgetting(&self) -> Result<()> {
        self.told(&format!("delvm {SNAPSHOT}")).await?;
        self.qemu.qmp.execute("blockdev-del", json!({ "node-name": SNAPSHOT })).await?;
        Ok(())
    }

    /// At the monitor for people, which says nothing when all is well.
    async fn told(&self, line: &str) -> Result<()> {
        let said = self.qemu.qmp.execute("human-monitor-command", json!({ "command-line": line })).await?;
        let said = said.as_str().unwrap_or_default().trim();
        ensure!(said.is_empty(), "QEMU answered {line}: {said}");
        Ok(())
    }

    pub fn end(self) -> Result<()> {
        end(&self.qemu)?;
        self.hosts.iter().try_for_each(|host| host.namespace.ip(&["link", "delete", "dev", TAP]))
    }
}

fn end(qemu: &Qemu) -> Result<()> {
    process::end_all(&[qemu.pid], Duration::ZERO)
}

fn plug_tap(namespace: &Namespace) -> Result<()> {
    namespace.ip(&["tuntap", "add", "dev", TAP, "mode", "tap"])?;
    namespace.ip(&["link", "set", "dev", TAP, "master", HOST_BRIDGE, "up"])
}

fn arguments(vm: &StockVm<'_>, guest: Guest, disk: &Path) -> Vec<String> {
    let memory_kib = guest.memory_mib * 1024 - if vm.short_memory { SHORT_KIB } else { 0 };
    let cmdline = format!(
        "{} drover.name=stock drover.address={} drover.workload={} drover.ws_mib={} drover.dirty_mib_s={}",
        drover_lab::vms::KERNEL_CMDLINE,
        vm.address,
        vm.workload,
        guest.working_set_mib,
        0
    );
    let netdev = format!("tap,id=net0,ifname={TAP},script=no,downscript=no");
    let mut arguments: Vec<String> = [
        "-machine",
        "pc-q35-7.2",
        "-accel",
        "tcg,tb-size=64",
        "-cpu",
        "max",
        "-smp",
        "1",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-m",
        &format!("{memory_kib}K"),
        "-kernel",
        &vm.image.kernel.to_string_lossy(),
        "-initrd",
        &vm.image.initrd.to_string_lossy(),
        "-append",
        &cmdline,
        "-netdev",
        &netdev,
        "-device",
        &format!("virtio-net-pci,netdev=net0,mac={MAC},romfile="),
        "-device",
        "virtio-balloon-pci",
        "-object",
        "rng-builtin,id=rng0",
        "-device",
        "virtio-rng-pci,rng=rng0",
    ]
    .map(str::to_owned)
    .into();
    if guest.disk {
        let node = json!({
            "driver": "qcow2",
            "node-name": "disk0",
            "file": { "driver": "file", "filename": disk.to_string_lossy() },
        });
        let device =
            ["-blockdev".to_owned(), node.to_string(), "-device".to_owned(), "virtio-blk-pci,drive=disk0".into()];
        arguments.extend(device);
    }
    arguments
}

async fn launch(host: &StockHost, dir: &Path, arguments: &[String], number: u32, listen: Option<&str>) -> Result<Qemu> {
    let (monitor, log) = (dir.join(format!("{number}.qmp")), dir.join(format!("{number}.log")));
    let output = File::create(&log).with_context(|| format!("can't write {}", log.display()))?;
    let errors = output.try_clone().with_context(|| format!("can't write {}", log.display()))?;
    let mut child = host.namespace.within(|| {
        Command::new(QEMU)
            .args(arguments)
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", monitor.display()))
            .arg("-serial")
            .arg(format!("file:{}", dir.join(format!("{number}.serial")).display()))
            .args(listen.map(|listen| ["-incoming", listen]).into_iter().flatten())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .with_context(|| format!("can't start {QEMU}: install Debian's qemu-system-x86"))
    })?;
    let pid = child.id();
    // Only to collect its exit status; its end is told by `process::runs`.
    std::thread::spawn(move || child.wait());
    let deadline = Instant::now() + LAUNCH_WAIT_MAX;
    let qmp = loop {
        match Qmp::connect(&monitor).await {
            Ok(qmp) => break qmp,
            Err(problem) if Instant::now() > deadline || !process::runs(pid) => {
                // It may hang; the lab would end it, but the next would then find its tap taken.
                process::end_all(&[pid], KILL_WAIT_MAX.min(POLL))?;
                let said = process::last_lines(&log, 10);
                return Err(problem).with_context(|| format!("stock QEMU on {} does not answer: {said}", host.name));
            }
            Err(_) => tokio::time::sleep(LOOK_EVERY).await,
        }
    };
    Ok(Qemu { pid, qmp })
}

async fn wait_until_running(qmp: &Qmp) -> Result<()> {
    let deadline = Instant::now() + RESUME_WAIT_MAX;
    loop {
        let status = qmp.execute("query-status", Value::Null).await?;
        if status["running"] == true {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the destination does not run the guest: {status}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stock_vm_has_drovers_machine_and_a_plain_size_unless_asked_otherwise() {
        let image = GuestImage { kernel: "/k".into(), initrd: "/i".into() };
        let vm = StockVm {
            image: &image,
            workload: Workload::Database,
            address: "10.78.0.99/24".into(),
            short_memory: false,
        };
        let line = |vm: &StockVm<'_>| arguments(vm, vm.workload.guest(), Path::new("/d")).join(" ");
        let plain = line(&vm);
        assert!(plain.contains("-m 98304K ") && plain.contains("drover.workload=database"), "{plain}");
        assert!(plain.contains("drive=disk0") && !plain.contains("-incoming"), "{plain}");
        assert!(line(&StockVm { short_memory: true, ..vm }).contains("-m 98296K "));
    }
}
