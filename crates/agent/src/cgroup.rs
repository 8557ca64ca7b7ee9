//! Holds a host to its capacity with control groups, version 1 or 2, whichever the machine has the controllers in.
//!
//! ```text
//! <hierarchy>/<cgroup>              every thread of QEMU but the vCPUs; memory limit
//!                     /vcpu         processor quota of the host
//!                          /<vm>    the vm's vCPU threads
//! ```
//!
//! Only vCPU threads stand under the quota: QEMU's migration thread and main loop stay outside, or the host that most
//! needs to give a vm away would be the slowest to do it. Version 2 can do this with thread-level groups only, so
//! there `<cgroup>` becomes the root of a threaded subtree.
//!
//! Nothing is made where no capacity is configured: the whole machine needs no limit.

use crate::telemetry::Meter;
use drover_model::inventory::Capacity;
use drover_model::{Bytes, VmId};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Length of a quota period. The kernel's default of 100 ms lets a guest run its share and then stand still for up to
/// 100 ms, which its clients feel; at 20 ms the stops are short and a one-second sample sees fifty of them. Shorter
/// ones cost more timer interrupts and gain nothing a sample could show.
const PERIOD_US: u64 = 20_000;

/// Memory a host may use above its guests' memory and QEMU's own, in percent of the guests': page tables, and what
/// incoming vms use before they count.
const MEMORY_SLACK_PERCENT: u64 = 25;

/// Top group below the configured one, for all vCPU threads.
const VCPU: &str = "vcpu";

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("can't read {MOUNTINFO}")]
    Mounts(#[source] io::Error),
    #[error(
        "the control group controllers cpu and memory are not available: mount them, \
         or remove [capacity] from the configuration to let the vms use the whole machine"
    )]
    NoControllers,
    #[error("can't set up control group {}: run the agent as root on a host that may change its control groups", path.display())]
    Setup {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("can't put the vm's threads into control group {}", path.display())]
    Place {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// Where the controllers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hierarchy {
    V1 { cpu: PathBuf, memory: PathBuf },
    V2 { root: PathBuf },
}

impl Hierarchy {
    pub fn find() -> Result<Self, CgroupError> {
        let text = fs::read_to_string(MOUNTINFO).map_err(CgroupError::Mounts)?;
        let v2_controllers = |root: &Path| fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        Self::in_mounts(&text, v2_controllers).ok_or(CgroupError::NoControllers)
    }

    /// From the text of `mountinfo` (proc_pid_mountinfo(5)) and what a version 2 root offers.
    fn in_mounts(text: &str, v2_controllers: impl Fn(&Path) -> String) -> Option<Self> {
        let (mut cpu, mut memory, mut v2) = (None, None, None);
        for line in text.lines() {
            let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
            let Some(point) = mount.split(' ').nth(4).map(PathBuf::from) else { continue };
            let mut filesystem = filesystem.split(' ');
            let (kind, options) = (filesystem.next(), filesystem.nth(1).unwrap_or_default());
            let has = |controller| options.split(',').any(|option| option == controller);
            match kind {
                Some("cgroup") if has("cpu") => cpu = cpu.or(Some(point)),
                Some("cgroup") if has("memory") => memory = memory.or(Some(point)),
                Some("cgroup2") => v2 = v2.or(Some(point)),
                _ => {}
            }
        }
        if let (Some(cpu), Some(memory)) = (cpu, memory) {
            return Some(Self::V1 { cpu, memory });
        }
        let root = v2?;
        let offered = v2_controllers(&root);
        let offers = |controller| offered.split_whitespace().any(|word| word == controller);
        (offers("cpu") && offers("memory")).then_some(Self::V2 { root })
    }
}

/// The host's group, set up.
#[derive(Debug, Clone)]
pub struct HostGroup {
    hierarchy: Hierarchy,
    /// Relative, as configured.
    group: PathBuf,
    /// Of the guests.
    memory: Bytes,
    /// What a QEMU process takes beside its guest's.
    overhead: Bytes,
}

impl HostGroup {
    /// Creates the groups and sets the limits; what is there already is kept and set anew.
    pub fn set_up(hierarchy: Hierarchy, group: &str, capacity: Capacity, overhead: Bytes) -> Result<Self, CgroupError> {
        let host = Self { hierarchy, group: PathBuf::from(group), memory: capacity.memory, overhead };
        let quota_us = capacity.cpu.0 * PERIOD_US / 1000;
        match &host.hierarchy {
            Hierarchy::V1 { cpu, memory } => {
                let vcpu = cpu.join(&host.group).join(VCPU);
                make(&vcpu)?;
                set(&vcpu.join("cpu.cfs_period_us"), &PERIOD_US.to_string())?;
                set(&vcpu.join("cpu.cfs_quota_us"), &quota_us.to_string())?;
                let memory = memory.join(&host.group);
                make(&memory)?;
            }
            Hierarchy::V2 { root } => {
                // A controller reaches a group through every group above it.
                let mut above = root.clone();
                for part in &host.group {
                    set(&above.join("cgroup.subtree_control"), "+cpu +memory")?;
                    above.push(part);
                    make(&above)?;
                }
                let vcpu = above.join(VCPU);
                make(&vcpu)?;
                set(&vcpu.join("cgroup.type"), "threaded")?;
                set(&above.join("cgroup.subtree_control"), "+cpu")?;
                set(&vcpu.join("cpu.max"), &format!("{quota_us} {PERIOD_US}"))?;
            }
        }
        host.limit_memory()?;
        Ok(host)
    }

