//! Where vms begin: placed one after the other, each with all of its processor, memory and bandwidth.

use super::super::kinds::{HOSTS, HostKind, VM_BANDWIDTH_KBIT_S, VmKind};
use super::super::world::HostIx;
use super::Variant;
use anyhow::{Context, Result};

#[derive(Debug, Clone, Copy, Default)]
struct Taken {
    mips: f64,
    ram_mb: u32,
    bandwidth_kbit_s: u32,
}

impl Taken {
    fn has_room(&self, kind: &HostKind, vm: &VmKind) -> bool {
        kind.core_mips >= vm.mips
            && kind.mips - self.mips >= vm.mips
            && self.ram_mb + vm.ram_mb <= kind.ram_mb
            && self.bandwidth_kbit_s + VM_BANDWIDTH_KBIT_S <= kind.bandwidth_kbit_s
    }
}

/// Each vm where it adds least power, as the baselines place.
pub fn least_power(vms: usize, variant: Variant) -> Result<Vec<HostIx>> {
    // Before the first update no host has been seen to give anything.
    let more = |kind: &HostKind, taken: &Taken, vm: &VmKind| {
        kind.power((taken.mips + vm.mips) / kind.mips) - variant.power_before(kind, 0.0, taken.mips)
    };
    place(vms, more)
}

/// Each vm on the first host that has room.
pub fn first_fit(vms: usize) -> Result<Vec<HostIx>> {
    place(vms, |_, _, _| 0.0)
}

fn place(vms: usize, cost: impl Fn(&HostKind, &Taken, &VmKind) -> f64) -> Result<Vec<HostIx>> {
    let mut hosts = vec![Taken::default(); HOSTS];
    let placed = (0..vms).map(|ix| {
        let vm = VmKind::of(ix, vms);
        let room = (0..HOSTS).filter(|host| hosts[*host].has_room(HostKind::of(*host), vm));
        let costs = room.map(|host| (cost(HostKind::of(host), &hosts[host], vm), host));
        let (_, host) = costs.min_by(|a, b| a.0.total_cmp(&b.0)).with_context(|| {
            format!("{vms} vms are too many: {HOSTS} hosts have no room for the one on line {}", ix + 1)
        })?;
        let taken = &mut hosts[host];
        taken.mips += vm.mips;
        taken.ram_mb += vm.ram_mb;
        taken.bandwidth_kbit_s += VM_BANDWIDTH_KBIT_S;
        Ok(HostIx(host))
    });
    placed.collect()
}
