//! What a migration does, round by round, from what is known before it. Nothing here is learned.
//!
//! Pre-copy sends all memory, then what was dirtied meanwhile, and so on, until what is left fits the stop (Clark et
//! al., NSDI 2005). How much is dirtied in a round follows the writable working set: in `t` seconds a guest dirties
//! its hot set in proportion to `t` until all of it is dirty, and `rate` beyond that (the model of mVM, Kherbache et
//! al., IEEE TCC 2017).

use drover_model::Bytes;
use drover_model::migration::{Basis, Method, Pace, Strategy, Writing};

/// Agreeing with both ends, starting the destination's qemu, connecting; seconds.
pub(crate) const SET_UP_S: f64 = 0.4;
/// Device state, the commit and the destination's start, with no memory left to send; seconds.
const STOP_S: f64 = 0.025;
/// What the source aims at before it stops the guest, while rounds still shrink; seconds.
const DOWNTIME_AIM_S: f64 = 0.04;
/// A round that leaves more than this share of the one before has met the writable working set.
const SHRINKS_BELOW: f64 = 0.9;
/// Post-copy begins once a round leaves more than this share of the one before: another would only send pages twice.
const POST_COPY_ABOVE: f64 = 0.5;
/// Added to the rate at which the guest dirtied memory in the last round: 50 Mbit/s (Clark et al., section 5.3).
const PACE_STEP: f64 = 50e6 / 8.0;
/// QEMU's throttling begins with this share of the guest's processor time and adds a tenth each round.
const THROTTLE_FIRST: f64 = 0.2;
const THROTTLE_STEP: f64 = 0.1;
/// After so many rounds pre-copy is as good as never ending.
const ROUNDS_MAX: usize = 60;
/// What zstd at its fastest level makes of a running guest's pages that are not all zero. They hold text, code and
/// caches; guests full of ciphertext do worse, which reports tell.
const COMPRESSED_TO: f64 = 0.55;
/// Pages that a fault asks for go out of turn, so that a post-copied stream is a little slower; share of the rate.
const POST_COPY_RATE: f64 = 0.9;
/// Of a hot set written at random, what is measured in a while is mostly hot, and this share per second is not.
const TAIL_OF_MEASURED: f64 = 0.1;
/// Of memory in use, for guests nobody has measured: the hot set of a quiet server, and what it writes besides.
const HOT_ASSUMED: f64 = 0.02;
const TAIL_ASSUMED: f64 = 0.001;

/// The course of one migration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Course {
    pub total_s: f64,
    pub downtime_s: f64,
    pub sent: f64,
    /// The guest stands still no longer than allowed. Otherwise pre-copy would not end: the figures are of a stop
    /// forced where its rounds no longer shrink.
    pub ends: bool,
}

/// Bytes per second of memory that a link of `bits` per second carries over TCP on Ethernet with an MTU of 1500: 1448
/// bytes of 1538 on the wire (IEEE 802.3 framing, RFC 793, RFC 7323 timestamps).
pub const fn goodput(bits_per_second: u64) -> Bytes {
    Bytes(bits_per_second / 8 * 1448 / 1538)
}

/// What a guest that dirtied `rate` bytes per second over `span_s` seconds is taken to write.
pub(crate) fn writing_of_rate(rate: Bytes, span: drover_model::Millis) -> Writing {
    Writing {
        hot: rate.scale(span.as_secs() * (1.0 - TAIL_OF_MEASURED)),
        hot_span: span,
        rate: rate.scale(TAIL_OF_MEASURED),
    }
}

/// As known, or assumed.
pub(crate) fn writing(basis: &Basis) -> Writing {
    basis.writing.unwrap_or_else(|| writing_assumed(basis.in_use))
}

/// Bytes dirtied in `seconds`.
pub(crate) fn dirtied(basis: &Basis, seconds: f64) -> f64 {
    Guest::of(basis).dirtied(seconds, 1.0)
}