    fn vcpu_dir(&self) -> PathBuf {
        let root = match &self.hierarchy {
            Hierarchy::V1 { cpu, .. } => cpu,
            Hierarchy::V2 { root } => root,
        };
        root.join(&self.group).join(VCPU)
    }

    /// Groups of vms, gone ones that still have threads included.
    fn vm_names(&self) -> impl Iterator<Item = String> {
        let entries = fs::read_dir(self.vcpu_dir()).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
    }

    /// The guests' memory is bounded by the capacity; each QEMU brings what it needs for itself.
    fn limit_memory(&self) -> Result<(), CgroupError> {
        let vms = self.vm_names().count() as u64;
        let limit = self.memory.0 + self.memory.0 / 100 * MEMORY_SLACK_PERCENT + self.overhead.0 * vms;
        let file = match &self.hierarchy {
            Hierarchy::V1 { .. } => "memory.limit_in_bytes",
            Hierarchy::V2 { .. } => "memory.max",
        };
        set(&self.host_dir().join(file), &limit.to_string())
    }

    fn host_dir(&self) -> PathBuf {
        match &self.hierarchy {
            Hierarchy::V1 { memory, .. } => memory.join(&self.group),
            Hierarchy::V2 { root } => root.join(&self.group),
        }
    }

    fn vm_dir(&self, vm: &VmId) -> PathBuf {
        self.vcpu_dir().join(vm.as_str())
    }

    /// Puts a vm's process under the memory limit and its vCPU threads under the quota.
    pub fn place(&self, vm: &VmId, pid: u32, vcpu_threads: &[u32]) -> Result<(), CgroupError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| CgroupError::Place { path, source }
        };
        let dir = self.vm_dir(vm);
        make(&dir)?;
        // First, or the process could be killed for the memory it brings.
        self.limit_memory()?;
        let procs = self.host_dir().join("cgroup.procs");
        fs::write(&procs, pid.to_string()).map_err(failed(&procs))?;
        let threads = match &self.hierarchy {
            Hierarchy::V1 { .. } => dir.join("tasks"),
            Hierarchy::V2 { .. } => {
                set(&dir.join("cgroup.type"), "threaded")?;
                dir.join("cgroup.threads")
            }
        };
        // One thread per write: that is the interface.
        vcpu_threads.iter().try_for_each(|thread| fs::write(&threads, thread.to_string()).map_err(failed(&threads)))
    }

    /// Removes a vm's group. One that still has threads stays: the next removal, or reboot, takes it.
    pub fn remove(&self, vm: &VmId) {
        let dir = self.vm_dir(vm);
        match fs::remove_dir(&dir) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::debug!(group = %dir.display(), %error, "control group not removed yet"),
        }
        if let Err(error) = self.limit_memory() {
            tracing::debug!(%error, "the memory limit stays as it was");
        }
    }

    /// Memory pressure of this host alone, where the kernel keeps it per group.
    pub fn pressure_file(&self) -> Option<PathBuf> {
        let file = self.host_dir().join("memory.pressure");
        file.exists().then_some(file)
    }

    /// Where it shows when the quota was used up, and the length of its period.
    pub fn cpu_meter(&self) -> Meter {
        let stat = self.vcpu_dir().join("cpu.stat");
        Meter::Quota { stat, period: Duration::from_micros(PERIOD_US) }
    }

    /// Removes the groups of vms that are no longer there, and nothing else.
    pub fn sweep(&self, keep: impl Fn(&str) -> bool) {
        for name in self.vm_names().filter(|name| !keep(name)) {
            // Fails while threads are in it, which is right.
            let removed = fs::remove_dir(self.vcpu_dir().join(&name));
            tracing::debug!(vm = name, ?removed, "left-over control group");
        }
    }
}

fn make(dir: &Path) -> Result<(), CgroupError> {
    fs::create_dir_all(dir).map_err(|source| CgroupError::Setup { path: dir.to_owned(), source })
}

fn set(file: &Path, value: &str) -> Result<(), CgroupError> {
    fs::write(file, value).map_err(|source| CgroupError::Setup { path: file.to_owned(), source })
}

