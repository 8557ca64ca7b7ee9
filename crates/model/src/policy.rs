//! What the operator wants the loops to do, in terms a person understands. One per cluster.

use crate::kind::{Kind, Owner};
use crate::{Bytes, MicroMoney, Millis, Ratio};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Find and say; plan nothing.
    Observe,
    /// Plan, and wait for approval.
    Propose,
    /// Plan and carry out.
    Act,
}

/// At least `k` of the last `n` samples. One spike moves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KOfN {
    pub k: u32,
    pub n: u32,
}

/// What the pool is run for. Hard rules and the relief of hot hosts come first under each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aim {
    /// All hosts stay on; vms are spread so that nobody waits.
    Balance,
    /// As few hosts on as fill up to `fill_to`; vms move to empty a host or relieve one, never for mere evenness.
    Save,
    /// Whatever is cheaper in money: hosts are emptied and switched off, and vms are spread, where that pays.
    Auto,
}

impl Aim {
    /// Whether hosts are switched off.
    pub const fn saves_power(self) -> bool {
        !matches!(self, Self::Balance)
    }

    /// Whether vms move for evenness alone.
    pub const fn spreads(self) -> bool {
        !matches!(self, Self::Save)
    }
}

/// From conservative (1) to aggressive (5): how many times over a voluntary move must earn what it costs, within
/// `money.horizon`. At 1 only hard rules, hot hosts and drained ones move anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Eagerness(pub u8);

impl Eagerness {
    /// The multiple of its cost that a move must gain; `None`: voluntary moves are not made.
    pub fn payback(self) -> Option<f64> {
        match self.0 {
            0 | 1 => None,
            2 => Some(8.0),
            3 => Some(3.0),
            4 => Some(1.5),
            _ => Some(1.0),
        }
    }
}

/// Watts at 0, 10, ... 100 % of the processor, as SPECpower tables give them; linear between.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PowerCurve(pub [f64; 11]);

impl PowerCurve {
    /// Straight from idle to busy.
    pub fn linear(idle: f64, busy: f64) -> Self {
        Self(std::array::from_fn(|n| idle + (busy - idle) * n as f64 / 10.0))
    }

    /// Watts at `used`, which is held between 0 and 1.
    pub fn watts(&self, used: f64) -> f64 {
        let at = used.clamp(0.0, 1.0) * 10.0;
        let below = (at as usize).min(9);
        self.0[below] + (self.0[below + 1] - self.0[below]) * (at - below as f64)
    }

    /// Rising, finite, and at most 100 kW.
    pub fn is_sound(&self) -> bool {
        self.0.iter().all(|w| w.is_finite() && (0.0..=100_000.0).contains(w)) && self.0.is_sorted()
    }
}

/// Most moves that plans may make within an hour: backstops behind the price of moving. 0 is no limit. Drained, lost and
/// hot hosts are relieved regardless of the first two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MoveLimits {
    pub vm_hour_max: u32,
    /// From and to one host.
    pub host_hour_max: u32,
    pub plan_max: u32,
}

impl Default for MoveLimits {
    fn default() -> Self {
        Self { vm_hour_max: 4, host_hour_max: 60, plan_max: 0 }
    }
}

/// The key of a kind of which there is one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TheOne;

impl fmt::Display for TheOne {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cluster")
    }
}

impl FromStr for TheOne {
    type Err = std::convert::Infallible;
    fn from_str(_text: &str) -> Result<Self, Self::Err> {
        Ok(Self)
    }
}

impl Kind for Policy {
    const NAME: &'static str = "policy";
    type Key = TheOne;

    fn key(&self) -> TheOne {
        TheOne
    }

    fn owner(&self) -> Owner<'_> {
        Owner::Cluster
    }
}

