//! Which way a vm is moved: the plainest that ends within its bounds by prediction.

use super::{Features, Predictor};
use drover_model::inventory::MigrationFeature;
use drover_model::migration::{Method, Pace, Prediction, Strategy};
use drover_model::policy::MigrationPolicy;
use drover_model::{Bytes, Millis};
use std::collections::BTreeSet;

/// What one connection's thread encrypts or sends per second at most, roughly: above it several help.
const ONE_CHANNEL: Bytes = Bytes(1_100_000_000);
const ONE_CHANNEL_TLS: Bytes = Bytes(450_000_000);
/// What one thread compresses per second. Compression helps while the link is slower than all threads together.
const ONE_CHANNEL_ZSTD: Bytes = Bytes(120_000_000);
const CHANNELS_MAX: u64 = 8;
/// A guest is not even tried by pre-copy if it was measured to write again and again what so many stops carry. A try
/// that comes to nothing costs seconds; a post-copy costs its clients a stall, the longer the slower the link.
const STOPS_TO_DOUBT: f64 = 2.0;
/// A guest is taken for as calm as it was until it is measured to write this many times more.
const CALM_UP_TO: f64 = 1.5;
/// Compression takes processor time from the guests: what it saves must be worth it.
const COMPRESSED_BELOW: f64 = 0.8;

/// What policy, both hosts and whoever asks for the move allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed {
    /// Asked for by hand.
    pub method: Option<Method>,
    pub downtime_max: Millis,
    /// Pre-copy gives up after this long.
    pub total_max: Millis,
    pub post_copy: bool,
    pub multifd: bool,
    pub zstd: bool,
    pub tls: bool,
    /// Percent of the guest's processor time; 0: none.
    pub throttle_max: u8,
    /// Percent of its bandwidth that the first round goes at, 1 to 100.
    pub start_percent: u8,
}

impl Allowed {
    /// By policy alone, as if both hosts could do everything.
    pub fn by(policy: &MigrationPolicy) -> Self {
        Self {
            method: None,
            downtime_max: policy.downtime_max,
            total_max: policy.total_max,
            post_copy: policy.post_copy,
            multifd: true,
            zstd: policy.compress,
            tls: policy.tls,
            throttle_max: policy.throttle_max,
            start_percent: policy.start_percent,
        }
    }

    /// Without what one of the hosts can't do. TLS stays: a host without it must be refused, not served in the clear.
    #[must_use]
    pub fn between(self, from: &BTreeSet<MigrationFeature>, to: &BTreeSet<MigrationFeature>) -> Self {
        let both = |feature| from.contains(&feature) && to.contains(&feature);
        Self {
            post_copy: self.post_copy && both(MigrationFeature::PostCopy),
            multifd: self.multifd && both(MigrationFeature::Multifd),
            zstd: self.zstd && both(MigrationFeature::Multifd) && both(MigrationFeature::MultifdZstd),
            ..self
        }
    }
}

/// A strategy, what it is expected to take, and why this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub strategy: Strategy,
    pub prediction: Prediction,
    /// Completes "because ...".
    pub why: String,
}

