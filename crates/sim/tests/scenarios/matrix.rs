//! Every fault in every phase of a migration: afterwards the vm runs once, and its memory is what it was unless the fault
//! took the only copy of it; then that was said.

use crate::scene::*;
use drover_model::migration::{Method, MigrationPhase};
use drover_model::{HostId, Millis, VmId};
use drover_sim::{Cluster, Phase, host_id};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Reserve,
    PreCopy,
    Pause,
    Commit,
    PostCopy,
    Release,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    SourceQemu,
    DestinationQemu,
    SourceAgent,
    DestinationAgent,
    Server,
    Link,
    SourceHost,
    DestinationHost,
}

const VICTIMS: [Victim; 8] = [
    Victim::SourceQemu,
    Victim::DestinationQemu,
    Victim::SourceAgent,
    Victim::DestinationAgent,
    Victim::Server,
    Victim::Link,
    Victim::SourceHost,
    Victim::DestinationHost,
];

/// What a restarted process, or a cut cable, is away for.
const AWAY_MS: u64 = 3_000;
const HOST_AWAY_MS: u64 = 20_000;
/// Within this the guest runs again, wherever a host with the right to run it is there.
const AGAIN_WITHIN: Millis = Millis::secs(10);

/// Nothing may happen any more after it has come to rest.
const RESTS_FOR: Millis = Millis::secs(60);

fn strike(cluster: &mut Cluster, victim: Victim, vm: &VmId, from: &HostId, to: &HostId) {
    match victim {
        Victim::SourceQemu => cluster.kill_qemu(from, vm),
        Victim::DestinationQemu => cluster.kill_qemu(to, vm),
        Victim::SourceAgent => cluster.kill_agent(from, AWAY_MS),
        Victim::DestinationAgent => cluster.kill_agent(to, AWAY_MS),
        Victim::Server => cluster.kill_server(AWAY_MS),
        Victim::Link => cluster.sever(vm, AWAY_MS),
        Victim::SourceHost => cluster.lose_host(from, HOST_AWAY_MS),
        Victim::DestinationHost => cluster.lose_host(to, HOST_AWAY_MS),
    }
}

/// Whether the fault takes, or may take, the only copy of the newest memory.
fn may_lose(method: Method, moment: Moment, victim: Victim) -> bool {
    match victim {
        Victim::SourceQemu | Victim::SourceHost => moment != Moment::Release,
        Victim::DestinationQemu | Victim::DestinationHost => match moment {
            Moment::PostCopy | Moment::Release => true,
            // What was put on the wire and never came.
            Moment::Commit | Moment::Pause => method == Method::PostCopy || victim == Victim::DestinationHost,
            Moment::Reserve | Moment::PreCopy => false,
        },
        Victim::Link => method == Method::PostCopy && matches!(moment, Moment::Commit | Moment::Pause),
        Victim::SourceAgent | Victim::DestinationAgent | Victim::Server => false,
    }
}

fn cell(method: Method, moment: Moment, victim: Victim) {
    let what = format!("{victim:?} in {moment:?} of {}", method.word());
    let mut scene = Scene::new(2);
    let (from, to) = (host_id(0), host_id(1));
    let vm = scene.free_vm(&from, 0.2);
    scene.cluster.set_link(MEMORY.scale(0.2), method == Method::PostCopy);
    let memory = scene.cluster.incarnation(&vm).unwrap();
    let id = scene.migrate_by(&vm, &to, Some(method));
    scene.wait("the moment", |cluster| {
        let (phase, sending) = (phase(cluster, id), cluster.sending(&vm));
        match moment {
            Moment::Reserve => phase == Some(MigrationPhase::Reserved),
            Moment::PreCopy => sending == Some(Phase::PreCopy),
            Moment::Pause => sending == Some(Phase::AtSwitchOver),
            Moment::Commit => sending == Some(Phase::SwitchingOver),
            Moment::PostCopy => sending == Some(Phase::PostCopy),
            Moment::Release => phase == Some(MigrationPhase::Committed) && sending.is_none(),
        }
    });
    strike(&mut scene.cluster, victim, &vm, &from, &to);
    // A host that is gone is waited for: it may still have the right to run.
    if !matches!(victim, Victim::SourceHost | Victim::DestinationHost) {
        let runs = |cluster: &Cluster| cluster.executing(&vm).len() == 1;
        if let Err(broken) = scene.cluster.wait_for("the guest runs", AGAIN_WITHIN, runs) {
            panic!("{what}: {broken}\n{}", scene.cluster.trace().join("\n"));
        }
    }
    let at_rest = |cluster: &Cluster| cluster.unsettled().is_none();
    scene.wait(&format!("{what}: rest"), at_rest);
    scene.cluster.pass(RESTS_FOR).unwrap();
    assert!(at_rest(&scene.cluster), "{what}: {:?}", scene.cluster.unsettled());
    let over = scene.phase(id).unwrap();
    assert!(over.is_over(), "{what}: {over:?}");
    let after = scene.cluster.incarnation(&vm).unwrap();
    assert!(after == memory || after == memory + 1, "{what}: it was started {} times", after - memory);
    assert!(after == memory || may_lose(method, moment, victim), "{what}, ended {over:?}: the memory is another");
    let said = scene.told("vm-memory-lost") || scene.told("vm-restarted") || scene.told("migration-failed");
    assert!(after == memory || said, "{what}: nobody said that the memory was lost");
}

#[test]
fn whatever_dies_in_whichever_phase_of_a_pre_copy_the_vm_runs_once() {
    for moment in [Moment::Reserve, Moment::PreCopy, Moment::Pause, Moment::Commit, Moment::Release] {
        for victim in VICTIMS {
            cell(Method::PreCopy, moment, victim);
        }
    }
}

#[test]
fn whatever_dies_in_whichever_phase_of_a_post_copy_the_vm_runs_once() {
    for moment in [Moment::Reserve, Moment::PreCopy, Moment::Pause, Moment::Commit, Moment::PostCopy, Moment::Release] {
        for victim in VICTIMS {
            cell(Method::PostCopy, moment, victim);
        }
    }
}
