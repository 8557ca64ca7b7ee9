//! From text to the world.

use super::values::{CORES, SECONDS, SIZE, TIME, cores, seconds, size, time};
use super::words::Words;
use super::{NOW, policy, series};
use crate::text::BadText;
use drover_model::inventory::Capacity;
use drover_model::load::Window;
use drover_model::placement::{HostSet, PlacementRule, PoolView, RuleKind, Scope};
use drover_model::policy::{Policy, PowerCurve};
use drover_model::world::{HostState, HostView, Movable, VmView, World};
use drover_model::{Bytes, CpuMillis, Generation, HostId, MicroMoney, Millis, PoolId, Revision, RuleId, TimeMs, VmId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::str::FromStr;

pub(super) const CLUSTER: &str = "now=, revision=, sample=";
pub(super) const POOL: &str = "parent=, cpu-reserved=, mem-reserved=, cpu-limit=, mem-limit=";
/// What a host's line may say, behind its name.
pub(super) const HOST: &str = "cpu=, mem=, state=, drained, managed, dark, boot=, since=, net=, kind=, refuses=, rack=, zone=, \
                    labels=, disk=, link=, power=, power-cycle-micro=, moves=";
/// And a vm's.
pub(super) const VM: &str = "vcpus=, mem=, on=, load=, res=, rx=, tx=, dirty=, pattern=, name=, tenant=, group=, pin=, net=, \
                  moved=, fixed=, to=, disk=, pool=, cpu-reserved=, generation=";
const RULE: &str = "together, apart, on, not-on or hosts-max=, then within=host, rack or zone, hosts=, racks=, zones=, \
                    labels= as the rule needs, and vms=";
const POLICY: &str = "keys of the policy, e.g. aim=auto";

const TENANT: &str = "default";
const BOOT: Millis = Millis::secs(30);
const SINCE: Millis = Millis::secs(1000);
const SAMPLE_MAX: Millis = Millis::secs(86_400);
const NUMBER: &str = "a whole number";

/// Reads a cluster. The world's policy is sound, hosts and pools that are named by vms are there, and everything is
/// there once; rules, pins and past moves may name what is not (any more).
pub fn parse(text: &str) -> Result<World, BadText> {
    let mut lines = Lines::default();
    for (ix, line) in text.lines().enumerate() {
        if let Some(words) = Words::of(ix + 1, line)? {
            lines.sort(words)?;
        }
    }
    let mut world = World::empty(NOW, Revision(0), Policy::default());
    if let Some(words) = lines.cluster {
        cluster(&mut world, words)?;
    }
    read_policy(&mut world.policy, lines.policy)?;
    let mut dark = BTreeSet::new();
    for mut words in lines.hosts {
        let (line, id): (_, HostId) = (words.line, named(&mut words)?);
        if words.flag("dark") {
            dark.insert(id.clone());
        }
        once(line, "host", world.hosts.insert(id, host(words, world.now)?))?;
    }
    let mut parents = Vec::new();
    for mut words in lines.pools {
        let (line, id): (_, PoolId) = (words.line, named(&mut words)?);
        parents.push((line, id.clone()));
        once(line, "pool", world.pools.insert(id, pool(words)?))?;
    }
    check_parents(&world, &parents)?;
    for mut words in lines.vms {
        let (line, id): (_, VmId) = (words.line, named(&mut words)?);
        let view = vm(words, &id, &world)?;
        once(line, "vm", world.vms.insert(id, view))?;
    }
    let mut rules = BTreeSet::new();
    for mut words in lines.rules {
        let (line, id): (_, RuleId) = (words.line, named(&mut words)?);
        once(line, "rule", rules.replace(id.clone()))?;
        world.rules.push(rule(words, id)?);
    }
    series::measure_hosts(&mut world, &dark);
    Ok(world)
}

fn named<T: FromStr<Err: Display>>(words: &mut Words) -> Result<T, BadText> {
    let name = words.name()?;
    name.parse().map_err(|why: T::Err| words.bad(format!("{name:?}"), format!("another name: {why}")))
}

fn once<T>(line: usize, kind: &str, before: Option<T>) -> Result<(), BadText> {
    let again =
        || BadText { line, found: format!("a {kind} that stands above already"), expected: "each once".to_owned() };
    before.map_or(Ok(()), |_| Err(again()))
}

/// By kind, since some need what others say.
#[derive(Default)]
struct Lines {
    cluster: Option<Words>,
    policy: Vec<Words>,
    pools: Vec<Words>,
    hosts: Vec<Words>,
    vms: Vec<Words>,
    rules: Vec<Words>,
}

impl Lines {
    fn sort(&mut self, words: Words) -> Result<(), BadText> {
        let of_kind = match words.kind.as_str() {
            "cluster" if self.cluster.is_some() => return Err(words.bad("cluster again", "one such line")),
            "cluster" => {
                self.cluster = Some(words);
                return Ok(());
            }
            "policy" => {
                self.policy.push(words);
                return Ok(());
            }
            "pool" => &mut self.pools,
            "host" => &mut self.hosts,
            "vm" => &mut self.vms,
            "rule" => &mut self.rules,
            kind => return Err(words.bad(kind, "cluster, policy, pool, host, vm or rule")),
        };
        of_kind.push(words);
        Ok(())
    }
}

/// Values by key, each read in its way.
impl Words {
    fn value<T>(&mut self, key: &str, read: impl Fn(&str) -> Option<T>, expected: &str) -> Result<Option<T>, BadText> {
        let Some(text) = self.take(key) else { return Ok(None) };
        read(&text).map(Some).ok_or_else(|| self.bad(format!("{key}={text}"), expected))
    }

    fn number<T: FromStr>(&mut self, key: &str) -> Result<Option<T>, BadText> {
        self.value(key, |text| text.parse().ok(), NUMBER)
    }

    fn id<T: FromStr<Err: Display>>(&mut self, key: &str) -> Result<Option<T>, BadText> {
        let Some(text) = self.take(key) else { return Ok(None) };
        text.parse().map(Some).map_err(|why: T::Err| self.bad(format!("{key}={text}"), format!("another name: {why}")))
    }

    fn list<T: FromStr<Err: Display> + Ord>(&mut self, key: &str) -> Result<BTreeSet<T>, BadText> {
        let Some(text) = self.take(key) else { return Ok(BTreeSet::new()) };
        let item = |item: &str| {
            item.parse()
                .map_err(|why: T::Err| self.bad(format!("{key}={text}"), format!("names parted by commas: {why}")))
        };
        text.split(',').filter(|item| !item.is_empty()).map(item).collect()
    }

    /// A value that must be there.
    fn needs<T>(&self, key: &str, value: Option<T>) -> Result<T, BadText> {
        value.ok_or_else(|| self.bad(format!("a {} without {key}=", self.kind), format!("{key}= on its line")))
    }
}

fn cluster(world: &mut World, mut words: Words) -> Result<(), BadText> {
    world.now = words.value("now", time, TIME)?.unwrap_or(NOW);
    world.revision = words.number("revision")?.unwrap_or_default();
    let interval = |text: &str| seconds(text).filter(|every| *every > Millis::ZERO && *every <= SAMPLE_MAX);
    let expected = format!("the {SECONDS}, between samples: above 0, at most a day");
    world.sample_every = words.value("sample", interval, &expected)?.unwrap_or(World::SAMPLE_EVERY);
    words.end(CLUSTER)
}

fn read_policy(into: &mut Policy, lines: Vec<Words>) -> Result<(), BadText> {
    let mut set_at = BTreeMap::new();
    for mut words in lines {
        for (key, value) in words.pairs(POLICY)? {
            let bad = |expected: String| words.bad(format!("{key}={value}"), expected);
            policy::set_policy(into, &key, &value).map_err(bad)?;
            if set_at.insert(key.clone(), words.line).is_some() {
                return Err(words.bad(format!("{key}={value} again"), "each key once"));
            }
        }
    }
    into.check().map_err(|bad| {
        let key = policy::key_of_field(bad.field).unwrap_or(bad.field);
        // Two keys may be at odds, of which only the other one was set.
        let line = set_at.get(key).or(set_at.values().max()).copied().unwrap_or(1);
        BadText { line, found: format!("a policy with a wrong {key}"), expected: format!("that it {}", bad.problem) }
    })
}

fn pool(mut words: Words) -> Result<PoolView, BadText> {
    let view = PoolView {
        parent: words.id("parent")?,
        cpu_reserved: words.value("cpu-reserved", cores, CORES)?.unwrap_or_default(),
        memory_reserved: words.value("mem-reserved", size, SIZE)?.unwrap_or_default(),
        cpu_limit: words.value("cpu-limit", cores, CORES)?,
        memory_limit: words.value("mem-limit", size, SIZE)?,
    };
    words.end(POOL)?;
    Ok(view)
}

/// Every parent is there, and nobody is its own ancestor.
fn check_parents(world: &World, pools: &[(usize, PoolId)]) -> Result<(), BadText> {
    for (line, id) in pools {
        let bad = |found: String, expected: &str| BadText { line: *line, found, expected: expected.to_owned() };
        let mut above = world.pools.get(id).and_then(|pool| pool.parent.as_ref());
        for _ in 0..world.pools.len() {
            let Some(parent) = above else { break };
            let Some(pool) = world.pools.get(parent) else {
                return Err(bad(format!("parent={parent}"), "a pool that has a line of its own"));
            };
            above = pool.parent.as_ref();
        }
        if above.is_some() {
            return Err(bad(format!("pool {id} below itself"), "pools that form a forest"));
        }
    }
    Ok(())
}

fn state(text: &str) -> Option<HostState> {
    Some(match text {
        "up" => HostState::Up,
        "unknown" => HostState::Unknown,
        "suspect" => HostState::Suspect,
        "down" => HostState::Down,
        "asleep" => HostState::Asleep,
        "waking" => HostState::Waking,
        "falling-asleep" => HostState::FallingAsleep,
        _ => return None,
    })
}

fn power(text: &str) -> Option<PowerCurve> {
    let watts: Vec<f64> = text.split(',').map(|watts| watts.parse().ok()).collect::<Option<_>>()?;
    let curve = match watts.as_slice() {
        [idle, busy] => PowerCurve::linear(*idle, *busy),
        all => PowerCurve(all.try_into().ok()?),
    };
    curve.is_sound().then_some(curve)
}

fn host(mut words: Words, now: TimeMs) -> Result<HostView, BadText> {
    let capacity = match (words.value("cpu", cores, CORES)?, words.value("mem", size, SIZE)?) {
        (Some(cpu), Some(memory)) => Some(Capacity { cpu, memory }),
        (None, None) => None,
        (Some(_), None) => words.needs("mem", None)?,
        (None, Some(_)) => words.needs("cpu", None)?,
    };
    let states = "up, unknown, suspect, down, asleep, waking or falling-asleep";
    let watts = "two watts (idle,busy) or eleven (at 0, 10, ... 100 % of the processor), rising";
    let since = words.value("since", seconds, SECONDS)?.unwrap_or(SINCE);
    let view = HostView {
        state: words.value("state", state, states)?.unwrap_or(HostState::Up),
        capacity,
        maintenance: words.flag("drained"),
        power_managed: words.flag("managed"),
        boot_time: words.value("boot", seconds, SECONDS)?.unwrap_or(BOOT),
        networks: words.list("net")?,
        kind: words.number("kind")?.unwrap_or(0),
        refuses: words.list("refuses")?,
        load: Window::default(),
        since: TimeMs(now.0.saturating_sub(since.0)),
        rack: words.id("rack")?,
        zone: words.id("zone")?,
        labels: words.list("labels")?,
        disk: words.value("disk", size, SIZE)?,
        link: words.value("link", size, SIZE)?,
        power: words.value("power", power, watts)?,
        power_cycle_price: words.number("power-cycle-micro")?.map(MicroMoney),
        moves_recent: words.number("moves")?.unwrap_or(0),
    };
    words.end(HOST)?;
    Ok(view)
}

/// `20:h2,400:h1`: how long ago, and whence.
fn moves(text: &str, now: TimeMs) -> Option<Vec<(TimeMs, HostId)>> {
    let one = |text: &str| {
        let (ago, from) = text.split_once(':')?;
        Some((TimeMs(now.0.saturating_sub(seconds(ago)?.0)), from.parse().ok()?))
    };
    let mut left: Vec<(TimeMs, HostId)> = text.split(',').map(one).collect::<Option<_>>()?;
    left.sort();
    (left.len() <= VmView::LEFT_MAX).then_some(left)
}

fn vm(mut words: Words, id: &VmId, world: &World) -> Result<VmView, BadText> {
    let there = |text: &str| text.parse().ok().filter(|host| world.hosts.contains_key(host));
    let a_host = "a host that has a line of its own";
    let movable = match (words.take("fixed"), words.value("to", there, a_host)?) {
        (Some(_), Some(_)) => return Err(words.bad("both fixed= and to=", "one of them")),
        (Some(why), None) => Movable::No { why },
        (None, Some(to)) => Movable::Moving { to },
        (None, None) => Movable::Yes,
    };
    let vcpus =
        words.value("vcpus", |text| text.parse().ok().filter(|count| (1..=4096).contains(count)), "1 to 4096")?;
    let memory = words.value("mem", size, SIZE)?;
    let (vcpus, memory) = (words.needs("vcpus", vcpus)?, words.needs("mem", memory)?);
    let load = words.value("load", series::load, series::LOAD)?.unwrap_or_default();
    let level = series::Level {
        resident: words.value("res", size, SIZE)?.unwrap_or(memory.scale(0.5)),
        rx: words.value("rx", size, SIZE)?.unwrap_or(Bytes::ZERO),
        tx: words.value("tx", size, SIZE)?.unwrap_or(Bytes::ZERO),
        dirty: words.value("dirty", size, SIZE)?,
    };
    let past = format!("seconds ago and the host it left, e.g. 20:h2,400:h1; at most {}", VmView::LEFT_MAX);
    let a_pool = |text: &str| text.parse().ok().filter(|pool| world.pools.contains_key(pool));
    let view = VmView {
        name: match words.id("name")? {
            Some(name) => name,
            None => id.as_str().parse().map_err(|why| words.bad(id.as_str(), format!("name=: {why}")))?,
        },
        tenant: match words.id("tenant")? {
            Some(tenant) => tenant,
            None => TENANT.parse().map_err(|why| words.bad(TENANT, format!("tenant=: {why}")))?,
        },
        generation: words.number("generation")?.unwrap_or(Generation(1)),
        vcpus,
        memory,
        network: words.id("net")?,
        anti_affinity: words.id("group")?,
        pinned_to: words.list("pin")?,
        host: words.value("on", there, a_host)?,
        movable,
        left: words.value("moved", |text| moves(text, world.now), &past)?.unwrap_or_default(),
        load: series::window(&load, level, world.now, world.sample_every),
        pattern: words.value("pattern", series::pattern, series::PATTERN)?.unwrap_or_default(),
        disk: words.value("disk", size, SIZE)?.unwrap_or(Bytes::ZERO),
        pool: words.value("pool", a_pool, "a pool that has a line of its own")?,
        cpu_reserved: words.value("cpu-reserved", cores, CORES)?.unwrap_or(CpuMillis::ZERO),
    };
    words.end(VM)?;
    Ok(view)
}

fn scope(text: &str) -> Option<Scope> {
    [Scope::Host, Scope::Rack, Scope::Zone].into_iter().find(|scope| scope.to_string() == text)
}

fn rule(mut words: Words, id: RuleId) -> Result<PlacementRule, BadText> {
    let flags = ["together", "apart", "on", "not-on"].map(|kind| words.flag(kind));
    let count = words.value("hosts-max", |text| text.parse().ok().filter(|count| *count > 0), "hosts, at least 1")?;
    let kind = match (flags, count) {
        ([true, false, false, false], None) => RuleKind::Together { within: within(&mut words)? },
        ([false, true, false, false], None) => RuleKind::Apart { within: within(&mut words)? },
        ([false, false, true, false], None) => RuleKind::On { hosts: host_set(&mut words)? },
        ([false, false, false, true], None) => RuleKind::NotOn { hosts: host_set(&mut words)? },
        ([false, false, false, false], Some(count)) => RuleKind::HostsMax { count },
        _ => {
            return Err(
                words.bad("a rule of no kind or of several", "one of together, apart, on, not-on and hosts-max=")
            );
        }
    };
    let vms = words.list("vms")?;
    words.end(RULE)?;
    Ok(PlacementRule { id, vms, kind })
}

fn within(words: &mut Words) -> Result<Scope, BadText> {
    Ok(words.value("within", scope, "host, rack or zone")?.unwrap_or(Scope::Host))
}

fn host_set(words: &mut Words) -> Result<HostSet, BadText> {
    if !["hosts", "racks", "zones", "labels"].into_iter().any(|key| words.has(key)) {
        return Err(words.bad("a rule without hosts", "hosts=, racks=, zones= or labels="));
    }
    Ok(HostSet {
        hosts: words.list("hosts")?,
        racks: words.list("racks")?,
        zones: words.list("zones")?,
        labels: words.list("labels")?,
    })
}
