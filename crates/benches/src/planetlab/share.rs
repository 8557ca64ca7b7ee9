//! How a host shares its processors among its vms.

use super::kinds::HostKind;

/// Of what it asks for, a vm on its way gets this at its source.
pub const LEAVING_SHARE: f64 = 0.9;
/// Of what it asks for, a vm on its way weighs and gets this at its target.
const ARRIVING_SHARE: f64 = 0.1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Staying,
    Leaving,
    Arriving,
}

impl Way {
    pub fn of(in_migration: bool, arriving: bool) -> Self {
        match (in_migration, arriving) {
            (false, _) => Way::Staying,
            (true, false) => Way::Leaving,
            (true, true) => Way::Arriving,
        }
    }

    fn weight(self) -> f64 {
        if self == Way::Arriving { ARRIVING_SHARE } else { 1.0 }
    }

    fn given(self, mips: f64) -> f64 {
        match self {
            Way::Staying => mips,
            Way::Leaving => mips * LEAVING_SHARE,
            Way::Arriving => mips * ARRIVING_SHARE,
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// MIPS asked for; of more than a core has, a core is considered.
    pub demand: f64,
    pub way: Way,
}

#[derive(Debug, PartialEq)]
pub struct Shares {
    /// MIPS for each claim, in the claims' order.
    pub each: Vec<f64>,
    /// MIPS left.
    pub left: f64,
}

/// All get what they ask for, or, where that is too much, the same part of it in whole MIPS.
pub fn share(kind: &HostKind, claims: &[Claim]) -> Shares {
    let weight = |claim: &Claim| claim.demand.min(kind.core_mips) * claim.way.weight();
    let mut left = kind.mips;
    for claim in claims {
        if left < weight(claim) {
            let part = kind.mips / claims.iter().map(weight).sum::<f64>();
            let given = |claim: &Claim| claim.way.given(claim.demand.min(kind.core_mips) * part).floor();
            return Shares { each: claims.iter().map(given).collect(), left: 0.0 };
        }
        left -= weight(claim);
    }
    Shares { each: claims.iter().map(|claim| claim.way.given(claim.demand.min(kind.core_mips))).collect(), left }
}

#[cfg(test)]
mod tests {
    use super::super::kinds::G4;
    use super::*;

    fn claims(claims: &[(f64, Way)]) -> Vec<Claim> {
        claims.iter().map(|(demand, way)| Claim { demand: *demand, way: *way }).collect()
    }

    #[test]
    fn with_room_for_all_everybody_gets_what_it_asks_for_up_to_a_core() {
        let shares = share(&G4, &claims(&[(2500.0, Way::Staying), (1000.0, Way::Leaving), (1000.0, Way::Arriving)]));
        assert_eq!(shares, Shares { each: vec![1860.0, 900.0, 100.0], left: 760.0 });
    }

    #[test]
    fn without_it_all_get_the_same_part_in_whole_mips() {
        let all = [(1860.0, Way::Staying), (1500.0, Way::Leaving), (1000.0, Way::Staying), (600.0, Way::Arriving)];
        let shares = share(&G4, &claims(&all));
        let part = 3720.0_f64 / (1860.0 + 1500.0 + 1000.0 + 60.0);
        let each = [1860.0 * part, 1350.0 * part, 1000.0 * part, 60.0 * part].map(f64::floor);
        assert_eq!(shares, Shares { each: each.to_vec(), left: 0.0 });
    }
}
