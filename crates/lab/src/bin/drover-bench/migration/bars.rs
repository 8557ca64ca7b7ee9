//! What is asked of drover, set against what was measured.

use super::moves::{Cell, Move, Spread, ratio};
use super::workloads::{SideName, Workload};
use serde::Serialize;

const GAP_MS_MAX: f64 = 300.0;
/// The network's and the switch-over's share beyond the downtime.
const OWN_SHARE_MS: f64 = 20.0;
const BYTES_PER_IN_USE_MAX: f64 = 1.3;
/// Of a guest that never lies still: its total time, in times its memory takes the link.
const DIABOLICAL_TIMES_MAX: f64 = 1.5;
/// The other side does not end by then.
pub const GIVEN_UP_AFTER_S: u64 = 60;
const TOTAL_OFF_MAX: f64 = 0.2;
const DOWNTIME_FACTOR_MAX: f64 = 1.5;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Met,
    Missed,
    /// There is nothing to judge by.
    NotMeasured,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bar {
    /// Of which workload and link, or of all.
    pub of: String,
    pub asked: String,
    pub measured: String,
    pub verdict: Verdict,
}

impl Bar {
    fn new(of: &str, asked: impl Into<String>, measured: impl Into<String>, met: Option<bool>) -> Self {
        let verdict = match met {
            Some(true) => Verdict::Met,
            Some(false) => Verdict::Missed,
            None => Verdict::NotMeasured,
        };
        Self { of: of.to_owned(), asked: asked.into(), measured: measured.into(), verdict }
    }

    /// At most so much, where both are known.
    fn at_most(of: &str, asked: &str, measured: Option<f64>, limit: Option<f64>, unit: &str) -> Self {
        let shown = |figure: Option<f64>| figure.map_or("-".to_owned(), |figure| format!("{figure:.1} {unit}"));
        let asked = format!("{asked} at most {}", shown(limit));
        Self::new(of, asked.trim_end(), shown(measured).trim_end(), measured.zip(limit).map(|(m, l)| m <= l))
    }
}

pub fn judge(cells: &[Cell], moves: &[Move]) -> Vec<Bar> {
    let drover = |cell: &&Cell| cell.side == SideName::Drover;
    let mut bars: Vec<Bar> = cells.iter().filter(drover).flat_map(|cell| of_cell(cell, cells)).collect();
    bars.extend(of_predictions(moves));
    bars
}

fn of_cell(cell: &Cell, cells: &[Cell]) -> Vec<Bar> {
    let of = &format!("{} {}", cell.workload, cell.link);
    let stock = cells
        .iter()
        .find(|other| (other.workload, other.link, other.side) == (cell.workload, cell.link, SideName::Stock));
    let median = |spread: Option<Spread>| spread.map(|spread| spread.median);
    let none = |asked: &str, count: u64| Bar::new(of, asked, count.to_string(), Some(count == 0));
    let all = |asked: &str, count: usize| {
        Bar::new(of, asked, format!("{count} of {}", cell.moves), Some(count == cell.moves))
    };
    let diabolical = cell.workload == Workload::Diabolical;
    let mut bars = vec![
        all("every move completes", cell.completed),
        all("memory intact after every move", cell.intact),
        none("no packet lost", cell.packets_lost),
        none("no connection reset", cell.connections_reset + cell.requests_unanswered),
        Bar::at_most(of, "client gap ever", cell.gap_ms.map(|gap| gap.max), Some(GAP_MS_MAX), "ms"),
        Bar::at_most(of, "median gap as stock's,", median(cell.gap_ms), stock.and_then(|s| median(s.gap_ms)), "ms"),
        Bar::at_most(
            of,
            "own share of the gap: downtime + 20 ms,",
            cell.own_share_ms,
            median(cell.downtime_ms).map(|downtime| downtime + OWN_SHARE_MS),
            "ms",
        ),
        Bar::at_most(
            of,
            "median downtime as stock's,",
            median(cell.downtime_ms),
            stock.and_then(|s| median(s.downtime_ms)),
            "ms",
        ),
    ];
    if let Some(limit) = cell.workload.downtime_bar_ms() {
        bars.push(Bar::at_most(of, "median downtime", median(cell.downtime_ms), Some(limit), "ms"));
    }
    if diabolical {
        let link_ms = 1_000.0 * (cell.workload.guest().memory_mib << 20) as f64 / cell.link.speed().bytes_s() as f64;
        let limit = Some(DIABOLICAL_TIMES_MAX * link_ms);
        bars.push(Bar::at_most(of, "total ever", cell.total_ms.map(|total| total.max), limit, "ms"));
        let ended = stock.map(|stock| stock.completed);
        let asked = format!("stock does not end within {GIVEN_UP_AFTER_S} s");
        let measured = ended.map_or("-".to_owned(), |ended| format!("{ended} ended"));
        bars.push(Bar::new(of, asked, measured, ended.map(|ended| ended == 0)));
    } else {
        let most = cell.bytes_per_in_use.map(|ratio| ratio.max);
        bars.push(Bar::at_most(of, "bytes by memory in use", most, Some(BYTES_PER_IN_USE_MAX), ""));
    }
    bars
}

