//! What a day came to.

/// A vm from one update to the next.
#[derive(Debug, Clone, Copy)]
pub struct VmRecord {
    pub at_s: f64,
    /// MIPS.
    pub given: f64,
    pub asked: f64,
    pub in_migration: bool,
}

/// A host from one update to the next.
#[derive(Debug, Clone, Copy)]
pub struct HostRecord {
    pub at_s: f64,
    /// MIPS. A host that gives nothing is off.
    pub given: f64,
    /// What its vms ask for, those on their way to it in full.
    pub asked: f64,
}

/// Sums over a day.
#[derive(Debug, Default)]
pub struct Tally {
    pub rounds: usize,
    pub joules: f64,
    pub migrations: usize,
    /// Hosts that were off and are no more.
    pub wake_ups: usize,
    /// Host seconds on, and those of them in which less was given than was asked for.
    on_s: f64,
    short_s: f64,
    /// MIPS times seconds: asked for by vms, not given, and not given while in migration.
    asked: f64,
    missing: f64,
    missing_in_migration: f64,
}

impl Tally {
    /// Puts down a record. One of the same moment takes the place of the last.
    pub fn vm(&mut self, last: &mut Option<VmRecord>, record: VmRecord) {
        if let Some(last) = last.replace(record).filter(|last| last.at_s < record.at_s) {
            let span_s = record.at_s - last.at_s;
            let missing = (last.asked - last.given) * span_s;
            self.asked += last.asked * span_s;
            self.missing += missing;
            if last.in_migration && last.given < last.asked {
                self.missing_in_migration += missing;
            }
        }
    }

    pub fn host(&mut self, last: &mut Option<HostRecord>, record: HostRecord) {
        let Some(last) = last.replace(record) else { return };
        if last.at_s < record.at_s && last.given > 0.0 {
            let span_s = record.at_s - last.at_s;
            self.on_s += span_s;
            if last.given < last.asked {
                self.short_s += span_s;
            }
        }
        if last.given == 0.0 && record.given > 0.0 {
            self.wake_ups += 1;
        }
    }

    pub fn energy_kwh(&self) -> f64 {
        self.joules / 3.6e6
    }

    /// The part of the time on in which a host gave less than was asked for.
    pub fn slatah(&self) -> f64 {
        part(self.short_s, self.on_s)
    }

    /// The part of what vms asked for that they missed in migration.
    pub fn pdm(&self) -> f64 {
        part(self.missing_in_migration, self.asked)
    }

    pub fn slav(&self) -> f64 {
        self.slatah() * self.pdm()
    }

    /// kWh
    pub fn esv(&self) -> f64 {
        self.energy_kwh() * self.slav()
    }

    /// The part of what vms asked for that they missed at any time. SLAV does not know it: without migrations that is
    /// 0, however short vms are.
    pub fn missing(&self) -> f64 {
        part(self.missing, self.asked)
    }
}

fn part(of: f64, all: f64) -> f64 {
    if all > 0.0 { of / all } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_counts_as_what_its_beginning_was_and_the_last_word_of_a_moment_holds() {
        let mut tally = Tally::default();
        let mut last = None;
        for (at_s, given, asked) in
            [(0.0, 0.0, 0.0), (10.0, 9.0, 9.0), (20.0, 9.0, 9.0), (20.0, 8.0, 9.0), (50.0, 0.0, 0.0)]
        {
            tally.host(&mut last, HostRecord { at_s, given, asked });
        }
        assert_eq!((tally.slatah(), tally.wake_ups), (0.75, 1));
        let mut last = None;
        for (at_s, given, in_migration) in
            [(0.0, 9.0, true), (10.0, 9.0, false), (20.0, 10.0, true), (30.0, 0.0, false)]
        {
            tally.vm(&mut last, VmRecord { at_s, given, asked: 10.0, in_migration });
        }
        assert_eq!((tally.pdm(), tally.missing()), (10.0 / 300.0, 20.0 / 300.0));
    }
}
