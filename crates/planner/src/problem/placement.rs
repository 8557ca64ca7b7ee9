//! Rules of placement, compiled: which hosts a vm may ever be on as one bit each, shared between vms of equal class, and
//! which vms must be apart or together as short lists of counts.

use super::{HostIx, VmIx, VmRow};
use drover_model::placement::{HostSet, RuleKind, Scope};
use drover_model::world::{HostView, World};
use drover_model::{HostId, NetworkId, RuleId};
use std::collections::{BTreeMap, BTreeSet};

/// Position of a rule in [`Placement::rules`].
pub(crate) type RuleIx = usize;

/// Hosts by bit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bits(Vec<u64>);

impl Bits {
    fn all(count: usize) -> Self {
        let mut bits = Self(vec![u64::MAX; count.div_ceil(64)]);
        if let Some(last) = bits.0.last_mut()
            && !count.is_multiple_of(64)
        {
            *last = (1 << (count % 64)) - 1;
        }
        bits
    }

    fn of(count: usize, wanted: impl Fn(HostIx) -> bool) -> Self {
        let mut bits = Self(vec![0; count.div_ceil(64)]);
        for host in (0..count).filter(|host| wanted(*host)) {
            bits.0[host / 64] |= 1 << (host % 64);
        }
        bits
    }

    fn keep(&mut self, other: &Self, wanted: bool) {
        for (word, other) in self.0.iter_mut().zip(&other.0) {
            *word &= if wanted { *other } else { !*other };
        }
    }

    pub fn has(&self, host: HostIx) -> bool {
        self.0[host / 64] >> (host % 64) & 1 == 1
    }

    /// Hosts that are set, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = HostIx> {
        self.0.iter().enumerate().flat_map(|(at, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros() as usize;
                (left != 0).then(|| {
                    left &= left - 1;
                    at * 64 + bit
                })
            })
        })
    }

    fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }
}

/// Vms that may be on the same hosts.
pub(crate) struct Class {
    pub allowed: Bits,
    /// How many bits are set.
    pub count: usize,
    /// Rules that leave hosts out, for explanations.
    pub only: Vec<(RuleIx, Bits)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Apart,
    Together,
    HostsMax(u32),
    /// Kept by the bits of classes; nothing is counted.
    Only,
    Never,
}

pub(crate) struct Rule<'w> {
    /// `None`: an anti-affinity group of a tenant.
    pub id: Option<&'w RuleId>,
    pub kind: Kind,
    pub scope: Scope,
    /// Sorted.
    pub members: Vec<VmIx>,
}

pub(crate) struct Placement<'w> {
    pub rules: Vec<Rule<'w>>,
    pub classes: Vec<Class>,
    /// By vm.
    pub class_of: Vec<usize>,
    /// By vm: rules that count, as a range of `counted`.
    counted_from: Vec<usize>,
    counted: Vec<RuleIx>,
    racks: Vec<usize>,
    zones: Vec<usize>,
}

/// What makes vms equal as to where they may ever be.
type ClassKey<'w> = (Option<&'w BTreeSet<HostId>>, Option<&'w NetworkId>, Option<u32>, Vec<RuleIx>);

impl<'w> Placement<'w> {
    pub fn new(world: &'w World, index: &BTreeMap<&HostId, HostIx>, vms: &[VmRow<'w>]) -> Self {
        let hosts: Vec<(&HostId, &HostView)> = world.hosts.iter().collect();
        let mut rules = groups(vms);
        let position: BTreeMap<_, VmIx> = if world.rules.is_empty() {
            BTreeMap::new()
        } else {
            vms.iter().enumerate().map(|(ix, row)| (row.id, ix)).collect()
        };
        let mut sets: BTreeMap<RuleIx, Bits> = BTreeMap::new();
        for rule in &world.rules {
            let (kind, scope) = match &rule.kind {
                RuleKind::Apart { within } => (Kind::Apart, *within),
                RuleKind::Together { within } => (Kind::Together, *within),
                RuleKind::HostsMax { count } => (Kind::HostsMax(*count), Scope::Host),
                RuleKind::On { hosts: set } => {
                    sets.insert(rules.len(), Bits::of(hosts.len(), |h| contains(set, hosts[h].0, hosts[h].1)));
                    (Kind::Only, Scope::Host)
                }
                RuleKind::NotOn { hosts: set } => {
                    sets.insert(rules.len(), Bits::of(hosts.len(), |h| contains(set, hosts[h].0, hosts[h].1)));
                    (Kind::Never, Scope::Host)
                }
            };
            let members = rule.vms.iter().filter_map(|vm| position.get(vm).copied()).collect();
            rules.push(Rule { id: Some(&rule.id), kind, scope, members });
        }
        let mut by_vm: Vec<Vec<RuleIx>> = vec![Vec::new(); vms.len()];
        for (ix, rule) in rules.iter().enumerate() {
            for vm in &rule.members {
                by_vm[*vm].push(ix);
            }
        }
        let (mut counted_from, mut counted) = (Vec::with_capacity(vms.len() + 1), Vec::new());
        for of_vm in &by_vm {
            counted_from.push(counted.len());
            counted.extend(of_vm.iter().filter(|rule| !sets.contains_key(*rule)));
        }
        counted_from.push(counted.len());
        let (classes, class_of) = classes(&hosts, index, vms, &by_vm, &sets, &rules);
        let racks = numbered(hosts.iter().enumerate().map(|(ix, (_, view))| view.rack.as_ref().ok_or(ix)));
        let zones = numbered(hosts.iter().map(|(_, view)| view.zone.as_ref()));
        Self { rules, classes, class_of, counted_from, counted, racks, zones }
    }

    /// Rules that count vms by host, rack or zone.
    pub fn counted(&self, vm: VmIx) -> &[RuleIx] {
        &self.counted[self.counted_from[vm]..self.counted_from[vm + 1]]
    }

    /// The number of the host's host, rack or zone.
    pub fn domain(&self, scope: Scope, host: HostIx) -> usize {
        match scope {
            Scope::Host => host,
            Scope::Rack => self.racks[host],
            Scope::Zone => self.zones[host],
        }
    }

    pub fn class(&self, vm: VmIx) -> &Class {
        &self.classes[self.class_of[vm]]
    }

    /// Whether nothing that load and time leave as it is keeps the vm off the host, memory apart.
    pub fn allows(&self, vm: VmIx, host: HostIx) -> bool {
        self.class(vm).allowed.has(host)
    }

    /// The rule, if any, by which the vm may never be on the host.
    pub fn forbidding(&self, vm: VmIx, host: HostIx) -> Option<RuleIx> {
        self.class(vm).only.iter().find(|(_, allowed)| !allowed.has(host)).map(|(rule, _)| *rule)
    }

    /// Vms that must be on one host with this one, itself included; empty if there are none.
    pub fn inseparable(&self, vm: VmIx) -> &[VmIx] {
        let joins = |rule: &&RuleIx| {
            let rule = &self.rules[**rule];
            rule.kind == Kind::Together && rule.scope == Scope::Host && rule.members.len() > 1
        };
        self.counted(vm).iter().find(joins).map_or(&[], |rule| &self.rules[*rule].members)
    }
}