/// Every figure the detector and the planner decide by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    pub mode: Mode,

    /// A host is hot when its forecast demand passes this share of its capacity, with [`Policy::hot_evidence`].
    pub hot_above: Ratio,
    pub hot_evidence: KOfN,
    /// A host is cold when its demand stays below this share, with [`Policy::cold_evidence`].
    pub cold_below: Ratio,
    pub cold_evidence: KOfN,
    /// How full the planner fills a host at most, by forecast demand.
    pub fill_to: Ratio,

    pub aim: Aim,
    pub eagerness: Eagerness,
    /// A sleeping host is woken when the forecast demand of the hosts that are up passes this share of their capacity.
    pub wake_above: Ratio,
    /// Never fewer hosts up than this.
    pub hosts_up_min: u32,
    /// A host that has slept this long is woken once to see that it still wakes; 0: never. At most 90 days.
    pub wake_trial_every: Millis,
    /// Every plan keeps room for the vms of any so many hosts that may be lost at once; one that lacks it already makes it
    /// no worse. 0 to 4.
    pub spare_hosts: u32,
    /// How far ahead load is forecast.
    pub forecast_ahead: Millis,
    /// Demand is taken at this quantile of the forecast (0.5 to 0.999).
    pub quantile: f64,

    /// A plan must gain at least this, after the cost of moving.
    pub gain_min: MicroMoney,
    /// A vm that moved is left alone this long, unless its host is hot, lost or drained.
    pub vm_cooldown: Millis,
    /// A vm doesn't go back to a host it left this recently, unless it finds nothing else and its host is hot, lost or
    /// drained. At most 6 h.
    pub return_after: Millis,
    pub moves: MoveLimits,
    /// How long a plan's effect settles before it is verified and the next plan may be made.
    pub settle: Millis,

    pub migrations_at_once_max: u32,
    pub migration: MigrationPolicy,
    pub money: Money,
}

/// Limits of one migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MigrationPolicy {
    /// How long the guest may stand still at the switch-over.
    pub downtime_max: Millis,
    /// Pre-copy gives up after this long and the vm stays where it is.
    pub total_max: Millis,
    /// Per second and migration; 0 is no limit.
    pub bandwidth_max: Bytes,
    /// How long the source waits, guest paused, for the commit before it takes the guest back.
    pub commit_wait_max: Millis,
    /// All that one host's link may carry for migrations, each way, per second; 0 is what the link is measured to carry.
    pub host_bandwidth_max: Bytes,
    /// Percent of its share of the link that a migration begins with, 1 to 100; below 100 it speeds up as the guest writes.
    /// At 100 a move that has its links to itself is not paced, and shows what they carry.
    pub start_percent: u8,
    /// Migrations at once from or to one host.
    pub per_host_max: u32,
    /// A guest that writes faster than the link carries is moved by post-copy, which always ends, but needs both hosts
    /// while it lasts.
    pub post_copy: bool,
    /// How far a guest may be slowed down for pre-copy to end where post-copy is not allowed; percent, 0 to 99.
    pub throttle_max: u8,
    /// Several compressed connections where the link is slower than the processors.
    pub compress: bool,
    /// Migration channels are encrypted and both ends prove who they are. Off only on a network nobody else is on.
    pub tls: bool,
    /// How long a post-copy that lost its source waits for it while the source's agent says that it has the memory.
    pub recovery_max: Millis,
    /// The same while nothing is heard of the source: then the vm is started anew and its memory is lost.
    pub source_silence_max: Millis,
}

