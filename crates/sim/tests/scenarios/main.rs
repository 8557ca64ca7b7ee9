//! One thing at a time: the cluster of the simulator, with faults at chosen moments.

mod matrix;
mod placement;
mod post_copy;
mod queue;
mod scene;
mod waking;

use drover_control::interface::{Action, RefusalKind, Reply};
use drover_model::intent::{PowerIntent, RunIntent};
use drover_model::migration::MigrationPhase;
use drover_model::plan::PlanState;
use drover_model::policy::Mode;
use drover_model::world::HostState;
use drover_model::{HostId, Millis, VmId};
use drover_sim::{Cluster, VmRequest, host_id};
use scene::*;

/// At each phase of a migration, `strike` happens; afterwards the vm runs once, on its old memory, and all is at rest.
fn survives_in_every_phase(strike: impl Fn(&mut Cluster, &HostId, &HostId)) {
    for wanted in [MigrationPhase::Reserved, MigrationPhase::PreCopy, MigrationPhase::Committed] {
        let mut scene = Scene::new(2);
        let (from, to) = (host_id(0), host_id(1));
        let vm = scene.free_vm(&from, 0.2);
        let memory = scene.cluster.incarnation(&vm);
        let id = scene.migrate(&vm, &to);
        scene.wait("the phase to strike in", |cluster| phase(cluster, id).as_ref() == Some(&wanted));
        strike(&mut scene.cluster, &from, &to);
        scene.settle();
        let over = scene.phase(id).unwrap();
        assert!(over.is_over(), "struck in {wanted:?}: {over:?}");
        assert_eq!(
            scene.cluster.incarnation(&vm),
            memory,
            "struck in {wanted:?}, ended {over:?}: the memory is another"
        );
        let host = if over == MigrationPhase::Done { &to } else { &from };
        assert!(runs_on(&scene.cluster, &vm, host), "struck in {wanted:?}, ended {over:?}");
    }
}

#[test]
fn a_source_agent_killed_during_a_migration_costs_nothing() {
    survives_in_every_phase(|cluster, from, _| cluster.kill_agent(from, 3_000));
}

#[test]
fn a_destination_agent_killed_during_a_migration_costs_nothing() {
    survives_in_every_phase(|cluster, _, to| cluster.kill_agent(to, 3_000));
}

#[test]
fn the_server_killed_during_a_migration_costs_nothing() {
    survives_in_every_phase(|cluster, _, _| cluster.kill_server(4_000));
}

#[test]
fn server_and_both_agents_killed_during_a_migration_cost_nothing() {
    survives_in_every_phase(|cluster, from, to| {
        cluster.kill_agent(from, 1_000);
        cluster.kill_agent(to, 6_000);
        cluster.kill_server(3_000);
    });
}

#[test]
fn a_cut_connection_of_either_side_costs_nothing() {
    survives_in_every_phase(|cluster, from, _| cluster.cut_connection(from));
    survives_in_every_phase(|cluster, _, to| cluster.make_unreachable(to, 30_000));
}

#[test]
fn a_full_disk_during_a_migration_costs_nothing() {
    survives_in_every_phase(|cluster, _, _| cluster.fill_disk());
}

#[test]
fn a_commit_lost_between_store_and_source_still_leaves_one_owner() {
    let mut scene = Scene::new(2);
    let (from, to) = (host_id(0), host_id(1));
    let vm = scene.free_vm(&from, 0.2);
    let memory = scene.cluster.incarnation(&vm);
    let id = scene.migrate(&vm, &to);
    scene.wait("the copy", |cluster| phase(cluster, id) == Some(MigrationPhase::PreCopy));
    // The next commit is the one of the switch-over: durable, and never told to the source.
    scene.cluster.kill_server_after_commit();
    scene.wait("the server dies of it", |cluster| cluster.control().is_none());
    scene.wait("the server is back", |cluster| cluster.control().is_some());
    assert_eq!(scene.phase(id), Some(MigrationPhase::Committed));
    scene.settle();
    let over = scene.phase(id).unwrap();
    let host = if over == MigrationPhase::Done { &to } else { &from };
    assert!(matches!(over, MigrationPhase::Done | MigrationPhase::TakenBack { .. }), "{over:?}");
    assert!(runs_on(&scene.cluster, &vm, host), "{over:?}");
    assert_eq!(scene.cluster.incarnation(&vm), memory);
}

