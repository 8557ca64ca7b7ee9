//! What no placement can go below as long as every vm gets what it asks for.

use super::day::{Day, SPAN_S};
use super::kinds::{G5, VmKind};
use super::world::{ROUNDS, round_s};

/// kWh of a day whose vms, cut into pieces, fill the better hosts to the brim: no host gives a MIPS for less. Vms that
/// are over no longer count.
pub fn lower_bound_kwh(day: &Day) -> f64 {
    let full_watts_per_mips = G5.watts[10] / G5.mips;
    let count = day.loads.len();
    let mut over = vec![false; count];
    let mut joules = 0.0;
    for round in 0..ROUNDS {
        let mut mips = 0.0;
        for ((ix, load), over) in day.loads.iter().enumerate().zip(&mut over) {
            let demand = load.at(round_s(round)) * VmKind::of(ix, count).mips;
            *over |= demand == 0.0;
            mips += if *over { 0.0 } else { demand };
        }
        joules += mips * full_watts_per_mips * SPAN_S;
    }
    joules / 3.6e6
}

#[cfg(test)]
mod tests {
    use super::super::day::tests::{made_up, steady};
    use super::*;

    #[test]
    fn the_bound_is_full_hosts_of_the_better_kind() {
        // 1000 + 800 + 300 + 100 MIPS all day.
        let hosts = 2200.0 / 5320.0;
        let kwh = hosts * 0.135 * 287.0 / 12.0;
        assert!((lower_bound_kwh(&steady(&[40, 40, 30, 20])) - kwh).abs() < 1e-9);
    }

    #[test]
    fn what_is_over_does_not_come_back() {
        let pause = made_up(4, |vm, sample| if vm == 0 && (9..=10).contains(&sample) { 0 } else { 50 });
        let gone = made_up(4, |vm, sample| if vm == 0 && sample >= 9 { 0 } else { 50 });
        assert!((lower_bound_kwh(&pause) - lower_bound_kwh(&gone)).abs() < 1e-9);
    }
}
