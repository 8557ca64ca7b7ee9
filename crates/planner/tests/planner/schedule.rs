//! Schedules of many moves: feasible at every moment, by a checker that knows nothing of how they are made; near the
//! bound; in order of priority.

use drover_model::migration::Priority;
use drover_model::{Bytes, HostId, Millis};
use drover_planner::schedule::{Limits, Link, Links, Move, Schedule, Slot, Standing, Wait, Work, schedule};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use std::collections::BTreeMap;

const INSTANCES: usize = 200;
const GIGABIT: Bytes = Bytes(117_000_000);

fn host(n: usize) -> HostId {
    format!("h{n}").parse().unwrap()
}

fn work(mib: u64, dirtied_mib: u64) -> Work {
    Work { fixed: Millis(400), bytes: Bytes::mib(mib), dirtied: Bytes::mib(dirtied_mib) }
}

fn waiting(from: usize, to: usize, mib: u64) -> Move {
    Move {
        from: host(from),
        to: host(to),
        work: work(mib, 0),
        priority: Priority::Normal,
        after: Vec::new(),
        standing: Standing::Waiting,
    }
}

fn running(from: usize, to: usize, mib: u64, done: f64) -> Move {
    Move { standing: Standing::Running { done }, ..waiting(from, to, mib) }
}

fn links(each: Bytes) -> Links {
    Links { hosts: BTreeMap::new(), default: Link { out: each, into: each } }
}

const LIMITS: Limits = Limits { per_host: 2, at_once: 8, rate_max: Bytes::ZERO };

/// Everything that is wrong with a schedule, from its slots alone.
fn violations(moves: &[Move], links: &Links, limits: &Limits, schedule: &Schedule) -> Vec<String> {
    let mut found = Vec::new();
    let mut moments: Vec<Millis> =
        schedule.slots.iter().flat_map(|slot| slot.rates.iter().map(|(at, _)| *at)).collect();
    moments.extend(schedule.slots.iter().filter_map(|slot| slot.start));
    moments.sort();
    moments.dedup();
    for at in moments {
        let (mut out, mut into, mut count) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut all = 0;
        for (a_move, slot) in moves.iter().zip(&schedule.slots).filter(|(_, slot)| holds_its_place(slot, at)) {
            *out.entry(&a_move.from).or_insert(0) += rate_at(slot, at).0;
            *into.entry(&a_move.to).or_insert(0) += rate_at(slot, at).0;
            for host in [&a_move.from, &a_move.to] {
                *count.entry(host).or_insert(0) += 1;
            }
            all += 1;
            if limits.rate_max > Bytes::ZERO && rate_at(slot, at) > limits.rate_max {
                found.push(format!("at {at} one goes at {}", rate_at(slot, at)));
            }
        }
        let link = |host: &HostId| links.hosts.get(host).copied().unwrap_or(links.default);
        found
            .extend(out.iter().filter(|(h, sum)| **sum > link(h).out.0).map(|(h, s)| format!("at {at} {h} sends {s}")));
        found.extend(
            into.iter().filter(|(h, sum)| **sum > link(h).into.0).map(|(h, s)| format!("at {at} {h} gets {s}")),
        );
        let begun_before = moves.iter().filter(|a_move| a_move.standing != Standing::Waiting).count();
        if all > (limits.at_once as usize).max(begun_before) {
            found.push(format!("at {at} {all} run"));
        }
        let begun_at = |h: &HostId| {
            moves.iter().filter(|m| m.standing != Standing::Waiting && (m.from == *h || m.to == *h)).count()
        };
        let many = count.iter().filter(|(h, count)| **count > (limits.per_host as usize).max(begun_at(h)));
        found.extend(many.map(|(h, count)| format!("at {at} {h} has {count}")));
    }
    for (ix, (a_move, slot)) in moves.iter().zip(&schedule.slots).enumerate() {
        for first in &a_move.after {
            if slot.start.is_some() && schedule.slots[*first].finish.is_none_or(|end| Some(end) > slot.start) {
                found.push(format!("{ix} starts before {first} has ended"));
            }
        }
        found.extend(work_done(a_move, slot).map(|problem| format!("{ix}: {problem}")));
    }
    found
}

