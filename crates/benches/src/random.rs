//! Numbers from a seed, for made-up inputs.

/// SplitMix64 (Steele et al., OOPSLA 2014): small, and the same everywhere.
pub struct Random(pub u64);

impl Random {
    /// From 0 to `limit`, without it.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}
