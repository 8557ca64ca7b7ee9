//! An order in which moves can be made one at a time, with room for each when its turn comes.

use super::input::Place;
use super::state::State;

/// The moves that bring each of `changes` to its place, in an order that is possible from `start`, at most `limit`.
/// Moves go as soon as there is room for them. Where all wait for each other, one steps aside to a third place, for
/// an additional move. `None`: no such order was found.
pub fn order(start: &State, changes: &[(usize, Place)], limit: usize) -> Option<Vec<(usize, Place)>> {
    let mut state = start.clone();
    let mut waiting = changes.to_vec();
    let mut ordered = Vec::with_capacity(changes.len());
    while !waiting.is_empty() {
        if ordered.len() + waiting.len() > limit {
            return None;
        }
        let before = waiting.len();
        waiting.retain(|&(vm, to)| {
            let goes = state.admits(vm, to);
            if goes {
                state.put(vm, to);
                ordered.push((vm, to));
            }
            !goes
        });
        if waiting.len() == before {
            let aside = step_aside(&state, &waiting)?;
            state.put(aside.0, aside.1);
            ordered.push(aside);
        }
    }
    Some(ordered)
}

/// A waiting vm and a place for it such that another that waits can go then.
fn step_aside(state: &State, waiting: &[(usize, Place)]) -> Option<(usize, Place)> {
    for &(vm, _) in waiting {
        let from = state.place(vm);
        for &node in state.roomy(state.site.cluster_of(from.host)) {
            let aside = Place { host: node / 2, node: if state.site.on_both(vm) { 0 } else { node % 2 } };
            if !state.admits(vm, aside) {
                continue;
            }
            let mut then = state.clone();
            then.put(vm, aside);
            if waiting.iter().any(|&(other, to)| other != vm && then.admits(other, to)) {
                return Some((vm, aside));
            }
        }
    }
    None
}