fn writing_assumed(in_use: Bytes) -> Writing {
    Writing {
        hot: in_use.scale(HOT_ASSUMED),
        hot_span: drover_model::Millis::secs(1),
        rate: in_use.scale(TAIL_ASSUMED),
    }
}

/// A guest that writes, in seconds and bytes.
struct Guest {
    in_use: f64,
    hot: f64,
    hot_span_s: f64,
    rate: f64,
}

impl Guest {
    fn of(basis: &Basis) -> Self {
        let writing = writing(basis);
        Self {
            in_use: basis.in_use.0 as f64,
            hot: writing.hot.0 as f64,
            hot_span_s: writing.hot_span.as_secs().max(0.001),
            rate: writing.rate.0 as f64,
        }
    }

    /// Dirtied in `seconds` by a guest that gets `share` of its processor time.
    fn dirtied(&self, seconds: f64, share: f64) -> f64 {
        let written_s = seconds * share;
        (self.hot * (written_s / self.hot_span_s).min(1.0) + self.rate * written_s).min(self.in_use)
    }
}

/// The rates a migration may send at: of its first round, and at most.
fn rates(basis: &Basis, pace: Pace) -> (f64, f64) {
    let link = (basis.bandwidth.0 as f64).max(1.0);
    let capped = |limit: Bytes| if limit == Bytes::ZERO { link } else { (limit.0 as f64).min(link) };
    let most = capped(pace.max);
    (capped(pace.min).min(most), most)
}

pub(crate) fn course(basis: &Basis, strategy: &Strategy) -> Course {
    let guest = Guest::of(basis);
    let (first, most) = rates(basis, strategy.pace);
    match strategy.method {
        Method::PreCopy => pre_copy(&guest, strategy, first, most, basis.downtime_max.as_secs()),
        Method::PostCopy => post_copy(&guest, first, most),
        Method::StopAndCopy => {
            let copy_s = guest.in_use / most;
            Course { total_s: SET_UP_S + copy_s + STOP_S, downtime_s: copy_s + STOP_S, sent: guest.in_use, ends: true }
        }
    }
}

fn pre_copy(guest: &Guest, strategy: &Strategy, first: f64, most: f64, downtime_max_s: f64) -> Course {
    let wire = if strategy.compress { COMPRESSED_TO } else { 1.0 };
    let throttle_max = f64::from(strategy.throttle_max) / 100.0;
    let (mut left, mut rate, mut throttle) = (guest.in_use, first, 0.0);
    let (mut total_s, mut sent) = (SET_UP_S, 0.0);
    let mut ends = false;
    for _ in 0..ROUNDS_MAX {
        let round_s = left * wire / rate;
        total_s += round_s;
        sent += left * wire;
        let dirtied = guest.dirtied(round_s, 1.0 - throttle);
        let shrinks = dirtied < SHRINKS_BELOW * left;
        let at_most = rate >= most;
        let stop_s = dirtied * wire / most;
        left = dirtied;
        if stop_s <= DOWNTIME_AIM_S.min(downtime_max_s) || (!shrinks && at_most && stop_s <= downtime_max_s) {
            ends = true;
            break;
        }
        if !shrinks && at_most {
            if throttle >= throttle_max {
                break;
            }
            let next = if throttle == 0.0 { THROTTLE_FIRST } else { throttle + THROTTLE_STEP };
            throttle = next.min(throttle_max);
        }
        rate = (dirtied * wire / round_s.max(0.001) + PACE_STEP).clamp(first, most);
    }
    // Rounds may still have shrunk at the last one that was simulated.
    let stop_s = left * wire / most;
    Course {
        total_s: total_s + stop_s + STOP_S,
        downtime_s: stop_s + STOP_S,
        sent: sent + left * wire,
        ends: ends || stop_s <= downtime_max_s,
    }
}