impl Predictor {
    /// Pre-copy when it ends within the bounds, compressed where that helps; else post-copy, which always ends; else,
    /// where that is not allowed, pre-copy of a guest that is slowed down. What is asked for by hand is done as asked.
    pub fn choose(&self, features: &Features, allowed: &Allowed) -> Choice {
        let strategy = |method| self.strategy(features, allowed, method);
        if let Some(method) = allowed.method {
            let why = format!("{} was asked for", method.word());
            return self.choice(features, allowed, strategy(method), why);
        }
        let link = self.bandwidth(features);
        let plain = strategy(Method::PreCopy);
        let plain_total = self.predict(features, &plain, allowed.downtime_max).total.expected;
        let plain_ends = self.misses(features, allowed, &plain).is_none();
        if allowed.zstd && link < ONE_CHANNEL_ZSTD * CHANNELS_MAX {
            let channels = channels(link, ONE_CHANNEL_ZSTD).max(2);
            let packed = Strategy { channels, compress: true, ..plain };
            let total = self.predict(features, &packed, allowed.downtime_max).total.expected;
            let faster = (total.0 as f64) < COMPRESSED_BELOW * plain_total.0 as f64;
            if (faster || !plain_ends) && self.misses(features, allowed, &packed).is_none() {
                let why = format!("the link carries {link} a second, slower than memory is compressed");
                return self.choice(features, allowed, packed, why);
            }
        }
        let Some(miss) = self.misses(features, allowed, &plain) else {
            let why = "its rounds are expected to shrink until what is left fits the stop".to_owned();
            return self.choice(features, allowed, plain, why);
        };
        if allowed.post_copy {
            return self.choice(
                features,
                allowed,
                strategy(Method::PostCopy),
                format!("{miss}, and post-copy always ends"),
            );
        }
        let slowed = Strategy { throttle_max: allowed.throttle_max, ..plain };
        if allowed.throttle_max > 0 {
            let outcome = match self.misses(features, allowed, &slowed) {
                None => "slowed down it does",
                Some(_) => "even slowed down it may not; allow post-copy",
            };
            return self.choice(
                features,
                allowed,
                slowed,
                format!("{miss}; post-copy is not to be had, and {outcome}"),
            );
        }
        let why =
            format!("{miss}; allow post-copy or throttling, or give it more bandwidth, or it may come to nothing");
        self.choice(features, allowed, plain, why)
    }

    fn choice(&self, features: &Features, allowed: &Allowed, strategy: Strategy, why: String) -> Choice {
        Choice { strategy, prediction: self.predict(features, &strategy, allowed.downtime_max), why }
    }

    fn strategy(&self, features: &Features, allowed: &Allowed, method: Method) -> Strategy {
        let link = self.bandwidth(features);
        let per_channel = if allowed.tls { ONE_CHANNEL_TLS } else { ONE_CHANNEL };
        let several = allowed.multifd && method == Method::PreCopy;
        let max = features.bandwidth.unwrap_or(Bytes::ZERO);
        // A guest that stands still is not spared by sending slowly.
        let careful = allowed.start_percent < 100 && method != Method::StopAndCopy;
        let min = if careful { link.scale(f64::from(allowed.start_percent) / 100.0) } else { max };
        Strategy {
            method,
            channels: if several { channels(link, per_channel) } else { 1 },
            compress: false,
            throttle_max: 0,
            tls: allowed.tls,
            pace: Pace { min, max, paused: false },
        }
    }

    /// Why a pre-copy is not expected to end within its bounds.
    fn misses(&self, features: &Features, allowed: &Allowed, strategy: &Strategy) -> Option<String> {
        let link = self.bandwidth(features);
        let course = self.course(features, strategy, allowed.downtime_max);
        if !course.ends {
            return Some(format!(
                "it writes too fast for a link of {link} a second to be stopped for at most {}",
                allowed.downtime_max
            ));
        }
        // What was written within the span of a measurement may be written again at any speed: the rounds may never leave less.
        let hot = self.corrected(features, allowed.downtime_max, strategy).writing.map_or(Bytes::ZERO, |w| w.hot);
        let measured = features.writing.map_or(Bytes::ZERO, |w| w.hot);
        let known_calm = self.lessons.calm_at(&features.vm).is_some_and(|calm| measured <= calm.scale(CALM_UP_TO));
        let stops = if self.lessons.troubled(&features.vm) { 1.0 } else { STOPS_TO_DOUBT };
        if features.writing.is_some() && !known_calm && hot > link.scale(stops * allowed.downtime_max.as_secs()) {
            return Some(format!(
                "it writes {hot} again and again, more than a link of {link} a second carries in {}",
                allowed.downtime_max
            ));
        }
        let total = self.predict(features, strategy, allowed.downtime_max).total.expected;
        (total > allowed.total_max)
            .then(|| format!("pre-copy would take {total} and gives up after {}", allowed.total_max))
    }
}

fn channels(link: Bytes, per_channel: Bytes) -> u8 {
    link.0.div_ceil(per_channel.0).clamp(1, CHANNELS_MAX) as u8
}
