//! Vms that their hosts refuse, vms that die, and hosts that are declared lost.

use crate::interface::{Action, RefusalKind};
use crate::testing::{Site, host};
use drover_model::Millis;
use drover_model::intent::RunIntent;
use drover_model::kind::ObjectKey;

const WHILE: Millis = Millis::secs(60);

#[test]
fn a_host_that_refuses_every_start_is_left_for_another() {
    let mut site = Site::new(2);
    for name in ["h1", "h2"] {
        site.hosts.get_mut(&host(name)).unwrap().refuses = name == "h1";
    }
    // Whichever host is chosen first: of two vms one begins on h1.
    let vms = [site.create_vm("a"), site.create_vm("b")];
    site.pass(WHILE);
    for vm in &vms {
        assert_eq!(site.runs_on(vm), ["h2"], "{:?}", site.events);
    }
    let asked = site.hosts[&host("h1")].runs_asked;
    assert!(asked <= 2 * 3, "h1 was asked {asked} times");
}

#[test]
fn a_vm_that_no_other_host_can_take_is_not_asked_for_without_end() {
    let mut site = Site::new(1);
    site.hosts.get_mut(&host("h1")).unwrap().refuses = true;
    let vm = site.create_vm("a");
    site.pass(Millis::secs(500));
    assert!(site.hosts[&host("h1")].runs_asked <= 3);
    assert_eq!(site.phase(&vm), "waiting");
    // The host is given another chance in the end.
    site.hosts.get_mut(&host("h1")).unwrap().refuses = false;
    site.pass(Millis::secs(600));
    assert_eq!(site.runs_on(&vm), ["h1"]);
}

#[test]
fn a_vm_that_dies_again_and_again_is_not_started_again_until_somebody_asks() {
    let mut site = Site::new(1);
    let vm = site.create_vm("a");
    site.pass(WHILE);
    for _ in 0..4 {
        site.kill(&vm);
        site.pass(WHILE);
    }
    assert_eq!((site.phase(&vm), site.events_of("vm-restarted").len()), ("failed", 3));
    assert_eq!(site.events_of("vm-failed").len(), 1);
    // Neither time nor a new server changes that.
    site.pass(Millis::secs(2_000));
    site.restart_server(Millis::secs(5));
    site.pass(Millis::secs(2_000));
    assert_eq!((site.phase(&vm), site.events_of("vm-restarted").len()), ("failed", 3));
    site.set_run(&vm, RunIntent::Running).unwrap();
    site.pass(WHILE);
    assert_eq!(site.phase(&vm), "running");
}

#[test]
fn a_failed_vm_that_is_stopped_is_stopped() {
    let mut site = Site::new(1);
    let vm = site.create_vm("a");
    site.pass(WHILE);
    for _ in 0..4 {
        site.kill(&vm);
        site.pass(WHILE);
    }
    assert_eq!(site.phase(&vm), "failed");
    site.set_run(&vm, RunIntent::Stopped).unwrap();
    site.pass(WHILE);
    assert_eq!(site.phase(&vm), "stopped");
}

#[test]
fn the_vms_of_a_host_that_is_declared_lost_start_elsewhere_and_it_ends_its_own_when_it_returns() {
    let mut site = Site::new(2);
    let (keeps, goes) = (site.create_vm("a"), site.create_vm("b"));
    site.pass(WHILE);
    let lost = host(site.runs_on(&keeps)[0]);
    let other = host(if lost == host("h1") { "h2" } else { "h1" });
    let declare = Action::DeclareHostLost { host: lost.clone() };
    assert_eq!(site.ask(declare.clone()).unwrap_err().kind, RefusalKind::Conflict, "it answers");

    let generation = site.vm(&keeps).generation;
    site.disconnect(&lost);
    site.pass(WHILE);
    assert_eq!(site.phase(&keeps), "unknown");
    site.ask(declare).unwrap();
    if site.vm(&goes).host.as_ref() == Some(&lost) {
        site.ask(Action::RemoveVm { vm: goes.clone() }).unwrap();
    }
    site.pass(WHILE);
    assert_eq!(site.vm(&keeps).host.as_ref(), Some(&other));
    assert!(site.vm(&keeps).generation > generation);
    assert!(site.runs_on(&keeps).contains(&other.as_str()));
    assert!(site.control.vm(&goes).is_none_or(|vm| vm.host.as_ref() == Some(&other)));
    assert!(!site.events_of("vm-memory-lost").is_empty(), "the loss is said");
    assert_eq!(site.ask(Action::UndrainHost { host: lost.clone() }).unwrap_err().kind, RefusalKind::Conflict);

    site.connect(&lost);
    site.pass(WHILE);
    assert_eq!(site.runs_on(&keeps), [other.as_str()], "the host that was lost has ended its own");
    site.ask(Action::UndrainHost { host: lost.clone() }).unwrap();
    assert_eq!(site.state(lost.as_str()), drover_model::world::HostState::Up);
}

#[test]
fn a_host_that_is_declared_lost_can_be_removed() {
    let mut site = Site::new(2);
    let vm = site.create_vm("a");
    site.pass(WHILE);
    let lost = host(site.runs_on(&vm)[0]);
    site.disconnect(&lost);
    site.pass(WHILE);
    let remove = Action::Remove { key: ObjectKey::of::<drover_model::intent::Host>(&lost) };
    assert_eq!(site.ask(remove.clone()).unwrap_err().kind, RefusalKind::Conflict);
    site.ask(Action::DeclareHostLost { host: lost.clone() }).unwrap();
    site.pass(WHILE);
    site.ask(remove).unwrap();
    assert!(site.control.host(&lost).is_none());
}
