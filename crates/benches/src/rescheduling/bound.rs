//! How many blocks of free cores no plan can pass: an upper bound on what at most so many moves gain.
//!
//! Moves do not change how many cores are free in all, so FR16 falls by exactly 16 cores for each block of 16 that
//! comes together on a node. Take any plan of at most `limit` moves and look only at where each vm is before and
//! after. Every host has then seen some of its vms leave, and vms of some kinds come (a kind is what a vm takes of
//! each node). What a host gains follows from that alone. Three things tie the hosts together: of each kind of a cluster as many
//! come as leave, and at most `limit` leave in all.
//!
//! These ties are priced instead of kept (Lagrangian relaxation; Held and Karp 1970, Fisher 1981): leaving costs
//! `per_move` and the kind's price, coming pays the kind's price. For any plan that keeps the ties the prices of the
//! kinds cancel, and what it pays for moves is at most `limit x per_move`. So with *any* prices, and `per_move` not
//! below 0,
//!
//! ```text
//! gain of the plan  <=  limit x per_move + sum over hosts of the most (blocks gained - paid + earned) on that host
//! ```
//!
//! The most on a host is found exactly, by dynamic programming over the cores that leave and come. Relaxed on top:
//! huge pages, who must stay apart, room at the moments between, and which vm of its kind it is. Every relaxation
//! only adds plans, so the bound holds. Prices are improved by subgradient steps; the best bound seen counts, rounded
//! down, as blocks are whole.

use super::input::{BLOCK, Cluster, Need, Shape, Vm};
use std::collections::BTreeMap;

/// Of the prices. Enough for the bound to settle on clusters of hundreds of hosts.
const STEPS_MAX: usize = 600;
/// Steps without a better bound until they become shorter.
const PATIENCE: usize = 15;
/// What sums of floats may be off by, in blocks.
const SLACK: f64 = 1e-6;
/// A better bound by less is none.
const SETTLED: f64 = 1e-3;
const NEVER: f64 = f64::NEG_INFINITY;

/// What the bound says of a number of moves.
#[derive(Debug, Clone, Copy)]
pub struct Bound {
    /// No plan gains more.
    pub blocks: u32,
    /// What one more move would add to the bound, in blocks: what a move has to be worth.
    pub per_move: f64,
}

/// For at most `limit` moves over these clusters together.
pub fn bound(clusters: &[&Cluster], limit: usize) -> Bound {
    let problems: Vec<Problem> = clusters.iter().map(|cluster| Problem::new(cluster)).collect();
    let mut prices: Vec<Vec<f64>> = problems.iter().map(|problem| vec![0.5; problem.kinds()]).collect();
    let mut per_move = 0.5;
    let mut best = (f64::INFINITY, per_move);
    let (mut boldness, mut waited) = (0.2, 0);
    for _ in 0..STEPS_MAX {
        let mut worth = limit as f64 * per_move;
        let mut left = 0;
        let mut slopes = Vec::with_capacity(problems.len());
        for (problem, prices) in problems.iter().zip(&prices) {
            let answer = problem.answer(prices, per_move);
            worth += answer.worth;
            left += answer.left;
            slopes.push(answer.surplus);
        }
        waited = if worth < best.0 - SETTLED { 0 } else { waited + 1 };
        if worth < best.0 {
            best = (worth, per_move);
        }
        if waited > PATIENCE {
            (boldness, waited) = (boldness * 0.7, 0);
        }
        let spare = limit as f64 - f64::from(left);
        let norm = slopes.iter().flatten().map(|&slope| f64::from(slope).powi(2)).sum::<f64>() + spare.powi(2);
        if norm == 0.0 {
            break;
        }
        // Polyak's step, towards nothing gained: too long, until boldness has made up for that.
        let step = boldness * worth / norm;
        for (prices, slopes) in prices.iter_mut().zip(&slopes) {
            for (price, &slope) in prices.iter_mut().zip(slopes) {
                *price -= step * f64::from(slope);
            }
        }
        per_move = (per_move - step * spare).max(0.0);
    }
    Bound { blocks: (best.0 + SLACK).floor().max(0.0) as u32, per_move: best.1 }
}

/// A cluster as the bound sees it. Cores are counted in the largest unit that divides everything.
struct Problem {
    block: usize,
    /// Kinds that lie on one node, then kinds that lie on both.
    ones: Vec<usize>,
    boths: Vec<[usize; 2]>,
    groups: Vec<(Group, u32)>,
    /// The most cores that can be free on any node.
    room_max: usize,
}

/// Hosts that are alike.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    active: bool,
    free: [usize; 2],
    /// How many of each kind may leave: of those on one node, by node.
    ones: [Vec<usize>; 2],
    boths: Vec<usize>,
}

/// What all hosts together do at some prices.
struct Answer {
    worth: f64,
    /// By kind, come minus left.
    surplus: Vec<i32>,
    left: u32,
}

/// What leaves or comes in pairs of cores, at the best price: how many of each kind.
type Pairs = BTreeMap<[usize; 2], (f64, Vec<usize>)>;

