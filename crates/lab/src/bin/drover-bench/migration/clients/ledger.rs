//! What clients saw: how long each waited, which numbers never came, which came twice. Times are since the ledger began.

use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What a client is of; its gaps are told by it.
pub type Kind = &'static str;

/// Lost probes of a window whose times are told.
const LOST_SHOWN_MAX: usize = 100;

/// A client in the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelId(usize);

#[derive(Debug)]
struct Channel {
    kind: Kind,
    /// Between two answers when all is well; a gap is what goes beyond.
    period: Duration,
    /// Asks without end, so that after each answer the wait for the next begins.
    steady: bool,
    waiting_since: Option<Duration>,
    worst: Duration,
    worst_since: Duration,
    answers: u64,
    resets: u64,
    unanswered: u64,
}

impl Channel {
    fn gap(&self, now: Duration) -> Duration {
        self.waiting_since.map_or(Duration::ZERO, |since| now.saturating_sub(since).saturating_sub(self.period))
    }
}

/// Numbers that were to arrive one by one.
#[derive(Debug, Default)]
struct Arrivals {
    /// First number that counts, and the one after the last; what is outside was sent before or after the window.
    from: u64,
    until: Option<u64>,
    numbers: Vec<u64>,
}

impl Arrivals {
    fn note(&mut self, number: u64) {
        if number >= self.from && self.until.is_none_or(|until| number < until) {
            self.numbers.push(number);
        }
    }

    /// How many of the numbers from `from` to `until` never came, and how many came again.
    fn judge(&self, from: u64, until: u64) -> Loss {
        let mut numbers: Vec<u64> = self.numbers.iter().copied().filter(|n| (from..until).contains(n)).collect();
        let arrived = numbers.len() as u64;
        numbers.sort_unstable();
        numbers.dedup();
        let once = numbers.len() as u64;
        Loss { lost: until.saturating_sub(from).saturating_sub(once), duplicated: arrived - once }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Loss {
    pub lost: u64,
    pub duplicated: u64,
}

/// A numbered exchange over UDP: sent, and answered with a number of the guest's own.
#[derive(Debug, Default)]
pub struct Numbered {
    next: u64,
    arrivals: Arrivals,
    /// When each number of the window was sent, beginning with its first.
    sent_at: Vec<Duration>,
    /// The guest's numbers on the answers.
    answers: Vec<u64>,
}

impl Numbered {
    /// The number to send now.
    pub fn next(&mut self, now: Duration) -> u64 {
        self.next += 1;
        self.sent_at.push(now);
        self.next
    }

    pub fn answered(&mut self, number: u64, answer: u64) {
        self.arrivals.note(number);
        self.answers.push(answer);
    }

    fn open(&mut self) {
        self.arrivals = Arrivals { from: self.next + 1, until: None, numbers: Vec::new() };
        self.answers.clear();
        self.sent_at.clear();
    }

    fn close(&mut self) {
        self.arrivals.until = Some(self.next + 1);
    }

    fn whole(&self) -> bool {
        let until = self.arrivals.until.unwrap_or(self.next + 1);
        self.arrivals.judge(self.arrivals.from, until).lost == 0
    }

    /// When those were sent that never came.
    fn lost_at(&self) -> impl Iterator<Item = Duration> {
        let from = self.arrivals.from;
        let until = self.arrivals.until.unwrap_or(self.next + 1);
        let arrived: BTreeSet<u64> = self.arrivals.numbers.iter().copied().collect();
        let lost = (from..until).filter(move |number| !arrived.contains(number));
        lost.filter_map(move |number| self.sent_at.get((number - from) as usize).copied())
    }

    /// All that is missing, and how much of it the guest had answered.
    fn judge(&self) -> (Loss, u64) {
        let loss = self.arrivals.judge(self.arrivals.from, self.arrivals.until.unwrap_or(self.next + 1));
        let (Some(first), Some(last)) = (self.answers.iter().min(), self.answers.iter().max()) else {
            return (loss, 0);
        };
        let answers = Arrivals { from: 0, until: None, numbers: self.answers.clone() };
        (loss, answers.judge(*first, last + 1).lost.min(loss.lost))
    }
}

/// One player: ticks from the guest by number, and what the guest says of our inputs.
#[derive(Debug, Default)]
pub struct Player {
    ticks: Vec<u64>,
    /// (greatest input seen by the guest, inputs seen) with the first and the newest tick.
    inputs: Option<[(u64, u64); 2]>,
}

impl Player {
    pub fn tick(&mut self, number: u64, last_input: u64, inputs: u64) {
        self.ticks.push(number);
        let newest = (last_input, inputs);
        let first = self.inputs.map_or(newest, |[first, _]| first);
        self.inputs = Some([first, newest]);
    }

    fn judge(&self) -> Loss {
        let (Some(first), Some(last)) = (self.ticks.iter().min(), self.ticks.iter().max()) else {
            return Loss::default();
        };
        let ticks = Arrivals { from: 0, until: None, numbers: self.ticks.clone() }.judge(*first, last + 1);
        let [(number_then, seen_then), (number, seen)] = self.inputs.unwrap_or_default();
        let (sent, seen) = (number.saturating_sub(number_then), seen.saturating_sub(seen_then));
        Loss { lost: ticks.lost + sent.saturating_sub(seen), duplicated: ticks.duplicated + seen.saturating_sub(sent) }
    }
}

/// What the clients saw in a window.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Seen {
    /// Longest wait of any client for an answer, beyond the period it expects.
    pub worst_gap_ms: f64,
    pub worst_gap_ms_by_kind: BTreeMap<Kind, f64>,
    pub answers: u64,
    pub packets_sent: u64,
    pub packets_lost: u64,
    /// Of those lost, the ones that the guest had answered.
    pub packets_lost_on_the_way_back: u64,
    /// When the first of the lost probes were sent, since the window was opened.
    pub probes_lost_at_ms: Vec<u64>,
    /// When the longest gap began, since then.
    pub worst_gap_began_at_ms_by_kind: BTreeMap<Kind, u64>,
    pub packets_duplicated: u64,
    pub connections_reset: u64,
    pub requests_unanswered: u64,
}

#[derive(Debug, Default)]
pub struct Ledger {
    channels: Vec<Channel>,
    opened_at: Duration,
    pub probe: Numbered,
    pub players: Vec<Player>,
}

impl Ledger {
    pub fn add(&mut self, kind: Kind, period: Duration, steady: bool) -> ChannelId {
        self.channels.push(Channel {
            kind,
            period,
            steady,
            waiting_since: None,
            worst: Duration::ZERO,
            worst_since: Duration::ZERO,
            answers: 0,
            resets: 0,
            unanswered: 0,
        });
        ChannelId(self.channels.len() - 1)
    }