/// The price list of design section 12: everything is compared in money.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Money {
    /// Power of a host that is on and idle, and of one fully used; watts.
    pub host_idle_watts: f64,
    pub host_busy_watts: f64,
    /// Per kilowatt-hour.
    pub energy_price: MicroMoney,
    /// Of one core-hour that a vm wanted and did not get.
    pub slowness_price: MicroMoney,
    /// Of one GiB of memory sent.
    pub transfer_price: MicroMoney,
    /// Of one second in which a vm stands still.
    pub downtime_price: MicroMoney,
    /// Of switching a host off and on again once: wear, and the energy of booting.
    pub power_cycle_price: MicroMoney,
    /// How long a plan's effect is counted for.
    pub horizon: Millis,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            mode: Mode::Act,
            hot_above: Ratio(0.85),
            hot_evidence: KOfN { k: 4, n: 6 },
            cold_below: Ratio(0.35),
            cold_evidence: KOfN { k: 50, n: 60 },
            fill_to: Ratio(0.75),
            aim: Aim::Balance,
            eagerness: Eagerness(3),
            wake_above: Ratio(0.70),
            hosts_up_min: 1,
            wake_trial_every: Millis::secs(7 * 86_400),
            spare_hosts: 0,
            forecast_ahead: Millis::secs(30),
            quantile: 0.9,
            gain_min: MicroMoney(100),
            vm_cooldown: Millis::secs(300),
            return_after: crate::world::VmView::LEFT_KEPT,
            moves: MoveLimits::default(),
            settle: Millis::secs(20),
            migrations_at_once_max: 2,
            migration: MigrationPolicy::default(),
            money: Money::default(),
        }
    }
}

impl Default for MigrationPolicy {
    fn default() -> Self {
        Self {
            downtime_max: Millis(300),
            total_max: Millis::secs(120),
            bandwidth_max: Bytes(0),
            commit_wait_max: Millis(5_000),
            host_bandwidth_max: Bytes(0),
            start_percent: 100,
            per_host_max: 2,
            post_copy: true,
            throttle_max: 0,
            compress: false,
            tls: true,
            recovery_max: Millis::secs(120),
            source_silence_max: Millis::secs(8),
        }
    }
}

impl Default for Money {
    fn default() -> Self {
        Self {
            host_idle_watts: 120.0,
            host_busy_watts: 300.0,
            energy_price: MicroMoney(250_000),
            slowness_price: MicroMoney(400_000),
            transfer_price: MicroMoney(20),
            downtime_price: MicroMoney(2_000),
            power_cycle_price: MicroMoney(3_000),
            horizon: Millis::secs(3_600),
        }
    }
}

/// What is wrong with a policy: the field, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct BadPolicy {
    pub field: &'static str,
    pub problem: String,
}