impl Problem {
    fn new(cluster: &Cluster) -> Self {
        let movable = || cluster.vms.iter().filter(|vm| vm.movable);
        let cores = |vm: &Vm| match vm.shape {
            Shape::One(need) => [need.cores, 0],
            Shape::Both(needs) => needs.map(|need: Need| need.cores),
        };
        let frees = cluster.hosts.iter().flat_map(|host| host.nodes.map(|node| node.cores_free));
        let unit = movable().flat_map(cores).chain(frees).fold(BLOCK, gcd);
        let scaled = |cores: u32| (cores / unit) as usize;

        // Vms without cores gain nothing and stand in nobody's way here.
        let moved = || movable().map(|vm| (vm, cores(vm).map(scaled))).filter(|(_, cores)| *cores != [0, 0]);
        let on_one = |vm: &Vm| matches!(vm.shape, Shape::One(_));
        let mut ones: Vec<usize> = moved().filter(|(vm, _)| on_one(vm)).map(|(_, [cores, _])| cores).collect();
        let mut boths: Vec<[usize; 2]> = moved().filter(|(vm, _)| !on_one(vm)).map(|(_, cores)| cores).collect();
        ones.sort_unstable();
        ones.dedup();
        boths.sort_unstable();
        boths.dedup();

        let mut hosts: Vec<Group> = cluster
            .hosts
            .iter()
            .map(|host| Group {
                active: host.active,
                free: host.nodes.map(|node| scaled(node.cores_free)),
                ones: [vec![0; ones.len()], vec![0; ones.len()]],
                boths: vec![0; boths.len()],
            })
            .collect();
        for (vm, cores) in moved() {
            let host = &mut hosts[vm.place.host];
            match vm.shape {
                Shape::One(_) => host.ones[vm.place.node][place_of(&ones, &cores[0])] += 1,
                Shape::Both(_) => host.boths[place_of(&boths, &cores)] += 1,
            }
        }
        let room_max = hosts.iter().flat_map(|host| [0, 1].map(|node| host.room_max(node, &ones, &boths))).max();
        let mut groups: BTreeMap<Group, u32> = BTreeMap::new();
        for host in hosts {
            *groups.entry(host).or_default() += 1;
        }
        Self {
            block: scaled(BLOCK),
            ones,
            boths,
            groups: groups.into_iter().collect(),
            room_max: room_max.unwrap_or_default(),
        }
    }

    fn kinds(&self) -> usize {
        self.ones.len() + self.boths.len()
    }

    fn answer(&self, prices: &[f64], per_move: f64) -> Answer {
        let (one_prices, both_prices) = prices.split_at(self.ones.len());
        let filling = [Filling::shut(self), Filling::open(self, one_prices)];
        let both_in = [vec![0; self.boths.len()], vec![usize::MAX; self.boths.len()]]
            .map(|counts| pairs(&self.boths, &counts, both_prices, self.room_max));
        let costs: Vec<f64> = prices.iter().map(|price| -price - per_move).collect();
        let (one_costs, both_costs) = costs.split_at(self.ones.len());

        let mut total = Answer { worth: 0.0, surplus: vec![0; self.kinds()], left: 0 };
        for (group, alike) in &self.groups {
            let filling = &filling[usize::from(group.active)];
            let both_in = &both_in[usize::from(group.active)];
            let both_out = pairs(&self.boths, &group.boths, both_costs, self.room_max);
            let nodes = [0, 1].map(|node| NodeTable::new(self, &group.ones[node], one_costs, filling));
            let before = (group.free[0] / self.block + group.free[1] / self.block) as f64;
            let mut best = (NEVER, &[][..], &[][..], [0_i64; 2]);
            for (&out, (paid, outs)) in &both_out {
                for (&into, (earned, ins)) in both_in {
                    let base = [0, 1].map(|node| (group.free[node] + out[node]) as i64 - into[node] as i64);
                    let worth = paid + earned + nodes[0].worth(base[0]) + nodes[1].worth(base[1]);
                    if worth > best.0 {
                        best = (worth, outs, ins, base);
                    }
                }
            }
            let (worth, outs, ins, base) = best;
            let alike_signed = *alike as i32;
            total.worth += f64::from(*alike) * (worth - before);
            let mut moved = vec![(0, 0); self.kinds()];
            for node in 0..2 {
                nodes[node].moved(base[node], &self.ones, filling, &mut moved);
            }
            for (kind, (&out, &into)) in outs.iter().zip(ins).enumerate() {
                moved[self.ones.len() + kind] = (out as i32, into as i32);
            }
            for (surplus, (out, into)) in total.surplus.iter_mut().zip(moved) {
                *surplus += alike_signed * (into - out);
                total.left += alike * out as u32;
            }
        }
        total
    }
}

impl Group {
    fn room_max(&self, node: usize, ones: &[usize], boths: &[[usize; 2]]) -> usize {
        let one: usize = ones.iter().zip(&self.ones[node]).map(|(cores, count)| cores * count).sum();
        let both: usize = boths.iter().zip(&self.boths).map(|(cores, count)| cores[node] * count).sum();
        self.free[node] + one + both
    }
}

