//! Whether a vm can go where a step sends it: what load and order do not change.

use super::replay::Replay;
use super::{Violation, found, measured};
use drover_model::world::{HostState, Movable};
use std::collections::BTreeSet;

pub(super) fn destinations_take_vms(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    for m in &replay.moves {
        let (to, view) = (replay.host_id(m.to), replay.host_view(m.to));
        let woken =
            || replay.switched_on.iter().any(|(step, host)| *host == m.to && replay.reach.done(Some(*step), m.step));
        if view.state != HostState::Up && !woken() {
            found(violations, m.step, format!("{to} is {:?} when {} is to come", view.state, m.id));
        }
        if view.maintenance {
            found(violations, m.step, format!("{to} is in maintenance and takes no vms"));
        }
        if view.capacity.is_none() {
            found(violations, m.step, format!("the capacity of {to} is not known"));
        }
    }
}

pub(super) fn sources_are_up(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    let woken: BTreeSet<usize> = replay.switched_on.iter().map(|(_, host)| *host).collect();
    for m in &replay.moves {
        let (from, state) = (replay.host_id(m.from), replay.host_view(m.from).state);
        if state != HostState::Up && !woken.contains(&m.from) {
            found(violations, m.step, format!("{from} is {state:?}: nothing can be moved off it"));
        }
    }
}

pub(super) fn vms_are_movable(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    for m in &replay.moves {
        match &m.view.movable {
            Movable::Yes => {}
            Movable::Moving { to } => found(violations, m.step, format!("{} is on its way to {to} already", m.id)),
            Movable::No { why } => found(violations, m.step, format!("{} can't be moved because {why}", m.id)),
        }
    }
}

pub(super) fn pins_are_kept(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    for m in &replay.moves {
        let to = replay.host_id(m.to);
        if !m.view.pinned_to.is_empty() && !m.view.pinned_to.contains(to) {
            found(violations, m.step, format!("{} is not pinned to {to}", m.id));
        }
    }
}

pub(super) fn networks_are_attached(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    for m in &replay.moves {
        let (to, view) = (replay.host_id(m.to), replay.host_view(m.to));
        if let Some(network) = m.view.network.as_ref().filter(|network| !view.networks.contains(*network)) {
            found(violations, m.step, format!("{to} is not attached to network {network} of {}", m.id));
        }
    }
}

pub(super) fn hosts_can_take_over(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    for m in &replay.moves {
        if replay.host_view(m.to).refuses.contains(&replay.host_view(m.from).kind) {
            let to = replay.host_id(m.to);
            found(violations, m.step, format!("{} can't go on running on {to}, a host of another kind", m.id));
        }
    }
}

/// Balancing neither takes from nor gives to a host in the dark; evacuation may take.
pub(super) fn load_is_known(replay: &Replay<'_>, violations: &mut Vec<Violation>) {
    for m in &replay.moves {
        let (source, destination) = (replay.host_view(m.from), replay.host_view(m.to));
        if !measured::is_known(replay.world, destination) {
            found(violations, m.step, format!("the load of {} is not known", replay.host_id(m.to)));
        }
        if !measured::is_known(replay.world, source) && !source.maintenance {
            found(violations, m.step, format!("the load of {} is not known", replay.host_id(m.from)));
        }
    }
}
