//! Clusters small enough to try every order of moves: what the search, the bound and the checker are held to.

use super::bound::bound;
use super::check::{Fragments, replay};
use super::input::{Cluster, Host, Move, Need, Node, Place, Shape, Vm};
use super::order::order;
use super::search::{Budget, Found, search};
use super::state::{Site, State};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::time::{Duration, Instant};

fn need(cores: u32) -> Need {
    Need { cores, huge_mb: u64::from(cores) * 2048 }
}

fn node(cores_free: u32) -> Node {
    Node { cores_free, huge_mb_free: u64::from(cores_free) * 2048 }
}

fn host(number: usize, free: [u32; 2]) -> Host {
    Host { id: format!("host-{number}"), active: true, nodes: free.map(node) }
}

fn vm(number: usize, host: usize, node: usize, cores: u32) -> Vm {
    Vm { id: format!("vm-{number}"), place: Place { host, node }, shape: Shape::One(need(cores)), movable: true }
}

fn on_both(number: usize, host: usize, cores: u32) -> Vm {
    Vm { shape: Shape::Both([need(cores), need(cores)]), ..vm(number, host, 0, cores) }
}

fn cluster(hosts: Vec<Host>, vms: Vec<Vm>, apart: Vec<Vec<usize>>) -> Cluster {
    Cluster { name: "tiny".into(), hosts, vms, apart }
}

/// Two or three hosts with a few vms and little room, one of them often in outage, some vms pinned or kept apart.
fn made_up(seed: u64) -> Cluster {
    let mut chance = StdRng::seed_from_u64(seed);
    let mut below = |limit: usize| chance.random_range(0..limit);
    let hosts = 2 + below(2);
    let mut free = vec![[0_u32; 2]; hosts];
    for nodes in &mut free {
        *nodes = [0, 1].map(|_| [0, 2, 4, 8, 8, 12, 12][below(7)]);
    }
    let vms: Vec<Vm> = (0..3 + below(3))
        .map(|number| {
            let (host, node, cores) = (below(hosts), below(2), [2, 4, 4, 8, 8, 16][below(6)]);
            let vm = if below(4) == 0 { on_both(number, host, cores.min(8)) } else { vm(number, host, node, cores) };
            Vm { movable: below(6) != 0, ..vm }
        })
        .collect();
    let apart = if below(2) == 0 { vec![vec![0, 1, 2]] } else { Vec::new() };
    let mut hosts: Vec<Host> = free.into_iter().enumerate().map(|(number, free)| host(number, free)).collect();
    hosts[0].active = below(4) != 0;
    cluster(hosts, vms, apart)
}

/// The fewest fragments that any `limit` moves leave, by trying them all against the checker.
fn fewest(clusters: &[Cluster], moves: &mut Vec<Move>, limit: usize) -> u32 {
    let Ok(left) = replay(clusters, moves, limit) else { return u32::MAX };
    let mut best = total(&left).cores;
    if moves.len() < limit {
        for (number, cluster) in clusters.iter().enumerate() {
            for vm in 0..cluster.vms.len() {
                for place in 0..2 * cluster.hosts.len() {
                    let to = Place { host: place / 2, node: place % 2 };
                    if matches!(cluster.vms[vm].shape, Shape::Both(_)) && to.node == 1 {
                        continue;
                    }
                    moves.push(Move { cluster: number, vm, to });
                    best = best.min(fewest(clusters, moves, limit));
                    moves.pop();
                }
            }
        }
    }
    best
}

fn total(left: &[Fragments]) -> Fragments {
    left.iter().copied().sum()
}

fn found(clusters: &[Cluster], limit: usize, seed: u64) -> (Found, Vec<Move>) {
    let site = Site::new(clusters);
    let budget =
        Budget { seed, tries: 30_000, chains: 6, threads: 2, until: Instant::now() + Duration::from_secs(3600) };
    let found = search(&site, limit, &bound(&clusters.iter().collect::<Vec<_>>(), limit), &budget);
    let moves = found.moves.iter().map(|&(vm, to)| site.to_move(vm, to)).collect();
    (found, moves)
}

#[test]
fn the_search_finds_the_best_there_is_and_the_bound_is_no_worse() {
    let (mut gaining, mut tight) = (0, 0);
    for seed in 0..16 {
        let clusters = [made_up(seed), made_up(1000 + seed)];
        // All orders of three moves over two clusters are too many: one cluster gets three, two get two.
        for (clusters, limit) in [(&clusters[..1], 3), (&clusters[..], 2)] {
            let start = total(&replay(clusters, &[], 0).unwrap()).cores;
            let fewest = fewest(clusters, &mut Vec::new(), limit);
            let (found, moves) = found(clusters, limit, seed);
            let result = total(&replay(clusters, &moves, limit).unwrap()).cores;
            assert_eq!(result, fewest, "seed {seed}, {limit} moves");
            assert_eq!(start - result, 16 * found.blocks_gained as u32, "seed {seed}, {limit} moves");
            let bound = bound(&clusters.iter().collect::<Vec<_>>(), limit).blocks;
            assert!(start - fewest <= 16 * bound, "seed {seed}: {limit} moves gain more than the bound, {bound}");
            gaining += u32::from(fewest < start);
            tight += u32::from(start - fewest == 16 * bound);
        }
    }
    assert!(gaining > 8 && tight > 20, "{gaining} with a gain, {tight} where the bound is met");
}

