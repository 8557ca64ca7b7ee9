//! What must be right before an agent may run vms, each said by name when it is not; and what it says of its host.

use crate::cgroup::{CgroupError, Hierarchy, HostGroup};
use crate::config::AgentConfig;
use crate::error_chain::chain;
use crate::net::{Net, NetConfig, NetError};
use crate::send_queue;
use crate::tool::{Tool, ToolError};
use crate::vms::Host;
use drover_model::inventory::{Accelerator, Capacity, HostFacts, MigrationFeature};
use drover_model::{Bytes, CpuMillis};
use drover_qemu::Accel;
use drover_qemu::command_line::overhead_mib;
use drover_qemu::probe::{Abilities, abilities, probe_accelerator};
use drover_qemu::process::QEMU_PACKAGE;
use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use tokio::sync::watch;

const LOCK: &str = "agent.lock";
const SPACE_PROBE: &str = "space.probe";
/// What a few records and an identity need; less means that the next one could not be written.
const SPACE_PROBE_BYTES: usize = 64 << 10;
/// Kept from vms on a host without a configured capacity: the kernel, the agent, QEMU's own memory.
const MEMORY_KEPT_PERCENT: u64 = 10;

#[derive(Debug, thiserror::Error)]
pub enum StartupError {
    #[error("the agent must run as root: it makes taps and control groups and starts QEMU")]
    NotRoot,
    #[error("another agent runs with the state directory {}: stop it, or give this one a state_dir of its own", .0.display())]
    SecondAgent(PathBuf),
    #[error("the state directory {} can't be written to: check its permissions, its file system and the space on it", path.display())]
    StateDir {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("shared_dir {} is not a directory: mount the cluster's shared storage there, or name another one", .0.display())]
    SharedDir(PathBuf),
    #[error(
        "network {network} is mapped to {bridge}, which is not a bridge here: make it (`ip link add {bridge} type bridge`), or change [networks]"
    )]
    NoBridge { network: String, bridge: String },
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(
        "{program} says it is {said:?}, not QEMU: correct `qemu` in the configuration, or install the Debian package {QEMU_PACKAGE}"
    )]
    NotQemu { program: String, said: String },
    #[error("can't read {path}: is /proc mounted?")]
    Proc {
        path: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{path} is not as expected: this kernel is not supported")]
    ProcText { path: &'static str },
}

/// A host that passed every check.
pub struct Checked {
    pub host: Host,
    pub facts: HostFacts,
    pub page_size: u64,
    /// Held as long as the agent runs.
    pub lock: File,
}

pub async fn check(config: AgentConfig) -> Result<Checked, StartupError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(StartupError::NotRoot);
    }
    let lock = lock_state_dir(&config.state_dir)?;
    if !config.shared_dir.is_dir() {
        return Err(StartupError::SharedDir(config.shared_dir));
    }
    let qemu_version = qemu_version(&config).await?;
    let net = Net::open(NetConfig {
        state_file: config.state_dir.join("network.json"),
        providers: config.networks.clone(),
        wait_max: config.limits.tool_wait_max(),
    })
    .await?;
    for (network, bridge) in &config.networks {
        if !net.is_bridge(bridge).await {
            return Err(StartupError::NoBridge { network: network.to_string(), bridge: bridge.clone() });
        }
    }
    if let Err(error) = send_queue::shorten() {
        tracing::warn!(%error, "guests wait longer for their memory after a post-copy: the send queues stay as long as they are");
    }
    let (accel, accelerator_why) = probe_accelerator().await;
    tracing::info!(%accel, why = accelerator_why, qemu = qemu_version, "accelerator");
    // A host that can't say what it can do still runs vms, and is moved from and to as the plainest would be.
    let abilities = abilities().await.unwrap_or_else(|error| {
        tracing::warn!(error = chain(&error), "can't find out which ways to migrate work here");
        Abilities::default()
    });
    let capacity = match config.capacity {
        Some(capacity) => capacity.capacity(),
        None => whole_machine()?,
    };
    let cgroup = match config.capacity {
        Some(_) => {
            let overhead = Bytes::mib(overhead_mib(accel));
            Some(HostGroup::set_up(Hierarchy::find()?, &config.cgroup, capacity, overhead)?)
        }
        None => None,
    };
    let facts = HostFacts {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        qemu_version,
        kernel: proc_text("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        accelerator: match accel {
            Accel::Kvm => Accelerator::Kvm,
            Accel::Tcg => Accelerator::Tcg,
        },
        accelerator_why,
        cpu_model: cpu_model(&proc_text(CPUINFO)?),
        capacity,
        networks: config.networks.keys().cloned().collect(),
        // Said anew at each connection, which it may be learned from.
        overlay_address: config.overlay_address.or(config.migration_address),
        migration_features: migration_features(&abilities),
        machine_types: abilities.machine_types,
        cpu_features: match accel {
            Accel::Kvm => cpu_features(&proc_text(CPUINFO)?),
            Accel::Tcg => BTreeSet::new(),
        },
        boot_id: proc_text("/proc/sys/kernel/random/boot_id")?.trim().to_owned(),
        // A new one at each reading.
        agent_run: proc_text("/proc/sys/kernel/random/uuid")?.trim().to_owned(),
    };
    let page_size = page_size(&proc_text(SMAPS)?).ok_or(StartupError::ProcText { path: SMAPS })?;
    let migration_address = watch::Sender::new(config.migration_address);
    Ok(Checked { host: Host { config, accel, cgroup, net, migration_address }, facts, page_size, lock })
}

