//! How long any schedule must take at least: relaxations, each of which forgets all limits but one.

use super::Problem;

/// What lies before and behind each task, with every move at its best; seconds.
pub(super) struct Chains {
    /// The longest way to its start.
    pub head_s: Vec<f64>,
    /// The longest way from its end to the last end.
    pub tail_s: Vec<f64>,
}

impl Chains {
    /// What lies on or behind a cycle never runs: its figures mean nothing.
    pub fn new(problem: &Problem) -> Self {
        let tasks = &problem.tasks;
        let mut behind = vec![Vec::new(); tasks.len()];
        let mut missing: Vec<usize> = tasks.iter().map(|task| task.after.len()).collect();
        for (ix, task) in tasks.iter().enumerate() {
            for first in &task.after {
                behind[*first].push(ix);
            }
        }
        let (mut head_s, mut tail_s) = (vec![0.0; tasks.len()], vec![0.0; tasks.len()]);
        let mut order: Vec<usize> = (0..tasks.len()).filter(|ix| missing[*ix] == 0).collect();
        let mut seen = 0;
        while let Some(ix) = order.get(seen).copied() {
            seen += 1;
            for next in &behind[ix] {
                head_s[*next] = f64::max(head_s[*next], head_s[ix] + tasks[ix].shortest_s());
                missing[*next] -= 1;
                if missing[*next] == 0 {
                    order.push(*next);
                }
            }
        }
        for ix in order.into_iter().rev() {
            tail_s[ix] = behind[ix].iter().map(|next| tasks[*next].shortest_s() + tail_s[*next]).fold(0.0, f64::max);
        }
        Self { head_s, tail_s }
    }
}

/// In seconds, of the tasks that end at all.
pub(super) fn bound(problem: &Problem, chains: &Chains, ends: &dyn Fn(usize) -> bool) -> f64 {
    let hosts = problem.out.len();
    let (mut leave, mut come) = (vec![Vec::new(); hosts], vec![Vec::new(); hosts]);
    let (mut all, mut bound) = (Vec::new(), 0.0);
    for (ix, task) in problem.tasks.iter().enumerate().filter(|(ix, _)| ends(*ix)) {
        bound = f64::max(bound, chains.head_s[ix] + task.shortest_s());
        if task.is_move {
            leave[task.from].push(ix);
            come[task.to].push(ix);
            all.push(ix);
        }
    }
    for (host, (leave, come)) in leave.into_iter().zip(come).enumerate() {
        bound = f64::max(bound, link(problem, chains, &leave, problem.out[host]));
        bound = f64::max(bound, link(problem, chains, &come, problem.into[host]));
        bound = f64::max(bound, places(problem, leave.into_iter().chain(come), problem.per_host));
    }
    f64::max(bound, places(problem, all.into_iter(), problem.at_once))
}

/// What passes a link, at its speed: those that can't send before a moment, all after it, and then what is behind them.
fn link(problem: &Problem, chains: &Chains, tasks: &[usize], capacity: f64) -> f64 {
    let mut tasks: Vec<(f64, usize)> =
        tasks.iter().map(|ix| (chains.head_s[*ix] + problem.tasks[*ix].fixed_s, *ix)).collect();
    tasks.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let (mut sent, mut tail_s, mut bound) = (0.0, f64::INFINITY, 0.0);
    for (first_s, ix) in tasks {
        sent += problem.tasks[ix].wire_min();
        tail_s = f64::min(tail_s, chains.tail_s[ix]);
        bound = f64::max(bound, first_s + sent / capacity + tail_s);
    }
    bound
}

/// As many places, each held as long as the move takes at its best. More may run already than may begin now.
fn places(problem: &Problem, tasks: impl Iterator<Item = usize>, places: usize) -> f64 {
    let (mut held, mut begun) = (0.0, 0);
    for task in tasks.map(|ix| &problem.tasks[ix]) {
        held += task.shortest_s();
        begun += usize::from(!task.waits);
    }
    held / places.max(begun) as f64
}