    /// The client begins to wait.
    pub fn asked(&mut self, id: ChannelId, now: Duration) {
        self.channels[id.0].waiting_since.get_or_insert(now);
    }

    /// Something of what it waits for came.
    pub fn answered(&mut self, id: ChannelId, now: Duration) {
        let channel = &mut self.channels[id.0];
        let gap = channel.gap(now);
        if gap > channel.worst {
            (channel.worst, channel.worst_since) = (gap, channel.waiting_since.unwrap_or(now));
        }
        channel.answers += 1;
        channel.waiting_since = Some(now);
    }

    /// It has all it asked for.
    pub fn satisfied(&mut self, id: ChannelId) {
        let channel = &mut self.channels[id.0];
        if !channel.steady {
            channel.waiting_since = None;
        }
    }

    pub fn reset(&mut self, id: ChannelId) {
        self.channels[id.0].resets += 1;
    }

    pub fn unanswered(&mut self, id: ChannelId) {
        self.channels[id.0].unanswered += 1;
    }

    /// Nobody waits any more: the clients were told to rest.
    pub fn rest(&mut self) {
        self.channels.iter_mut().for_each(|channel| channel.waiting_since = None);
    }

    pub fn open(&mut self, now: Duration) {
        self.opened_at = now;
        for channel in &mut self.channels {
            channel.worst = Duration::ZERO;
            (channel.answers, channel.resets, channel.unanswered) = (0, 0, 0);
            // A wait from before belongs to what was before.
            channel.waiting_since = channel.waiting_since.map(|_| now);
        }
        self.probe.open();
        self.players.iter_mut().for_each(|player| *player = Player::default());
    }

    /// Numbers sent from now on do not count any more.
    pub fn close(&mut self) {
        self.probe.close();
    }

    /// Whether all numbers sent have been answered.
    pub fn whole(&self) -> bool {
        self.probe.whole()
    }

    /// A mark to see from how it goes on.
    pub fn mark(&self) -> Vec<u64> {
        self.channels.iter().map(|channel| channel.answers).collect()
    }

    /// Whether every steady client has had so many answers since the mark, and nobody else waits since before `then`.
    pub fn settled(&self, mark: &[u64], answers: u64, then: Duration) -> bool {
        self.channels.iter().zip(mark).all(|(channel, mark)| {
            if channel.steady {
                channel.answers >= mark + answers
            } else {
                channel.waiting_since.is_none_or(|since| since >= then)
            }
        })
    }

    fn in_window_ms(&self, at: Duration) -> u64 {
        at.saturating_sub(self.opened_at).as_millis() as u64
    }