#[test]
fn a_destination_that_dies_after_the_commit_gives_the_vm_back() {
    let mut scene = Scene::new(2);
    let (from, to) = (host_id(0), host_id(1));
    let vm = scene.free_vm(&from, 0.2);
    let memory = scene.cluster.incarnation(&vm);
    let id = scene.migrate(&vm, &to);
    scene.wait("the commit", |cluster| phase(cluster, id) == Some(MigrationPhase::Committed));
    assert!(scene.cluster.executing(&vm).is_empty(), "the guest stands still at the commit");
    scene.cluster.kill_qemu(&to, &vm);
    scene.settle();
    assert!(matches!(scene.phase(id), Some(MigrationPhase::TakenBack { .. })), "{:?}", scene.phase(id));
    assert!(runs_on(&scene.cluster, &vm, &from));
    assert_eq!(scene.cluster.incarnation(&vm), memory, "the source had all of it");
}

#[test]
fn a_source_that_dies_at_the_switch_over_is_said_to_have_lost_the_memory() {
    let mut scene = Scene::new(2);
    let (from, to) = (host_id(0), host_id(1));
    let vm = scene.free_vm(&from, 0.2);
    let memory = scene.cluster.incarnation(&vm);
    let id = scene.migrate(&vm, &to);
    scene.wait("the commit", |cluster| phase(cluster, id) == Some(MigrationPhase::Committed));
    scene.cluster.kill_qemu(&from, &vm);
    scene.settle();
    assert!(matches!(scene.phase(id), Some(MigrationPhase::Restarted { .. })), "{:?}", scene.phase(id));
    assert!(scene.told("vm-memory-lost"));
    assert!(runs_on(&scene.cluster, &vm, &to));
    assert_ne!(scene.cluster.incarnation(&vm), memory);
}

#[test]
fn a_destination_host_that_goes_dark_after_the_commit_is_waited_for() {
    let mut scene = Scene::new(2);
    let (from, to) = (host_id(0), host_id(1));
    let vm = scene.free_vm(&from, 0.2);
    let id = scene.migrate(&vm, &to);
    scene.wait("the commit", |cluster| phase(cluster, id) == Some(MigrationPhase::Committed));
    scene.cluster.lose_host(&to, 120_000);
    scene.cluster.pass(Millis::secs(90)).unwrap();
    assert_eq!(scene.phase(id), Some(MigrationPhase::Committed), "nobody can know yet whether it ran there");
    assert!(scene.told("migration-stuck"), "a person is told");
    scene.settle();
    assert!(scene.phase(id).unwrap().is_over());
}

#[test]
fn a_destination_that_dies_during_the_copy_never_gets_the_right_to_run() {
    let mut scene = Scene::new(2);
    let (from, to) = (host_id(0), host_id(1));
    let vm = scene.free_vm(&from, 0.2);
    let generation =
        |cluster: &Cluster| cluster.control().and_then(|control| control.vm(&vm)).map(|row| row.generation);
    let before = generation(&scene.cluster);
    let id = scene.migrate(&vm, &to);
    scene.wait("the copy", |cluster| phase(cluster, id) == Some(MigrationPhase::PreCopy));
    scene.cluster.kill_qemu(&to, &vm);
    scene.settle();
    assert!(matches!(scene.phase(id), Some(MigrationPhase::Failed { .. })), "{:?}", scene.phase(id));
    assert_eq!(generation(&scene.cluster), before, "it never left");
}

