//! From the world to text.

use super::policy_keys;
use super::series::{of_load, of_pattern, recent};
use super::values::{of_cores, of_seconds, of_size, of_time};
use super::words::quoted;
use drover_model::load::VmSample;
use drover_model::placement::{HostSet, PlacementRule, PoolView, RuleKind};
use drover_model::policy::Policy;
use drover_model::world::{HostState, HostView, Movable, VmView, World};
use drover_model::{CpuMillis, HostId, PoolId, VmId};
use std::collections::BTreeSet;
use std::fmt::{Display, Write};

/// Writes a cluster so that [`super::parse`] reads the same, up to details of load. Only what differs from its default is
/// written, in an order that depends on nothing but the cluster.
pub fn write(world: &World) -> String {
    let mut out = String::new();
    let (now, sample) = (of_time(world.now), of_seconds(world.sample_every));
    line(&mut out, format!("cluster now={now} revision={} sample={sample}", world.revision));
    for ((key, value), (_, default)) in policy_keys(&world.policy).zip(policy_keys(&Policy::default())) {
        if value != default {
            line(&mut out, format!("policy {key}={value}"));
        }
    }
    for (id, pool) in &world.pools {
        line(&mut out, of_pool(id, pool));
    }
    for (id, host) in &world.hosts {
        line(&mut out, of_host(id, host, world));
    }
    for (id, vm) in &world.vms {
        line(&mut out, of_vm(id, vm, world));
    }
    for rule in &world.rules {
        line(&mut out, of_rule(rule));
    }
    out
}

fn line(out: &mut String, text: String) {
    out.push_str(&text);
    out.push('\n');
}

/// Words behind a name.
struct Words(String);

impl Words {
    fn of(kind: &str, name: impl Display) -> Self {
        Self(format!("{kind} {name}"))
    }

    fn flag(&mut self, word: &str, set: bool) {
        if set {
            self.0.push(' ');
            self.0.push_str(word);
        }
    }

    fn value(&mut self, key: &str, value: impl Display) {
        write!(self.0, " {key}={value}").expect("a string takes all");
    }

    /// Unless it is not there.
    fn maybe(&mut self, key: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.value(key, value);
        }
    }

    /// Unless it is what it would be without a word.
    fn unless<T: PartialEq>(&mut self, key: &str, value: &T, default: &T, show: impl Fn(&T) -> String) {
        if value != default {
            self.value(key, show(value));
        }
    }

    fn list<T: Display>(&mut self, key: &str, items: &BTreeSet<T>) {
        if !items.is_empty() {
            self.value(key, items.iter().map(T::to_string).collect::<Vec<_>>().join(","));
        }
    }
}

fn of_pool(id: &PoolId, pool: &PoolView) -> String {
    let mut words = Words::of("pool", id);
    words.maybe("parent", pool.parent.as_ref());
    words.unless("cpu-reserved", &pool.cpu_reserved, &CpuMillis::ZERO, |cpu| of_cores(*cpu));
    words.unless("mem-reserved", &pool.memory_reserved, &Default::default(), |memory| of_size(*memory));
    words.maybe("cpu-limit", pool.cpu_limit.map(of_cores));
    words.maybe("mem-limit", pool.memory_limit.map(of_size));
    words.0
}

fn of_state(state: HostState) -> &'static str {
    match state {
        HostState::Up => "up",
        HostState::Unknown => "unknown",
        HostState::Suspect => "suspect",
        HostState::Down => "down",
        HostState::Asleep => "asleep",
        HostState::Waking => "waking",
        HostState::FallingAsleep => "falling-asleep",
    }
}

