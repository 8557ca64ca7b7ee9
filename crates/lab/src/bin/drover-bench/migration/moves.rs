//! One move as it was measured, and the cells that moves are gathered in.

use super::clients::Checked;
use super::clients::ledger::Seen;
use super::noise::Noise;
use super::workloads::{Link, SideName, Workload};
use drover_api::v1::MigrationView;
use serde::Serialize;

/// Everything that was measured of one move.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Move {
    pub workload: Workload,
    pub link: Link,
    pub side: SideName,
    pub round: u32,
    pub from: String,
    pub to: String,
    #[serde(flatten)]
    pub outcome: Outcome,
    /// From the request until it was seen to be over.
    pub wall_ms: f64,
    /// At the source, before the move.
    pub in_use_bytes: Option<u64>,
    pub seen: Seen,
    /// Whether every client got what it asks for again, within the limit.
    pub clients_served: bool,
    /// As the guest itself finds by its patterns; `None`: it did not answer.
    pub memory_intact: Option<bool>,
    pub pages_wrong: Option<u64>,
    /// Whether it is the same boot.
    pub same_boot: Option<bool>,
    pub database: Option<Checked>,
    pub noise: Noise,
}

impl Control {
    /// What a client waited beyond the time that the guest stood still.
    fn beyond_ms(&self) -> f64 {
        self.seen.worst_gap_ms - self.stood_still_ms
    }
}

impl ControlKind {
    pub fn word(self) -> &'static str {
        match self {
            Self::Rest => "rest",
            Self::Pause => "pause",
            Self::ColdPause => "cold pause",
        }
    }
}

impl Move {
    /// Memory and, where there is one, database.
    pub fn intact(&self) -> bool {
        let database = self.database.as_ref().is_none_or(|checked| checked.wrong == 0);
        self.memory_intact == Some(true) && self.same_boot == Some(true) && database
    }

    pub fn bytes_per_in_use(&self) -> Option<f64> {
        let in_use = self.in_use_bytes.filter(|bytes| *bytes > 0)?;
        Some(self.outcome.transferred_bytes? as f64 / in_use as f64)
    }
}

/// As the one who moves it says.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Outcome {
    pub completed: bool,
    pub why: Option<String>,
    pub total_ms: Option<f64>,
    pub downtime_ms: Option<f64>,
    pub transferred_bytes: Option<u64>,
    pub rounds: Option<u64>,
    /// Drover only.
    pub strategy: Option<String>,
    pub predicted_total_ms: Option<f64>,
    pub predicted_downtime_ms: Option<f64>,
    pub predicted_bytes: Option<u64>,
    /// Drover's whole account of it.
    pub migration: Option<MigrationView>,
}

/// The guest stands still, or not even that, and moves nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControlKind {
    /// Nothing is done to it.
    Rest,
    /// It stands still for so long.
    Pause,
    /// It stands still for so long, and what was translated of it is forgotten meanwhile.
    ColdPause,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Control {
    pub workload: Workload,
    pub link: Link,
    pub kind: ControlKind,
    /// Whose median downtime it imitates.
    pub like: SideName,
    /// A cold pause takes longer than what it imitates.
    pub stood_still_ms: f64,
    pub seen: Seen,
    pub noise: Noise,
}

/// Median, and least and most, of some figures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub count: usize,
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

impl Spread {
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        let (first, last) = (*figures.first()?, *figures.last()?);
        let middle = figures.len() / 2;
        let median = if figures.len().is_multiple_of(2) {
            (figures[middle - 1] + figures[middle]) / 2.0
        } else {
            figures[middle]
        };
        Some(Self { count: figures.len(), min: first, median, max: last })
    }
}

/// All moves of one workload over one link by one side.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cell {
    pub workload: Workload,
    pub link: Link,
    pub side: SideName,
    pub moves: usize,
    pub completed: usize,
    pub total_ms: Option<Spread>,
    pub downtime_ms: Option<Spread>,
    /// Of completed moves after which the guest answered.
    pub gap_ms: Option<Spread>,
    /// The same guest at rest, for as long as a move takes.
    pub rest_gap_ms: Option<Spread>,
    /// What a guest that stands still and goes on adds to the gap beyond that time, warm and cold.
    pub pause_beyond_ms: Option<Spread>,
    pub cold_beyond_ms: Option<Spread>,
    /// Median gap less what a guest adds that starts from cold: the network's and the switch-over's share, the downtime
    /// in it.
    pub own_share_ms: Option<f64>,
    pub packets_sent: u64,
    pub packets_lost: u64,
    pub packets_duplicated: u64,
    pub connections_reset: u64,
    pub requests_unanswered: u64,
    pub bytes_per_in_use: Option<Spread>,
    /// Moves after which memory, boot and database were as they should be.
    pub intact: usize,
    /// Moves after which the guest never answered again.
    pub guests_lost: usize,
    pub strategies: Vec<String>,
    /// Measured by predicted.
    pub total_by_predicted: Option<Spread>,
    pub downtime_by_predicted: Option<Spread>,
    pub steal_percent_max: f64,
    pub runnable_mean: f64,
}