#[test]
fn a_guest_that_ran_at_the_destination_unseen_is_not_taken_back_to_older_memory() {
    // The source falls silent somewhere between the commit and its last byte; the witness in the cluster fails the test
    // if old memory ever runs.
    for silent_after in (0..400).step_by(20) {
        let mut scene = Scene::new(2);
        let (from, to) = (host_id(0), host_id(1));
        let vm = scene.free_vm(&from, 0.2);
        let id = scene.migrate(&vm, &to);
        scene.wait("the commit", |cluster| phase(cluster, id) == Some(MigrationPhase::Committed));
        scene.cluster.kill_agent(&to, 5_000);
        scene.cluster.pass(Millis(silent_after)).unwrap();
        scene.cluster.stall_connection(&from, 30_000);
        scene.wait("it runs there, unseen", |cluster| cluster.executing(&vm) == [to.clone()]);
        scene.cluster.kill_qemu(&to, &vm);
        scene.settle();
        assert!(scene.phase(id).is_some_and(|phase| phase.is_over()));
    }
}

#[test]
fn a_cancelled_migration_leaves_the_vm_where_it_was() {
    let mut scene = Scene::new(2);
    let vm = scene.free_vm(&host_id(0), 0.2);
    let id = scene.migrate(&vm, &host_id(1));
    scene.wait("the copy", |cluster| phase(cluster, id) == Some(MigrationPhase::PreCopy));
    scene.ask(Action::CancelMigration { id }).unwrap();
    scene.settle();
    assert!(matches!(scene.phase(id), Some(MigrationPhase::Cancelled { .. })));
    assert!(runs_on(&scene.cluster, &vm, &host_id(0)));
}

#[test]
fn only_a_vm_that_runs_and_stays_is_measured_and_nothing_is_stored_of_it() {
    let mut scene = Scene::new(2);
    let (from, to) = (host_id(0), host_id(1));
    let vm = scene.free_vm(&from, 0.2);
    let measure = |seconds| Action::MeasureVm { vm: vm.clone(), span: Millis::secs(seconds) };
    let refused = |scene: &mut Scene, seconds| scene.ask(measure(seconds)).unwrap_err();
    for seconds in [0, 61] {
        let refusal = refused(&mut scene, seconds);
        assert_eq!((refusal.kind, refusal.field.as_deref()), (RefusalKind::Invalid, Some("seconds")), "{refusal}");
    }
    let nobody = Action::MeasureVm { vm: "vm-nobody".parse().unwrap(), span: Millis::secs(1) };
    assert_eq!(scene.ask(nobody).unwrap_err().kind, RefusalKind::NotFound);

    let revision = |scene: &Scene| scene.cluster.control().unwrap().revision();
    let before = revision(&scene);
    for seconds in [1, 60, 2] {
        assert_eq!(scene.ask(measure(seconds)), Ok(Reply::Vm(vm.clone())));
    }
    assert_eq!(revision(&scene), before);
    let taken = |scene: &Scene| scene.cluster.trace().iter().filter(|line| line.contains("takes measure")).count();
    scene.wait("the host is asked", |cluster| cluster.trace().iter().any(|line| line.contains("takes measure")));
    assert_eq!(taken(&scene), 1, "what is not answered yet is not asked again");

    let id = scene.migrate(&vm, &to);
    let refusal = refused(&mut scene, 2);
    assert!(refusal.kind == RefusalKind::Conflict && refusal.detail.contains("moved"), "{refusal}");
    scene.wait("the move is over", |cluster| phase(cluster, id) == Some(MigrationPhase::Done));
    scene.wait("it is seen there", |cluster| runs_on(cluster, &vm, &to));
    assert_eq!(scene.ask(measure(2)), Ok(Reply::Vm(vm.clone())));

    scene.cluster.kill_agent(&to, 60_000);
    scene.wait("its host is silent", |cluster| !seen_running(cluster, &vm));
    assert_eq!(refused(&mut scene, 2).kind, RefusalKind::Unavailable);
    scene.wait("its host answers again", |cluster| seen_running(cluster, &vm));
    scene.ask(Action::SetRun { vm: vm.clone(), run: RunIntent::Stopped }).unwrap();
    let refusal = refused(&mut scene, 2);
    assert!(refusal.kind == RefusalKind::Conflict && refusal.detail.contains("not running"), "{refusal}");
    scene.settle();
    assert_eq!(refused(&mut scene, 2).kind, RefusalKind::Conflict);
    assert!(!scene.told("vm-not-measured"));
}

