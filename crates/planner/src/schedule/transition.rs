//! From one placement to another: the moves between them in an order that is feasible at every moment, with times.
//!
//! A move counts on both hosts from its start to its end. The moves are put in a row in which each finds room
//! (`order`); what each must wait for follows from whose room it takes over (`room`), so every order that
//! `after` allows is as feasible as the row itself. Where moves wait for each other in a circle, one of them passes
//! through a third host: the cheapest to send, for it is sent twice. `times` then gives each a start and a rate.
//!
//! The limits and the aim (few at once, each at full rate, the longest chain first) are those of mVM (Kherbache et
//! al., IEEE Transactions on Cloud Computing 8(4), 2020); that vms which stand in others' way go first, and what must
//! wait is known beforehand, is from CQNCR (Bari et al., CNSM 2014).
//!
//! ```
//! use drover_model::{Bytes, Millis};
//! use drover_planner::schedule::{Limits, Link, Work};
//! use drover_planner::schedule::transition::{Act, Host, Load, Move, Transition, transition};
//!
//! let each = |memory| Load { cpu: 500, memory, ..Load::default() };
//! let capacity = Load { cpu: 4000, memory: 8, ..Load::UNLIMITED };
//! let link = Link { out: Bytes::mib(100), into: Bytes::mib(100) };
//! let host = |carries, vms| Host { capacity, carries, vms, link, ..Host::up() };
//! let work = |memory| Work { fixed: Millis(400), bytes: Bytes::mib(200 * memory), dirtied: Bytes::ZERO };
//! let a_move = |from, to, memory| Move { load: each(memory), work: work(memory), ..Move::new(from, to) };
//! // Two vms change places, and neither host has room for both: the smaller one waits on the third.
//! let wanted = Transition {
//!     hosts: vec![host(each(6), 1), host(each(5), 1), host(Load::default(), 0)],
//!     moves: vec![a_move(0, 1, 6), a_move(1, 0, 5)],
//!     limits: Limits { per_host: 2, at_once: 2, rate_max: Bytes::ZERO },
//!     ..Transition::default()
//! };
//! let order = transition(&wanted, &|_vm, _host| true);
//! let acts: Vec<Act> = order.steps.iter().map(|step| step.act).collect();
//! assert_eq!(acts, [
//!     Act::Move { of: 1, from: 1, to: 2, passes: true },
//!     Act::Move { of: 0, from: 0, to: 1, passes: false },
//!     Act::Move { of: 1, from: 2, to: 0, passes: false },
//! ]);
//! assert_eq!(order.steps[2].after, [0, 1]);
//! assert_eq!(order.timing.makespan, Millis(10_400 + 12_400 + 10_400));
//! assert!(order.stuck.is_empty());
//! ```

mod order;
mod room;
mod times;

use super::{Limits, Link, Work};
use drover_model::placement::Scope;
use drover_model::plan::Timing;
use drover_model::{Bytes, Millis};
use times::{Timed, times};

/// What is left out is tried again this often before nothing may pass through third hosts any more.
const ROUNDS_MAX: usize = 4;

/// Figures that add up: what a host has, what it carries, what a vm weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Thousandths of a core.
    pub cpu: u64,
    /// Bytes.
    pub memory: u64,
    /// Bytes on the host itself.
    pub disk: u64,
    /// Bytes per second that vms receive and send; not those of migrations.
    pub rx: u64,
    pub tx: u64,
    /// Promised; thousandths of a core.
    pub reserved: u64,
}

impl Load {
    /// As capacity: nothing is too much.
    pub const UNLIMITED: Self =
        Self { cpu: u64::MAX, memory: u64::MAX, disk: u64::MAX, rx: u64::MAX, tx: u64::MAX, reserved: u64::MAX };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// All of it: while moves are under way a host may be filled to the brim.
    pub capacity: Load,
    /// At the beginning, with the vms that will leave, and those that are on their way to it.
    pub carries: Load,
    /// How many vms that are.
    pub vms: u32,
    /// Otherwise it is of use only if [`Transition::on`] names it.
    pub up: bool,
    /// Whether vms may pass through it, if they must.
    pub receives: bool,
    /// What it carries for migrations.
    pub link: Link,
    pub boot_time: Millis,
    /// Hosts of equal numbers share a rack, or a zone.
    pub rack: u32,
    pub zone: u32,
}

impl Host {
    /// Up and receiving, empty, without a capacity or a link yet.
    pub const fn up() -> Self {
        const NOTHING: Load = Load { cpu: 0, memory: 0, disk: 0, rx: 0, tx: 0, reserved: 0 };
        Self {
            capacity: NOTHING,
            carries: NOTHING,
            vms: 0,
            up: true,
            receives: true,
            link: Link { out: Bytes::ZERO, into: Bytes::ZERO },
            boot_time: Millis::ZERO,
            rack: 0,
            zone: 0,
        }
    }
}

/// One vm: from where it is to where it is to be. No more than one of each vm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// Indices into [`Transition::hosts`].
    pub from: usize,
    pub to: usize,
    /// Counted in the `carries` of `from`.
    pub load: Load,
    pub work: Work,
    /// Indices into [`Transition::apart`]: the sets it belongs to.
    pub apart: Vec<usize>,
    /// The same of [`Transition::hosts_max`].
    pub hosts_max: Vec<usize>,
}

