//! Hosts that sleep: whether they can be counted on, and who is told if not.

use crate::scene::*;
use drover_control::interface::{Action, Actor};
use drover_control::{Explanation, Why};
use drover_model::intent::Role;
use drover_model::policy::{Aim, Mode};
use drover_model::world::HostState;
use drover_model::{HostId, Millis};
use drover_sim::{Cluster, host_id};

/// Two hosts that do next to nothing, one of them put to sleep for it.
fn one_asleep(wake_trial_every: Millis) -> (Scene, HostId) {
    let mut scene = Scene::new(2);
    scene.free_vm(&host_id(0), 0.1);
    scene.policy(|policy| {
        policy.aim = Aim::Auto;
        policy.vm_cooldown = MINUTE;
        policy.wake_trial_every = wake_trial_every;
    });
    let asleep = |cluster: &Cluster| {
        let asleep = |n: &usize| state(cluster, &host_id(*n)) == Some(HostState::Asleep);
        (0..2).find(asleep).map(host_id)
    };
    scene.wait("a host sleeps", |cluster| asleep(cluster).is_some());
    let host = asleep(&scene.cluster).unwrap();
    (scene, host)
}

fn counted_on(cluster: &Cluster, host: &HostId) -> bool {
    cluster.control().is_some_and(|control| control.world(cluster.now()).hosts[host].power_managed)
}

fn times_told(scene: &Scene, kind: &str) -> usize {
    let control = scene.cluster.control().unwrap();
    control.events(drover_model::EventSeq(0), usize::MAX).iter().filter(|event| event.kind == kind).count()
}

#[test]
fn a_sleeper_whose_driver_is_silent_is_not_counted_on_until_it_answers() {
    let (mut scene, host) = one_asleep(Millis::ZERO);
    assert!(counted_on(&scene.cluster, &host));
    scene.cluster.break_driver(&host, true);
    scene.wait("a person is told", |cluster| {
        cluster.control().is_some_and(|control| control.host_status(&host).wake_problem.is_some())
    });
    assert!(!counted_on(&scene.cluster, &host));
    scene.cluster.pass(Millis(15 * MINUTE.0)).unwrap();
    assert_eq!(times_told(&scene, "host-not-wakeable"), 1, "once is enough");
    scene.cluster.break_driver(&host, false);
    scene.wait("it is counted on again", |cluster| counted_on(cluster, &host));
    assert!(scene.told("host-wakeable"));
}

#[test]
fn a_wake_that_fails_is_escalated_and_the_host_is_not_counted_on_until_it_speaks() {
    let (mut scene, host) = one_asleep(Millis::ZERO);
    scene.cluster.break_boot(&host, true);
    scene.ask(Action::PowerHost { host: host.clone(), on: true }).unwrap();
    scene.cluster.pass(Millis(16 * MINUTE.0)).unwrap();
    assert!(scene.told("host-power-failed"));
    assert!(!counted_on(&scene.cluster, &host));
    // A new server knows, too.
    scene.cluster.kill_server(1_000);
    scene.wait("the server is back", |cluster| cluster.control().is_some());
    assert!(!counted_on(&scene.cluster, &host));
    scene.cluster.break_boot(&host, false);
    scene.wait("somebody has repaired it", |cluster| state(cluster, &host) == Some(HostState::Up));
    assert!(counted_on(&scene.cluster, &host));
}

#[test]
fn a_host_that_slept_long_is_woken_once_to_see_that_it_still_wakes() {
    let (mut scene, host) = one_asleep(Millis(20 * MINUTE.0));
    let cycles = |scene: &Scene| scene.cluster.control().unwrap().host(&host).unwrap().power_cycles;
    assert_eq!(cycles(&scene), 1);
    scene.cluster.pass(Millis(15 * MINUTE.0)).unwrap();
    assert!(!scene.told("host-wake") && !scene.cluster.is_on(&host), "too early");
    scene.wait("it is tried out", |cluster| state(cluster, &host) == Some(HostState::Up));
    scene.wait("it sleeps again", |cluster| state(cluster, &host) == Some(HostState::Asleep));
    assert_eq!((times_told(&scene, "host-wake"), cycles(&scene)), (1, 2));
}

fn explained(scene: &Scene, object: &str, role: Role) -> Explanation {
    let actor = Actor { name: "somebody".to_owned(), role };
    scene.cluster.control().unwrap().explain(object, &actor, scene.cluster.now()).unwrap()
}

#[test]
fn who_asks_is_told_why_a_host_is_on_or_off_and_why_a_vm_stays() {
    let (mut scene, asleep) = one_asleep(Millis::ZERO);
    let up = (0..2).map(host_id).find(|host| *host != asleep).unwrap();
    let (vm, name, tenant) = {
        let vm = scene.cluster.control().unwrap().vms().next().unwrap();
        (vm.id.clone(), vm.spec.name.clone(), vm.spec.tenant.clone())
    };
    let said =
        |lines: &[String], text: &str| assert!(lines.iter().any(|line| line.contains(text)), "{text}: {lines:?}");
    let on = explained(&scene, &format!("host/{up}"), Role::Operator);
    said(&on.because, &format!("{up} is on because {name} could go nowhere: no host could be lost any more"));
    assert!(matches!(on.why, Some(Why::On(_))), "{on:?}");
    let off = explained(&scene, &format!("host/{asleep}"), Role::Operator);
    said(&off.because, &format!("{asleep} is off because the hosts that are up are asked for"));
    assert!(matches!(off.why, Some(Why::Off(_))), "{off:?}");
    scene.cluster.pass(Millis(2 * MINUTE.0)).unwrap();
    let stays = explained(&scene, &format!("vm/{vm}"), Role::Operator);
    said(&stays.because, &format!("{name} stays on {up} because"));
    said(&stays.rejected, &format!("move {name} from {up} to {asleep}: {asleep} is asleep"));
    assert!(matches!(stays.why, Some(Why::Stays(_))), "{stays:?}");
    // Other hosts and prices are nothing for tenants.
    let tenant = explained(&scene, &format!("vm/{vm}"), Role::Tenant { tenant });
    assert_eq!((tenant.why, tenant.rejected), (None, Vec::new()));
    assert!(!tenant.because.iter().any(|line| line.contains("stays on")), "{:?}", tenant.because);
    scene.policy(|policy| policy.mode = Mode::Observe);
    let cluster = explained(&scene, "cluster", Role::Operator);
    said(&cluster.because, "nothing is planned at the moment, because the policy's mode is observe");
}