impl Cell {
    /// `None` if there was no such move.
    pub fn of(workload: Workload, link: Link, side: SideName, moves: &[Move], controls: &[Control]) -> Option<Self> {
        let all: Vec<&Move> = moves.iter().filter(|m| (m.workload, m.link, m.side) == (workload, link, side)).collect();
        if all.is_empty() {
            return None;
        }
        let done: Vec<&Move> = all.iter().copied().filter(|m| m.outcome.completed).collect();
        let spread = |figure: fn(&Move) -> Option<f64>| Spread::of(done.iter().filter_map(|m| figure(m)));
        let sum = |figure: fn(&Seen) -> u64| all.iter().map(|m| figure(&m.seen)).sum();
        let control = |kind| {
            let of_kind =
                controls.iter().filter(|c| (c.workload, c.link, c.like, c.kind) == (workload, link, side, kind));
            Spread::of(of_kind.map(Control::beyond_ms))
        };
        let gap_ms = spread(|m| m.memory_intact.map(|_| m.seen.worst_gap_ms));
        let cold_beyond_ms = control(ControlKind::ColdPause);
        let mut strategies: Vec<String> = all.iter().filter_map(|m| m.outcome.strategy.clone()).collect();
        strategies.sort();
        strategies.dedup();
        Some(Self {
            workload,
            link,
            side,
            moves: all.len(),
            completed: done.len(),
            total_ms: spread(|m| m.outcome.total_ms),
            downtime_ms: spread(|m| m.outcome.downtime_ms),
            gap_ms,
            rest_gap_ms: control(ControlKind::Rest),
            pause_beyond_ms: control(ControlKind::Pause),
            cold_beyond_ms,
            own_share_ms: gap_ms.zip(cold_beyond_ms).map(|(gap, cold)| gap.median - cold.median.max(0.0)),
            packets_sent: sum(|seen| seen.packets_sent),
            packets_lost: sum(|seen| seen.packets_lost),
            packets_duplicated: sum(|seen| seen.packets_duplicated),
            connections_reset: sum(|seen| seen.connections_reset),
            requests_unanswered: sum(|seen| seen.requests_unanswered),
            bytes_per_in_use: spread(Move::bytes_per_in_use),
            intact: all.iter().filter(|m| m.intact()).count(),
            guests_lost: all.iter().filter(|m| m.memory_intact.is_none()).count(),
            strategies,
            total_by_predicted: spread(|m| ratio(m.outcome.total_ms, m.outcome.predicted_total_ms)),
            downtime_by_predicted: spread(|m| ratio(m.outcome.downtime_ms, m.outcome.predicted_downtime_ms)),
            steal_percent_max: all.iter().map(|m| m.noise.steal_percent).fold(0.0, f64::max),
            runnable_mean: all.iter().map(|m| m.noise.runnable_mean).sum::<f64>() / all.len() as f64,
        })
    }
}

/// Where both are known and the second is not zero.
pub fn ratio(measured: Option<f64>, predicted: Option<f64>) -> Option<f64> {
    Some(measured? / predicted.filter(|predicted| *predicted > 0.0)?)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A move that went well.
    pub fn good(workload: Workload, link: Link, side: SideName) -> Move {
        Move {
            workload,
            link,
            side,
            round: 1,
            from: "h1".into(),
            to: "h2".into(),
            outcome: Outcome {
                completed: true,
                total_ms: Some(1_000.0),
                downtime_ms: Some(20.0),
                transferred_bytes: Some(50 << 20),
                predicted_total_ms: Some(1_100.0),
                predicted_downtime_ms: Some(25.0),
                ..Outcome::default()
            },
            wall_ms: 1_100.0,
            in_use_bytes: Some(50 << 20),
            seen: Seen { worst_gap_ms: 80.0, packets_sent: 300, ..Seen::default() },
            clients_served: true,
            memory_intact: Some(true),
            pages_wrong: Some(0),
            same_boot: Some(true),
            database: None,
            noise: Noise::default(),
        }
    }

    #[test]
    fn a_spread_is_told_by_its_middle_and_its_ends() {
        assert_eq!(Spread::of([]), None);
        let spread = Spread::of([5.0, 1.0, 3.0]).unwrap();
        assert_eq!((spread.min, spread.median, spread.max, spread.count), (1.0, 3.0, 5.0, 3));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 9.0]).unwrap().median, 3.0);
    }

    #[test]
    fn a_cell_counts_its_own_moves_and_takes_times_of_completed_ones_only() {
        let (workload, link, side) = (Workload::Game, Link::Fast, SideName::Drover);
        let mut stayed = good(workload, link, side);
        stayed.outcome.completed = false;
        stayed.outcome.total_ms = Some(60_000.0);
        stayed.seen.packets_lost = 3;
        let mut torn = good(workload, link, side);
        torn.database = Some(Checked { pages: 9, wrong: 1 });
        let other = good(workload, link, SideName::Stock);
        let cold = Control {
            workload,
            link,
            kind: ControlKind::ColdPause,
            like: side,
            stood_still_ms: 800.0,
            seen: Seen { worst_gap_ms: 845.0, ..Seen::default() },
            noise: Noise::default(),
        };
        let moves = [good(workload, link, side), stayed, torn, other];
        let cell = Cell::of(workload, link, side, &moves, &[cold]).unwrap();
        assert_eq!((cell.moves, cell.completed, cell.intact, cell.packets_lost), (3, 2, 2, 3));
        assert_eq!(cell.total_ms.unwrap().max, 1_000.0);
        assert_eq!((cell.cold_beyond_ms.unwrap().median, cell.own_share_ms), (45.0, Some(35.0)));
        assert_eq!(cell.bytes_per_in_use.unwrap().median, 1.0);
        assert_eq!(Cell::of(Workload::Web, link, side, &moves, &[]), None);
    }
}
