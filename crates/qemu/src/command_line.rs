//! From a vm's description to QEMU's arguments.
//!
//! Two hosts given the same description must build the same virtual machine, or a migration between
//! them fails. Hence a versioned machine type, and a fixed PCI address for each device.
//!
//! Why `suppress-vmdesc=on`: QEMU can append a description of the machine to a migration stream,
//! after the end mark (`QEMU_VM_EOF`). Without it that mark is the stream's last byte. The
//! destination runs the guest only once it has read the mark, and the source takes the guest back only
//! when a write failed, which then was the mark or something before it. So "the source resumed" and "the
//! destination runs" exclude each other. The return path would add a way to fail after the mark: only post-copy opens
//! it, under another rule ([`crate::migration`]). Both ends must have the option set alike.

use serde_json::json;
use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// The newest machine type that Debian 12's QEMU knows; 10.x knows it too, so that a vm can move between both.
pub const MACHINE_TYPE: &str = "pc-q35-7.2";

/// PCI addresses on the root bus. Never change one: a running vm could not migrate to a host that has the change.
const PCI_NIC: &str = "0x2";
const PCI_DISK: &str = "0x3";
const PCI_BALLOON: &str = "0x4";
const PCI_RNG: &str = "0x5";

/// The guest tells which memory it does not use, in pieces of 2 MiB: QEMU gives it back to the host, and a migration sends it as
/// empty. A guest of 256 MiB that had used and freed 120 was sent with 82 MB instead of 204. The other way to the same,
/// `free-page-hint`, needs a thread, took 88, and gives nothing back to the host.
const BALLOON: &str = "deflate-on-oom=on,free-page-reporting=on";

/// After start-up QEMU needs no privileges, no children and no scheduler calls; a guest that breaks
/// out of it gets none.
pub(crate) const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// Under TCG a guest gets this much less memory than asked, so that its size is no multiple of 256 KiB.
///
/// QEMU before 9.0 has a fast path that collects the dirty pages of a memory of such a size, 64 pages at a time, and forgets
/// to tell the translator that those pages are clean again. What the guest then writes is not sent: it
/// arrives at the destination with old memory in it. (Fixed by QEMU's commit 03bfc2188f, "physmem: Fix migration dirty
/// bitmap coherency with TCG memory access"; 7.2.22 has the fault.) The slow path is right. It costs about
/// 0.2 s per GiB at the start of a migration. 8 KiB is the step that QEMU rounds to.
/// All versions get the same size: both ends of a migration must have it.
const TCG_MEMORY_SHORT_KIB: u64 = 8;

/// Translated code that QEMU keeps under TCG. Its default grows with the machine's memory, up to 1 GiB for each vm.
const TCG_CACHE_MIB: u64 = 64;

/// Memory that a QEMU process takes beside its guest's: translated code, heap, stacks, tables. An idle guest of 96 MiB was
/// measured at 100 MiB above under TCG with a cache that may grow to more.
pub const fn overhead_mib(accel: Accel) -> u64 {
    match accel {
        Accel::Kvm => 64,
        Accel::Tcg => 96 + TCG_CACHE_MIB,
    }
}

/// The kernel cuts process names at 15 bytes.
const PROCESS_NAME_MAX: usize = 15;

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The processor itself.
    Kvm,
    /// QEMU, by translation: slow, and everywhere.
    Tcg,
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// A virtual network card on a tap device that exists already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// As `52:54:00:12:34:56`.
    pub mac: String,
    pub tap: String,
}

/// One vm, as QEMU needs it. Paths are absolute; sockets, logs and the pid file are made by QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmConfig {
    /// The vm's identity; the guest sees it as its product serial number, and [`crate::process`] finds the process by it.
    pub id: String,
    /// For people, in process lists.
    pub label: String,
    pub accel: Accel,
    pub vcpus: u32,
    /// At least 1. Under TCG the guest has 8 KiB less: see the source for the fault of QEMU that this avoids.
    pub memory_mib: u64,
    pub kernel: Option<PathBuf>,
    pub initrd: Option<PathBuf>,
    /// Of the kernel; unused without one.
    pub cmdline: String,
    /// A qcow2 file. QEMU locks it: a second QEMU that would write it does not start.
    pub disk: Option<PathBuf>,
    pub nic: Option<Nic>,
    pub qmp_socket: PathBuf,
    pub serial_socket: PathBuf,
    /// All serial output, appended to. It may be truncated while QEMU runs.
    pub serial_log: PathBuf,
    pub pid_file: PathBuf,
    /// Wait for a migration instead of booting.
    pub incoming: bool,
}

