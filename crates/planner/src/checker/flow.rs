//! Maximum closure of a bipartite graph: which profits to take when each brings its costs along.

use std::collections::VecDeque;

/// The most that any set of profits is worth after the costs it needs (each counted once); at least 0.
/// `needs[p][c]`: taking profit `p` brings cost `c`.
///
/// Equal to the sum of all profits less the maximum flow from profits to the costs they need (Picard 1976); the
/// flow is found along shortest paths (Edmonds and Karp, Journal of the ACM 19(2), 1972).
pub(super) fn maximum_closure(profits: &[u64], costs: &[u64], needs: &[Vec<bool>]) -> u64 {
    let (mut left, mut open) = (profits.to_vec(), costs.to_vec());
    let mut flow = vec![vec![0_u64; costs.len()]; profits.len()];
    while let Some(path) = shortest_path(&left, &open, &flow, needs) {
        // The path is profit, cost, profit, cost, ...: forward edges are unbounded, backward ones hold what flows
        // there.
        let back = path.windows(2).map(|pair| flow[pair[1].0][pair[0].1]);
        let (first, last) = (path[0].0, path[path.len() - 1].1);
        let amount = back.chain([left[first], open[last]]).min().unwrap_or(0);
        left[first] -= amount;
        open[last] -= amount;
        for (n, (profit, cost)) in path.iter().enumerate() {
            flow[*profit][*cost] += amount;
            if let Some((next, _)) = path.get(n + 1) {
                flow[*next][*cost] -= amount;
            }
        }
    }
    left.iter().sum()
}

/// Forward edges (profit, cost) of a shortest way from a profit with something left to a cost with something open.
/// Between two of them, the flow from the second's profit to the first's cost is undone.
fn shortest_path(left: &[u64], open: &[u64], flow: &[Vec<u64>], needs: &[Vec<bool>]) -> Option<Vec<(usize, usize)>> {
    // By cost: the profit it was reached from. By profit: the cost, or `None` for a start.
    let mut cost_from: Vec<Option<usize>> = vec![None; open.len()];
    let mut profit_from: Vec<Option<Option<usize>>> = vec![None; left.len()];
    let mut queue: VecDeque<usize> = (0..left.len()).filter(|profit| left[*profit] > 0).collect();
    for start in &queue {
        profit_from[*start] = Some(None);
    }
    while let Some(profit) = queue.pop_front() {
        for cost in (0..open.len()).filter(|cost| needs[profit][*cost]) {
            if cost_from[cost].is_some() {
                continue;
            }
            cost_from[cost] = Some(profit);
            if open[cost] > 0 {
                return Some(walk_back(cost, &cost_from, &profit_from));
            }
            for next in 0..left.len() {
                if flow[next][cost] > 0 && profit_from[next].is_none() {
                    profit_from[next] = Some(Some(cost));
                    queue.push_back(next);
                }
            }
        }
    }
    None
}

fn walk_back(end: usize, cost_from: &[Option<usize>], profit_from: &[Option<Option<usize>>]) -> Vec<(usize, usize)> {
    let mut path = Vec::new();
    let mut cost = Some(end);
    while let Some((at, profit)) = cost.and_then(|at| cost_from[at].map(|profit| (at, profit))) {
        path.push((profit, at));
        cost = profit_from[profit].flatten();
    }
    path.reverse();
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn profits_that_share_a_cost_pay_it_once() {
        assert_eq!(maximum_closure(&[3, 4], &[5], &[vec![true], vec![true]]), 2);
        assert_eq!(maximum_closure(&[3], &[5], &[vec![true]]), 0);
        assert_eq!(maximum_closure(&[3, 4], &[5], &[vec![false], vec![true]]), 3);
    }

    proptest! {
        #[test]
        fn the_closure_is_the_best_of_all_subsets(
            profits in prop::collection::vec(0_u64..20, 1..6),
            costs in prop::collection::vec(0_u64..20, 1..6),
            edges in prop::collection::vec(any::<bool>(), 36),
        ) {
            let needs: Vec<Vec<bool>> =
                (0..profits.len()).map(|p| (0..costs.len()).map(|c| edges[p * 6 + c]).collect()).collect();
            let worth = |set: u32| {
                let taken = |p: &usize| set >> p & 1 == 1;
                let gained: u64 = (0..profits.len()).filter(taken).map(|p| profits[p]).sum();
                let paid: u64 =
                    (0..costs.len()).filter(|c| (0..profits.len()).any(|p| taken(&p) && needs[p][*c])).map(|c| costs[c]).sum();
                gained.saturating_sub(paid)
            };
            let best = (0..1_u32 << profits.len()).map(worth).max().unwrap_or(0);
            prop_assert_eq!(maximum_closure(&profits, &costs, &needs), best);
        }
    }
}
