//! The policy's keys, named as in the API and `drover policy show`.

use drover_model::policy::{Aim, Eagerness, Mode, Policy};
use drover_model::{Bytes, MicroMoney, Millis, Ratio};
use std::str::FromStr;

struct Key {
    name: &'static str,
    /// In [`Policy`].
    path: &'static str,
    show: fn(&Policy) -> String,
    read: fn(&mut Policy, &str) -> Result<(), &'static str>,
    copy: fn(&mut Policy, &Policy),
}

macro_rules! keys {
    ($($name:literal = $($path:ident).+),+ $(,)?) => {
        const KEYS: &[Key] = &[$(Key {
            name: $name,
            path: stringify!($($path).+),
            show: |policy| policy.$($path).+.show(),
            read: |policy, text| {
                policy.$($path).+ = Value::read(text)?;
                Ok(())
            },
            copy: |policy, from| policy.$($path).+ = from.$($path).+,
        }),+];
    };
}

keys! {
    "mode" = mode,
    "hot_above" = hot_above,
    "hot_evidence_k" = hot_evidence.k,
    "hot_evidence_n" = hot_evidence.n,
    "cold_below" = cold_below,
    "cold_evidence_k" = cold_evidence.k,
    "cold_evidence_n" = cold_evidence.n,
    "fill_to" = fill_to,
    "aim" = aim,
    "eagerness" = eagerness,
    "wake_above" = wake_above,
    "hosts_up_min" = hosts_up_min,
    "wake_trial_every_ms" = wake_trial_every,
    "spare_hosts" = spare_hosts,
    "forecast_ahead_ms" = forecast_ahead,
    "quantile" = quantile,
    "gain_min_micro" = gain_min,
    "vm_cooldown_ms" = vm_cooldown,
    "return_after_ms" = return_after,
    "moves_vm_hour_max" = moves.vm_hour_max,
    "moves_host_hour_max" = moves.host_hour_max,
    "moves_plan_max" = moves.plan_max,
    "settle_ms" = settle,
    "migrations_at_once_max" = migrations_at_once_max,
    "migration_downtime_max_ms" = migration.downtime_max,
    "migration_total_max_ms" = migration.total_max,
    "migration_bandwidth_max_bytes_s" = migration.bandwidth_max,
    "migration_commit_wait_max_ms" = migration.commit_wait_max,
    "migration_host_bandwidth_max_bytes_s" = migration.host_bandwidth_max,
    "migration_start_percent" = migration.start_percent,
    "migrations_per_host_max" = migration.per_host_max,
    "migration_post_copy" = migration.post_copy,
    "migration_throttle_max_percent" = migration.throttle_max,
    "migration_compress" = migration.compress,
    "migration_tls" = migration.tls,
    "migration_recovery_max_ms" = migration.recovery_max,
    "migration_source_silence_max_ms" = migration.source_silence_max,
    "host_idle_watts" = money.host_idle_watts,
    "host_busy_watts" = money.host_busy_watts,
    "energy_price_micro_kwh" = money.energy_price,
    "slowness_price_micro_core_h" = money.slowness_price,
    "transfer_price_micro_gib" = money.transfer_price,
    "downtime_price_micro_s" = money.downtime_price,
    "power_cycle_price_micro" = money.power_cycle_price,
    "horizon_ms" = money.horizon,
}

/// The policy's keys and values, in the order of the type.
pub fn policy_keys(policy: &Policy) -> impl Iterator<Item = (&'static str, String)> {
    KEYS.iter().map(|key| (key.name, (key.show)(policy)))
}

/// Sets one key; no value at all is its default. Ranges are [`Policy::check`]'s. The error is what was expected.
pub fn set_policy(policy: &mut Policy, key: &str, value: &str) -> Result<(), String> {
    let Some(known) = KEYS.iter().find(|known| known.name == key) else {
        return Err("a key of the policy, as `drover policy show` and docs/planner.md list them".to_owned());
    };
    if value.is_empty() {
        (known.copy)(policy, &Policy::default());
        return Ok(());
    }
    (known.read)(policy, value).map_err(str::to_owned)
}

/// The key of a field that [`Policy::check`] complains of.
pub(super) fn key_of_field(field: &str) -> Option<&'static str> {
    let of_field = |path: &str| path.strip_prefix(field).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    KEYS.iter().find(|key| of_field(&key.path.replace(' ', ""))).map(|key| key.name)
}

trait Value: Sized {
    fn show(&self) -> String;
    fn read(text: &str) -> Result<Self, &'static str>;
}

fn number<T: FromStr>(text: &str) -> Result<T, &'static str> {
    text.parse().map_err(|_| "a whole number")
}

macro_rules! whole {
    ($($name:ty),+) => {$(
        impl Value for $name {
            fn show(&self) -> String {
                self.to_string()
            }
            fn read(text: &str) -> Result<Self, &'static str> {
                number(text)
            }
        }
    )+};
}
whole!(u8, u32);

macro_rules! unit {
    ($($name:ident),+) => {$(
        impl Value for $name {
            fn show(&self) -> String {
                self.0.to_string()
            }
            fn read(text: &str) -> Result<Self, &'static str> {
                number(text).map($name)
            }
        }
    )+};
}
unit!(Millis, Bytes, MicroMoney, Eagerness);

impl Value for f64 {
    fn show(&self) -> String {
        self.to_string()
    }
    fn read(text: &str) -> Result<Self, &'static str> {
        text.parse().ok().filter(|number: &f64| number.is_finite()).ok_or("a number")
    }
}

impl Value for Ratio {
    fn show(&self) -> String {
        self.0.show()
    }
    fn read(text: &str) -> Result<Self, &'static str> {
        Value::read(text).map(Ratio)
    }
}

impl Value for bool {
    fn show(&self) -> String {
        self.to_string()
    }
    fn read(text: &str) -> Result<Self, &'static str> {
        text.parse().map_err(|_| "true or false")
    }
}

impl Value for Mode {
    fn show(&self) -> String {
        match self {
            Self::Observe => "observe",
            Self::Propose => "propose",
            Self::Act => "act",
        }
        .to_owned()
    }
    fn read(text: &str) -> Result<Self, &'static str> {
        let all = [Self::Observe, Self::Propose, Self::Act];
        all.into_iter().find(|mode| mode.show() == text).ok_or("observe, propose or act")
    }
}

impl Value for Aim {
    fn show(&self) -> String {
        match self {
            Self::Balance => "balance",
            Self::Save => "save",
            Self::Auto => "auto",
        }
        .to_owned()
    }
    fn read(text: &str) -> Result<Self, &'static str> {
        let all = [Self::Balance, Self::Save, Self::Auto];
        all.into_iter().find(|aim| aim.show() == text).ok_or("balance, save or auto")
    }
}