/// Makes the directory if need be, takes it for this agent alone, and proves that it can be written to.
fn lock_state_dir(dir: &Path) -> Result<File, StartupError> {
    use std::os::unix::fs::DirBuilderExt;
    let failed = |source| StartupError::StateDir { path: dir.to_owned(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    let lock = File::create(dir.join(LOCK)).map_err(failed)?;
    lock.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => StartupError::SecondAgent(dir.to_owned()),
        TryLockError::Error(source) => failed(source),
    })?;
    let probe = dir.join(SPACE_PROBE);
    let written = fs::write(&probe, vec![0_u8; SPACE_PROBE_BYTES]).and_then(|()| File::open(&probe)?.sync_all());
    let removed = fs::remove_file(&probe);
    written.and(removed).map_err(failed)?;
    Ok(lock)
}

async fn qemu_version(config: &AgentConfig) -> Result<String, StartupError> {
    let qemu = Tool { program: &config.qemu, package: QEMU_PACKAGE, wait_max: config.limits.tool_wait_max() };
    let said = qemu.run(&["--version"]).await?;
    let said = String::from_utf8_lossy(&said).lines().next().unwrap_or_default().to_owned();
    version_in(&said).map(str::to_owned).ok_or(StartupError::NotQemu { program: config.qemu.clone(), said })
}

/// From `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)`.
fn version_in(line: &str) -> Option<&str> {
    line.strip_prefix("QEMU emulator version ")?.split_whitespace().next()
}

const CPUINFO: &str = "/proc/cpuinfo";
const MEMINFO: &str = "/proc/meminfo";
const SMAPS: &str = "/proc/self/smaps";

fn proc_text(path: &'static str) -> Result<String, StartupError> {
    fs::read_to_string(path).map_err(|source| StartupError::Proc { path, source })
}

fn whole_machine() -> Result<Capacity, StartupError> {
    let cpus = proc_text(CPUINFO)?.lines().filter(|line| line.starts_with("processor")).count() as u64;
    let total = mem_total(&proc_text(MEMINFO)?).ok_or(StartupError::ProcText { path: MEMINFO })?;
    Ok(Capacity {
        cpu: CpuMillis(cpus.max(1) * 1000),
        memory: total.saturating_sub(Bytes(total.0 / 100 * MEMORY_KEPT_PERCENT)),
    })
}