#[cfg(test)]
impl HostGroup {
    /// Takes a test's groups away again, once their threads are gone.
    pub fn remove_all(&self) {
        self.sweep(|_| false);
        let dirs = match &self.hierarchy {
            Hierarchy::V1 { cpu, memory } => {
                vec![cpu.join(&self.group).join(VCPU), cpu.join(&self.group), memory.join(&self.group)]
            }
            Hierarchy::V2 { root } => vec![root.join(&self.group).join(VCPU), root.join(&self.group)],
        };
        for dir in dirs {
            fs::remove_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_model::CpuMillis;

    const CAPACITY: Capacity = Capacity { cpu: CpuMillis(600), memory: Bytes::mib(1000) };
    const OVERHEAD: Bytes = Bytes::mib(100);

    fn read(path: PathBuf) -> String {
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    #[test]
    fn controllers_are_found_in_either_version() {
        let v1 = "32 31 0:29 / /cg/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
                  35 31 0:32 / /cg/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
                  41 31 0:38 / /cg/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let none = |_: &Path| String::new();
        let found = Hierarchy::in_mounts(v1, none);
        assert_eq!(found, Some(Hierarchy::V1 { cpu: "/cg/cpu".into(), memory: "/cg/memory".into() }));

        let v2 = "41 31 0:38 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let all = |_: &Path| "cpuset cpu io memory pids\n".to_owned();
        assert_eq!(Hierarchy::in_mounts(v2, all), Some(Hierarchy::V2 { root: "/sys/fs/cgroup".into() }));
        assert_eq!(Hierarchy::in_mounts(v2, none), None);
        assert_eq!(Hierarchy::in_mounts("", all), None);
    }

    #[test]
    fn version_1_puts_the_quota_on_vcpu_threads_and_the_limit_on_the_process() {
        let root = tempfile::tempdir().unwrap();
        let (cpu, memory) = (root.path().join("cpu"), root.path().join("memory"));
        let group = HostGroup::set_up(
            Hierarchy::V1 { cpu: cpu.clone(), memory: memory.clone() },
            "drover/h1",
            CAPACITY,
            OVERHEAD,
        )
        .unwrap();
        assert_eq!(read(cpu.join("drover/h1/vcpu/cpu.cfs_period_us")), "20000");
        assert_eq!(read(cpu.join("drover/h1/vcpu/cpu.cfs_quota_us")), "12000");
        assert_eq!(read(memory.join("drover/h1/memory.limit_in_bytes")), (1250 << 20).to_string());
        group.place(&"vm-a".parse().unwrap(), 10, &[12]).unwrap();
        assert_eq!(read(memory.join("drover/h1/cgroup.procs")), "10");
        assert_eq!(read(cpu.join("drover/h1/vcpu/vm-a/tasks")), "12");
        assert_eq!(read(memory.join("drover/h1/memory.limit_in_bytes")), (1350 << 20).to_string());
    }

    #[test]
    fn version_2_makes_a_threaded_subtree() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        let hierarchy = Hierarchy::V2 { root: root.path().to_owned() };
        let group = HostGroup::set_up(hierarchy, "drover/h1", CAPACITY, OVERHEAD).unwrap();
        assert_eq!(read(at("cgroup.subtree_control")), "+cpu +memory");
        assert_eq!(read(at("drover/cgroup.subtree_control")), "+cpu +memory");
        assert_eq!(read(at("drover/h1/cgroup.subtree_control")), "+cpu");
        assert_eq!(read(at("drover/h1/vcpu/cgroup.type")), "threaded");
        assert_eq!(read(at("drover/h1/vcpu/cpu.max")), "12000 20000");
        group.place(&"vm-a".parse().unwrap(), 10, &[12]).unwrap();
        assert_eq!(read(at("drover/h1/cgroup.procs")), "10");
        assert_eq!(read(at("drover/h1/vcpu/vm-a/cgroup.type")), "threaded");
        assert_eq!(read(at("drover/h1/vcpu/vm-a/cgroup.threads")), "12");
    }

    #[test]
    fn a_real_quota_is_kept_on_one_thread_of_a_process_only() {
        let hierarchy = Hierarchy::find().expect("this test needs the cpu and memory controllers");
        let name = format!("drover-test-{}", std::process::id());
        let group = HostGroup::set_up(hierarchy, &name, CAPACITY, OVERHEAD).expect("this test needs root");
        let vm: VmId = "vm-a".parse().unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id();
        let placed = group.place(&vm, pid, &[pid]);
        let own_group = read(PathBuf::from(format!("/proc/{pid}/cgroup")));
        child.kill().unwrap();
        child.wait().unwrap();
        group.remove_all();
        placed.unwrap();
        assert!(own_group.contains(&format!("/{name}/vcpu/vm-a")), "{own_group}");
    }
}
