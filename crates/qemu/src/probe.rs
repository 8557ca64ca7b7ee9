//! Which accelerator works on this host, which QEMU it has, and how that can migrate.
//!
//! `/dev/kvm` can exist, open and answer, and still not run a guest: so KVM is taken only if the
//! processor's flags offer virtualization *and* a small guest has really run.

use crate::command_line::{Accel, MACHINE_TYPE, SANDBOX};
use crate::process::{QEMU_BINARY, QEMU_PACKAGE};
use crate::qmp::QemuVersion;
use rustix::fs::{MemfdFlags, memfd_create};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Longest time the probe's guest may take; it needs a small part of a second.
const PROBE_MAX: Duration = Duration::from_secs(3);
/// Longest wait for `qemu --version`.
const VERSION_MAX: Duration = Duration::from_secs(10);
/// Longest wait for a QEMU without a machine to answer all questions; it needs a small part of a second.
const ABILITIES_MAX: Duration = Duration::from_secs(10);
const KVM_DEVICE: &str = "/dev/kvm";
/// What the probe's guest writes to the exit device.
const PROBE_VALUE: u8 = 0x2a;
/// What QEMU makes of it: twice the value, plus one.
const PROBE_EXIT: i32 = PROBE_VALUE as i32 * 2 + 1;
const EXIT_PORT: u8 = 0xf4;

#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("cannot start {}: install Debian's {QEMU_PACKAGE}", binary.display())]
    NotInstalled { binary: PathBuf, source: io::Error },
    #[error("{} does not tell its version ({problem}): reinstall Debian's {QEMU_PACKAGE}", binary.display())]
    NoVersion { binary: PathBuf, problem: String },
    #[error("{} does not tell what it can ({problem}): reinstall Debian's {QEMU_PACKAGE}", binary.display())]
    NoAbilities { binary: PathBuf, problem: String },
}

/// What not every QEMU or kernel can do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Abilities {
    /// Of those that drover uses.
    pub machine_types: BTreeSet<String>,
    /// The kernel has userfaultfd, and QEMU run by this user may use it.
    pub post_copy: bool,
    /// Several connections for one migration.
    pub multifd: bool,
    /// Compression with zstd on them.
    pub multifd_zstd: bool,
    /// TLS with certificates.
    pub tls: bool,
}

/// The accelerator to use, and why, for people.
pub async fn probe_accelerator() -> (Accel, String) {
    match kvm_problem().await {
        None => (Accel::Kvm, "the processor offers virtualization and a probe guest ran".to_owned()),
        Some(why) => (Accel::Tcg, why),
    }
}

/// The version of the installed QEMU.
pub async fn qemu_version() -> Result<QemuVersion, ProbeError> {
    version_of(Path::new(QEMU_BINARY)).await
}

/// Asks a QEMU that has no machine. What depends on more than how it was built is tried.
pub async fn abilities() -> Result<Abilities, ProbeError> {
    abilities_of(Path::new(QEMU_BINARY)).await
}

