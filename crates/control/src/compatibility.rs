//! Whether a vm can run on another host at all: machine, processor, QEMU, and networks there. Looked at before anything
//! moves; what a host has not told is no obstacle, and its QEMU has the last word.

use crate::Control;
use drover_model::intent::{Host, Vm, VmSpec};
use drover_model::inventory::{Accelerator, HostFacts};
use drover_model::network::Network;
use drover_model::{HostId, NetworkId};
use std::collections::{BTreeMap, BTreeSet};

/// What stands for all overlay networks where only the planner looks: a host that takes part in one can take part in
/// each. A provider network can't have this name.
const OVERLAY: &str = "overlay";

fn overlay() -> Option<NetworkId> {
    OVERLAY.parse().ok()
}

/// The networks of a host, for the planner.
pub fn reach(host: &Host) -> BTreeSet<NetworkId> {
    let provider = host.networks.iter().filter(|network| network.as_str() != OVERLAY).cloned();
    provider.chain(host.overlay_address.and_then(|_| overlay())).collect()
}

/// What of a host decides whether it can take another's vms as they run.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kind<'a> {
    kvm: bool,
    qemu_version: &'a str,
    machine_types: &'a BTreeSet<String>,
    cpu_features: &'a BTreeSet<String>,
}

impl<'a> Kind<'a> {
    fn of(facts: &'a HostFacts) -> Self {
        Self {
            kvm: facts.accelerator == Accelerator::Kvm,
            qemu_version: &facts.qemu_version,
            machine_types: &facts.machine_types,
            cpu_features: &facts.cpu_features,
        }
    }
}

/// The kinds of host there are, numbered. A host that has told nothing since the server started is of a kind of its own,
/// the last, which nothing is known against.
pub struct Kinds {
    by_host: BTreeMap<HostId, u32>,
    /// By kind, those whose vms it can't take over.
    refuses: Vec<BTreeSet<u32>>,
}

impl Kinds {
    pub fn of(control: &Control) -> Self {
        let told: Vec<(&HostId, &HostFacts)> =
            control.hosts().filter_map(|host| Some((&host.id, control.facts(&host.id)?))).collect();
        let mut examples: BTreeMap<Kind<'_>, &HostFacts> = BTreeMap::new();
        for (_, facts) in &told {
            examples.entry(Kind::of(facts)).or_insert(facts);
        }
        let number: BTreeMap<&Kind<'_>, u32> = examples.keys().zip(0..).collect();
        let by_host = told.iter().map(|(host, facts)| ((*host).clone(), number[&Kind::of(facts)])).collect();
        let refused = |to: &HostFacts| {
            let kinds = examples.values().zip(0..);
            kinds.filter(|(from, _)| obstacle(from, to).is_some()).map(|(_, kind)| kind).collect()
        };
        let refuses = examples.values().map(|to| refused(to)).collect();
        Self { by_host, refuses }
    }

    pub fn of_host(&self, host: &HostId) -> (u32, BTreeSet<u32>) {
        let kind = self.by_host.get(host).copied().unwrap_or(u32::MAX);
        (kind, self.refuses.get(kind as usize).cloned().unwrap_or_default())
    }
}

impl Control {
    /// The network that the planner must find on the vm's host.
    pub(crate) fn reach_needed(&self, spec: &VmSpec) -> Option<NetworkId> {
        let network = &spec.nic.as_ref()?.network;
        if self.tables.get::<Network>(network).is_some() { overlay() } else { Some(network.clone()) }
    }

    fn facts(&self, host: &HostId) -> Option<&HostFacts> {
        self.live.hosts.get(host)?.facts.as_ref()
    }

    /// Why a running vm can't go on running on this host; `None`: nothing is known against it.
    pub(crate) fn incompatible(&self, vm: &Vm, to: &HostId) -> Option<String> {
        let name = &vm.spec.name;
        if let (Some(row), Some(network)) = (self.host(to), self.reach_needed(&vm.spec))
            && !reach(row).contains(&network)
        {
            return Some(match vm.spec.nic.as_ref().and_then(|nic| self.network(&nic.network)) {
                Some(network) => format!(
                    "{to} takes part in no overlay network, and {name} is on {}: set `overlay_address` in its agent's \
                     configuration",
                    network.name
                ),
                None => format!("{to} is not attached to network {network} of {name}"),
            });
        }
        let (from, to_facts) = (self.facts(vm.host.as_ref()?)?, self.facts(to)?);
        obstacle(from, to_facts).map(|why| format!("{name} can't run on {to} as it runs now: {why}"))
    }
}

