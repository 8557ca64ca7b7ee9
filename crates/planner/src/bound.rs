//! How cheap it could be at best: a lower bound of the cost rate over all placements that keep the hard rules.
//!
//! Two relaxations, of which the higher is taken. In both, demand and memory are split at will among all hosts that are up
//! or may be woken, and rules among vms, spare room and variance are left out: each only makes it cheaper.
//!
//! 1. *By processor.* The expected demand must be served somewhere. A host that serves `x` costs at least `f(x)`: its power,
//!    and the slope of contention at the lower end of each slice, which a convex function never undercuts. A host
//!    that may be off costs at least the lower convex hull of `f` and the origin; one that must stay up costs its idle
//!    power, and the hull of the rest. The least sum of convex functions under one sum is reached by taking their slices
//!    in the order of their slopes.
//! 2. *By memory.* The hosts that are on must have the memory that the vms have. Their idle power, split at will too,
//!    is least when taken by power per byte (the fractional knapsack); what is above idle is at least what
//!    relaxation 1 makes of it with idle power left out.

use crate::cost;
use crate::problem::{HostIx, Problem, State};
use drover_model::MicroMoneyPerHour;
use drover_model::world::{HostState, Movable};

/// Slices of a host's processor.
const SLICES: usize = 20;

/// A part of a host's capacity, and what a core-hour of it costs at least.
#[derive(Debug, Clone, Copy)]
struct Slice {
    slope: f64,
    cores: f64,
}

/// No placement costs less per hour.
pub(crate) fn rate_bound(problem: &Problem<'_>, state: &State) -> MicroMoneyPerHour {
    let usable: Vec<HostIx> = (0..problem.hosts.len()).filter(|host| is_usable(problem, *host)).collect();
    let stays = must_stay_up(problem, state);
    let up = || (0..problem.hosts.len()).filter(|host| state.up[*host]);
    let cores: f64 = up().map(|host| state.sums[host].expected() as f64 / 1000.0).sum();
    // Hosts whose capacity nobody knows cost what they draw idle, and serve at no price.
    let unknown: f64 = up().filter(|host| problem.hosts[*host].cpu == 0).map(|host| idle(problem, host)).sum();
    let kept_up: f64 = usable.iter().filter(|host| stays[**host]).map(|host| idle(problem, *host)).sum();
    let (mut with_idle, mut above_idle) = (Vec::new(), Vec::new());
    for host in usable.iter().copied() {
        let above = hull(points(problem, host, 0.0));
        if stays[host] {
            with_idle.extend_from_slice(&above);
        } else {
            with_idle.extend(hull(points(problem, host, idle(problem, host))));
        }
        above_idle.extend(above);
    }
    let price = problem.policy().money.slowness_price.0 as f64;
    let by_processor = unknown + kept_up + served(with_idle, cores, price);
    let memory: f64 = up().map(|host| state.sums[host].memory as f64).sum();
    let by_memory = unknown + kept_up + held(problem, &usable, &stays, memory) + served(above_idle, cores, price);
    MicroMoneyPerHour(by_processor.max(by_memory).floor().max(0.0) as i64)
}

fn is_usable(problem: &Problem<'_>, host: HostIx) -> bool {
    let row = &problem.hosts[host];
    row.cpu > 0
        && match row.view.state {
            HostState::Up => true,
            HostState::Asleep | HostState::Waking | HostState::FallingAsleep => row.view.power_managed,
            HostState::Unknown | HostState::Suspect | HostState::Down => false,
        }
}

