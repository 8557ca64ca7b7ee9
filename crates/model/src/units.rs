//! Units. Integers inside, so that sums are exact and equal on every machine; the unit is in the type.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul, Sub};

macro_rules! amount {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            pub const ZERO: Self = Self(0);

            #[must_use]
            pub fn saturating_sub(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }

            /// `self / whole`; 0 when the whole is 0.
            pub fn ratio_of(self, whole: Self) -> Ratio {
                if whole.0 == 0 { Ratio(0.0) } else { Ratio(self.0 as f64 / whole.0 as f64) }
            }

            /// Rounded to the nearest whole unit.
            #[must_use]
            pub fn scale(self, by: f64) -> Self {
                Self((self.0 as f64 * by).round() as $inner)
            }
        }

        impl Add for $name {
            type Output = Self;
            fn add(self, other: Self) -> Self {
                Self(self.0 + other.0)
            }
        }

        impl AddAssign for $name {
            fn add_assign(&mut self, other: Self) {
                self.0 += other.0;
            }
        }

        impl Sub for $name {
            type Output = Self;
            fn sub(self, other: Self) -> Self {
                Self(self.0 - other.0)
            }
        }

        impl Sum for $name {
            fn sum<I: Iterator<Item = Self>>(items: I) -> Self {
                items.fold(Self::ZERO, Add::add)
            }
        }
    };
}

amount!(
    /// Memory, disk or traffic, in bytes.
    Bytes(u64)
);
amount!(
    /// Processor time per time, in thousandths of one core.
    CpuMillis(u64)
);
amount!(
    /// A duration in milliseconds.
    Millis(u64)
);
amount!(
    /// A point in time: milliseconds since 1970-01-01 UTC. Only the outermost shell reads a clock.
    TimeMs(u64)
);
amount!(
    /// Money in millionths of the currency unit of the price list; may be negative (a loss).
    MicroMoney(i64)
);
amount!(
    /// A cost rate: [`MicroMoney`] per hour.
    MicroMoneyPerHour(i64)
);

impl Bytes {
    pub const MIB: Self = Self(1 << 20);
    pub const GIB: Self = Self(1 << 30);

    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    pub fn as_mib(self) -> f64 {
        self.0 as f64 / (1u64 << 20) as f64
    }
}

impl Mul<u64> for Bytes {
    type Output = Self;
    fn mul(self, by: u64) -> Self {
        Self(self.0 * by)
    }
}

impl CpuMillis {
    pub const CORE: Self = Self(1000);

    pub fn cores(self) -> f64 {
        self.0 as f64 / 1000.0
    }
}

impl Millis {
    pub const fn secs(count: u64) -> Self {
        Self(count * 1000)
    }

    pub fn as_secs(self) -> f64 {
        self.0 as f64 / 1000.0
    }

    pub fn to_std(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0)
    }
}

impl TimeMs {
    /// How long ago `earlier` was; 0 if it is in the future (clocks step).
    pub fn since(self, earlier: TimeMs) -> Millis {
        Millis(self.0.saturating_sub(earlier.0))
    }

    #[must_use]
    pub fn plus(self, by: Millis) -> TimeMs {
        TimeMs(self.0 + by.0)
    }
}

impl MicroMoneyPerHour {
    /// What this rate amounts to over `span`.
    pub fn over(self, span: Millis) -> MicroMoney {
        MicroMoney((i128::from(self.0) * i128::from(span.0) / 3_600_000) as i64)
    }
}

/// A dimensionless share; 1.0 is the whole. May pass 1 (demand over capacity). Never NaN.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ratio(pub f64);

impl Ratio {
    pub fn percent(self) -> f64 {
        self.0 * 100.0
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} %", self.percent())
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let b = self.0 as f64;
        match self.0 {
            n if n >= 1 << 30 => write!(f, "{:.1} GiB", b / (1u64 << 30) as f64),
            n if n >= 1 << 20 => write!(f, "{:.0} MiB", b / (1u64 << 20) as f64),
            n if n >= 1 << 10 => write!(f, "{:.0} KiB", b / 1024.0),
            n => write!(f, "{n} B"),
        }
    }
}

impl fmt::Display for CpuMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} cores", self.cores())
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 10_000 { write!(f, "{} ms", self.0) } else { write!(f, "{:.1} s", self.as_secs()) }
    }
}

impl fmt::Display for MicroMoney {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.4}", self.0 as f64 / 1e6)
    }
}

impl fmt::Display for MicroMoneyPerHour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.4}/h", self.0 as f64 / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_over_a_span_is_exact_in_integers() {
        assert_eq!(MicroMoneyPerHour(3_600).over(Millis::secs(10)), MicroMoney(10));
        assert_eq!(MicroMoneyPerHour(-7_200).over(Millis(1_000)), MicroMoney(-2));
    }

    #[test]
    fn time_never_runs_negative() {
        assert_eq!(TimeMs(5).since(TimeMs(9)), Millis(0));
    }

    #[test]
    fn sizes_read_as_a_person_writes_them() {
        assert_eq!(Bytes::mib(128).to_string(), "128 MiB");
        assert_eq!(Bytes(3 << 29).to_string(), "1.5 GiB");
        assert_eq!(CpuMillis(450).to_string(), "0.45 cores");
    }
}