fn post_copy(guest: &Guest, first: f64, most: f64) -> Course {
    let (mut left, mut rate) = (guest.in_use, first);
    let (mut total_s, mut sent) = (SET_UP_S, 0.0);
    for _ in 0..ROUNDS_MAX {
        let round_s = left / rate;
        total_s += round_s;
        sent += left;
        let dirtied = guest.dirtied(round_s, 1.0);
        let shrinks = dirtied < POST_COPY_ABOVE * left;
        left = dirtied;
        if !shrinks || left / most <= DOWNTIME_AIM_S {
            break;
        }
        rate = (dirtied / round_s.max(0.001) + PACE_STEP).clamp(first, most);
    }
    Course {
        total_s: total_s + STOP_S + left / (most * POST_COPY_RATE),
        downtime_s: STOP_S,
        sent: sent + left,
        ends: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_model::Millis;

    fn basis(in_use_mib: u64, writing: Writing, bandwidth: Bytes) -> Basis {
        Basis { in_use: Bytes::mib(in_use_mib), writing: Some(writing), bandwidth, downtime_max: Millis(300) }
    }

    fn hot(mib: u64, span_ms: u64) -> Writing {
        Writing { hot: Bytes::mib(mib), hot_span: Millis(span_ms), rate: Bytes::ZERO }
    }

    #[test]
    fn an_idle_guest_takes_its_memory_over_the_link_and_stands_still_for_nothing_but_the_stop() {
        let idle = basis(1000, Writing::default(), Bytes::mib(100));
        let course = course(&idle, &Strategy::PRE_COPY);
        assert!((course.total_s - (10.0 + SET_UP_S + STOP_S)).abs() < 1e-9, "{course:?}");
        assert_eq!((course.downtime_s, course.sent), (STOP_S, Bytes::mib(1000).0 as f64));
        assert!(course.ends);
    }

    #[test]
    fn a_guest_that_writes_faster_than_the_link_ends_by_post_copy_only() {
        let diabolical = basis(256, hot(200, 500), Bytes::mib(12));
        let pre = course(&diabolical, &Strategy::PRE_COPY);
        assert!(!pre.ends && pre.downtime_s > 10.0, "{pre:?}");
        let post = course(&diabolical, &Strategy { method: Method::PostCopy, ..Strategy::PRE_COPY });
        assert!(post.ends && post.downtime_s < 0.1, "{post:?}");
        assert!(post.sent < 2.0 * Bytes::mib(256).0 as f64, "{post:?}");
    }

    #[test]
    fn throttling_ends_what_does_not_end_by_itself() {
        let busy = basis(1000, hot(100, 600), Bytes::mib(100));
        let with = |throttle_max| course(&busy, &Strategy { throttle_max, ..Strategy::PRE_COPY });
        assert!(!with(0).ends);
        assert!(with(80).ends);
    }

    #[test]
    fn stop_and_copy_stands_still_for_all_memory_and_sends_it_once() {
        let busy = basis(1000, hot(500, 100), Bytes::mib(100));
        let course = course(&busy, &Strategy { method: Method::StopAndCopy, ..Strategy::PRE_COPY });
        assert!((course.downtime_s - (10.0 + STOP_S)).abs() < 1e-9);
        assert_eq!(course.sent, Bytes::mib(1000).0 as f64);
    }

    #[test]
    fn a_slow_first_round_is_paid_for_once() {
        let idle = basis(1000, Writing::default(), Bytes::mib(100));
        let pace = Pace { min: Bytes::mib(50), max: Bytes::ZERO, paused: false };
        let course = course(&idle, &Strategy { pace, ..Strategy::PRE_COPY });
        assert!((course.total_s - (20.0 + SET_UP_S + STOP_S)).abs() < 1e-9, "{course:?}");
    }

    #[test]
    fn a_gigabit_link_carries_what_ethernet_and_tcp_leave() {
        assert_eq!(goodput(1_000_000_000), Bytes(117_685_305));
    }
}