/// Hosts that no plan switches off: those that are not for drover to switch, and those whose vms can be nowhere else.
fn must_stay_up(problem: &Problem<'_>, state: &State) -> Vec<bool> {
    let saves = problem.policy().aim.saves_power();
    let mut stays: Vec<bool> = problem
        .hosts
        .iter()
        .map(|row| row.view.state == HostState::Up && (!saves || !row.view.power_managed))
        .collect();
    for (vm, row) in problem.vms.iter().enumerate() {
        let fixed = matches!(row.view.movable, Movable::No { .. }) || problem.placement.class(vm).count == 1;
        if let Some(host) = state.at[vm].filter(|host| fixed && state.up[*host] && problem.placement.allows(vm, *host))
        {
            stays[host] = true;
        }
    }
    stays
}

fn idle(problem: &Problem<'_>, host: HostIx) -> f64 {
    problem.hosts[host].power.watts(0.0) / 1000.0 * problem.policy().money.energy_price.0 as f64
}

/// Cores served, and what that costs at least, where a host that serves nothing costs nothing and one that serves a little
/// costs `step`.
fn points(problem: &Problem<'_>, host: HostIx, step: f64) -> Vec<(f64, f64)> {
    let (row, price) = (&problem.hosts[host], &problem.policy().money);
    let cores = row.cpu as f64 / 1000.0;
    let base = row.power.watts(0.0);
    let energy = |used: f64| (row.power.watts(used) - base) / 1000.0 * price.energy_price.0 as f64;
    let mut waits = 0.0;
    let mut points = vec![(0.0, 0.0)];
    for slice in 1..=SLICES {
        let (from, to) = ((slice - 1) as f64 / SLICES as f64, slice as f64 / SLICES as f64);
        // The chord from `from` to a little beyond it is at most as steep as the curve at any point after that.
        let steep = (cost::contention(problem, from) - cost::contention(problem, (from - 1e-6).max(0.0))) / 1e-6;
        waits += steep.max(0.0) * (to - from) * cores * price.slowness_price.0 as f64;
        points.push((to * cores, step + energy(to) + waits));
    }
    points
}

/// Slices of the lower convex hull, flattest first (Andrew's monotone chain).
fn hull(points: Vec<(f64, f64)>) -> Vec<Slice> {
    let mut hull: Vec<(f64, f64)> = Vec::with_capacity(points.len());
    for point in points {
        while let [.., a, b] = hull.as_slice()
            && (b.0 - a.0) * (point.1 - a.1) <= (point.0 - a.0) * (b.1 - a.1)
        {
            hull.pop();
        }
        hull.push(point);
    }
    hull.windows(2)
        .map(|pair| {
            let cores = pair[1].0 - pair[0].0;
            Slice { slope: (pair[1].1 - pair[0].1) / cores, cores }
        })
        .collect()
}

/// What so many cores cost at least; beyond all slices every core is one that somebody waits for.
fn served(mut slices: Vec<Slice>, cores: f64, waiting: f64) -> f64 {
    slices.sort_unstable_by(|a, b| a.slope.total_cmp(&b.slope));
    let (mut left, mut cost) = (cores, 0.0);
    for slice in slices.iter().take_while(|slice| slice.slope < waiting) {
        let taken = slice.cores.min(left);
        left -= taken;
        cost += taken * slice.slope;
        if left <= 0.0 {
            return cost;
        }
    }
    cost + left * waiting
}

/// Idle power of the hosts that are needed for the memory, beyond those that stay up.
fn held(problem: &Problem<'_>, usable: &[HostIx], stays: &[bool], memory: f64) -> f64 {
    let there: f64 = usable.iter().filter(|host| stays[**host]).map(|host| problem.hosts[*host].memory as f64).sum();
    let mut others: Vec<(f64, f64)> = usable
        .iter()
        .filter(|host| !stays[**host] && problem.hosts[**host].memory > 0)
        .map(|host| (idle(problem, *host), problem.hosts[*host].memory as f64))
        .collect();
    others.sort_unstable_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1)));
    let (mut left, mut cost) = (memory - there, 0.0);
    for (idle, memory) in others {
        if left <= 0.0 {
            break;
        }
        cost += idle * (left / memory).min(1.0);
        left -= memory;
    }
    cost
}
