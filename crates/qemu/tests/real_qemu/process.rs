//! Starting, finding and ending real QEMU processes, and what a running one answers.

use crate::support::{Lab, Vm};
use drover_qemu::disk::create_disk;
use drover_qemu::process::{LaunchOptions, ProcessError, QemuProcess, launch, log_tail};
use drover_qemu::{Machine, QmpError, RunStatus};
use std::path::PathBuf;

#[tokio::test]
async fn a_process_leads_its_own_session_and_is_found_again_by_pid_and_identity() {
    let lab = Lab::new();
    let vm = lab.start("host", false).await;
    let pid = vm.process.pid();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name, in parentheses, may hold blanks; state, parent, group and session follow it.
    let session = stat.rsplit(')').next().unwrap().split_whitespace().nth(3).unwrap();
    assert_eq!(session, pid.to_string());

    let found = QemuProcess::find_by_pid_file(&vm.config.pid_file, &vm.config.id).unwrap().expect("the process");
    assert_eq!(found.pid(), pid);
    assert!(QemuProcess::find(pid, "another-vm").unwrap().is_none(), "a pid alone proves nothing");
    assert!(QemuProcess::find(std::process::id(), &vm.config.id).unwrap().is_none());
    assert!(QemuProcess::find_by_pid_file(&lab.path("nothing.pid"), &vm.config.id).unwrap().is_none());

    found.kill().await.unwrap();
    vm.process.exited().await;
    assert!(!vm.process.is_alive());
    assert!(QemuProcess::find(pid, &vm.config.id).unwrap().is_none());
    found.kill().await.expect("ending it twice is no error");
}

#[tokio::test]
async fn the_monitor_answers_what_a_host_wants_to_know() {
    let lab = Lab::new();
    let vm = lab.start("host", false).await;
    vm.assert_runs_on().await;
    let machine = &vm.machine;
    assert!(machine.qmp().version().major >= 7);
    assert_eq!(machine.qmp().peer_pid(), Some(vm.process.pid()));
    let threads = machine.vcpu_threads().await.unwrap();
    assert_eq!(threads.len(), 1);
    assert!(PathBuf::from(format!("/proc/{}/task/{}", vm.process.pid(), threads[0])).exists());
    let stats = machine.block_stats().await.unwrap();
    assert!(stats.read_operations >= 1 && stats.read_bytes >= 512 && !stats.time.is_zero(), "{stats:?}");
    assert!(stats.operations() >= stats.read_operations);
    assert_eq!(machine.memory_actual().await.unwrap(), (32 << 20) - (8 << 10));
    machine.dirty_rate(1).await.expect("a dirty rate");
    machine.announce_self().await.unwrap();
    machine.stop().await.unwrap();
    vm.assert_status(RunStatus::Paused).await;
    machine.cont().await.unwrap();
    vm.assert_runs_on().await;
    machine.power_down().await.unwrap();
    machine.quit().await.unwrap();
    vm.process.exited().await;
    machine.qmp().closed().await;
    assert!(matches!(machine.status().await, Err(QmpError::Closed { .. })));
}

#[tokio::test]
async fn what_qemu_says_against_a_start_is_in_the_error() {
    let lab = Lab::new();
    let mut config = lab.config("host", false);
    config.disk = Some(lab.path("missing.qcow2"));
    let error = launch(&config, &lab.options("host")).await.unwrap_err();
    assert!(matches!(error, ProcessError::EndedAtStart { .. }), "{error}");
    assert!(error.to_string().contains("missing.qcow2"), "{error}");
    assert!(log_tail(&lab.path("host.log")).contains("missing.qcow2"));
}

#[tokio::test]
async fn a_missing_qemu_is_said_with_the_package_that_has_it() {
    let lab = Lab::new();
    let options = LaunchOptions { binary: "/nonexistent/qemu".into(), log: lab.path("host.log") };
    let error = launch(&lab.config("host", false), &options).await.unwrap_err();
    assert!(matches!(error, ProcessError::NotInstalled { .. }), "{error}");
    assert!(error.to_string().contains("qemu-system-x86"), "{error}");
}

#[tokio::test]
async fn paths_that_qemu_could_not_use_are_refused_by_name() {
    let lab = Lab::new();
    let options = lab.options("host");
    let refused = async |config| launch(&config, &options).await.unwrap_err().to_string();
    let mut config = lab.config("host", false);
    config.qmp_socket = lab.path(&"long".repeat(30));
    assert!(refused(config).await.contains("107 bytes"));
    let mut config = lab.config("host", false);
    config.pid_file = "relative.pid".into();
    assert!(refused(config).await.contains("relative.pid"));
}

#[tokio::test]
async fn a_second_qemu_of_the_same_vm_on_a_host_does_not_start() {
    let lab = Lab::new();
    let first = lab.start("host", false).await;
    let error = launch(&first.config, &lab.options("host")).await.unwrap_err();
    assert!(matches!(error, ProcessError::EndedAtStart { .. }), "{error}");
    assert!(error.to_string().contains("PID file"), "{error}");
    let found = QemuProcess::find_by_pid_file(&first.config.pid_file, &first.config.id).unwrap();
    assert_eq!(found.expect("the first").pid(), first.process.pid());
    first.assert_runs_on().await;
}

#[tokio::test]
async fn a_disk_that_runs_is_locked_against_a_second_writer() {
    let lab = Lab::new();
    let first = lab.start("one", false).await;
    let error = launch(&lab.config("two", false), &lab.options("two")).await.unwrap_err();
    assert!(error.to_string().contains("lock"), "{error}");
    first.assert_runs_on().await;
}

#[tokio::test]
async fn a_monitor_held_by_another_client_is_said_not_waited_for() {
    let lab = Lab::new();
    let vm: Vm = lab.start("host", false).await;
    let error = Machine::attach(&vm.config.qmp_socket).await.unwrap_err();
    assert!(matches!(error, QmpError::Silent { .. }), "{error}");
    vm.assert_runs_on().await;
}

#[tokio::test]
async fn a_disk_is_a_thin_copy_and_is_never_overwritten() {
    let lab = Lab::new();
    let (image, disk) = (lab.path("disk.qcow2"), lab.path("copy.qcow2"));
    create_disk(&image, &disk).await.unwrap();
    let mut config = lab.config("host", false);
    config.disk = Some(disk.clone());
    let process = launch(&config, &lab.options("host")).await.expect("a vm on the copy");
    process.kill().await.unwrap();

    std::fs::write(&disk, "a tenant's data").unwrap();
    create_disk(&image, &disk).await.unwrap();
    assert_eq!(std::fs::read_to_string(&disk).unwrap(), "a tenant's data");
    assert!(!lab.path("copy.qcow2.partial").exists());

    let error = create_disk(&lab.path("no-image.qcow2"), &lab.path("other.qcow2")).await.unwrap_err();
    assert!(error.to_string().contains("no-image.qcow2"), "{error}");
    assert!(!lab.path("other.qcow2").exists());
}
