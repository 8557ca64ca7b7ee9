//! The policy, flat: one key per figure, its unit in the key, as `drover policy set KEY=VALUE` takes it.

use super::schema;
use crate::policy::{Aim, Eagerness, KOfN, MigrationPolicy, Mode, Money, MoveLimits, Policy as ModelPolicy};
use crate::{Bytes, MicroMoney, Millis, Ratio};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Every figure the detector and the planner decide by. A key left out of a whole policy (PUT) takes its default.
/// Shares of capacity are 1.0 for the whole; `_micro` is millionths of the currency unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// `observe`: find and say. `propose`: plan and wait for approval. `act`: plan and carry out.
    #[schema(schema_with = schema::mode)]
    pub mode: Mode,

    /// A host is hot when its forecast demand passes this share of its capacity ...
    #[schema(minimum = 0, maximum = 1)]
    pub hot_above: f64,
    /// ... in at least `k` of the last `n` samples.
    #[schema(minimum = 1, maximum = 120)]
    pub hot_evidence_k: u32,
    #[schema(minimum = 1, maximum = 120)]
    pub hot_evidence_n: u32,
    /// A host is cold when its demand stays below this share; less than `fill_to`.
    #[schema(minimum = 0, maximum = 1)]
    pub cold_below: f64,
    #[schema(minimum = 1, maximum = 120)]
    pub cold_evidence_k: u32,
    #[schema(minimum = 1, maximum = 120)]
    pub cold_evidence_n: u32,
    /// How full the planner fills a host at most, by forecast demand; less than `hot_above`.
    #[schema(minimum = 0, maximum = 1)]
    pub fill_to: f64,

    /// `balance`: all hosts stay on and vms are spread. `save`: as few hosts on as hold the load. `auto`: whatever is cheaper.
    #[schema(schema_with = schema::aim)]
    pub aim: Aim,
    /// From conservative (1) to aggressive (5): a voluntary move must earn its cost 8, 3, 1.5 or 1 times over within the
    /// horizon at 2, 3, 4 or 5; at 1 only hard rules, hot hosts and drained ones move anything.
    #[schema(minimum = 1, maximum = 5)]
    pub eagerness: u8,
    /// A sleeping host is woken when the demand of the hosts that are up passes this share of their capacity.
    #[schema(minimum = 0, maximum = 1)]
    pub wake_above: f64,
    /// Never fewer hosts up than this.
    #[schema(minimum = 1)]
    pub hosts_up_min: u32,
    /// A host that has slept this long is woken once to see that it still wakes; 0: never.
    #[schema(maximum = 7776000000_u64)]
    pub wake_trial_every_ms: u64,
    /// Plans keep room for the vms of any so many hosts that may be lost at once.
    #[schema(minimum = 0, maximum = 4)]
    pub spare_hosts: u32,
    /// How far ahead load is forecast.
    #[schema(maximum = 604800000)]
    pub forecast_ahead_ms: u64,
    /// Demand is taken at this quantile of the forecast.
    #[schema(minimum = 0.5, maximum = 0.999)]
    pub quantile: f64,

    /// A plan must gain at least this, after the cost of moving.
    #[schema(minimum = 0)]
    pub gain_min_micro: i64,
    /// A vm that moved is left alone this long, unless its host is hot, lost or drained.
    #[schema(maximum = 604800000)]
    pub vm_cooldown_ms: u64,
    /// A vm doesn't go back to a host it left this recently, unless it finds nothing else and must leave its own.
    #[schema(maximum = 21600000)]
    pub return_after_ms: u64,
    /// Moves of one vm by plans within an hour; 0 is no limit. What must leave its host goes regardless.
    pub moves_vm_hour_max: u32,
    /// Moves from and to one host by plans within an hour; 0 is no limit. What must leave its host goes regardless.
    pub moves_host_hour_max: u32,
    /// Moves in one plan; 0 is no limit.
    pub moves_plan_max: u32,
    /// How long a plan's effect settles before it is verified and the next plan may be made.
    #[schema(maximum = 604800000)]
    pub settle_ms: u64,

    #[schema(minimum = 1, maximum = 64)]
    pub migrations_at_once_max: u32,
    /// How long the guest may stand still at the switch-over.
    #[schema(minimum = 1, maximum = 60000)]
    pub migration_downtime_max_ms: u64,
    /// Pre-copy gives up after this long and the vm stays where it is.
    #[schema(minimum = 1000, maximum = 86400000)]
    pub migration_total_max_ms: u64,
    /// Per migration; 0 is no limit.
    pub migration_bandwidth_max_bytes_s: u64,
    /// How long the source waits, guest paused, for the commit before it takes the guest back.
    #[schema(minimum = 500, maximum = 60000)]
    pub migration_commit_wait_max_ms: u64,
    /// What one host's link may carry for migrations, each way; 0 is what the link is measured to carry.
    pub migration_host_bandwidth_max_bytes_s: u64,
    /// Share of its bandwidth that a migration begins with; it speeds up as the guest writes.
    #[schema(minimum = 1, maximum = 100)]
    pub migration_start_percent: u8,
    /// Migrations at once from or to one host; the others wait.
    #[schema(minimum = 1, maximum = 16)]
    pub migrations_per_host_max: u32,
    /// Whether a guest that writes faster than the link carries is moved by post-copy, which always ends, but needs both
    /// hosts while it lasts.
    pub migration_post_copy: bool,
    /// How far a guest may be slowed down for pre-copy to end where post-copy is not allowed.
    #[schema(maximum = 99)]
    pub migration_throttle_max_percent: u8,
    /// Whether memory is compressed, on several connections, where the link is slower than the processors.
    pub migration_compress: bool,
    /// Whether migration channels are encrypted and both ends prove who they are. Off only on a network nobody else is on.
    pub migration_tls: bool,
    /// How long a post-copy that lost its source waits for it while the source's agent says that it has the memory.
    #[schema(minimum = 1000, maximum = 3600000)]
    pub migration_recovery_max_ms: u64,
    /// The same while nothing is heard of the source: then the vm is started anew and its memory is lost.
    #[schema(minimum = 1000, maximum = 3600000)]
    pub migration_source_silence_max_ms: u64,

    /// Power of a host that is on and idle, and of one fully used.
    #[schema(minimum = 0, maximum = 100000)]
    pub host_idle_watts: f64,
    #[schema(minimum = 0, maximum = 100000)]
    pub host_busy_watts: f64,
    #[schema(minimum = 0)]
    pub energy_price_micro_kwh: i64,
    /// Of one core-hour that a vm wanted and did not get.
    #[schema(minimum = 0)]
    pub slowness_price_micro_core_h: i64,
    /// Of one GiB of memory sent.
    #[schema(minimum = 0)]
    pub transfer_price_micro_gib: i64,
    /// Of one second in which a vm stands still.
    #[schema(minimum = 0)]
    pub downtime_price_micro_s: i64,
    /// Of switching a host off and on again once.
    #[schema(minimum = 0)]
    pub power_cycle_price_micro: i64,
    /// How long a plan's effect is counted for.
    #[schema(minimum = 1, maximum = 604800000)]
    pub horizon_ms: u64,
}

