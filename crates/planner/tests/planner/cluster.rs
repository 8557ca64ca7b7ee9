//! A cluster as text. One object a line, `#` begins a comment:
//!
//! ```text
//! policy {"aim": "auto"}                any keys of the policy, as JSON
//! host h1 cpu=4 mem=8192                cores, MiB; then any of:
//!      state=asleep                     up (default), unknown, suspect, down, asleep, waking, falling-asleep
//!      drained  managed  dark           in maintenance; drover may switch it; sends no telemetry
//!      net=a,b  boot=30                 networks; seconds from power-on
//!      since=5                          seconds in its state (default 1000)
//! vm web-1 vcpus=2 mem=1024 on=h1 load=0.5      without `on` it has no host
//!      load=0.1*50,0.9*10               cores wanted, for so many seconds up to now; without `*` for 60
//!      res=900                          MiB resident (default half of mem)
//!      tenant=t group=g pin=h1,h2 net=a
//!      moved=20:h2                      so many seconds ago, from there
//!      fixed=why  to=h3                 can't be moved (`_` for spaces); is on its way
//! place web-1                           ask for a placement, too
//! ```
//! What a host measures is the sum of what its vms do.

use drover_model::inventory::Capacity;
use drover_model::load::{DailyPattern, HostSample, VmSample, Window};
use drover_model::policy::Policy;
use drover_model::world::{HostState, HostView, Movable, VmView, World};
use drover_model::{Bytes, CpuMillis, Generation, HostId, Millis, Ratio, Revision, TimeMs, VmId};
use std::collections::{BTreeMap, BTreeSet};

pub const NOW: TimeMs = TimeMs(10_000_000);
const SECONDS: usize = 60;

pub struct Cluster {
    pub world: World,
    pub places: Vec<VmId>,
}

pub fn parse(text: &str) -> Cluster {
    let mut policy = serde_json::to_value(Policy::default()).unwrap();
    let (mut hosts, mut vms, mut places) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    let mut dark = BTreeSet::new();
    for line in text.lines().map(|line| line.split('#').next().unwrap().trim()).filter(|line| !line.is_empty()) {
        let (kind, rest) = line.split_once(' ').unwrap();
        match kind {
            "policy" => merge(&mut policy, serde_json::from_str(rest).unwrap()),
            "host" => {
                let words = Words::new(rest);
                let id: HostId = words.name.parse().unwrap();
                if words.has("dark") {
                    dark.insert(id.clone());
                }
                hosts.insert(id, host(&words));
            }
            "vm" => {
                let words = Words::new(rest);
                vms.insert(words.name.parse::<VmId>().unwrap(), vm(&words));
            }
            "place" => places.push(rest.parse().unwrap()),
            other => panic!("{other} is not a kind of line"),
        }
    }
    let policy: Policy = serde_json::from_value(policy).unwrap();
    policy.check().unwrap();
    let mut world = World { hosts, vms, ..World::empty(NOW, Revision(7), policy) };
    for id in dark.iter().chain(&world.hosts.keys().cloned().collect::<Vec<_>>()) {
        let up = world.hosts[id].state == HostState::Up && !dark.contains(id);
        let load = if up { measured(&world, id) } else { Window::default() };
        world.hosts.get_mut(id).unwrap().load = load;
    }
    Cluster { world, places }
}