impl VmConfig {
    /// QEMU's arguments, without the program itself.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut args = Arguments::default();
        self.machine(&mut args);
        self.boot(&mut args);
        self.devices(&mut args);
        self.channels(&mut args);
        args.pair("-pidfile", &self.pid_file);
        if self.incoming {
            args.pair("-incoming", "defer");
        }
        args.0
    }

    fn machine(&self, args: &mut Arguments) {
        let process: String = format!("vm-{}", self.label).chars().take(PROCESS_NAME_MAX).collect();
        let (label, process) = (escaped(&self.label), escaped(&process));
        args.pair("-name", format!("guest={label},process={process},debug-threads=on"));
        args.pair("-smbios", identity(&self.id));
        args.pair("-machine", format!("{MACHINE_TYPE},suppress-vmdesc=on"));
        args.pair(
            "-accel",
            match self.accel {
                Accel::Kvm => "kvm".to_owned(),
                Accel::Tcg => format!("tcg,tb-size={TCG_CACHE_MIB}"),
            },
        );
        args.pair(
            "-cpu",
            match self.accel {
                Accel::Kvm => "host",
                Accel::Tcg => "max",
            },
        );
        args.pair("-smp", self.vcpus.to_string());
        args.pair("-m", format!("{}K", self.memory_kib()));
        for flag in ["-nodefaults", "-no-user-config"] {
            args.0.push(flag.into());
        }
        args.pair("-display", "none");
        args.pair("-rtc", "base=utc");
        args.pair("-msg", "timestamp=on");
        args.pair("-sandbox", SANDBOX);
    }

    fn memory_kib(&self) -> u64 {
        let whole = self.memory_mib * 1024;
        match self.accel {
            Accel::Kvm => whole,
            Accel::Tcg => whole.saturating_sub(TCG_MEMORY_SHORT_KIB),
        }
    }

    fn boot(&self, args: &mut Arguments) {
        if let Some(kernel) = &self.kernel {
            args.pair("-kernel", kernel);
            if let Some(initrd) = &self.initrd {
                args.pair("-initrd", initrd);
            }
            args.pair("-append", &self.cmdline);
        }
    }

    fn devices(&self, args: &mut Arguments) {
        if let Some(nic) = &self.nic {
            let (tap, mac) = (escaped(&nic.tap), escaped(&nic.mac));
            args.pair("-netdev", format!("tap,id=net0,ifname={tap},script=no,downscript=no"));
            args.pair("-device", format!("virtio-net-pci,netdev=net0,id=nic0,mac={mac},addr={PCI_NIC},romfile="));
        }
        if let Some(disk) = &self.disk {
            let file = json!({ "driver": "file", "filename": disk.to_string_lossy(), "locking": "on" });
            let node = json!({ "driver": "qcow2", "node-name": "disk0", "file": file });
            args.pair("-blockdev", node.to_string());
            args.pair("-device", format!("virtio-blk-pci,drive=disk0,id=blk0,addr={PCI_DISK},bootindex=1"));
        }
        args.pair("-device", format!("virtio-balloon-pci,id=balloon0,addr={PCI_BALLOON},{BALLOON}"));
        args.pair("-object", "rng-builtin,id=rng0");
        args.pair("-device", format!("virtio-rng-pci,rng=rng0,addr={PCI_RNG}"));
    }

    fn channels(&self, args: &mut Arguments) {
        let socket = |id: &str, path: &Path| {
            let mut value = OsString::from(format!("socket,id={id},server=on,wait=off,path="));
            value.push(escaped_path(path));
            value
        };
        let mut serial = socket("serial0", &self.serial_socket);
        serial.push(",logappend=on,logfile=");
        serial.push(escaped_path(&self.serial_log));
        args.pair("-chardev", serial);
        args.pair("-serial", "chardev:serial0");
        args.pair("-chardev", socket("qmp0", &self.qmp_socket));
        args.pair("-mon", "chardev=qmp0,mode=control");
    }
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn pair(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.push(name.into());
        self.0.push(value.into());
    }
}

/// The argument of `-smbios` that carries a vm's identity.
pub(crate) fn identity(id: &str) -> String {
    format!("type=1,manufacturer=drover,product=vm,serial={}", escaped(id))
}

/// In QEMU's option strings a comma ends a value and two commas are one.
fn escaped(value: &str) -> String {
    value.replace(',', ",,")
}

fn escaped_path(path: &Path) -> OsString {
    match path.to_str() {
        Some(text) => escaped(text).into(),
        // Not UTF-8: [`crate::process::launch`] refuses it by name before QEMU sees it.
        None => path.into(),
    }
}