fn holds_its_place(slot: &Slot, at: Millis) -> bool {
    slot.start.is_some_and(|start| start <= at) && slot.finish.is_none_or(|finish| at < finish)
}

fn rate_at(slot: &Slot, at: Millis) -> Bytes {
    slot.rates.iter().rev().find(|(since, _)| *since <= at).map_or(Bytes::ZERO, |(_, rate)| *rate)
}

/// Whether the rates carry the work, within what rounding to milliseconds costs.
fn work_done(a_move: &Move, slot: &Slot) -> Option<String> {
    let (start, finish) = (slot.start?, slot.finish?);
    let done = match a_move.standing {
        Standing::Waiting => 0.0,
        Standing::Running { done } | Standing::Paused { done } => done,
    };
    let (mut carried, mut most) = (0.0, 0.0f64);
    for (ix, (at, rate)) in slot.rates.iter().enumerate() {
        let until = slot.rates.get(ix + 1).map_or(finish, |(next, _)| *next);
        if *rate > Bytes::ZERO && done == 0.0 && *at < start + a_move.work.fixed {
            return Some(format!("sends at {at}, during its set-up from {start} on"));
        }
        let rate = rate.0 as f64;
        carried += (rate - (a_move.work.dirtied.0 as f64).min(rate / 2.0)) * until.saturating_sub(*at).as_secs();
        most = most.max(rate);
    }
    let (wanted, slack) = (a_move.work.bytes.0 as f64 * (1.0 - done), most * 0.002 * slot.rates.len() as f64 + 4096.0);
    ((carried - wanted).abs() > slack).then(|| format!("carries {carried:.0} of {wanted:.0}"))
}

fn checked(moves: &[Move], links: &Links, limits: &Limits) -> Schedule {
    let schedule = schedule(moves, links, limits);
    let found = violations(moves, links, limits, &schedule);
    assert!(found.is_empty(), "{found:#?}\n{schedule:#?}");
    assert!(schedule.bound <= schedule.makespan, "{schedule:?}");
    schedule
}

fn slots(schedule: &Schedule) -> Vec<(Option<u64>, Option<u64>)> {
    let millis = |time: Option<Millis>| time.map(|time| time.0);
    schedule.slots.iter().map(|slot| (millis(slot.start), millis(slot.finish))).collect()
}

#[test]
fn one_after_the_other_at_full_rate_with_the_next_set_up_meanwhile() {
    let moves = [waiting(1, 2, 1000), waiting(1, 3, 1000)];
    let schedule = checked(&moves, &links(Bytes::mib(100)), &LIMITS);
    assert_eq!(slots(&schedule), [(Some(0), Some(10_400)), (Some(10_000), Some(20_400))]);
    assert_eq!(schedule.slots[0].rates, [(Millis(0), Bytes(0)), (Millis(400), Bytes::mib(100))]);
    assert_eq!((schedule.makespan, schedule.bound), (Millis(20_400), Millis(20_400)));
    assert_eq!(schedule.slots[1].waits_for, Some(Wait::Link(host(1))));
}

#[test]
fn what_one_leaves_of_a_link_another_uses_and_gets_all_of_it_afterwards() {
    let mut links = links(Bytes::mib(100));
    links.hosts.insert(host(2), Link { out: Bytes::mib(60), into: Bytes::mib(60) });
    let schedule = checked(&[waiting(1, 2, 600), waiting(1, 3, 900)], &links, &LIMITS);
    assert_eq!(schedule.slots[1].rate(), Bytes::mib(40));
    assert_eq!(schedule.slots[1].rates.last(), Some(&(Millis(10_400), Bytes::mib(100))));
    assert_eq!(schedule.makespan, Millis(15_400));
}