/// Completes "it can't run there, because".
fn obstacle(from: &HostFacts, to: &HostFacts) -> Option<String> {
    if from.accelerator != to.accelerator {
        let word = |accelerator| match accelerator {
            Accelerator::Kvm => "KVM",
            Accelerator::Tcg => "TCG",
        };
        let (from, to) = (word(from.accelerator), word(to.accelerator));
        return Some(format!("it runs under {from} and that host has {to}"));
    }
    if !from.machine_types.is_empty() && from.machine_types.is_disjoint(&to.machine_types) {
        return Some(format!("the QEMU there has no machine type {}", listed(from.machine_types.iter())));
    }
    let missing: Vec<&String> = from.cpu_features.difference(&to.cpu_features).collect();
    if from.accelerator == Accelerator::Kvm && !missing.is_empty() {
        return Some(format!("the processor there lacks {}", listed(missing.into_iter())));
    }
    match (release(&from.qemu_version), release(&to.qemu_version)) {
        (Some(here), Some(there)) if there < here => Some(format!(
            "the QEMU there is {}, older than the {} it runs on: upgrade that host first",
            to.qemu_version, from.qemu_version
        )),
        _ => None,
    }
}

/// At most so many names, for people.
const LISTED_MAX: usize = 8;

fn listed<'a>(names: impl ExactSizeIterator<Item = &'a String>) -> String {
    let more = names.len().saturating_sub(LISTED_MAX);
    let names: Vec<&str> = names.take(LISTED_MAX).map(String::as_str).collect();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", names.join(", "))
}

/// Major and minor number, of `7.2.22` or `10.0.2 (Debian 1:10.0.2)`.
fn release(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split_whitespace().next()?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(change: impl FnOnce(&mut HostFacts)) -> HostFacts {
        let mut facts: HostFacts = serde_json::from_value(serde_json::json!({
            "agent_version": "1", "qemu_version": "7.2.22 (Debian 1:7.2)", "kernel": "6.1", "accelerator": "kvm",
            "accelerator_why": "", "cpu_model": "", "capacity": {"cpu": 1000, "memory": 1 << 30}, "networks": [],
            "machine_types": ["pc-q35-7.2"], "cpu_features": ["avx", "avx2", "sse4_2"], "boot_id": "b",
            "agent_run": "r",
        }))
        .unwrap();
        change(&mut facts);
        facts
    }

    #[test]
    fn each_obstacle_is_named() {
        type Change = fn(&mut HostFacts);
        let cases: [(Change, Option<&str>); 9] = [
            (|_| {}, None),
            (|to| to.accelerator = Accelerator::Tcg, Some("under KVM and that host has TCG")),
            (|to| to.machine_types = BTreeSet::from(["pc-q35-10.0".to_owned()]), Some("no machine type pc-q35-7.2")),
            (|to| to.machine_types.clear(), Some("no machine type pc-q35-7.2")),
            (|to| to.machine_types.extend(["pc-q35-10.0".to_owned()]), None),
            (|to| to.cpu_features.retain(|feature| feature != "avx2"), Some("lacks avx2")),
            (|to| to.cpu_features.extend(["avx512f".to_owned()]), None),
            (|to| to.qemu_version = "7.1.99".to_owned(), Some("7.1.99, older than the 7.2.22")),
            (|to| to.qemu_version = "10.0.2".to_owned(), None),
        ];
        for (n, (change, expected)) in cases.into_iter().enumerate() {
            let found = obstacle(&facts(|_| {}), &facts(change));
            match (found, expected) {
                (None, None) => {}
                (Some(found), Some(expected)) => assert!(found.contains(expected), "case {n}: {found}"),
                (found, expected) => panic!("case {n}: {found:?}, expected {expected:?}"),
            }
        }
    }

    #[test]
    fn under_tcg_processors_are_all_the_same_and_what_is_not_told_is_no_obstacle() {
        let tcg = |change: fn(&mut HostFacts)| {
            facts(|facts| {
                facts.accelerator = Accelerator::Tcg;
                change(facts);
            })
        };
        assert_eq!(obstacle(&tcg(|_| {}), &tcg(|to| to.cpu_features.clear())), None);
        assert_eq!(obstacle(&tcg(|from| from.machine_types.clear()), &tcg(|_| {})), None);
        assert_eq!(obstacle(&tcg(|_| {}), &tcg(|to| to.qemu_version = "sim".to_owned())), None);
    }
}
