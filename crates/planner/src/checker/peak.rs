//! The worst state of one place: the choice of steps, closed under `after`, that leaves most there.

use super::flow;
use super::reach::Reach;

/// So much is there from the end of no step (before the plan), or the start of one, to the end of another, or for good.
#[derive(Debug, Clone, Copy)]
pub(super) struct Presence {
    pub arrives: Option<usize>,
    pub leaves: Option<usize>,
    pub weight: u64,
}

/// More than may be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Excess {
    pub most: u64,
    /// The arrival that makes it so.
    pub step: usize,
}

/// The most that may be there while or after something arrives, if that is more than `allowed`.
pub(super) fn excess(reach: &Reach, there: &[Presence], allowed: u64) -> Option<Excess> {
    let before: u64 = there.iter().filter(|presence| presence.arrives.is_none()).map(|presence| presence.weight).sum();
    let arrivals = || there.iter().filter(|presence| presence.weight > 0).filter_map(|presence| presence.arrives);
    let comes: u64 = there.iter().filter(|presence| presence.arrives.is_some()).map(|presence| presence.weight).sum();
    if before + comes <= allowed {
        return None;
    }
    if before <= allowed {
        return from(reach, there, None, allowed);
    }
    // Too much is there already: each arrival has to wait until it no longer is.
    arrivals().find_map(|arrival| from(reach, there, Some(arrival), allowed))
}

/// From the start of `arrival` on, or at any moment.
fn from(reach: &Reach, there: &[Presence], arrival: Option<usize>, allowed: u64) -> Option<Excess> {
    let over = |step: Option<usize>| arrival.is_some_and(|by| reach.done(step, by));
    let (mut certain, mut gains, mut losses) = (0, Vec::new(), Vec::new());
    for presence in there.iter().filter(|presence| presence.weight > 0 && !over(presence.leaves)) {
        match presence.arrives {
            Some(at) if Some(at) != arrival && !over(Some(at)) => gains.push((at, presence.weight)),
            _ => certain += presence.weight,
        }
        if let Some(leaves) = presence.leaves {
            losses.push((leaves, presence.weight));
        }
    }
    if let (true, Some(step)) = (certain > allowed, arrival) {
        return Some(Excess { most: certain, step });
    }
    let enough = allowed.saturating_sub(certain);
    let weights = |side: &[(usize, u64)]| side.iter().map(|(_, weight)| *weight).collect::<Vec<u64>>();
    let needs: Vec<Vec<bool>> =
        gains.iter().map(|(gain, _)| losses.iter().map(|(loss, _)| reach.done(Some(*loss), *gain)).collect()).collect();
    let (worth, taken) = flow::closure_above(&weights(&gains), &weights(&losses), &needs, enough)?;
    let last = taken.iter().map(|gain| gains[*gain].0).max().or(arrival)?;
    Some(Excess { most: certain + worth, step: last })
}
