//! Maximum closure of a bipartite graph: which profits to take when each brings its costs along.

use std::collections::VecDeque;

/// The most that any set of profits is worth after the costs it needs (each counted once), and the profits of one such
/// set; `None` if that is no more than `enough`. `needs[p][c]`: taking profit `p` brings cost `c`.
///
/// Equal to the sum of all profits less the maximum flow from profits to the costs they need (Picard, Management
/// Science 22(11), 1976). The flow begins with what each profit can send in turn, which is all of it in most plans,
/// and grows along shortest paths (Edmonds and Karp, Journal of the ACM 19(2), 1972).
pub(super) fn closure_above(
    profits: &[u64],
    costs: &[u64],
    needs: &[Vec<bool>],
    enough: u64,
) -> Option<(u64, Vec<usize>)> {
    let (mut left, mut open) = (profits.to_vec(), costs.to_vec());
    let mut flow = vec![vec![0_u64; costs.len()]; profits.len()];
    for (profit, row) in flow.iter_mut().enumerate() {
        for (cost, flows) in row.iter_mut().enumerate().filter(|(cost, _)| needs[profit][*cost]) {
            *flows = left[profit].min(open[cost]);
            left[profit] -= *flows;
            open[cost] -= *flows;
        }
    }
    loop {
        if left.iter().sum::<u64>() <= enough {
            return None;
        }
        let path = match shortest_path(&left, &open, &flow, needs) {
            Ok(path) => path,
            Err(reached) => return Some((left.iter().sum(), reached)),
        };
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
}

/// Forward edges (profit, cost) of a shortest way from a profit with something left to a cost with something open.
/// Between two of them, the flow from the second's profit to the first's cost is undone. Without one, the profits that
/// can be reached: they are the closure.
fn shortest_path(
    left: &[u64],
    open: &[u64],
    flow: &[Vec<u64>],
    needs: &[Vec<bool>],
) -> Result<Vec<(usize, usize)>, Vec<usize>> {
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
                return Ok(walk_back(cost, &cost_from, &profit_from));
            }
            for next in 0..left.len() {
                if flow[next][cost] > 0 && profit_from[next].is_none() {
                    profit_from[next] = Some(Some(cost));
                    queue.push_back(next);
                }
            }
        }
    }
    Err((0..left.len()).filter(|profit| profit_from[*profit].is_some()).collect())
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
        assert_eq!(closure_above(&[3, 4], &[5], &[vec![true], vec![true]], 0), Some((2, vec![0, 1])));
        assert_eq!(closure_above(&[3, 4], &[5], &[vec![true], vec![true]], 2), None);
        assert_eq!(closure_above(&[3], &[5], &[vec![true]], 0), None);
        assert_eq!(closure_above(&[3, 4], &[5], &[vec![false], vec![true]], 0), Some((3, vec![0])));
    }

    proptest! {
        #[test]
        fn the_closure_is_the_best_of_all_subsets(
            profits in prop::collection::vec(0_u64..20, 1..6),
            costs in prop::collection::vec(0_u64..20, 1..6),
            edges in prop::collection::vec(any::<bool>(), 36),
            enough in 0_u64..40,
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
            match closure_above(&profits, &costs, &needs, enough) {
                None => prop_assert!(best <= enough),
                Some((most, taken)) => {
                    prop_assert_eq!(most, best);
                    prop_assert_eq!(worth(taken.iter().map(|p| 1_u32 << p).sum()), best);
                }
            }
        }
    }
}
