//! Real QEMUs with a guest of one boot sector, which changes memory without pause and checks every change.

use drover_qemu::command_line::{Accel, VmConfig};
use drover_qemu::process::{LaunchOptions, QEMU_BINARY, QemuProcess, launch};
use drover_qemu::{Machine, RunStatus};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// No test waits longer for anything that must happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A counter in `ecx` and at 0x600, and in turn in each of 128 pages; each page must hold what was left there 128
/// counts ago. Prints `.` every 65536 counts, and `X` and halts when memory is not what it was.
///
/// ```text
///        cli; xor ax,ax; mov ds,ax; xor ecx,ecx; mov [0x600],ecx; mov bx,0x1000
/// next:  cmp [0x600],ecx; jne bad; inc ecx; mov [0x600],ecx; mov es,bx
///        mov eax,[es:0]; add eax,128; cmp ecx,128; jbe store; cmp eax,ecx; jne bad
/// store: mov [es:0],ecx; add bx,0x100; cmp bx,0x9000; jb same; mov bx,0x1000
/// same:  test ecx,0xffff; jnz next; mov dx,0x3f8; mov al,'.'; out dx,al; jmp next
/// bad:   mov dx,0x3f8; mov al,'X'; out dx,al
/// halt:  hlt; jmp halt
/// ```
const GUEST: [u8; 102] = [
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x66, 0x31, 0xc9, 0x66, 0x89, 0x0e, 0x00, 0x06, 0xbb, 0x00, 0x10, //
    0x66, 0x39, 0x0e, 0x00, 0x06, 0x75, 0x46, 0x66, 0x41, 0x66, 0x89, 0x0e, 0x00, 0x06, 0x8e, 0xc3, //
    0x26, 0x66, 0xa1, 0x00, 0x00, 0x66, 0x05, 0x80, 0x00, 0x00, 0x00, 0x66, 0x81, 0xf9, 0x80, 0x00, //
    0x00, 0x00, 0x76, 0x05, 0x66, 0x39, 0xc8, 0x75, 0x24, 0x26, 0x66, 0x89, 0x0e, 0x00, 0x00, 0x81, //
    0xc3, 0x00, 0x01, 0x81, 0xfb, 0x00, 0x90, 0x72, 0x03, 0xbb, 0x00, 0x10, 0x66, 0xf7, 0xc1, 0xff, //
    0xff, 0x00, 0x00, 0x75, 0xbb, 0xba, 0xf8, 0x03, 0xb0, 0x2e, 0xee, 0xeb, 0xb3, 0xba, 0xf8, 0x03, //
    0xb0, 0x58, 0xee, 0xf4, 0xeb, 0xfd,
];

/// A directory with the guest's disk, for the QEMUs of one vm.
pub struct Lab {
    dir: TempDir,
}

impl Lab {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("qemu-test-").tempdir().expect("a temporary directory");
        let mut sector = vec![0; 1 << 20];
        sector[..GUEST.len()].copy_from_slice(&GUEST);
        sector[510..512].copy_from_slice(&[0x55, 0xaa]);
        let raw = dir.path().join("guest.raw");
        std::fs::write(&raw, sector).unwrap();
        let convert = std::process::Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", "qcow2"])
            .args([&raw, &dir.path().join("disk.qcow2")])
            .status()
            .expect("these tests run real QEMUs: install Debian's qemu-utils");
        assert!(convert.success(), "qemu-img convert: {convert}");
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn config(&self, host: &str, incoming: bool) -> VmConfig {
        VmConfig {
            id: "3f0c2a5e".to_owned(),
            label: format!("test-{host}"),
            accel: Accel::Tcg,
            vcpus: 1,
            memory_mib: 32,
            kernel: None,
            initrd: None,
            cmdline: String::new(),
            disk: Some(self.path("disk.qcow2")),
            nic: None,
            qmp_socket: self.path(&format!("{host}.qmp")),
            serial_socket: self.path(&format!("{host}.serial")),
            serial_log: self.path(&format!("{host}.serial.log")),
            pid_file: self.path(&format!("{host}.pid")),
            incoming,
        }
    }

    pub fn options(&self, host: &str) -> LaunchOptions {
        LaunchOptions { binary: QEMU_BINARY.into(), log: self.path(&format!("{host}.log")) }
    }

    pub async fn start(&self, host: &str, incoming: bool) -> Vm {
        let config = self.config(host, incoming);
        let process = launch(&config, &self.options(host))
            .await
            .expect("these tests run real QEMUs: install Debian's qemu-system-x86 if it is missing");
        let machine = Machine::attach(&config.qmp_socket).await.expect("a monitor");
        Vm { config, process: Owned(process), machine }
    }

    /// A vm that runs, and a QEMU that waits for it.
    pub async fn pair(&self) -> (Vm, Vm) {
        let source = self.start("source", false).await;
        source.assert_runs_on().await;
        (source, self.start("destination", true).await)
    }
}

pub struct Vm {
    pub config: VmConfig,
    pub process: Owned,
    pub machine: Machine,
}

impl Vm {
    /// Closes the monitor, as the end of a driver would, and opens it again.
    pub async fn reattached(self) -> Self {
        let Self { config, process, machine } = self;
        drop(machine);
        let machine = Machine::attach(&config.qmp_socket).await.expect("a second connection");
        Self { config, process, machine }
    }

    /// The guest executes, and its memory is what it left there.
    pub async fn assert_runs_on(&self) {
        let log = &self.config.serial_log;
        let before = output(log).len();
        until("the guest prints", || {
            let printed = output(log);
            assert!(!printed.contains('X'), "the guest found its memory changed: {printed:?}");
            printed.len() > before + 1
        })
        .await;
        assert_eq!(self.machine.status().await.unwrap(), RunStatus::Running);
    }

    pub async fn assert_status(&self, wanted: RunStatus) {
        assert_eq!(self.machine.status().await.unwrap(), wanted);
    }
}

/// Ends with its test.
pub struct Owned(QemuProcess);

impl Deref for Owned {
    type Target = QemuProcess;
    fn deref(&self) -> &QemuProcess {
        &self.0
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Its pid is its own as long as it is alive.
        if self.is_alive() {
            let _ = std::process::Command::new("kill").arg("-9").arg(self.pid().to_string()).status();
        }
    }
}

fn output(log: &Path) -> String {
    std::fs::read_to_string(log).unwrap_or_default()
}

/// Waits for something that has no event.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