impl Move {
    /// Of a vm that weighs nothing and belongs to no set.
    pub fn new(from: usize, to: usize) -> Self {
        let work = Work { fixed: Millis::ZERO, bytes: Bytes::ZERO, dirtied: Bytes::ZERO };
        Self { from, to, load: Load::default(), work, apart: Vec::new(), hosts_max: Vec::new() }
    }
}

/// Vms no two of which may be in one host, rack or zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Apart {
    pub within: Scope,
    /// The host of each member that does not move.
    pub staying: Vec<usize>,
}

/// Vms that may be on so many hosts together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostsMax {
    pub count: u32,
    /// The host of each member that does not move.
    pub staying: Vec<usize>,
}

/// What is to be carried out. Indices that name nothing make a move [`Why::NoSuch`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    pub hosts: Vec<Host>,
    pub moves: Vec<Move>,
    /// Hosts to switch on, at once; what comes to them waits for that.
    pub on: Vec<usize>,
    /// Hosts to switch off as soon as they are empty.
    pub off: Vec<usize>,
    pub apart: Vec<Apart>,
    pub hosts_max: Vec<HostsMax>,
    pub limits: Limits,
}

impl Default for Transition {
    /// Nothing, one migration at a time.
    fn default() -> Self {
        Self {
            hosts: Vec::new(),
            moves: Vec::new(),
            on: Vec::new(),
            off: Vec::new(),
            apart: Vec::new(),
            hosts_max: Vec::new(),
            limits: Limits { per_host: 1, at_once: 1, rate_max: Bytes::ZERO },
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// `of`: index of the wanted move. `passes`: it only stops over there, and another step brings it on.
    Move {
        of: usize,
        from: usize,
        to: usize,
        passes: bool,
    },
    On {
        host: usize,
    },
    Off {
        host: usize,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub act: Act,
    /// Indices of earlier steps that must have ended; sorted.
    pub after: Vec<usize>,
    /// From the beginning.
    pub start: Millis,
    pub duration: Millis,
    /// Bytes per second, from start to end; 0 of switching.
    pub bandwidth: Bytes,
}

/// A move that is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stuck {
    pub of: usize,
    pub why: Why,
}

/// What it would have waited for, for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Nothing that leaves the host makes enough room there, and nothing could be made to wait elsewhere.
    NoRoom {
        host: usize,
    },
    /// Index of the set.
    Apart {
        set: usize,
    },
    HostsMax {
        set: usize,
    },
    /// The host's link carries no migration.
    NoBandwidth {
        host: usize,
    },
    /// The host is neither up nor to be switched on.
    NotUp {
        host: usize,
    },
    /// The move goes from a host to itself, or names a host or set that is not there.
    NoSuch,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Order {
    /// One after the other they are feasible, and in every order and overlap that `after` allows.
    pub steps: Vec<Step>,
    pub timing: Timing,
    /// The caller does without them: what is ordered holds with their vms where they are.
    pub stuck: Vec<Stuck>,
    /// Hosts of `off` that would not be empty.
    pub kept_on: Vec<usize>,
}

/// Orders and times the moves. `may_pass(move, host)`: whether the vm may stand on that host for a while. Equal input
/// gives equal output.
///
/// At every moment memory, disk and what is reserved stay within each host's capacity (a host beyond it gets nothing
/// until it no longer is), and processor and link within the capacity or what the host carried before, if that is more.
/// A vm that wants more processor than a host has comes only when it is empty, and is alone there.
pub fn transition(wanted: &Transition, may_pass: &dyn Fn(usize, usize) -> bool) -> Order {
    let (mut left_out, mut first): (Vec<Stuck>, Vec<usize>) = (Vec::new(), Vec::new());
    let mut ordered = order::order(wanted, may_pass, &left_out, &first);
    for round in 0..=ROUNDS_MAX {
        // What got nowhere may stand elsewhere than before, or have sent others on detours for nothing.
        if ordered.stuck.len() == left_out.len() || !ordered.passes {
            break;
        }
        if round == 0 {
            first = ordered.stuck.iter().map(|stuck| stuck.of).collect();
        } else {
            left_out = ordered.stuck;
        }
        let nobody = |_: usize, _: usize| false;
        let may_pass = if round == ROUNDS_MAX { &nobody } else { may_pass };
        ordered = order::order(wanted, may_pass, &left_out, &first);
    }
    let (kept_on, mut stuck) = (order::switch_off(wanted, &mut ordered), ordered.stuck);
    stuck.sort_by_key(|stuck| stuck.of);
    let (slots, timing) =
        times(&ordered.steps.iter().map(|row| timed(wanted, row)).collect::<Vec<_>>(), &wanted.limits);
    let step = |(row, slot): (order::Row, times::Slot)| Step {
        act: row.act,
        after: row.after,
        start: slot.start,
        duration: slot.duration,
        bandwidth: slot.bandwidth,
    };
    Order { steps: ordered.steps.into_iter().zip(slots).map(step).collect(), timing, stuck, kept_on }
}

fn timed(wanted: &Transition, row: &order::Row) -> Timed {
    let work = match row.act {
        Act::Move { of, from, to, .. } => times::Kind::Move {
            from,
            to,
            out: wanted.hosts[from].link.out,
            into: wanted.hosts[to].link.into,
            work: wanted.moves[of].work,
        },
        Act::On { host } => times::Kind::Switch { takes: wanted.hosts[host].boot_time },
        Act::Off { .. } => times::Kind::Switch { takes: Millis::ZERO },
    };
    Timed { after: row.after.clone(), inherent: row.inherent.clone(), kind: work }
}