impl Policy {
    /// Ranges and relations that the loops rely on.
    pub fn check(&self) -> Result<(), BadPolicy> {
        let bad = |field, problem: &str| Err(BadPolicy { field, problem: problem.to_owned() });
        let share = |r: Ratio| r.0.is_finite() && (0.0..=1.0).contains(&r.0);
        for (field, value) in [
            ("hot_above", self.hot_above),
            ("cold_below", self.cold_below),
            ("fill_to", self.fill_to),
            ("wake_above", self.wake_above),
        ] {
            if !share(value) {
                return bad(field, "must lie between 0 and 1");
            }
        }
        if self.fill_to.0 >= self.hot_above.0 {
            return bad("fill_to", "must be below hot_above, or filled hosts would be hot at once");
        }
        if self.cold_below.0 >= self.fill_to.0 {
            return bad("cold_below", "must be below fill_to, or a host could be cold and full");
        }
        for (field, KOfN { k, n }) in [("hot_evidence", self.hot_evidence), ("cold_evidence", self.cold_evidence)] {
            if k == 0 || k > n || n as usize > crate::load::Window::<()>::SAMPLES_MAX {
                return bad(field, "k must be at least 1, at most n; n at most 120");
            }
        }
        if !(0.5..=0.999).contains(&self.quantile) {
            return bad("quantile", "must lie between 0.5 and 0.999");
        }
        if !(1..=5).contains(&self.eagerness.0) {
            return bad("eagerness", "must lie between 1 (conservative) and 5 (aggressive)");
        }
        if self.wake_trial_every.0 > 90 * 86_400_000 {
            return bad("wake_trial_every", "must be at most 90 days (7776000000 ms); 0 is never");
        }
        if self.spare_hosts > 4 {
            return bad("spare_hosts", "must lie between 0 and 4");
        }
        if self.return_after > crate::world::VmView::LEFT_KEPT {
            return bad("return_after", "must be at most six hours (21600000 ms): moves are remembered no longer");
        }
        if !(1..=64).contains(&self.migrations_at_once_max) {
            return bad("migrations_at_once_max", "must lie between 1 and 64");
        }
        if self.hosts_up_min == 0 {
            return bad("hosts_up_min", "must be at least 1");
        }
        if !(1..=60_000).contains(&self.migration.downtime_max.0) {
            return bad("migration.downtime_max", "must lie between 1 and 60000 ms");
        }
        if !(1_000..=86_400_000).contains(&self.migration.total_max.0) {
            return bad("migration.total_max", "must lie between 1000 and 86400000 ms");
        }
        if !(500..=60_000).contains(&self.migration.commit_wait_max.0) {
            return bad("migration.commit_wait_max", "must lie between 500 and 60000 ms");
        }
        if !(1..=100).contains(&self.migration.start_percent) {
            return bad("migration.start_percent", "must lie between 1 and 100");
        }
        if !(1..=16).contains(&self.migration.per_host_max) {
            return bad("migration.per_host_max", "must lie between 1 and 16");
        }
        if self.migration.throttle_max > 99 {
            return bad("migration.throttle_max", "must lie between 0 and 99 percent");
        }
        for (field, span) in [
            ("migration.recovery_max", self.migration.recovery_max),
            ("migration.source_silence_max", self.migration.source_silence_max),
        ] {
            if !(1_000..=3_600_000).contains(&span.0) {
                return bad(field, "must lie between 1000 and 3600000 ms");
            }
        }
        let m = &self.money;
        let watts = |w: f64| w.is_finite() && (0.0..=100_000.0).contains(&w);
        if !watts(m.host_idle_watts) || !watts(m.host_busy_watts) || m.host_busy_watts < m.host_idle_watts {
            return bad("money.host_busy_watts", "must be at least host_idle_watts; both from 0 to 100000");
        }
        for (field, price) in [
            ("money.energy_price", m.energy_price),
            ("money.slowness_price", m.slowness_price),
            ("money.transfer_price", m.transfer_price),
            ("money.downtime_price", m.downtime_price),
            ("money.power_cycle_price", m.power_cycle_price),
            ("gain_min", self.gain_min),
        ] {
            if !(0..=1_000_000_000_000).contains(&price.0) {
                return bad(field, "must lie between 0 and 1000000000000 micro-units");
            }
        }
        for (field, span) in [
            ("money.horizon", m.horizon),
            ("forecast_ahead", self.forecast_ahead),
            ("vm_cooldown", self.vm_cooldown),
            ("settle", self.settle),
        ] {
            if span.0 > 7 * 86_400_000 {
                return bad(field, "must be at most a week (604800000 ms)");
            }
        }
        if m.horizon.0 == 0 {
            return bad("money.horizon", "must be above 0, or no plan could ever gain");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_policy_is_sound() {
        assert_eq!(Policy::default().check(), Ok(()));
    }

    #[test]
    fn a_bad_policy_names_its_field() {
        let check = |change: &dyn Fn(&mut Policy)| {
            let mut policy = Policy::default();
            change(&mut policy);
            policy.check().map_err(|e| e.field)
        };
        assert_eq!(check(&|p| p.fill_to = Ratio(0.9)), Err("fill_to"));
        assert_eq!(check(&|p| p.hot_above = Ratio(f64::NAN)), Err("hot_above"));
        assert_eq!(check(&|p| p.hot_evidence = KOfN { k: 7, n: 6 }), Err("hot_evidence"));
        assert_eq!(check(&|p| p.money.horizon = Millis(0)), Err("money.horizon"));
        assert_eq!(check(&|p| p.migration.downtime_max = Millis(0)), Err("migration.downtime_max"));
    }

    #[test]
    fn unknown_keys_are_refused() {
        let error = serde_json::from_str::<Policy>(r#"{"hot_abov": 0.5}"#).unwrap_err();
        assert!(error.to_string().contains("hot_abov"), "{error}");
    }
}