/// What is wrong with a policy: the key as it is on the wire, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct BadPolicy {
    pub field: &'static str,
    pub problem: String,
}

impl Policy {
    /// The policy the loops work by, if every figure is in its range.
    pub fn checked(&self) -> Result<ModelPolicy, BadPolicy> {
        let policy = ModelPolicy::from(self);
        policy.check().map_err(|bad| BadPolicy { field: wire_key(bad.field), problem: bad.problem })?;
        Ok(policy)
    }

    /// This policy changed by a JSON merge patch (RFC 7396); `null` brings a key back to its default.
    pub fn patched(&self, patch: &serde_json::Value) -> Result<Self, serde_json::Error> {
        let serde_json::Value::Object(changes) = patch else {
            return Err(serde::de::Error::custom("a merge patch is a JSON object, e.g. {\"mode\": \"observe\"}"));
        };
        let mut whole = serde_json::to_value(self)?;
        let keys = whole.as_object_mut().expect("a struct serialises to an object");
        for (key, value) in changes {
            match value {
                serde_json::Value::Null if keys.contains_key(key) => drop(keys.remove(key)),
                // An unknown key with null goes in as it is, to be refused by name.
                value => drop(keys.insert(key.clone(), value.clone())),
            }
        }
        serde_json::from_value(whole)
    }
}