#[test]
fn a_drain_empties_a_host_and_nothing_comes_until_it_is_given_back() {
    let mut scene = Scene::new(3);
    scene.policy(|policy| policy.mode = Mode::Act);
    let vms: Vec<VmId> = (0..3).map(|_| scene.free_vm(&host_id(0), 0.2)).collect();
    scene.ask(Action::DrainHost { host: host_id(0) }).unwrap();
    scene.wait("the host is empty", |cluster| vms.iter().all(|vm| !cluster.executing(vm).contains(&host_id(0))));
    let later = scene.cluster.create_vm(&VmRequest { vcpus: 1, memory: MEMORY, ..VmRequest::default() }).unwrap();
    scene.wait("the new vm runs elsewhere", |cluster| seen_running(cluster, &later));
    assert!(!scene.cluster.executing(&later).contains(&host_id(0)));
    scene.settle();
}

#[test]
fn power_saving_empties_a_host_and_wakes_it_when_it_is_needed() {
    let mut scene = Scene::new(3);
    let vms: Vec<VmId> = (0..3).map(|n| scene.free_vm(&host_id(n), 0.1)).collect();
    scene.policy(|policy| {
        policy.aim = drover_model::policy::Aim::Auto;
        policy.vm_cooldown = MINUTE;
    });
    let asleep = |cluster: &Cluster| (0..3).map(host_id).filter(|host| !cluster.is_on(host)).count();
    scene.wait("a host is switched off", |cluster| asleep(cluster) > 0);
    assert!(vms.iter().all(|vm| scene.cluster.executing(vm).len() == 1));
    for vm in &vms {
        scene.load(vm, 1.0);
    }
    for _ in 0..2 {
        let vm = scene.cluster.create_vm(&VmRequest { vcpus: 2, memory: MEMORY, ..VmRequest::default() }).unwrap();
        scene.load(&vm, 1.0);
    }
    scene.wait("all hosts are on again", |cluster| asleep(cluster) == 0);
    scene
        .wait("all hosts are used again", |cluster| (0..3).all(|n| state(cluster, &host_id(n)) == Some(HostState::Up)));
}

#[test]
fn a_hot_host_is_relieved_in_mode_act_and_only_proposed_for_in_mode_propose() {
    let mut scene = Scene::new(2);
    let vms: Vec<VmId> = (0..3).map(|_| scene.free_vm(&host_id(0), 0.2)).collect();
    scene.policy(|policy| {
        policy.mode = Mode::Propose;
        policy.vm_cooldown = Millis::ZERO;
    });
    for vm in &vms {
        scene.load(vm, 0.8);
    }
    let proposed = |cluster: &Cluster| {
        let plan = cluster.control()?.plans().find(|plan| plan.state == PlanState::Proposed)?;
        Some(plan.id)
    };
    scene.wait("a proposal", |cluster| proposed(cluster).is_some());
    scene.cluster.pass(Millis(3 * MINUTE.0)).unwrap();
    assert!(vms.iter().all(|vm| runs_on(&scene.cluster, vm, &host_id(0))), "nothing moves unasked");
    let id = proposed(&scene.cluster).unwrap();
    scene.ask(Action::ApprovePlan { id }).unwrap();
    scene.wait("the plan is done", |cluster| {
        cluster.control().and_then(|control| control.plan(id)).is_some_and(|plan| plan.state == PlanState::Done)
    });
    assert!(vms.iter().any(|vm| runs_on(&scene.cluster, vm, &host_id(1))));
}