/// Anti-affinity groups of two and more, as rules.
fn groups<'w>(vms: &[VmRow<'w>]) -> Vec<Rule<'w>> {
    let mut groups: BTreeMap<_, Vec<VmIx>> = BTreeMap::new();
    for (ix, row) in vms.iter().enumerate() {
        if let Some(group) = &row.view.anti_affinity {
            groups.entry((&row.view.tenant, group)).or_default().push(ix);
        }
    }
    let of_several = groups.into_values().filter(|members| members.len() > 1);
    of_several.map(|members| Rule { id: None, kind: Kind::Apart, scope: Scope::Host, members }).collect()
}

fn contains(set: &HostSet, id: &HostId, host: &HostView) -> bool {
    set.hosts.contains(id)
        || host.rack.as_ref().is_some_and(|rack| set.racks.contains(rack))
        || host.zone.as_ref().is_some_and(|zone| set.zones.contains(zone))
        || set.labels.iter().any(|label| host.labels.contains(label))
}

/// Equal keys get equal numbers.
fn numbered<K: Ord>(keys: impl Iterator<Item = K>) -> Vec<usize> {
    let mut numbers = BTreeMap::new();
    keys.map(|key| {
        let next = numbers.len();
        *numbers.entry(key).or_insert(next)
    })
    .collect()
}

fn classes<'w>(
    hosts: &[(&HostId, &HostView)],
    index: &BTreeMap<&HostId, HostIx>,
    vms: &[VmRow<'w>],
    by_vm: &[Vec<RuleIx>],
    sets: &BTreeMap<RuleIx, Bits>,
    rules: &[Rule<'w>],
) -> (Vec<Class>, Vec<usize>) {
    let refusing = hosts.iter().any(|(_, host)| !host.refuses.is_empty());
    let mut numbers: BTreeMap<ClassKey<'w>, usize> = BTreeMap::new();
    let mut classes = Vec::new();
    let class_of = vms.iter().enumerate().map(|(ix, row)| {
        let pins = Some(&row.view.pinned_to).filter(|pins| !pins.is_empty());
        let kind = row.host.filter(|_| refusing).map(|host| hosts[host].1.kind);
        let only: Vec<RuleIx> = by_vm[ix].iter().copied().filter(|rule| sets.contains_key(rule)).collect();
        let key = (pins, row.view.network.as_ref(), kind, only);
        if let Some(class) = numbers.get(&key) {
            return *class;
        }
        let mut allowed = match pins {
            None => Bits::all(hosts.len()),
            Some(pins) => {
                let pinned: BTreeSet<HostIx> = pins.iter().filter_map(|host| index.get(host).copied()).collect();
                Bits::of(hosts.len(), |host| pinned.contains(&host))
            }
        };
        if let Some(network) = key.1 {
            allowed.keep(&Bits::of(hosts.len(), |h| hosts[h].1.networks.contains(network)), true);
        }
        if let Some(kind) = kind {
            allowed.keep(&Bits::of(hosts.len(), |h| !hosts[h].1.refuses.contains(&kind)), true);
        }
        let only: Vec<(RuleIx, Bits)> = key
            .3
            .iter()
            .map(|rule| {
                let mut bits = Bits::all(hosts.len());
                bits.keep(&sets[rule], rules[*rule].kind == Kind::Only);
                (*rule, bits)
            })
            .collect();
        for (_, bits) in &only {
            allowed.keep(bits, true);
        }
        classes.push(Class { count: allowed.count(), allowed, only });
        numbers.insert(key, classes.len() - 1);
        classes.len() - 1
    });
    let class_of = class_of.collect();
    (classes, class_of)
}
