//! The hosts and vms of the benchmark: two servers of 2009 with their SPECpower figures, four sizes of vm.

/// A host has as many as half of [`HOSTS`] of each of the two kinds, even ids being the first.
pub const HOSTS: usize = 800;

/// A kind of host.
#[derive(Debug, PartialEq)]
pub struct HostKind {
    pub name: &'static str,
    pub core_mips: f64,
    pub mips: f64,
    pub ram_mb: u32,
    pub bandwidth_kbit_s: u32,
    /// Watts at 0, 10, ... 100 % of its processors (SPECpower_ssj2008).
    pub watts: [f64; 11],
}

/// HP ProLiant ML110 G4, Xeon 3040.
pub static G4: HostKind = HostKind {
    name: "G4",
    core_mips: 1860.0,
    mips: 3720.0,
    ram_mb: 4096,
    bandwidth_kbit_s: 1_000_000,
    watts: [86.0, 89.4, 92.6, 96.0, 99.5, 102.0, 106.0, 108.0, 112.0, 114.0, 117.0],
};

/// HP ProLiant ML110 G5, Xeon 3075.
pub static G5: HostKind = HostKind {
    name: "G5",
    core_mips: 2660.0,
    mips: 5320.0,
    ram_mb: 4096,
    bandwidth_kbit_s: 1_000_000,
    watts: [93.7, 97.0, 101.0, 105.0, 110.0, 116.0, 121.0, 125.0, 129.0, 133.0, 135.0],
};

impl HostKind {
    /// Of the host with this number.
    pub fn of(host: usize) -> &'static HostKind {
        if host.is_multiple_of(2) { &G4 } else { &G5 }
    }

    /// Watts at a utilisation of 0 to 1 (what is beyond is taken as 1): linear between the table's neighbours. This
    /// is a host that is on; one that is off draws nothing, which the caller knows.
    pub fn power(&self, utilisation: f64) -> f64 {
        let utilisation = utilisation.min(1.0);
        let tenth = (utilisation * 10.0).floor();
        let lower = tenth as usize;
        if utilisation % 0.1 == 0.0 || lower == 10 {
            return self.watts[(utilisation * 10.0) as usize];
        }
        let slope = (self.watts[lower + 1] - self.watts[lower]) / 10.0;
        self.watts[lower] + slope * (utilisation - tenth / 10.0) * 100.0
    }
}

/// A kind of vm: one virtual processor.
#[derive(Debug, PartialEq)]
pub struct VmKind {
    pub mips: f64,
    pub ram_mb: u32,
}

pub const VM_BANDWIDTH_KBIT_S: u32 = 100_000;

static VM_KINDS: [VmKind; 4] = [
    VmKind { mips: 2500.0, ram_mb: 870 },
    VmKind { mips: 2000.0, ram_mb: 1740 },
    VmKind { mips: 1000.0, ram_mb: 1740 },
    VmKind { mips: 500.0, ram_mb: 613 },
];

/// Half of a link is for migrations, in MB/s, whatever else goes over it.
const MIGRATION_MB_S: f64 = 62.5;

impl VmKind {
    /// Of vm number `ix` of `count`.
    pub fn of(ix: usize, count: usize) -> &'static VmKind {
        &VM_KINDS[ix / count.div_ceil(4)]
    }

    pub fn migration_s(&self) -> f64 {
        f64::from(self.ram_mb) / MIGRATION_MB_S
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_is_linear_between_the_entries_of_the_table() {
        assert_eq!((G4.power(0.0), G4.power(1.0), G4.power(1.005)), (86.0, 117.0, 117.0));
        assert!((G5.power(0.5) - 116.0).abs() < 1e-9);
        assert!((G5.power(0.45) - 113.0).abs() < 1e-9);
        assert!((G5.power(0.99) - 134.8).abs() < 1e-9);
    }

    #[test]
    fn vms_are_dealt_into_four_kinds_by_their_number() {
        let kinds: Vec<f64> = (0..10).map(|ix| VmKind::of(ix, 10).mips).collect();
        assert_eq!(kinds, [2500.0, 2500.0, 2500.0, 2000.0, 2000.0, 2000.0, 1000.0, 1000.0, 1000.0, 500.0]);
        assert!((VmKind::of(0, 10).migration_s() - 13.92).abs() < 1e-12);
    }
}