/// Where a destination listens, and where a source sends to, as QEMU spells it.
pub(crate) fn migration_uri(address: IpAddr, port: u16) -> String {
    format!("tcp:{}", std::net::SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> VmConfig {
        VmConfig {
            id: "vm-1".to_owned(),
            label: "acme-web".to_owned(),
            accel: Accel::Tcg,
            vcpus: 2,
            memory_mib: 256,
            kernel: Some("/images/vmlinuz".into()),
            initrd: Some("/images/initrd".into()),
            cmdline: "console=ttyS0 drover.name=web".to_owned(),
            disk: Some("/vms/vm-1/disk.qcow2".into()),
            nic: Some(Nic { mac: "52:54:00:00:00:01".to_owned(), tap: "tap-vm1".to_owned() }),
            qmp_socket: "/vms/vm-1/qmp".into(),
            serial_socket: "/vms/vm-1/serial".into(),
            serial_log: "/vms/vm-1/serial.log".into(),
            pid_file: "/vms/vm-1/pid".into(),
            incoming: false,
        }
    }

    /// One option with its value per line.
    #[track_caller]
    fn check(config: &VmConfig, expected: &str) {
        let mut lines = String::new();
        for argument in config.arguments() {
            let argument = argument.to_str().unwrap();
            lines.push_str(if argument.starts_with('-') { "\n" } else { " " });
            lines.push_str(argument);
        }
        let expected: Vec<_> = expected.trim().lines().map(str::trim).collect();
        assert_eq!(lines.trim(), expected.join("\n"));
    }

    #[test]
    fn a_vm_with_everything_under_tcg() {
        check(
            &config(),
            r#"
            -name guest=acme-web,process=vm-acme-web,debug-threads=on
            -smbios type=1,manufacturer=drover,product=vm,serial=vm-1
            -machine pc-q35-7.2,suppress-vmdesc=on
            -accel tcg,tb-size=64
            -cpu max
            -smp 2
            -m 262136K
            -nodefaults
            -no-user-config
            -display none
            -rtc base=utc
            -msg timestamp=on
            -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
            -kernel /images/vmlinuz
            -initrd /images/initrd
            -append console=ttyS0 drover.name=web
            -netdev tap,id=net0,ifname=tap-vm1,script=no,downscript=no
            -device virtio-net-pci,netdev=net0,id=nic0,mac=52:54:00:00:00:01,addr=0x2,romfile=
            -blockdev {"driver":"qcow2","file":{"driver":"file","filename":"/vms/vm-1/disk.qcow2","locking":"on"},"node-name":"disk0"}
            -device virtio-blk-pci,drive=disk0,id=blk0,addr=0x3,bootindex=1
            -device virtio-balloon-pci,id=balloon0,addr=0x4,deflate-on-oom=on,free-page-reporting=on
            -object rng-builtin,id=rng0
            -device virtio-rng-pci,rng=rng0,addr=0x5
            -chardev socket,id=serial0,server=on,wait=off,path=/vms/vm-1/serial,logappend=on,logfile=/vms/vm-1/serial.log
            -serial chardev:serial0
            -chardev socket,id=qmp0,server=on,wait=off,path=/vms/vm-1/qmp
            -mon chardev=qmp0,mode=control
            -pidfile /vms/vm-1/pid
            "#,
        );
    }

    #[test]
    fn a_bare_vm_under_kvm_that_waits_for_a_migration() {
        let bare = VmConfig { accel: Accel::Kvm, kernel: None, disk: None, nic: None, incoming: true, ..config() };
        check(
            &bare,
            "
            -name guest=acme-web,process=vm-acme-web,debug-threads=on
            -smbios type=1,manufacturer=drover,product=vm,serial=vm-1
            -machine pc-q35-7.2,suppress-vmdesc=on
            -accel kvm
            -cpu host
            -smp 2
            -m 262144K
            -nodefaults
            -no-user-config
            -display none
            -rtc base=utc
            -msg timestamp=on
            -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
            -device virtio-balloon-pci,id=balloon0,addr=0x4,deflate-on-oom=on,free-page-reporting=on
            -object rng-builtin,id=rng0
            -device virtio-rng-pci,rng=rng0,addr=0x5
            -chardev socket,id=serial0,server=on,wait=off,path=/vms/vm-1/serial,logappend=on,logfile=/vms/vm-1/serial.log
            -serial chardev:serial0
            -chardev socket,id=qmp0,server=on,wait=off,path=/vms/vm-1/qmp
            -mon chardev=qmp0,mode=control
            -pidfile /vms/vm-1/pid
            -incoming defer
            ",
        );
    }

    #[test]
    fn both_ends_of_a_migration_differ_in_nothing_but_the_waiting() {
        let source = config().arguments();
        let mut destination = VmConfig { incoming: true, ..config() }.arguments();
        let waiting = destination.split_off(source.len());
        assert_eq!(source, destination);
        assert_eq!(waiting, ["-incoming", "defer"]);
    }

    #[test]
    fn a_comma_in_a_value_does_not_begin_another_option() {
        let odd = VmConfig { label: "a,b".to_owned(), qmp_socket: "/vms/a,b/qmp".into(), ..config() };
        let arguments = odd.arguments();
        assert!(arguments.contains(&"guest=a,,b,process=vm-a,,b,debug-threads=on".into()));
        assert!(arguments.contains(&"socket,id=qmp0,server=on,wait=off,path=/vms/a,,b/qmp".into()));
    }

    #[test]
    fn process_names_fit_the_kernels_limit() {
        let long = VmConfig { label: "a-very-long-tenant-and-name".to_owned(), ..config() };
        let name = long.arguments()[1].to_str().unwrap().to_owned();
        assert!(name.contains(",process=vm-a-very-long-,"), "{name}");
    }

    #[test]
    fn both_families_of_addresses_are_spelled_for_qemu() {
        assert_eq!(migration_uri("10.0.0.2".parse().unwrap(), 4000), "tcp:10.0.0.2:4000");
        assert_eq!(migration_uri("fd00::2".parse().unwrap(), 4000), "tcp:[fd00::2]:4000");
    }
}