#[test]
fn a_full_disk_changes_nothing_and_says_so() {
    let mut scene = Scene::new(2);
    let vm = scene.vm(&host_id(0), 0.2);
    scene.cluster.fill_disk();
    let refusal = scene.ask(Action::SetRun { vm: vm.clone(), run: RunIntent::Stopped }).unwrap_err();
    assert!(refusal.detail.contains("full"), "{refusal}");
    scene.wait("the server goes on", |cluster| cluster.control().is_some());
    scene.wait("it sees the vm again", |cluster| runs_on(cluster, &vm, &host_id(0)));
    scene.cluster.pass(MINUTE).unwrap();
    assert!(runs_on(&scene.cluster, &vm, &host_id(0)), "what was refused never happened");
}

#[test]
fn a_vm_is_not_started_elsewhere_while_its_start_is_under_way() {
    let mut scene = Scene::new(2);
    let vm = scene.cluster.create_vm(&VmRequest { vcpus: 1, memory: MEMORY, ..VmRequest::default() }).unwrap();
    let host = |cluster: &Cluster| cluster.control()?.vm(&vm)?.host.clone();
    scene.wait("the vm is placed", |cluster| host(cluster).is_some());
    scene.cluster.stall_connection(&host(&scene.cluster).unwrap(), 5_000);
    scene.ask(Action::SetRun { vm: vm.clone(), run: RunIntent::Stopped }).unwrap();
    let refusal = scene.ask(Action::SetRun { vm: vm.clone(), run: RunIntent::Running }).unwrap_err();
    assert!(refusal.detail.contains("try again"), "{refusal}");
    scene.settle();
}

#[test]
fn a_removed_vm_is_gone_only_once_every_host_has_let_go_of_it() {
    let mut scene = Scene::new(2);
    let (from, to) = (host_id(0), host_id(1));
    let vm = scene.free_vm(&from, 0.2);
    let id = scene.migrate(&vm, &to);
    scene.wait("the commit", |cluster| phase(cluster, id) == Some(MigrationPhase::Committed));
    scene.cluster.pass(Millis(300)).unwrap();
    scene.cluster.make_unreachable(&from, 60_000);
    scene.wait("the move is done", |cluster| phase(cluster, id) == Some(MigrationPhase::Done));
    scene.ask(Action::RemoveVm { vm: vm.clone() }).unwrap();
    scene.cluster.pass(Millis::secs(20)).unwrap();
    let known = |cluster: &Cluster| cluster.control().is_some_and(|control| control.vm(&vm).is_some());
    assert!(known(&scene.cluster), "{from} still holds what was handed over");
    scene.wait("it is gone", |cluster| cluster.control().is_some() && !known(cluster));
    scene.settle();
}

#[test]
fn a_server_killed_while_it_wakes_or_switches_off_a_host_goes_on_where_it_was() {
    let mut scene = Scene::new(2);
    let host = host_id(1);
    for on in [false, true] {
        // Durable, and the driver never asked.
        scene.cluster.kill_server_after_commit();
        let _unanswered = scene.ask(Action::PowerHost { host: host.clone(), on });
        scene.wait("the server is back", |cluster| cluster.control().is_some());
        let power = scene.cluster.control().and_then(|control| control.host(&host)).map(|row| row.power);
        assert_eq!(power, Some(if on { PowerIntent::On } else { PowerIntent::Off }));
        let wanted = if on { HostState::Up } else { HostState::Asleep };
        scene.wait("the host is as was asked", |cluster| {
            cluster.is_on(&host) == on && state(cluster, &host) == Some(wanted)
        });
    }
}
