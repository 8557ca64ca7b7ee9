//! Starting, adopting, stopping, ending.

use super::*;

#[tokio::test]
async fn a_vm_outlives_its_agent_and_the_next_one_adopts_stops_and_releases_it() {
    let lab = Lab::new(COUNTER);
    let mut host = lab.host("h1");
    host.start_agent().await;
    assert_eq!(host.run(1).await, Ok(CommandOutcome::Done));
    host.until_state(&VmState::Running).await;
    let pid = host.pid();
    host.kill_agent().await;
    host.assert_runs_on().await;

    host.start_agent().await;
    let seen = host.inventory().unwrap();
    assert_eq!((seen.state, seen.pid, seen.generation), (VmState::Running, Some(pid), Generation(1)));
    assert_eq!(host.run(1).await, Ok(CommandOutcome::Done));
    assert_eq!(host.run(2).await, Ok(CommandOutcome::Done));
    assert_eq!(host.run(1).await, Err(CommandRefusal::StaleGeneration { known: Generation(2) }));
    assert_eq!(host.pid(), pid, "an adopted vm is not started again");

    let stop = Command::Stop { vm: lab.vm.clone(), generation: Generation(2), grace: Millis(50) };
    assert_eq!(host.tell(stop).await, Ok(CommandOutcome::Done));
    host.until_state(&VmState::Stopped).await;
    assert!(!exists(pid));
    host.kill_agent().await;
    host.start_agent().await;
    host.until_state(&VmState::Stopped).await;

    assert_eq!(host.run(3).await, Ok(CommandOutcome::Done));
    host.assert_runs_on().await;
    let pid = host.pid();
    assert_eq!(host.release(2).await, Err(CommandRefusal::StaleGeneration { known: Generation(3) }));
    let disk = host.shared_dir.join(format!("disks/{}.qcow2", lab.vm));
    assert!(disk.exists());
    for _ in 0..2 {
        assert_eq!(host.release(3).await, Ok(CommandOutcome::Done));
        assert_eq!(host.inventory(), None);
    }
    assert!(!exists(pid) && !disk.exists() && !host.dir().pid_file().exists());
}

#[tokio::test]
async fn a_vm_has_its_tap_and_its_vcpus_under_the_quota_while_it_runs() {
    let lab = Lab::new(COUNTER);
    let n = std::process::id() % 100_000;
    let bridge = format!("dvb{n}");
    let ip = |arguments: &[&str]| std::process::Command::new("ip").args(arguments).status().unwrap().success();
    assert!(ip(&["link", "add", "dev", &bridge, "type", "bridge"]), "this test needs root");
    let group = format!("drover-agent-test-{n}");
    let capacity = Capacity { cpu: CpuMillis(900), memory: Bytes::mib(512) };
    let hierarchy = crate::cgroup::Hierarchy::find().expect("this test needs control groups");
    let cgroup = HostGroup::set_up(hierarchy, &group, capacity, Bytes::mib(200)).unwrap();
    let mut host = lab.host("h1");
    host.bridge = Some(bridge.clone());
    host.network = Some("lan".parse().unwrap());
    host.cgroup = Some(cgroup.clone());
    host.start_agent().await;
    let started = host.run(1).await;
    let tap = tap_name(&lab.vm);
    let there = ip(&["link", "show", "dev", &tap, "master", &bridge]);
    let (pid, threads) = {
        let measurable = host.agent().measurable();
        let subject = measurable.first().map(|one| one.subject.clone()).expect("a vm to measure");
        (subject.pid, subject.vcpu_threads)
    };
    let group_of = |task: u32| std::fs::read_to_string(format!("/proc/{pid}/task/{task}/cgroup")).unwrap();
    let (vcpu, main) = (group_of(threads[0]), group_of(pid));
    let released = host.release(1).await;
    let tap_left = ip(&["link", "show", "dev", &tap]);
    ip(&["link", "delete", "dev", &bridge]);
    cgroup.remove_all();
    assert_eq!((started, released), (Ok(CommandOutcome::Done), Ok(CommandOutcome::Done)));
    assert!(there && !tap_left);
    let vcpu_group = format!("/{group}/vcpu/{}", lab.vm);
    assert!(vcpu.contains(&vcpu_group), "{vcpu}");
    assert!(!main.contains(&vcpu_group) && main.contains(&format!("/{group}")), "{main}");
}

#[tokio::test]
async fn a_guest_that_switches_itself_off_is_stopped_and_a_qemu_that_is_killed_has_failed() {
    let lab = Lab::new(SWITCHES_ITSELF_OFF);
    let mut host = lab.host("h1");
    host.start_agent().await;
    assert_eq!(host.run(1).await, Ok(CommandOutcome::Done));
    host.until_state(&VmState::Stopped).await;

    let lab = Lab::new(COUNTER);
    let mut host = lab.host("h1");
    host.start_agent().await;
    assert_eq!(host.run(1).await, Ok(CommandOutcome::Done));
    assert!(std::process::Command::new("kill").args(["-9", &host.pid().to_string()]).status().unwrap().success());
    host.until_inventory("failed", |state| matches!(state, VmState::Failed { .. })).await;
    assert_eq!(host.inventory().unwrap().pid, None);
    assert_eq!(host.run(2).await, Ok(CommandOutcome::Done));
    host.assert_runs_on().await;
}

#[tokio::test]
async fn a_start_that_fails_says_why_and_can_be_tried_at_a_newer_generation() {
    let lab = Lab::new(COUNTER);
    let mut host = lab.host("h1");
    host.start_agent().await;
    let disk = host.shared_dir.join("images/img/disk");
    let hidden = disk.with_extension("hidden");
    std::fs::rename(&disk, &hidden).unwrap();
    let Err(CommandRefusal::Failed { why }) = host.run(1).await else { panic!("started without an image") };
    assert!(why.contains("the image img has no disk"), "{why}");
    assert!(matches!(host.inventory().unwrap().state, VmState::Failed { .. }));
    std::fs::rename(&hidden, &disk).unwrap();
    assert_eq!(host.run(2).await, Ok(CommandOutcome::Done));
    host.assert_runs_on().await;
}