/// Over all moves: how far off, at the median.
fn of_predictions(moves: &[Move]) -> [Bar; 2] {
    let done = || moves.iter().filter(|m| m.side == SideName::Drover && m.outcome.completed).map(|m| &m.outcome);
    let total = Spread::of(done().filter_map(|o| ratio(o.total_ms, o.predicted_total_ms)).map(|r| (r - 1.0).abs()));
    let downtime = Spread::of(
        done()
            .filter_map(|o| ratio(o.downtime_ms, o.predicted_downtime_ms))
            .filter(|r| *r > 0.0)
            .map(|r| r.max(1.0 / r)),
    );
    let percent = total.map(|total| total.median * 100.0);
    [
        Bar::at_most("all", "predicted total off at the median", percent, Some(TOTAL_OFF_MAX * 100.0), "%"),
        Bar::at_most(
            "all",
            "predicted downtime off at the median by a factor of",
            downtime.map(|downtime| downtime.median),
            Some(DOWNTIME_FACTOR_MAX),
            "",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::moves::tests::good;
    use super::super::workloads::Link;
    use super::*;

    fn verdicts(moves: &[Move]) -> Vec<(String, Verdict)> {
        let cells: Vec<Cell> = Workload::ALL
            .into_iter()
            .flat_map(|workload| SideName::ALL.map(|side| Cell::of(workload, Link::Gigabit, side, moves, &[])))
            .flatten()
            .collect();
        judge(&cells, moves).into_iter().map(|bar| (bar.asked, bar.verdict)).collect()
    }

    #[track_caller]
    fn check(moves: &[Move], asked: &str, verdict: Verdict) {
        let verdicts = verdicts(moves);
        let found: Vec<_> = verdicts.iter().filter(|(text, _)| text.starts_with(asked)).collect();
        assert!(!found.is_empty() && found.iter().all(|(_, v)| *v == verdict), "{asked}: {verdicts:#?}");
    }

    #[test]
    fn each_bar_is_missed_by_what_it_is_about() {
        let fine = good(Workload::Web, Link::Gigabit, SideName::Drover);
        let stock = Move { seen: Default::default(), ..good(Workload::Web, Link::Gigabit, SideName::Stock) };
        check(std::slice::from_ref(&fine), "no packet lost", Verdict::Met);
        check(std::slice::from_ref(&fine), "median gap as stock's", Verdict::NotMeasured);
        check(&[fine.clone(), stock], "median gap as stock's", Verdict::Missed);
        let changed = |change: fn(&mut Move)| {
            let mut m = fine.clone();
            change(&mut m);
            [m]
        };
        check(&changed(|m| m.seen.packets_lost = 1), "no packet lost", Verdict::Missed);
        check(&changed(|m| m.seen.connections_reset = 1), "no connection reset", Verdict::Missed);
        check(&changed(|m| m.seen.requests_unanswered = 1), "no connection reset", Verdict::Missed);
        check(&changed(|m| m.seen.worst_gap_ms = 300.1), "client gap ever", Verdict::Missed);
        check(&changed(|m| m.memory_intact = None), "memory intact", Verdict::Missed);
        check(&changed(|m| m.outcome.completed = false), "every move completes", Verdict::Missed);
        check(&changed(|m| m.outcome.downtime_ms = Some(60.1)), "median downtime at most 60", Verdict::Missed);
        check(&changed(|m| m.in_use_bytes = Some(38 << 20)), "bytes by memory in use", Verdict::Missed);
        check(&changed(|m| m.outcome.predicted_total_ms = Some(1_300.0)), "predicted total", Verdict::Missed);
        check(&changed(|m| m.outcome.predicted_downtime_ms = Some(13.0)), "predicted downtime", Verdict::Missed);
        check(&changed(|m| m.outcome.predicted_downtime_ms = None), "predicted downtime", Verdict::NotMeasured);
    }

    #[test]
    fn a_diabolical_guest_must_end_in_time_and_its_bytes_are_free() {
        let mut slow = good(Workload::Diabolical, Link::Gigabit, SideName::Drover);
        slow.outcome.transferred_bytes = Some(900 << 20);
        check(std::slice::from_ref(&slow), "total ever", Verdict::Met);
        assert!(verdicts(std::slice::from_ref(&slow)).iter().all(|(asked, _)| !asked.starts_with("bytes by")));
        slow.outcome.total_ms = Some(2_014.0);
        check(std::slice::from_ref(&slow), "total ever", Verdict::Missed);
        let mut stock = good(Workload::Diabolical, Link::Gigabit, SideName::Stock);
        check(&[slow.clone(), stock.clone()], "stock does not end", Verdict::Missed);
        stock.outcome.completed = false;
        check(&[slow, stock], "stock does not end", Verdict::Met);
    }
}