async fn abilities_of(binary: &Path) -> Result<Abilities, ProbeError> {
    let unclear = |problem: String| ProbeError::NoAbilities { binary: binary.to_owned(), problem };
    let capability = |name: &str| json!({ "capabilities": [{ "capability": name, "state": true }] });
    let questions = [
        ("qmp_capabilities", Value::Null),
        // A QEMU that waits for a migration accepts this only if it could register memory with userfaultfd.
        ("migrate-set-capabilities", json!({ "capabilities": post_copy(true) })),
        ("migrate-set-capabilities", json!({ "capabilities": post_copy(false) })),
        ("migrate-set-capabilities", capability("multifd")),
        ("migrate-set-parameters", json!({ "multifd-compression": "zstd" })),
        ("qom-list-types", json!({ "implements": "tls-creds" })),
        ("query-machines", Value::Null),
        ("quit", Value::Null),
    ];
    let mut child = Command::new(binary)
        .args(["-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-incoming", "defer"])
        .args(["-sandbox", SANDBOX, "-qmp", "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| ProbeError::NotInstalled { binary: binary.to_owned(), source })?;
    let mut input = child.stdin.take().expect("a piped input");
    let asked = async {
        for (command, arguments) in &questions {
            let question = match arguments {
                Value::Null => json!({ "execute": command }),
                arguments => json!({ "execute": command, "arguments": arguments }),
            };
            input.write_all(format!("{question}\n").as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(ABILITIES_MAX, asked)
        .await
        .map_err(|_| unclear("no answer".to_owned()))?
        .map_err(|error| unclear(error.to_string()))?;
    let answers = parse_answers(&output.stdout);
    // After a refusal it still answers the rest, so that fewer answers are a defect of the installation.
    if answers.len() < questions.len() - 1 {
        return Err(unclear(format!("it ended after {} answers", answers.len())));
    }
    Ok(abilities_from(&answers))
}

/// What drover's post-copy needs: QEMU 7.1 is the first to have both.
fn post_copy(state: bool) -> Value {
    let mut names = ["postcopy-ram", "postcopy-preempt"];
    if !state {
        names.reverse();
    }
    names.map(|name| json!({ "capability": name, "state": state })).into_iter().collect()
}

/// The answers in the order of the questions: what was returned, or `None` for a refusal. Events and the greeting are none.
fn parse_answers(output: &[u8]) -> Vec<Option<Value>> {
    let lines = output.split(|byte| *byte == b'\n');
    let messages = lines.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    messages
        .filter_map(|mut message| match message.get_mut("return") {
            Some(answer) => Some(Some(answer.take())),
            None => message.get("error").map(|_| None),
        })
        .collect()
}

fn abilities_from(answers: &[Option<Value>]) -> Abilities {
    #[derive(Deserialize)]
    struct Named {
        name: String,
        #[serde(default)]
        alias: Option<String>,
    }
    let accepted = |question: usize| answers.get(question).is_some_and(Option::is_some);
    let names = |question: usize| -> BTreeSet<String> {
        let listed = answers.get(question).cloned().flatten().unwrap_or_default();
        let listed: Vec<Named> = serde_json::from_value(listed).unwrap_or_default();
        listed.into_iter().flat_map(|named| [Some(named.name), named.alias]).flatten().collect()
    };
    Abilities {
        machine_types: names(6).into_iter().filter(|name| name == MACHINE_TYPE).collect(),
        post_copy: accepted(1),
        multifd: accepted(3),
        multifd_zstd: accepted(4),
        tls: names(5).contains("tls-creds-x509"),
    }
}

async fn version_of(binary: &Path) -> Result<QemuVersion, ProbeError> {
    let unclear = |problem: String| ProbeError::NoVersion { binary: binary.to_owned(), problem };
    let run = Command::new(binary).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(VERSION_MAX, run)
        .await
        .map_err(|_| unclear("no answer".to_owned()))?
        .map_err(|source| ProbeError::NotInstalled { binary: binary.to_owned(), source })?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_version(&text).ok_or_else(|| unclear(format!("it says {:?}", text.lines().next().unwrap_or_default())))
}

/// From `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)`.
fn parse_version(text: &str) -> Option<QemuVersion> {
    let word = text.split_once("version ")?.1.split_whitespace().next()?;
    let mut numbers = word.split('.').map(|number| number.parse().ok());
    let mut next = || numbers.next().flatten();
    Some(QemuVersion { major: next()?, minor: next()?, micro: next().unwrap_or(0) })
}

async fn kvm_problem() -> Option<String> {
    if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open(KVM_DEVICE) {
        return Some(format!("{KVM_DEVICE} can't be opened: {error}"));
    }
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if !offers_virtualization(&flags) {
        return Some(format!("{KVM_DEVICE} exists, but the processor offers no virtualization (no vmx or svm flag)"));
    }
    run_probe_guest(Accel::Kvm).await.err().map(|why| format!("a probe guest under KVM failed: {why}"))
}

fn offers_virtualization(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_whitespace().any(|flag| matches!(flag, "vmx" | "svm"))
}

/// Boots a sector that writes one value to QEMU's exit device, which then ends with a known status.
async fn run_probe_guest(accel: Accel) -> Result<(), String> {
    let disk = probe_disk().map_err(|error| format!("cannot make its disk: {error}"))?;
    let run = Command::new(QEMU_BINARY)
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-m", "16M", "-machine"])
        .arg(format!("pc,accel={accel}"))
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1"])
        .args(["-drive", "if=floppy,format=raw,readonly=on,file=/dev/fd/0"])
        .stdin(disk)
        .kill_on_drop(true)
        .output();
    let output = match tokio::time::timeout(PROBE_MAX, run).await {
        Err(_) => return Err(format!("it did not finish within {} s", PROBE_MAX.as_secs())),
        Ok(Err(error)) => return Err(format!("cannot start {QEMU_BINARY}: {error}")),
        Ok(Ok(output)) => output,
    };
    if output.status.code() == Some(PROBE_EXIT) {
        return Ok(());
    }
    Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}

/// A disk of one boot sector, in memory: `mov al, value; out port, al; cli; hlt; jmp $-1`.
fn probe_disk() -> io::Result<File> {
    let code = [0xb0, PROBE_VALUE, 0xe6, EXIT_PORT, 0xfa, 0xf4, 0xeb, 0xfd];
    let mut sector = [0; 512];
    sector[..code.len()].copy_from_slice(&code);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let mut disk = File::from(memfd_create("probe-disk", MemfdFlags::CLOEXEC)?);
    disk.write_all(&sector)?;
    Ok(disk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_what_qemu_prints() {
        let version = |text| parse_version(text).map(|v| v.to_string());
        assert_eq!(version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright").as_deref(), Some("7.2.22"));
        assert_eq!(version("QEMU emulator version 10.0.2 (Debian 1:10.0.2)").as_deref(), Some("10.0.2"));
        assert_eq!(version("something else"), None);
    }

    #[tokio::test]
    async fn the_installed_qemu_tells_what_it_can() {
        let abilities = abilities().await.expect("an answer");
        // All of Debian's do; post-copy depends on the user and the kernel.
        let built_in = Abilities {
            machine_types: [MACHINE_TYPE.to_owned()].into(),
            post_copy: abilities.post_copy,
            multifd: true,
            multifd_zstd: true,
            tls: true,
        };
        assert_eq!(abilities, built_in);
    }

    #[test]
    fn what_is_refused_is_not_there() {
        let output = br#"{"QMP": {}}
            {"return": {}}
            {"error": {"class": "GenericError", "desc": "Postcopy is not supported"}}
            {"event": "X", "data": {}}
            {"return": {}}
            {"return": {}}
            {"error": {"class": "GenericError", "desc": "does not accept value 'zstd'"}}
            {"return": [{"name": "tls-creds-anon"}]}
            {"return": [{"name": "pc-q35-7.2", "alias": "q35"}, {"name": "pc-q35-7.1"}]}
            {"return": {}}"#;
        let abilities = abilities_from(&parse_answers(output));
        let machine_types = ["pc-q35-7.2".to_owned()].into();
        assert_eq!(abilities, Abilities { machine_types, multifd: true, ..Abilities::default() });
    }

    #[tokio::test]
    async fn a_program_that_is_no_qemu_has_no_abilities() {
        let error = abilities_of(Path::new("/bin/true")).await.unwrap_err();
        assert!(matches!(error, ProbeError::NoAbilities { .. }), "{error}");
    }

    #[test]
    fn only_the_flags_line_of_the_processor_counts() {
        assert!(offers_virtualization("model name: x\nflags\t\t: fpu vmx sse\n"));
        assert!(offers_virtualization("flags\t\t: fpu svm\n"));
        assert!(!offers_virtualization("model name: svm vmx\nflags\t\t: fpu svm_lock\n"));
        assert!(!offers_virtualization(""));
    }

    #[tokio::test]
    async fn the_probe_guest_runs_where_translation_does() {
        run_probe_guest(Accel::Tcg).await.expect("a probe guest under TCG");
    }

    #[tokio::test]
    async fn an_accelerator_is_always_found_with_a_reason() {
        let (accel, why) = probe_accelerator().await;
        assert!(!why.is_empty(), "{accel} without a reason");
        if accel == Accel::Kvm {
            assert!(offers_virtualization(&std::fs::read_to_string("/proc/cpuinfo").unwrap()));
        }
    }

    #[tokio::test]
    async fn a_missing_qemu_is_said_with_the_package_that_has_it() {
        let error = version_of(Path::new("/nonexistent/qemu")).await.unwrap_err();
        assert!(matches!(error, ProbeError::NotInstalled { .. }));
        assert!(error.to_string().contains("qemu-system-x86"), "{error}");
    }
}
