//! Who is called silent, and who is not.

use super::*;
use crate::interface::{AgentMessage, Input};
use crate::testing::{Site, TICK, host};
use crate::{Now, Waits};

#[test]
fn a_regular_heartbeat_is_suspected_after_three_misses_and_an_irregular_one_later() {
    let waits = Waits::default();
    let mut regular = Heartbeat::default();
    for n in 0..50 {
        regular.arrived(TimeMs(n * 1000));
    }
    let (silent, allowed) = regular.silence(TimeMs(49_000 + 2_000), &waits).unwrap();
    assert_eq!((silent, allowed), (Millis(2_000), waits.suspect_after));

    let mut irregular = Heartbeat::default();
    let mut at = 0;
    for n in 0..50 {
        at += if n % 2 == 0 { 300 } else { 2_700 };
        irregular.arrived(TimeMs(at));
    }
    let (_, allowed) = irregular.silence(TimeMs(at), &waits).unwrap();
    assert!(allowed > waits.suspect_after && allowed <= waits.down_after, "{allowed}");
}

/// The names of hosts that were called silent, and whether the brake was on.
fn blamed(site: &Site) -> (Vec<&str>, bool) {
    let silent = site.events.iter().filter(|event| matches!(event.kind.as_str(), "host-suspect" | "host-down"));
    (silent.map(|event| event.object.as_str()).collect(), !site.events_of("brake-on").is_empty())
}

#[test]
fn a_silent_host_is_suspected_then_down_then_up_again_and_nothing_else_is_said() {
    let mut site = Site::new(3);
    site.hosts.get_mut(&host("h2")).unwrap().silent = true;
    site.pass(Millis(4_000));
    assert_eq!(site.state("h2"), HostState::Suspect);
    site.pass(Millis(10_000));
    assert_eq!(site.state("h2"), HostState::Down);
    assert!(site.events_of("host-suspect")[0].text.contains("h2: no heartbeat for 3600 ms"), "{:?}", site.events);
    site.hosts.get_mut(&host("h2")).unwrap().silent = false;
    site.pass(Millis(2_000));
    assert_eq!(site.state("h2"), HostState::Up);
    assert_eq!(blamed(&site), (vec!["host/h2", "host/h2"], false));
}

#[test]
fn a_stall_of_the_server_is_no_silence_of_hosts() {
    let mut site = Site::new(3);
    for stall in [Millis(4_000), Millis::secs(30)] {
        // The server neither ticks nor reads; what hosts sent meanwhile comes after the tick, for once.
        site.at = site.at.plus(stall);
        site.step(Input::Tick);
        assert_eq!(blamed(&site), (Vec::new(), false), "after a stall of {stall}");
        site.pass(Millis::secs(20));
    }
    assert_eq!(blamed(&site), (Vec::new(), false));
    // One that died during the stall is noticed as soon after it as any other.
    site.hosts.get_mut(&host("h3")).unwrap().silent = true;
    site.at = site.at.plus(Millis::secs(10));
    site.pass(Millis(3_000));
    assert_eq!(site.state("h3"), HostState::Up);
    site.pass(Millis(11_000));
    assert_eq!(site.state("h3"), HostState::Down);
    assert_eq!(blamed(&site), (vec!["host/h3", "host/h3"], false));
}

#[test]
fn a_server_too_busy_to_tick_does_not_blame_the_hosts_it_did_not_read() {
    let mut site = Site::new(3);
    // 20 s of messages of one host, with no tick between them.
    for _ in 0..200 {
        site.at = site.at.plus(Millis(100));
        site.report(&host("h1"));
    }
    site.step(Input::Tick);
    assert_eq!(blamed(&site), (Vec::new(), false));
}

#[test]
fn a_stall_just_after_the_servers_start_leaves_hosts_their_time_for_a_first_message() {
    let mut site = Site::new(2);
    for host in [host("h1"), host("h2")] {
        site.disconnect(&host);
    }
    site.restart_server(Millis(100));
    site.step(Input::Tick);
    site.at = site.at.plus(Millis::secs(25));
    site.step(Input::Tick);
    assert_eq!(site.state("h1"), HostState::Unknown);
    site.pass(Millis::secs(21));
    assert_eq!(site.state("h1"), HostState::Down);
}

#[test]
fn a_step_of_the_wall_clock_changes_no_commit_but_the_dates_people_read() {
    let run = |steps: &[i64]| {
        let mut site = Site::new(3);
        site.create_vm("a");
        for step_ms in steps {
            site.wall_ahead_ms += step_ms;
            site.pass(Millis::secs(20));
        }
        site.hosts.get_mut(&host("h2")).unwrap().silent = true;
        site.pass(Millis::secs(20));
        let dates: Vec<u64> = site.events.iter().map(|event| event.at.0).collect();
        for event in site.commits.iter_mut().flat_map(|commit| &mut commit.events) {
            event.at = TimeMs::ZERO;
        }
        (site.commits, dates)
    };
    let (undisturbed, dates) = run(&[0, 0, 0]);
    for steps in [[3_600_000, 0, 0], [-3_600_000, 3_600_000, 0], [-600_000, 0, 0]] {
        let (commits, dated) = run(&steps);
        assert_eq!(commits, undisturbed, "{steps:?}");
        let ahead: i64 = steps.iter().sum();
        assert_eq!(dated.last().unwrap().saturating_add_signed(-ahead), *dates.last().unwrap(), "{steps:?}");
    }
}

#[test]
fn a_token_expires_by_the_wall_clock() {
    let mut site = Site::new(1);
    let expires_at = site.at.plus(Millis::secs(60));
    let id: drover_model::TokenId = "t".parse().unwrap();
    let role = drover_model::intent::Role::Operator;
    let (created_at, secret_sha256) = (site.at, "ab".to_owned());
    let expires_at = Some(expires_at);
    let token = drover_model::intent::ApiToken { id, secret_sha256, role, created_at, expires_at };
    site.ask(crate::interface::Action::CreateToken { token }).unwrap();
    let wall = |site: &Site| site.control.to_wall(site.control.now());
    assert!(site.control.authenticate("ab", wall(&site)).is_some());
    site.wall_ahead_ms = 3_600_000;
    site.step(Input::Tick);
    assert!(site.control.authenticate("ab", wall(&site)).is_none());
}

#[test]
fn a_host_that_connects_is_up_at_once_and_costs_no_turn() {
    let mut site = Site::new(2);
    site.disconnect(&host("h2"));
    site.pass(Millis::secs(20));
    assert_eq!(site.state("h2"), HostState::Down);
    site.hosts.get_mut(&host("h1")).unwrap().silent = true;
    // So long that the next turn has something to say of h1.
    let now: Now = site.at.plus(Millis(3_300)).into();
    site.pass(Millis(3_300));
    site.at = now.at.plus(TICK).plus(TICK);
    let before = site.events.len();
    site.connect(&host("h2"));
    assert_eq!(site.state("h2"), HostState::Up);
    let said: Vec<&str> = site.events[before..].iter().map(|event| event.object.as_str()).collect();
    assert_eq!(said, ["host/h2"], "a connection says nothing of other hosts");
    site.step(Input::Tick);
    assert_eq!(site.state("h1"), HostState::Suspect);
    // An old connection of it is not heard any more.
    site.step(Input::Agent {
        host: host("h2"),
        connection: crate::interface::ConnectionId(1),
        message: AgentMessage::Disconnected,
    });
    assert!(site.control.host_status(&host("h2")).connected);
}