#[test]
fn a_seed_gives_the_same_moves() {
    let clusters = [made_up(3), made_up(7), made_up(11)];
    assert_eq!(found(&clusters, 5, 1).1, found(&clusters, 5, 1).1);
}

#[test]
fn one_vm_on_both_nodes_makes_two_blocks() {
    let clusters = [cluster(
        vec![host(0, [8, 8]), host(1, [8, 12]), host(2, [4, 4])],
        vec![on_both(0, 0, 8), vm(1, 0, 0, 8)],
        Vec::new(),
    )];
    let (found, moves) = found(&clusters, 1, 1);
    assert_eq!((found.blocks_gained, bound(&[&clusters[0]], 1).blocks), (2, 2));
    assert_eq!(moves, [Move { cluster: 0, vm: 0, to: Place { host: 1, node: 0 } }]);
}

#[test]
fn the_checker_refuses_what_the_rules_forbid() {
    let base = || {
        cluster(
            vec![host(0, [8, 0]), host(1, [8, 8]), host(2, [4, 8])],
            vec![vm(0, 0, 0, 8), vm(1, 1, 0, 8), on_both(2, 1, 8), vm(3, 2, 0, 4)],
            vec![vec![0, 1]],
        )
    };
    let to = |vm, host, node| Move { cluster: 0, vm, to: Place { host, node } };
    let refused = |change: fn(&mut Cluster), moves: &[Move], limit: usize, why: &str| {
        let mut cluster = base();
        change(&mut cluster);
        let error = replay(&[cluster], moves, limit).expect_err(why).to_string();
        assert!(error.contains(why), "{error}");
    };
    assert_eq!(total(&replay(&[base()], &[to(0, 2, 1)], 1).unwrap()), Fragments { cores: 20, of_free: 36 });
    refused(|_| {}, &[to(3, 0, 0)], 0, "only 0 are allowed");
    refused(|_| {}, &[to(9, 0, 0)], 1, "no such vm");
    refused(|_| {}, &[to(0, 9, 0)], 1, "no such host");
    refused(|_| {}, &[Move { cluster: 1, ..to(0, 1, 0) }], 1, "no such cluster");
    refused(|_| {}, &[to(0, 0, 0)], 1, "is on host host-0 already");
    refused(|_| {}, &[to(2, 1, 1)], 1, "both nodes of host host-1 already");
    refused(|_| {}, &[to(3, 0, 1)], 1, "lacks cores on node 1");
    refused(|_| {}, &[to(2, 2, 0)], 1, "lacks cores on node 0");
    refused(|_| {}, &[to(0, 1, 1)], 1, "stay apart from vm-1");
    refused(|cluster| cluster.vms[3].movable = false, &[to(3, 0, 0)], 1, "may not be moved");
    refused(|cluster| cluster.hosts[0].active = false, &[to(3, 0, 0)], 1, "takes none");
    refused(|cluster| cluster.hosts[0].nodes[0].huge_mb_free = 8191, &[to(3, 0, 0)], 1, "lacks huge pages on node 0");
    // What has left is room; what leaves later is none yet.
    let cleared = [to(3, 1, 1), to(2, 2, 0)];
    replay(&[base()], &cleared, 2).unwrap();
    refused(|_| {}, &[cleared[1], cleared[0]], 2, "lacks cores on node 0");
}

#[test]
fn vms_that_wait_for_each_other_take_a_third_place_for_one_move_more() {
    let start = |spare| {
        cluster(
            vec![host(0, [0, 0]), host(1, [0, 0]), host(2, [spare, 0])],
            vec![vm(0, 0, 0, 8), vm(1, 1, 0, 8)],
            Vec::new(),
        )
    };
    let changes = [(0, Place { host: 1, node: 0 }), (1, Place { host: 0, node: 0 })];
    let ordered = |cluster: &Cluster, limit| {
        let site = Site::new(std::slice::from_ref(cluster));
        let ordered = order(&State::new(&site), &changes, limit)?;
        Some(ordered.into_iter().map(|(vm, to)| site.to_move(vm, to)).collect::<Vec<_>>())
    };
    let with_room = start(8);
    let moves = ordered(&with_room, 3).expect("one can step aside");
    assert_eq!(moves.len(), 3);
    replay(std::slice::from_ref(&with_room), &moves, 3).unwrap();
    assert_eq!(ordered(&with_room, 2), None, "a third move is one too many");
    assert_eq!(ordered(&start(4), 3), None, "nobody can step aside");
}
