//! Pools of vms: what they are promised, and what of their demand counts.

use super::{Sums, VmRow};
use drover_model::PoolId;
use drover_model::placement::PoolView;
use drover_model::world::World;
use std::collections::BTreeMap;

/// Deeper nesting is taken for a ring, and cut.
const DEPTH_MAX: usize = 16;

/// Of all pools without a parent.
pub(super) fn promised(world: &World) -> Sums {
    let root = |pool: &&PoolView| pool.parent.as_ref().is_none_or(|parent| !world.pools.contains_key(parent));
    world.pools.values().filter(root).fold(Sums::default(), |sums, pool| Sums {
        reserved: sums.reserved + pool.cpu_reserved.0,
        memory: sums.memory + pool.memory_reserved.0,
        ..sums
    })
}

/// Demand of a pool above its limit is not met, and does not count: what its vms want shrinks in proportion. Inner pools
/// first.
pub(super) fn limit(world: &World, vms: &mut [VmRow<'_>]) {
    if world.pools.values().all(|pool| pool.cpu_limit.is_none()) {
        return;
    }
    let index: BTreeMap<&PoolId, usize> = world.pools.keys().enumerate().map(|(ix, id)| (id, ix)).collect();
    let pools: Vec<&PoolView> = world.pools.values().collect();
    let parents: Vec<Option<usize>> =
        pools.iter().map(|pool| pool.parent.as_ref().and_then(|parent| index.get(parent).copied())).collect();
    let above = |pool: usize| std::iter::successors(Some(pool), |at| parents[*at]).take(DEPTH_MAX);
    let mut inner_first: Vec<usize> = (0..pools.len()).collect();
    inner_first.sort_by_key(|pool| (std::cmp::Reverse(above(*pool).count()), *pool));
    let mut members: Vec<Vec<usize>> = vec![Vec::new(); pools.len()];
    for (vm, row) in vms.iter().enumerate() {
        if let Some(pool) = row.view.pool.as_ref().and_then(|pool| index.get(pool)) {
            for outer in above(*pool) {
                members[outer].push(vm);
            }
        }
    }
    for pool in inner_first {
        let Some(limit) = pools[pool].cpu_limit else { continue };
        let wanted: u64 = members[pool].iter().map(|vm| vms[*vm].wants.expected()).sum();
        if wanted <= limit.0 {
            continue;
        }
        let share = limit.0 as f64 / wanted as f64;
        for vm in &members[pool] {
            let wants = &mut vms[*vm].wants;
            wants.mean = (wants.mean as f64 * share) as u64;
            wants.now = (wants.now as f64 * share) as u64;
            wants.assumed = (wants.assumed as f64 * share) as u64;
            wants.variance = (wants.variance as f64 * share * share) as u64;
        }
    }
}
