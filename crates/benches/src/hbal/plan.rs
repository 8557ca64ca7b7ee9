//! From where instances should be to moves, each of which works when its turn comes.

use super::problem::Problem;
use super::search::Found;
use super::state::State;

/// One instance of the problem to one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    pub instance: usize,
    pub to: usize,
}

/// What gains most goes first. Where instances wait for each other in a circle, one goes by way of a third node while
/// `moves_max` has room for it; who can't go at all stays.
pub fn moves(problem: &Problem, found: &Found, moves_max: usize) -> Vec<Move> {
    let mut state = State::start(problem);
    let goes = |instance: &usize| found.node_of[*instance] != problem.instances[*instance].home;
    let mut waiting: Vec<usize> = (0..problem.instances.len()).filter(goes).collect();
    let gain = |instance: &usize| state.change(*instance, found.node_of[*instance]);
    waiting.sort_by(|a, b| gain(a).total_cmp(&gain(b)).then(a.cmp(b)));
    let mut moves = Vec::new();
    while !waiting.is_empty() {
        let before = waiting.len();
        waiting.retain(|&instance| {
            let to = found.node_of[instance];
            let takes = state.takes(to, instance);
            if takes {
                let change = state.change(instance, to);
                state.apply(instance, to, change);
                moves.push(Move { instance, to });
            }
            !takes
        });
        if waiting.len() < before {
            continue;
        }
        // Each way round is one move more than there are instances that wait.
        let room = moves.len() + waiting.len() < moves_max;
        let Some((instance, to)) = waiting.iter().find_map(|&i| way_round(&state, i)).filter(|_| room) else { break };
        let change = state.change(instance, to);
        state.apply(instance, to, change);
        moves.push(Move { instance, to });
    }
    moves
}

/// Who is not on a way round already, and the node where it harms least.
fn way_round(state: &State, instance: usize) -> Option<(usize, usize)> {
    if state.node_of[instance] != state.problem.instances[instance].home {
        return None;
    }
    (0..state.problem.nodes.len())
        .filter(|node| *node != state.node_of[instance] && state.takes(*node, instance))
        .min_by(|a, b| state.change(instance, *a).total_cmp(&state.change(instance, *b)))
        .map(|node| (instance, node))
}