/// What a node with so much room earns at best, from blocks left free and from vms of one node that come.
struct Filling {
    /// By room: the most, and the cores that come for it.
    best: Vec<(f64, usize)>,
    /// By cores that come: the kind that comes last.
    last: Vec<Option<usize>>,
}

impl Filling {
    /// Nothing comes.
    fn shut(problem: &Problem) -> Self {
        let best = (0..=problem.room_max).map(|room| ((room / problem.block) as f64, 0)).collect();
        Self { best, last: vec![None] }
    }

    fn open(problem: &Problem, prices: &[f64]) -> Self {
        let mut come = vec![NEVER; problem.room_max + 1];
        let mut last = vec![None; problem.room_max + 1];
        come[0] = 0.0;
        for cores in 1..=problem.room_max {
            for (kind, (&size, price)) in problem.ones.iter().zip(prices).enumerate() {
                if size <= cores && come[cores - size] + price > come[cores] {
                    come[cores] = come[cores - size] + price;
                    last[cores] = Some(kind);
                }
            }
        }
        let best = |room: usize| {
            let worth = |cores: usize| come[cores] + ((room - cores) / problem.block) as f64;
            (0..=room).map(|cores| (worth(cores), cores)).max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((0.0, 0))
        };
        Self { best: (0..=problem.room_max).map(best).collect(), last }
    }
}

/// A node's vms of one node, and what it earns at best when some of them leave and others come.
struct NodeTable {
    /// By base, from `-room_max` on: the most, and the cores that leave for it.
    best: Vec<(f64, usize)>,
    room_max: usize,
    /// By kind and cores that leave with it and the kinds before it: how many of the kind.
    leave: Vec<Vec<usize>>,
}

impl NodeTable {
    fn new(problem: &Problem, counts: &[usize], costs: &[f64], filling: &Filling) -> Self {
        let room_max = problem.room_max;
        let all: usize = problem.ones.iter().zip(counts).map(|(size, count)| size * count).sum();
        let mut paid = vec![NEVER; all + 1];
        paid[0] = 0.0;
        let mut leave = Vec::with_capacity(counts.len());
        for ((&size, &count), cost) in problem.ones.iter().zip(counts).zip(costs) {
            let (mut next, mut chosen) = (paid.clone(), vec![0; all + 1]);
            for cores in 0..=all {
                for number in 1..=count.min(cores / size) {
                    let worth = paid[cores - number * size] + number as f64 * cost;
                    if worth > next[cores] {
                        (next[cores], chosen[cores]) = (worth, number);
                    }
                }
            }
            paid = next;
            leave.push(chosen);
        }
        let best = |base: i64| {
            let reach = paid.iter().enumerate().filter_map(|(cores, paid)| {
                let room = usize::try_from(base + cores as i64).ok()?;
                // More than the node's all comes to no base that is asked for.
                Some((paid + filling.best.get(room)?.0, cores))
            });
            reach.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((NEVER, 0))
        };
        Self { best: (-(room_max as i64)..=room_max as i64).map(best).collect(), room_max, leave }
    }

    fn at(&self, base: i64) -> (f64, usize) {
        self.best[(base + self.room_max as i64) as usize]
    }

    fn worth(&self, base: i64) -> f64 {
        self.at(base).0
    }

    /// Adds what leaves and comes, by kind.
    fn moved(&self, base: i64, ones: &[usize], filling: &Filling, moved: &mut [(i32, i32)]) {
        let (_, cores_out) = self.at(base);
        let (_, mut into) = filling.best[(base + cores_out as i64) as usize];
        let mut out = cores_out;
        for (kind, chosen) in self.leave.iter().enumerate().rev() {
            let number = chosen[out];
            moved[kind].0 += number as i32;
            out -= number * ones[kind];
        }
        while let Some(kind) = filling.last[into] {
            moved[kind].1 += 1;
            into -= ones[kind];
        }
    }
}

/// Every pair of cores that vms on both nodes add up to, at most `counts` of each kind and `room_max` on a node, with
/// the best that is earned by it.
fn pairs(kinds: &[[usize; 2]], counts: &[usize], prices: &[f64], room_max: usize) -> Pairs {
    let mut found = Pairs::from([([0, 0], (0.0, vec![0; kinds.len()]))]);
    for (kind, ((&size, &count), price)) in kinds.iter().zip(counts).zip(prices).enumerate() {
        for (start, (worth, numbers)) in found.clone() {
            for number in 1..=count {
                let cores = [0, 1].map(|node| start[node] + number * size[node]);
                if cores[0].max(cores[1]) > room_max {
                    break;
                }
                let worth = worth + number as f64 * price;
                if found.get(&cores).is_none_or(|(other, _)| worth > *other) {
                    let mut numbers = numbers.clone();
                    numbers[kind] += number;
                    found.insert(cores, (worth, numbers));
                }
            }
        }
    }
    found
}

/// A kind's place in its sorted list, which has every kind.
fn place_of<T: Ord>(kinds: &[T], kind: &T) -> usize {
    kinds.binary_search(kind).expect("the list has every kind")
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
