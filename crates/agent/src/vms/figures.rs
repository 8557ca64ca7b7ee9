//! Between what the server says of a migration and what QEMU's drivers take and give.

use crate::identity::tls_dir;
use drover_model::migration::{self as model, DowntimePhases, MigrationProgress, MigrationReport};
use drover_model::policy::MigrationPolicy;
use drover_model::{Bytes, HostId, Millis};
use drover_qemu::migration::{Figures, Limits, Method, Pace, Progress, Strategy, Tls};
use std::path::Path;
use std::time::Duration;

/// The same way for QEMU, towards or from `peer`.
pub fn strategy_of(strategy: model::Strategy, peer: &HostId, state_dir: &Path) -> Strategy {
    let model::Strategy { method, channels, compress, throttle_max, tls, pace } = strategy;
    Strategy {
        method: match method {
            model::Method::PreCopy => Method::PreCopy,
            model::Method::PostCopy => Method::PostCopy,
            model::Method::StopAndCopy => Method::StopAndCopy,
        },
        channels,
        compress,
        throttle_max,
        tls: tls.then(|| Tls { directory: tls_dir(state_dir), peer: peer.to_string() }),
        pace: pace_of(pace),
    }
}

pub fn pace_of(pace: model::Pace) -> Pace {
    Pace { min: pace.min.0, max: pace.max.0, paused: pace.paused }
}

/// `pace` within what the policy allows every migration; 0 is no limit in both.
pub fn within(policy: &MigrationPolicy, pace: model::Pace) -> model::Pace {
    let max = match (pace.max, policy.bandwidth_max) {
        (Bytes::ZERO, most) => most,
        (max, Bytes::ZERO) => max,
        (max, most) => max.min(most),
    };
    model::Pace { max, ..pace }
}

pub fn limits_of(policy: &MigrationPolicy, resident: Option<Bytes>) -> Limits {
    Limits {
        downtime_max: policy.downtime_max.to_std(),
        total_max: policy.total_max.to_std(),
        commit_wait_max: policy.commit_wait_max.to_std(),
        resident: resident.map(|bytes| bytes.0),
    }
}

pub fn progress_of(progress: Progress) -> MigrationProgress {
    MigrationProgress {
        transferred: Bytes(progress.transferred),
        remaining: Bytes(progress.remaining),
        total: Bytes(progress.total),
        rounds: progress.rounds,
        dirty_rate: Bytes(progress.dirty_rate),
        throughput: Bytes(progress.throughput),
        throttled: progress.throttled,
    }
}

/// What the source knows; the server adds what was predicted and when the destination ran.
pub fn report_of(figures: &Figures) -> MigrationReport {
    let millis = |span: Duration| Millis(span.as_millis() as u64);
    MigrationReport {
        predicted_total: Millis::ZERO,
        total: millis(figures.total),
        downtime: Millis::ZERO,
        downtime_phases: DowntimePhases {
            commit: millis(figures.commit_wait),
            copy: millis(figures.copy),
            resume: Millis::ZERO,
        },
        transferred: Bytes(figures.transferred),
        memory: Bytes(figures.memory),
        in_use: Bytes(figures.in_use),
        rounds: figures.rounds,
        throughput: Bytes(figures.throughput),
        dirty_rate: Bytes(figures.dirty_rate),
        writable_working_set: Bytes(figures.writable_working_set),
        post_copied: Bytes(figures.post_copied),
        throttled: figures.throttled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrower_of_two_limits_counts_and_none_is_no_limit() {
        let max = |policy, pace| {
            let policy = MigrationPolicy { bandwidth_max: Bytes(policy), ..MigrationPolicy::default() };
            within(&policy, model::Pace { max: Bytes(pace), ..model::Pace::default() }).max.0
        };
        assert_eq!([max(0, 0), max(5, 0), max(0, 7), max(5, 7), max(9, 7)], [0, 5, 7, 5, 7]);
    }
}