fn mem_total(meminfo: &str) -> Option<Bytes> {
    kib_after(meminfo, "MemTotal:").map(|kib| Bytes(kib << 10))
}

/// Of the first mapping: programs are mapped in pages of the base size.
fn page_size(smaps: &str) -> Option<u64> {
    kib_after(smaps, "KernelPageSize:").map(|kib| kib << 10)
}

fn kib_after(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    value.trim().strip_suffix("kB")?.trim().parse().ok()
}

fn cpu_model(cpuinfo: &str) -> String {
    let named = cpuinfo.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == "model name");
    named.map_or_else(|| "unknown".to_owned(), |(_, model)| model.trim().to_owned())
}

/// Of the first processor: those of one machine are alike. The guest sees what the host does (`-cpu host`).
fn cpu_features(cpuinfo: &str) -> BTreeSet<String> {
    let flags = cpuinfo.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == "flags");
    flags.map_or_else(BTreeSet::new, |(_, flags)| flags.split_whitespace().map(str::to_owned).collect())
}

fn migration_features(abilities: &Abilities) -> BTreeSet<MigrationFeature> {
    let features = [
        (abilities.post_copy, MigrationFeature::PostCopy),
        (abilities.multifd, MigrationFeature::Multifd),
        (abilities.multifd_zstd, MigrationFeature::MultifdZstd),
        (abilities.tls, MigrationFeature::Tls),
    ];
    features.into_iter().filter_map(|(able, feature)| able.then_some(feature)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_agent_per_state_directory() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("deep/state");
        let first = lock_state_dir(&state).unwrap();
        assert!(matches!(lock_state_dir(&state), Err(StartupError::SecondAgent(said)) if said == state));
        // Not only dropped: a child that another test starts may hold a copy for a moment.
        first.unlock().unwrap();
        assert!(lock_state_dir(&state).is_ok());
    }

    #[test]
    fn a_state_directory_that_cannot_be_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = lock_state_dir(&file.join("state")).unwrap_err();
        assert!(error.to_string().contains("file/state"), "{error}");
    }

    #[test]
    fn a_full_disk_is_said_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let flags = nix::mount::MsFlags::empty();
        let size = Some("size=16k");
        nix::mount::mount(Some("none"), dir.path(), Some("tmpfs"), flags, size).expect("this test needs root");
        let result = lock_state_dir(dir.path());
        let refused = matches!(&result, Err(StartupError::StateDir { source, .. }) if source.kind() == io::ErrorKind::StorageFull);
        drop(result);
        nix::mount::umount(dir.path()).unwrap();
        assert!(refused);
    }

    #[test]
    fn the_host_is_read_from_proc() {
        assert_eq!(mem_total("MemTotal:        2048 kB\nMemFree: 1 kB\n"), Some(Bytes::mib(2)));
        assert_eq!(page_size("00400000-00401000 r-xp\nSize: 4 kB\nKernelPageSize:        4 kB\n"), Some(4096));
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: Fast One\n"), "Fast One");
        assert_eq!(cpu_model(""), "unknown");
        let flags = "processor: 0\nflags\t\t: fpu sse2\nvmx flags: x\nprocessor: 1\nflags\t\t: fpu\n";
        assert_eq!(cpu_features(flags).into_iter().collect::<Vec<_>>(), ["fpu", "sse2"]);
        assert_eq!(version_in("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)"), Some("7.2.22"));
        assert_eq!(version_in("sleep (GNU coreutils) 9.1"), None);
        assert_eq!(page_size(&proc_text(SMAPS).unwrap()), Some(4096));
        let machine = whole_machine().unwrap();
        assert!(machine.cpu >= CpuMillis::CORE && machine.memory > Bytes::mib(64), "{machine:?}");
    }
}
