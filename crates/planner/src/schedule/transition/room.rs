//! Room that is handed on. Whoever comes takes room that was free from the beginning, or that somebody who left made,
//! and then waits for that one. Nobody's room is anybody else's, so whatever else happens in between, it is there.

use std::collections::VecDeque;

/// One figure of one host, or one place in a set.
#[derive(Debug, Clone, Default)]
pub(super) struct Room {
    /// Free since the beginning.
    spare: u64,
    /// Made by steps, the earliest first.
    made: VecDeque<(usize, u64)>,
    /// All that is free.
    free: u64,
    /// Carried beyond the capacity: to be made good before anything is free.
    debt: u64,
    /// The steps that made it good.
    payers: Vec<usize>,
}

impl Room {
    pub fn new(capacity: u64, carried: u64) -> Self {
        let spare = capacity.saturating_sub(carried);
        Self { spare, free: spare, debt: carried.saturating_sub(capacity), ..Self::default() }
    }

    /// What is too much already may be so again.
    pub fn no_worse(capacity: u64, carried: u64) -> Self {
        Self::new(capacity.max(carried), carried)
    }

    pub fn free(&self) -> u64 {
        self.free
    }

    pub fn has(&self, amount: u64) -> bool {
        self.free >= amount
    }

    /// Of what there is; adds the steps that made it.
    pub fn take(&mut self, amount: u64, waits: &mut Vec<usize>) {
        debug_assert!(self.has(amount));
        if amount == 0 {
            return;
        }
        waits.extend(&self.payers);
        self.free -= amount;
        let mut missing = amount - amount.min(self.spare);
        self.spare -= amount - missing;
        while let Some((by, made)) = self.made.front_mut().filter(|_| missing > 0) {
            waits.push(*by);
            let taken = missing.min(*made);
            (*made, missing) = (*made - taken, missing - taken);
            if *made == 0 {
                self.made.pop_front();
            }
        }
    }

    pub fn make(&mut self, amount: u64, by: usize) {
        let paid = amount.min(self.debt);
        if paid > 0 {
            self.debt -= paid;
            self.payers.push(by);
        }
        if amount > paid {
            self.made.push_back((by, amount - paid));
            self.free = self.free.saturating_add(amount - paid);
        }
    }
}

/// So many hosts that the vms of a set may be on. A host's seat is taken by the first that comes and handed on when the
/// last has left.
#[derive(Debug, Clone, Default)]
pub(super) struct Seats {
    spare: usize,
    /// The steps that emptied the host whose seat it was.
    made: VecDeque<Vec<usize>>,
    /// Sorted by host.
    held: Vec<(usize, Held)>,
}

#[derive(Debug, Clone, Default)]
struct Held {
    members: usize,
    /// Whoever comes waits for what made the seat.
    waits: Vec<usize>,
    left: Vec<usize>,
}

impl Seats {
    /// `on`: the host of each member at the beginning.
    pub fn new(count: usize, on: impl Iterator<Item = usize>) -> Self {
        let mut seats = Self::default();
        for host in on {
            seats.held_at(host).members += 1;
        }
        seats.spare = count.saturating_sub(seats.held.len());
        seats
    }

    fn held_at(&mut self, host: usize) -> &mut Held {
        let at = match self.held.binary_search_by_key(&host, |(held, _)| *held) {
            Ok(at) => at,
            Err(at) => {
                self.held.insert(at, (host, Held::default()));
                at
            }
        };
        &mut self.held[at].1
    }

    pub fn has(&self, host: usize) -> bool {
        let held = self.held.binary_search_by_key(&host, |(held, _)| *held);
        self.spare > 0 || !self.made.is_empty() || held.is_ok_and(|at| self.held[at].1.members > 0)
    }

    pub fn take(&mut self, host: usize, waits: &mut Vec<usize>) {
        if self.held_at(host).members == 0 {
            let made = if self.spare > 0 { Vec::new() } else { self.made.pop_front().unwrap_or_default() };
            self.spare = self.spare.saturating_sub(1);
            *self.held_at(host) = Held { members: 0, waits: made, left: Vec::new() };
        }
        let held = self.held_at(host);
        held.members += 1;
        waits.extend(&held.waits);
    }

    pub fn leave(&mut self, host: usize, by: usize) {
        let held = self.held_at(host);
        held.members = held.members.saturating_sub(1);
        held.left.push(by);
        if held.members == 0 {
            let left = std::mem::take(&mut held.left);
            self.made.push_back(left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spare_room_makes_nobody_wait_and_made_room_is_taken_once() {
        let mut room = Room::new(10, 6);
        room.make(3, 0);
        room.make(3, 1);
        let mut waits = Vec::new();
        room.take(4, &mut waits);
        assert!(waits.is_empty() && room.free() == 6);
        room.take(4, &mut waits);
        assert_eq!(waits, [0, 1]);
        waits.clear();
        room.take(2, &mut waits);
        assert_eq!((waits, room.has(1)), (vec![1], false));
    }

    #[test]
    fn too_much_is_made_good_first_and_everybody_waits_for_that() {
        let mut room = Room::new(10, 14);
        room.make(5, 0);
        room.make(3, 1);
        let mut waits = Vec::new();
        room.take(1, &mut waits);
        assert_eq!((waits.as_slice(), room.free()), (&[0, 0][..], 3));
        waits.clear();
        room.take(2, &mut waits);
        assert_eq!(waits, [0, 1]);
        let mut room = Room::no_worse(10, 14);
        room.make(5, 0);
        assert_eq!(room.free(), 5);
    }

    #[test]
    fn a_seat_is_handed_on_when_the_last_has_left() {
        let mut seats = Seats::new(2, [7, 7, 8].into_iter());
        assert!(seats.has(7) && !seats.has(9));
        seats.leave(7, 0);
        assert!(!seats.has(9));
        seats.leave(7, 1);
        let mut waits = Vec::new();
        seats.take(9, &mut waits);
        assert_eq!(waits, [0, 1]);
        seats.take(9, &mut waits);
        assert_eq!(waits, [0, 1, 0, 1], "the second waits for the seat, too");
        assert!(!seats.has(7));
    }
}