/// The wire's name of a field that [`ModelPolicy::check`] complains of.
fn wire_key(field: &'static str) -> &'static str {
    match field {
        "hot_evidence" => "hot_evidence_k",
        "cold_evidence" => "cold_evidence_k",
        "forecast_ahead" => "forecast_ahead_ms",
        "gain_min" => "gain_min_micro",
        "vm_cooldown" => "vm_cooldown_ms",
        "return_after" => "return_after_ms",
        "wake_trial_every" => "wake_trial_every_ms",
        "settle" => "settle_ms",
        "migration.downtime_max" => "migration_downtime_max_ms",
        "migration.total_max" => "migration_total_max_ms",
        "migration.bandwidth_max" => "migration_bandwidth_max_bytes_s",
        "migration.commit_wait_max" => "migration_commit_wait_max_ms",
        "migration.host_bandwidth_max" => "migration_host_bandwidth_max_bytes_s",
        "migration.start_percent" => "migration_start_percent",
        "migration.per_host_max" => "migrations_per_host_max",
        "migration.throttle_max" => "migration_throttle_max_percent",
        "migration.recovery_max" => "migration_recovery_max_ms",
        "migration.source_silence_max" => "migration_source_silence_max_ms",
        "money.host_idle_watts" => "host_idle_watts",
        "money.host_busy_watts" => "host_busy_watts",
        "money.energy_price" => "energy_price_micro_kwh",
        "money.slowness_price" => "slowness_price_micro_core_h",
        "money.transfer_price" => "transfer_price_micro_gib",
        "money.downtime_price" => "downtime_price_micro_s",
        "money.power_cycle_price" => "power_cycle_price_micro",
        "money.horizon" => "horizon_ms",
        same => same,
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::from(&ModelPolicy::default())
    }
}

impl From<&ModelPolicy> for Policy {
    fn from(policy: &ModelPolicy) -> Self {
        // Taken apart by name, so that a new field of the model can't be forgotten here.
        let ModelPolicy {
            mode,
            hot_above,
            hot_evidence,
            cold_below,
            cold_evidence,
            fill_to,
            aim,
            eagerness,
            wake_above,
            hosts_up_min,
            wake_trial_every,
            spare_hosts,
            forecast_ahead,
            quantile,
            gain_min,
            vm_cooldown,
            return_after,
            moves: MoveLimits { vm_hour_max, host_hour_max, plan_max },
            settle,
            migrations_at_once_max,
            migration:
                MigrationPolicy {
                    downtime_max,
                    total_max,
                    bandwidth_max,
                    commit_wait_max,
                    host_bandwidth_max,
                    start_percent,
                    per_host_max,
                    post_copy,
                    throttle_max,
                    compress,
                    tls,
                    recovery_max,
                    source_silence_max,
                },
            money:
                Money {
                    host_idle_watts,
                    host_busy_watts,
                    energy_price,
                    slowness_price,
                    transfer_price,
                    downtime_price,
                    power_cycle_price,
                    horizon,
                },
        } = policy.clone();
        Self {
            mode,
            hot_above: hot_above.0,
            hot_evidence_k: hot_evidence.k,
            hot_evidence_n: hot_evidence.n,
            cold_below: cold_below.0,
            cold_evidence_k: cold_evidence.k,
            cold_evidence_n: cold_evidence.n,
            fill_to: fill_to.0,
            aim,
            eagerness: eagerness.0,
            wake_above: wake_above.0,
            hosts_up_min,
            wake_trial_every_ms: wake_trial_every.0,
            spare_hosts,
            forecast_ahead_ms: forecast_ahead.0,
            quantile,
            gain_min_micro: gain_min.0,
            vm_cooldown_ms: vm_cooldown.0,
            return_after_ms: return_after.0,
            moves_vm_hour_max: vm_hour_max,
            moves_host_hour_max: host_hour_max,
            moves_plan_max: plan_max,
            settle_ms: settle.0,
            migrations_at_once_max,
            migration_downtime_max_ms: downtime_max.0,
            migration_total_max_ms: total_max.0,
            migration_bandwidth_max_bytes_s: bandwidth_max.0,
            migration_commit_wait_max_ms: commit_wait_max.0,
            migration_host_bandwidth_max_bytes_s: host_bandwidth_max.0,
            migration_start_percent: start_percent,
            migrations_per_host_max: per_host_max,
            migration_post_copy: post_copy,
            migration_throttle_max_percent: throttle_max,
            migration_compress: compress,
            migration_tls: tls,
            migration_recovery_max_ms: recovery_max.0,
            migration_source_silence_max_ms: source_silence_max.0,
            host_idle_watts,
            host_busy_watts,
            energy_price_micro_kwh: energy_price.0,
            slowness_price_micro_core_h: slowness_price.0,
            transfer_price_micro_gib: transfer_price.0,
            downtime_price_micro_s: downtime_price.0,
            power_cycle_price_micro: power_cycle_price.0,
            horizon_ms: horizon.0,
        }
    }
}

impl From<&Policy> for ModelPolicy {
    fn from(policy: &Policy) -> Self {
        Self {
            mode: policy.mode,
            hot_above: Ratio(policy.hot_above),
            hot_evidence: KOfN { k: policy.hot_evidence_k, n: policy.hot_evidence_n },
            cold_below: Ratio(policy.cold_below),
            cold_evidence: KOfN { k: policy.cold_evidence_k, n: policy.cold_evidence_n },
            fill_to: Ratio(policy.fill_to),
            aim: policy.aim,
            eagerness: Eagerness(policy.eagerness),
            wake_above: Ratio(policy.wake_above),
            hosts_up_min: policy.hosts_up_min,
            wake_trial_every: Millis(policy.wake_trial_every_ms),
            spare_hosts: policy.spare_hosts,
            forecast_ahead: Millis(policy.forecast_ahead_ms),
            quantile: policy.quantile,
            gain_min: MicroMoney(policy.gain_min_micro),
            vm_cooldown: Millis(policy.vm_cooldown_ms),
            return_after: Millis(policy.return_after_ms),
            moves: MoveLimits {
                vm_hour_max: policy.moves_vm_hour_max,
                host_hour_max: policy.moves_host_hour_max,
                plan_max: policy.moves_plan_max,
            },
            settle: Millis(policy.settle_ms),
            migrations_at_once_max: policy.migrations_at_once_max,
            migration: MigrationPolicy {
                downtime_max: Millis(policy.migration_downtime_max_ms),
                total_max: Millis(policy.migration_total_max_ms),
                bandwidth_max: Bytes(policy.migration_bandwidth_max_bytes_s),
                commit_wait_max: Millis(policy.migration_commit_wait_max_ms),
                host_bandwidth_max: Bytes(policy.migration_host_bandwidth_max_bytes_s),
                start_percent: policy.migration_start_percent,
                per_host_max: policy.migrations_per_host_max,
                post_copy: policy.migration_post_copy,
                throttle_max: policy.migration_throttle_max_percent,
                compress: policy.migration_compress,
                tls: policy.migration_tls,
                recovery_max: Millis(policy.migration_recovery_max_ms),
                source_silence_max: Millis(policy.migration_source_silence_max_ms),
            },
            money: Money {
                host_idle_watts: policy.host_idle_watts,
                host_busy_watts: policy.host_busy_watts,
                energy_price: MicroMoney(policy.energy_price_micro_kwh),
                slowness_price: MicroMoney(policy.slowness_price_micro_core_h),
                transfer_price: MicroMoney(policy.transfer_price_micro_gib),
                downtime_price: MicroMoney(policy.downtime_price_micro_s),
                power_cycle_price: MicroMoney(policy.power_cycle_price_micro),
                horizon: Millis(policy.horizon_ms),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_flat_policy_says_the_same_as_the_model_and_back() {
        let odd = ModelPolicy {
            mode: Mode::Propose,
            hot_evidence: KOfN { k: 2, n: 3 },
            settle: Millis(77),
            migration: MigrationPolicy {
                bandwidth_max: Bytes(5),
                start_percent: 7,
                per_host_max: 3,
                tls: false,
                recovery_max: Millis(11),
                ..MigrationPolicy::default()
            },
            money: Money { horizon: Millis(9), ..Money::default() },
            ..ModelPolicy::default()
        };
        let flat = Policy::from(&odd);
        assert_eq!(ModelPolicy::from(&flat), odd);
        let text = serde_json::to_string(&flat).unwrap();
        assert_eq!(serde_json::from_str::<Policy>(&text).unwrap(), flat);
    }

    #[test]
    fn a_merge_patch_changes_what_it_names_and_null_brings_the_default_back() {
        let base = Policy { hot_above: 0.9, settle_ms: 1, ..Policy::default() };
        let patched = base.patched(&json!({"mode": "observe", "settle_ms": null})).unwrap();
        assert_eq!(patched, Policy { mode: Mode::Observe, settle_ms: 20_000, ..base.clone() });
        for (patch, said) in [
            (json!({"hot_abov": 1}), "hot_abov"),
            (json!({"hot_abov": null}), "hot_abov"),
            (json!({"mode": "panic"}), "panic"),
            (json!([1]), "merge patch"),
        ] {
            let error = base.patched(&patch).unwrap_err().to_string();
            assert!(error.contains(said), "{patch}: {error}");
        }
    }

    #[test]
    fn a_figure_out_of_range_is_named_as_it_is_on_the_wire() {
        let field = |policy: Policy| policy.checked().unwrap_err().field;
        let base = Policy::default;
        assert_eq!(field(Policy { hot_evidence_k: 0, ..base() }), "hot_evidence_k");
        assert_eq!(field(Policy { migration_total_max_ms: 0, ..base() }), "migration_total_max_ms");
        assert_eq!(field(Policy { energy_price_micro_kwh: -1, ..base() }), "energy_price_micro_kwh");
        assert_eq!(field(Policy { gain_min_micro: -1, ..base() }), "gain_min_micro");
        assert_eq!(field(Policy { fill_to: 0.99, ..base() }), "fill_to");
        assert!(base().checked().is_ok());
        let keys = serde_json::to_value(base()).unwrap();
        for model in [
            "hot_evidence",
            "cold_evidence",
            "forecast_ahead",
            "gain_min",
            "vm_cooldown",
            "return_after",
            "wake_trial_every",
            "settle",
            "migration.downtime_max",
            "migration.total_max",
            "migration.bandwidth_max",
            "migration.commit_wait_max",
            "migration.host_bandwidth_max",
            "migration.start_percent",
            "migration.per_host_max",
            "migration.throttle_max",
            "migration.recovery_max",
            "migration.source_silence_max",
            "money.host_idle_watts",
            "money.host_busy_watts",
            "money.energy_price",
            "money.slowness_price",
            "money.transfer_price",
            "money.downtime_price",
            "money.power_cycle_price",
            "money.horizon",
            "quantile",
        ] {
            assert!(keys.get(wire_key(model)).is_some(), "{model} has no key on the wire");
        }
    }
}