#[test]
fn a_guest_that_writes_is_not_squeezed_in_beside_another() {
    let writer = Move { work: work(900, 30), ..waiting(1, 3, 0) };
    let mut links = links(Bytes::mib(100));
    links.hosts.insert(host(2), Link { out: Bytes::mib(60), into: Bytes::mib(60) });
    let schedule = checked(&[running(1, 2, 600, 0.5), writer], &links, &LIMITS);
    assert!(!schedule.slots[1].starts_now());
    assert_eq!(schedule.slots[1].waits_for, Some(Wait::Link(host(1))));
}

#[test]
fn higher_priority_goes_first_takes_bandwidth_and_its_hosts_are_kept_for_it() {
    let high = |from, to| Move { priority: Priority::High, ..waiting(from, to, 1000) };
    let schedule =
        checked(&[running(1, 2, 1000, 0.5), waiting(1, 3, 100), high(1, 3)], &links(Bytes::mib(100)), &LIMITS);
    assert!(schedule.slots[2].starts_now(), "{schedule:?}");
    assert_eq!(schedule.slots[2].rate(), Bytes::mib(75));
    assert!(schedule.slots[1].start > schedule.slots[2].start);

    let full = [running(1, 2, 1000, 0.0), running(1, 3, 1000, 0.0), waiting(4, 5, 100), waiting(5, 6, 100), high(1, 5)];
    let schedule = checked(&full, &links(Bytes::mib(100)), &LIMITS);
    assert_eq!(schedule.slots[4].waits_for, Some(Wait::Host(host(1))));
    assert_eq!(schedule.slots[2].waits_for, Some(Wait::Priority(host(5))));
    assert_eq!(schedule.slots[3].waits_for, Some(Wait::Priority(host(5))));
}

#[test]
fn what_makes_room_goes_before_what_needs_it() {
    let after = |first, a_move| Move { after: vec![first], ..a_move };
    let moves = [after(1, waiting(1, 2, 500)), waiting(2, 3, 500), after(0, waiting(4, 1, 500))];
    let schedule = checked(&moves, &links(Bytes::mib(100)), &LIMITS);
    assert_eq!(slots(&schedule), [(Some(5_400), Some(10_800)), (Some(0), Some(5_400)), (Some(10_800), Some(16_200))]);
    assert_eq!(schedule.bound, schedule.makespan);
    assert_eq!(schedule.slots[0].waits_for, Some(Wait::After(1)));
}

#[test]
fn a_paused_one_keeps_its_place_and_what_waits_for_it_never_starts() {
    let paused = Move { standing: Standing::Paused { done: 0.3 }, ..waiting(1, 2, 1000) };
    let behind = Move { after: vec![0], ..waiting(3, 4, 100) };
    let limits = Limits { per_host: 1, ..LIMITS };
    let schedule = checked(&[paused, behind, waiting(1, 3, 100), waiting(3, 4, 100)], &links(Bytes::mib(100)), &limits);
    assert_eq!(slots(&schedule), [(Some(0), None), (None, None), (None, None), (Some(0), Some(1_400))]);
    assert_eq!(schedule.slots[2].waits_for, Some(Wait::Host(host(1))));
}

#[test]
fn a_link_that_may_carry_nothing_is_named_and_a_cycle_ends() {
    let mut links = links(Bytes::mib(100));
    links.hosts.insert(host(2), Link { out: Bytes::ZERO, into: Bytes::ZERO });
    let circle = |first, from, to| Move { after: vec![first], ..waiting(from, to, 100) };
    let schedule = checked(&[waiting(1, 2, 100), circle(2, 3, 4), circle(1, 4, 3)], &links, &LIMITS);
    assert_eq!(slots(&schedule), [(None, None); 3]);
    assert_eq!(schedule.slots[0].waits_for, Some(Wait::NoBandwidth(host(2))));
    assert_eq!(checked(&[], &links, &LIMITS).makespan, Millis::ZERO);
}

#[test]
fn progress_brings_the_end_nearer_by_as_much() {
    let at = |done| checked(&[running(1, 2, 1000, done)], &links(Bytes::mib(100)), &LIMITS).makespan;
    assert_eq!((at(0.25), at(0.75)), (Millis(7_500), Millis(2_500)));
}