fn merge(into: &mut serde_json::Value, from: serde_json::Value) {
    match (into, from) {
        (serde_json::Value::Object(into), serde_json::Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(serde_json::Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

struct Words<'a> {
    name: &'a str,
    words: Vec<&'a str>,
}

impl<'a> Words<'a> {
    fn new(text: &'a str) -> Self {
        let mut words = text.split_whitespace();
        Self { name: words.next().unwrap(), words: words.collect() }
    }

    fn has(&self, word: &str) -> bool {
        self.words.contains(&word)
    }

    fn get(&self, key: &str) -> Option<&'a str> {
        self.words.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.get(key).map(|value| value.parse().unwrap())
    }

    fn list<T: std::str::FromStr + Ord>(&self, key: &str) -> BTreeSet<T> {
        self.get(key).into_iter().flat_map(|list| list.split(',')).filter_map(|item| item.parse().ok()).collect()
    }
}

fn mib(count: f64) -> Bytes {
    Bytes::mib(count as u64)
}

fn host(words: &Words<'_>) -> HostView {
    let state = words.get("state").unwrap_or("up");
    HostView {
        state: serde_json::from_value(state.into()).unwrap(),
        capacity: words
            .number("cpu")
            .map(|cores| Capacity { cpu: CpuMillis::CORE.scale(cores), memory: mib(words.number("mem").unwrap()) }),
        maintenance: words.has("drained"),
        power_managed: words.has("managed"),
        boot_time: Millis::secs(words.number("boot").unwrap_or(30.0) as u64),
        networks: words.list("net"),
        kind: words.number("kind").unwrap_or(0.0) as u32,
        refuses: words.list("refuses"),
        load: Window::default(),
        since: TimeMs(NOW.0 - Millis::secs(words.number("since").unwrap_or(1000.0) as u64).0),
        rack: None,
        zone: None,
        labels: BTreeSet::new(),
        disk: None,
        link: None,
        power: None,
        power_cycle_price: None,
        moves_recent: 0,
    }
}

fn vm(words: &Words<'_>) -> VmView {
    let memory = mib(words.number("mem").unwrap());
    let resident = words.number("res").map_or(memory.scale(0.5), mib);
    let movable = match (words.get("fixed"), words.get("to")) {
        (Some(why), _) => Movable::No { why: why.replace('_', " ") },
        (None, Some(to)) => Movable::Moving { to: to.parse().unwrap() },
        (None, None) => Movable::Yes,
    };
    VmView {
        name: words.name.parse().unwrap(),
        tenant: words.get("tenant").unwrap_or("acme").parse().unwrap(),
        generation: Generation(3),
        vcpus: words.number("vcpus").unwrap() as u32,
        memory,
        network: words.get("net").map(|network| network.parse().unwrap()),
        anti_affinity: words.get("group").map(|group| group.parse().unwrap()),
        pinned_to: words.list("pin"),
        host: words.get("on").map(|host| host.parse().unwrap()),
        movable,
        left: words
            .get("moved")
            .map(|moved| {
                let (ago, from) = moved.split_once(':').unwrap();
                (TimeMs(NOW.0 - Millis::secs(ago.parse().unwrap()).0), from.parse().unwrap())
            })
            .into_iter()
            .collect(),
        pattern: DailyPattern::default(),
        disk: Bytes::ZERO,
        pool: None,
        cpu_reserved: CpuMillis::ZERO,
        load: words.get("load").map_or_else(Window::default, |load| series(load, resident)),
    }
}

fn series(load: &str, resident: Bytes) -> Window<VmSample> {
    let runs = load.split(',').map(|run| run.split_once('*').unwrap_or((run, "60")));
    let values: Vec<f64> = runs
        .flat_map(|(cores, seconds)| std::iter::repeat_n(cores.parse().unwrap(), seconds.parse::<usize>().unwrap()))
        .collect();
    let first = NOW.0 - Millis::secs(values.len() as u64 - 1).0;
    let sample = |cores: f64| VmSample {
        cpu_used: CpuMillis::CORE.scale(cores),
        cpu_wanted: CpuMillis::CORE.scale(cores),
        memory_used: resident,
        net_rx: Bytes(0),
        net_tx: Bytes(0),
        disk_latency_us: 0,
        dirty_rate: None,
    };
    values.iter().enumerate().map(|(n, cores)| (TimeMs(first + n as u64 * 1000), sample(*cores))).collect()
}

/// Once a second, the sum over the vms on the host.
fn measured(world: &World, host: &HostId) -> Window<HostSample> {
    let here: Vec<_> = world.vms.values().filter(|vm| vm.host.as_ref() == Some(host)).collect();
    (0..SECONDS)
        .rev()
        .map(|ago| {
            let at = TimeMs(NOW.0 - Millis::secs(ago as u64).0);
            let now = || here.iter().filter_map(|vm| vm.load.iter().find(|(t, _)| *t == at).map(|(_, sample)| sample));
            let cpu: CpuMillis = now().map(|sample| sample.cpu_wanted).sum();
            let sample = HostSample {
                cpu_used: cpu.min(world.hosts[host].capacity.map_or(cpu, |capacity| capacity.cpu)),
                cpu_wanted: cpu,
                memory_used: now().map(|sample| sample.memory_used).sum(),
                memory_pressure: Ratio(0.0),
                net_rx: Bytes(0),
                net_tx: Bytes(0),
                disk_latency_us: 0,
            };
            (at, sample)
        })
        .collect()
}