fn of_host(id: &HostId, host: &HostView, world: &World) -> String {
    let mut words = Words::of("host", id);
    words.maybe("cpu", host.capacity.map(|capacity| of_cores(capacity.cpu)));
    words.maybe("mem", host.capacity.map(|capacity| of_size(capacity.memory)));
    words.unless("state", &host.state, &HostState::Up, |state| of_state(*state).to_owned());
    words.flag("drained", host.maintenance);
    words.flag("managed", host.power_managed);
    let known = !recent(&host.load, world.now, world.sample_every).is_empty();
    words.flag("dark", host.state == HostState::Up && !known);
    words.value("boot", of_seconds(host.boot_time));
    words.value("since", of_seconds(world.now.since(host.since)));
    words.maybe("rack", host.rack.as_ref());
    words.maybe("zone", host.zone.as_ref());
    words.list("labels", &host.labels);
    words.list("net", &host.networks);
    words.unless("kind", &host.kind, &0, u32::to_string);
    words.list("refuses", &host.refuses);
    words.maybe("disk", host.disk.map(of_size));
    words.maybe("link", host.link.map(of_size));
    words.maybe("power", host.power.map(|curve| curve.0.map(|watts| watts.to_string()).join(",")));
    words.maybe("power-cycle-micro", host.power_cycle_price.map(|price| price.0));
    words.unless("moves", &host.moves_recent, &0, u32::to_string);
    words.0
}

fn of_vm(id: &VmId, vm: &VmView, world: &World) -> String {
    let now = world.now;
    let mut words = Words::of("vm", id);
    words.unless("name", &vm.name.as_str(), &id.as_str(), |name| (*name).to_owned());
    words.value("tenant", &vm.tenant);
    words.value("generation", vm.generation);
    words.value("vcpus", vm.vcpus);
    words.value("mem", of_size(vm.memory));
    words.maybe("on", vm.host.as_ref());
    match &vm.movable {
        Movable::Yes => {}
        Movable::Moving { to } => words.value("to", to),
        Movable::No { why } => words.value("fixed", quoted(why)),
    }
    words.maybe("net", vm.network.as_ref());
    words.maybe("group", vm.anti_affinity.as_ref());
    words.list("pin", &vm.pinned_to);
    words.maybe("pool", vm.pool.as_ref());
    words.unless("cpu-reserved", &vm.cpu_reserved, &CpuMillis::ZERO, |cpu| of_cores(*cpu));
    words.unless("disk", &vm.disk, &Default::default(), |disk| of_size(*disk));
    if !vm.left.is_empty() {
        let one = |(at, from): &(_, HostId)| format!("{}:{from}", of_seconds(now.since(*at)));
        words.value("moved", vm.left.iter().map(one).collect::<Vec<_>>().join(","));
    }
    let samples: Vec<&VmSample> = recent(&vm.load, now, world.sample_every);
    if let Some(newest) = samples.last() {
        words.value("res", of_size(newest.memory_used));
        words.unless("rx", &newest.net_rx, &Default::default(), |rate| of_size(*rate));
        words.unless("tx", &newest.net_tx, &Default::default(), |rate| of_size(*rate));
        words.maybe("dirty", newest.dirty_rate.map(of_size));
        let wanted: Vec<CpuMillis> = samples.iter().map(|sample| sample.cpu_wanted).collect();
        words.value("load", of_load(&wanted));
    }
    words.maybe("pattern", of_pattern(&vm.pattern));
    words.0
}

fn of_rule(rule: &PlacementRule) -> String {
    let mut words = Words::of("rule", &rule.id);
    let among = |words: &mut Words, set: &HostSet| {
        if *set == HostSet::default() {
            words.value("hosts", "");
        }
        words.list("hosts", &set.hosts);
        words.list("racks", &set.racks);
        words.list("zones", &set.zones);
        words.list("labels", &set.labels);
    };
    match &rule.kind {
        RuleKind::Together { within } => {
            words.flag("together", true);
            words.value("within", within);
        }
        RuleKind::Apart { within } => {
            words.flag("apart", true);
            words.value("within", within);
        }
        RuleKind::On { hosts } => {
            words.flag("on", true);
            among(&mut words, hosts);
        }
        RuleKind::NotOn { hosts } => {
            words.flag("not-on", true);
            among(&mut words, hosts);
        }
        RuleKind::HostsMax { count } => words.value("hosts-max", count),
    }
    words.list("vms", &rule.vms);
    words.0
}