    pub fn seen(&self, now: Duration) -> Seen {
        let mut seen = Seen::default();
        for channel in &self.channels {
            let open = channel.gap(now);
            let (worst, since) = if open > channel.worst {
                (open, channel.waiting_since.unwrap_or(now))
            } else {
                (channel.worst, channel.worst_since)
            };
            let worst_ms = worst.as_secs_f64() * 1_000.0;
            let of_kind = seen.worst_gap_ms_by_kind.entry(channel.kind).or_insert(0.0);
            if worst_ms > *of_kind {
                *of_kind = worst_ms;
                seen.worst_gap_began_at_ms_by_kind.insert(channel.kind, self.in_window_ms(since));
            }
            seen.worst_gap_ms = seen.worst_gap_ms.max(worst_ms);
            seen.answers += channel.answers;
            seen.connections_reset += channel.resets;
            seen.requests_unanswered += channel.unanswered;
        }
        let (probe, back) = self.probe.judge();
        let until = self.probe.arrivals.until.unwrap_or(self.probe.next + 1);
        seen.packets_sent = until.saturating_sub(self.probe.arrivals.from);
        seen.packets_lost_on_the_way_back = back;
        let lost_at = self.probe.lost_at().take(LOST_SHOWN_MAX);
        seen.probes_lost_at_ms = lost_at.map(|at| self.in_window_ms(at)).collect();
        for loss in self.players.iter().map(Player::judge).chain([probe]) {
            seen.packets_lost += loss.lost;
            seen.packets_duplicated += loss.duplicated;
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_gap_is_what_goes_beyond_the_period_and_an_open_one_counts() {
        let mut ledger = Ledger::default();
        let id = ledger.add("probe", ms(10), true);
        ledger.asked(id, ms(0));
        for at in [10, 20, 170, 180] {
            ledger.answered(id, ms(at));
        }
        assert_eq!(ledger.seen(ms(185)).worst_gap_ms, 140.0);
        assert_eq!(ledger.seen(ms(185)).worst_gap_began_at_ms_by_kind["probe"], 20);
        assert_eq!(ledger.seen(ms(500)).worst_gap_ms, 310.0);
        assert_eq!(ledger.seen(ms(500)).worst_gap_began_at_ms_by_kind["probe"], 180);
        ledger.open(ms(500));
        ledger.answered(id, ms(512));
        assert_eq!(ledger.seen(ms(512)).worst_gap_ms, 2.0);
    }

    #[test]
    fn a_client_that_has_what_it_asked_for_waits_for_nothing() {
        let mut ledger = Ledger::default();
        let id = ledger.add("web", ms(0), false);
        ledger.asked(id, ms(0));
        ledger.answered(id, ms(30));
        ledger.satisfied(id);
        let seen = ledger.seen(ms(9_000));
        assert_eq!((seen.worst_gap_ms, seen.answers), (30.0, 1));
        assert_eq!(seen.worst_gap_ms_by_kind["web"], 30.0);
    }

    #[test]
    fn settled_is_when_steady_clients_go_on_and_others_do_not_wait_since_before() {
        let mut ledger = Ledger::default();
        let (steady, web) = (ledger.add("probe", ms(10), true), ledger.add("web", ms(0), false));
        ledger.asked(steady, ms(0));
        ledger.asked(web, ms(0));
        let mark = ledger.mark();
        ledger.answered(steady, ms(10));
        assert!(!ledger.settled(&mark, 2, ms(5)));
        ledger.answered(steady, ms(20));
        assert!(!ledger.settled(&mark, 2, ms(5)), "the web client waits since before");
        ledger.answered(web, ms(21));
        assert!(ledger.settled(&mark, 2, ms(5)));
    }

    #[test]
    fn numbers_that_never_came_are_lost_and_those_outside_the_window_do_not_count() {
        let mut probe = Numbered::default();
        probe.next(ms(0));
        probe.open();
        for at in [10, 20, 30, 40] {
            probe.next(ms(at));
        }
        probe.close();
        probe.next(ms(50));
        // 2 to 5 count. 3's answer is lost on its way back, 4 never arrives, 5 arrives twice.
        for (number, answer) in [(1, 1), (2, 2), (5, 4), (5, 5), (6, 6)] {
            probe.answered(number, answer);
        }
        assert_eq!(probe.judge(), (Loss { lost: 2, duplicated: 1 }, 1));
        assert_eq!(probe.lost_at().collect::<Vec<_>>(), [ms(20), ms(30)]);
        assert!(!probe.whole());
        probe.answered(3, 3);
        probe.answered(4, 7);
        assert!(probe.whole());
    }

    #[test]
    fn a_player_counts_ticks_and_what_the_guest_missed_of_its_inputs() {
        let mut player = Player::default();
        for (tick, last, seen) in [(7, 100, 90), (8, 101, 91), (11, 105, 94), (11, 105, 94)] {
            player.tick(tick, last, seen);
        }
        assert_eq!(player.judge(), Loss { lost: 2 + 1, duplicated: 1 });
        assert_eq!(Player::default().judge(), Loss::default());
    }
}
