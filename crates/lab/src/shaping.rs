//! Links of a set speed: a token bucket (tc-tbf(8)) at both ends of a host's link.
//!
//! The bucket at the host's end holds back what the host's own programs send, as a network card does; the one at the
//! switch's end has a queue of a port's length, and drops what does not fit, as a switch does.

use crate::net::{HostNumber, LabNet};
use anyhow::Result;

/// A link's speed, the same both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Speed {
    pub mbit_s: u32,
}

impl Speed {
    pub fn bytes_s(self) -> u64 {
        u64::from(self.mbit_s) * 1_000_000 / 8
    }

    /// What may pass at once: a timer tick's worth, and never less than a segment of the largest size.
    fn burst_bytes(self) -> u64 {
        (self.bytes_s() / TICKS_PER_SECOND).max(SEGMENT_BYTES)
    }

    /// What may wait.
    fn queue_bytes(self) -> u64 {
        self.burst_bytes() + self.bytes_s() * QUEUE_MS / 1_000
    }
}

/// The slowest timer that kernels are built with.
const TICKS_PER_SECOND: u64 = 100;
/// Of segmentation offload, with headers.
const SEGMENT_BYTES: u64 = 68 << 10;
const QUEUE_MS: u64 = 50;

impl LabNet {
    /// Sets the speed of both links of a host: the management network's and the provider network's.
    pub fn shape(&self, number: HostNumber, speed: Speed) -> Result<()> {
        let rate = format!("{}mbit", speed.mbit_s);
        let (burst, limit) = (speed.burst_bytes().to_string(), speed.queue_bytes().to_string());
        let bucket = ["root", "tbf", "rate", &rate, "burst", &burst, "limit", &limit];
        let (host, switch) = (self.host(number), self.switch());
        for interface in ["eth0", "eth1"] {
            host.tc(&[&["qdisc", "replace", "dev", interface], &bucket[..]].concat())?;
        }
        for port in [number.mgmt_port(), number.prov_port()] {
            switch.tc(&[&["qdisc", "replace", "dev", &port], &bucket[..]].concat())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_lets_the_largest_segment_pass_and_a_queue_holds_a_twentieth_of_a_second() {
        let (slow, fast) = (Speed { mbit_s: 100 }, Speed { mbit_s: 1_000 });
        assert_eq!((slow.bytes_s(), fast.bytes_s()), (12_500_000, 125_000_000));
        assert_eq!((Speed { mbit_s: 10 }.burst_bytes(), fast.burst_bytes()), (SEGMENT_BYTES, 1_250_000));
        assert_eq!(slow.queue_bytes(), 125_000 + 625_000);
    }
}