/// Moves between so many hosts, some after others, some running.
fn instances() -> impl Strategy<Value = (Vec<Move>, Links, Limits)> {
    let a_move =
        (0..8usize, 1..8usize, 100..12_000u64, 0..20u64, 0..3u8, any::<prop::sample::Index>(), 0..10u8, 0..100u8);
    let slow = prop::collection::vec(any::<bool>(), 8);
    (prop::collection::vec(a_move, 1..60), slow, 1..4u32, 1..12u32).prop_map(|(rows, slow, per_host, at_once)| {
        let mut moves = Vec::new();
        for (ix, (from, step, mib, dirtied, priority, first, kind, done)) in rows.into_iter().enumerate() {
            let priority = [Priority::Low, Priority::Normal, Priority::High][usize::from(priority)];
            let after = if kind < 2 && ix > 0 { vec![first.index(ix)] } else { Vec::new() };
            let standing = match kind {
                9 => Standing::Running { done: f64::from(done) / 100.0 },
                _ => Standing::Waiting,
            };
            let a_move = waiting(from, (from + step) % 8, 0);
            moves.push(Move { work: work(mib, dirtied), priority, after, standing, ..a_move });
        }
        let link = |slow: bool| if slow { Bytes(GIGABIT.0 / 2) } else { GIGABIT };
        let of = |slow: bool| Link { out: link(slow), into: link(slow) };
        let hosts = slow.into_iter().enumerate().map(|(n, slow)| (host(n), of(slow))).collect();
        (moves, Links { hosts, default: of(false) }, Limits { per_host, at_once, rate_max: Bytes::ZERO })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_schedule_is_feasible_at_every_moment_and_the_same_each_time((moves, links, limits) in instances()) {
        let schedule = checked(&moves, &links, &limits);
        prop_assert_eq!(&schedule, &drover_planner::schedule::schedule(&moves, &links, &limits));
        for (a_move, slot) in moves.iter().zip(&schedule.slots) {
            prop_assert!(slot.finish.is_some(), "{:?} never ends", a_move);
        }
    }

    #[test]
    fn nothing_starts_on_a_host_that_something_of_higher_priority_waits_for((moves, links, limits) in instances()) {
        let schedule = schedule(&moves, &links, &limits);
        let begun = |ix: usize| moves[ix].standing != Standing::Waiting;
        for low in (0..moves.len()).filter(|ix| !begun(*ix)) {
            let at = schedule.slots[low].start.unwrap();
            for high in (0..moves.len()).filter(|ix| !begun(*ix) && moves[*ix].priority > moves[low].priority) {
                let ready = moves[high].after.iter().all(|first| schedule.slots[*first].finish.unwrap() <= at);
                let share = [&moves[high].from, &moves[high].to].iter().any(|h| **h == moves[low].from || **h == moves[low].to);
                prop_assert!(!(ready && share && schedule.slots[high].start.unwrap() > at), "{} before {}", low, high);
            }
        }
    }
}

/// Moves that begin now, without priorities: nothing but links and limits is in the way.
fn fresh((moves, links, limits): (Vec<Move>, Links, Limits)) -> (Vec<Move>, Links, Limits) {
    let fresh = |m| Move { priority: Priority::Normal, standing: Standing::Waiting, ..m };
    (moves.into_iter().map(fresh).collect(), links, Limits { per_host: limits.per_host.max(2), at_once: 16, ..limits })
}

#[test]
fn the_last_ends_near_the_bound() {
    let mut runner = TestRunner::deterministic();
    let mut ratios = Vec::new();
    for _ in 0..INSTANCES {
        let (moves, links, limits) = fresh(instances().new_tree(&mut runner).unwrap().current());
        let schedule = schedule(&moves, &links, &limits);
        let ratio = schedule.makespan.0 as f64 / schedule.bound.0 as f64;
        ratios.push(ratio);
    }
    ratios.sort_by(f64::total_cmp);
    let at = |percent: usize| ratios[(INSTANCES - 1) * percent / 100];
    assert!(at(50) <= 1.01 && at(95) <= 1.1 && at(100) <= 1.3, "{} {} {}", at(50), at(95), at(100));
}
