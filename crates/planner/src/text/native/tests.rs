use super::*;
use drover_model::load::DailyPattern;
use drover_model::placement::{RuleKind, Scope};
use drover_model::policy::{Aim, Policy};
use drover_model::world::{HostState, Movable, World};
use drover_model::{Bytes, CpuMillis, HostId, Millis, Revision};

/// Every kind of line, and every key.
const WHOLE: &str = r#"# a cluster
cluster now=2026-11-21T20:47:44.500Z revision=12 sample=300   # five minutes
policy aim=auto spare_hosts=1
policy hot_evidence_k=2 hot_evidence_n=3 settle_ms=60000
pool web cpu-reserved=2.5 mem-reserved=1024 cpu-limit=8 mem-limit=16G parent=all
pool all
host h1 cpu=4 mem=8192 managed boot=90 since=5.25 rack=r1 zone=z1 labels=ssd,oracle net=a,b kind=1 refuses=2,3 disk=100G link=119209290B power=86,300 power-cycle-micro=5000 moves=3
host h2 cpu=0.5 mem=1G state=asleep drained
host h3 cpu=4 mem=8192 dark power=86,89.5,93,96,99,102,106,108,112,114,117
host h4
vm web-1 vcpus=2 mem=1024 on=h1 load=0.1*3,0.9,1.25*2 res=900 rx=1 tx=512K dirty=20 pool=web cpu-reserved=0.5 disk=10G
vm web-2 vcpus=2 mem=1024 on=h1 name=web-two tenant=acme generation=9 group=g pin=h1,h9 net=a moved=400:h2,20.5:h3 fixed="it has a \"host\" device # really"
vm web-3 vcpus=1 mem=64 on=h1 to=h3 load=0.5 pattern=3:0.2~0.05*32,1.5~0.25*64
vm new vcpus=1 mem=100B
rule r-apart apart within=rack vms=web-1,web-2
rule r-near together vms=web-1,gone
rule r-on on hosts=h1 racks=r1 zones=z1 labels=ssd vms=web-1
rule r-off not-on labels=oracle vms=web-3
rule r-few hosts-max=2 vms=web-1,web-2,web-3
"#;

fn whole() -> World {
    parse(WHOLE).unwrap()
}

#[test]
fn every_key_is_read() {
    let world = whole();
    assert_eq!((world.revision, world.sample_every), (Revision(12), Millis::secs(300)));
    assert_eq!(world.now, TimeMs(1_795_294_064_500));
    assert_eq!((world.policy.aim, world.policy.spare_hosts, world.policy.settle), (Aim::Auto, 1, Millis::secs(60)));
    let all = &world.pools[&"all".parse().unwrap()];
    let web = &world.pools[&"web".parse().unwrap()];
    assert_eq!((web.cpu_reserved, web.memory_limit), (CpuMillis(2500), Some(Bytes(16 << 30))));
    assert_eq!((all.parent.as_ref(), web.parent.as_ref().map(|p| p.as_str())), (None, Some("all")));
    let host = |id: &str| &world.hosts[&id.parse::<HostId>().unwrap()];
    let h1 = host("h1");
    assert_eq!((h1.boot_time, world.now.since(h1.since)), (Millis::secs(90), Millis(5250)));
    assert_eq!((h1.rack.as_ref().unwrap().as_str(), h1.zone.as_ref().unwrap().as_str()), ("r1", "z1"));
    assert_eq!((h1.labels.len(), h1.networks.len(), h1.kind, h1.refuses.len()), (2, 2, 1, 2));
    assert_eq!((h1.disk, h1.link), (Some(Bytes(100 << 30)), Some(Bytes(119_209_290))));
    assert_eq!((h1.power.unwrap().watts(0.5), h1.power_cycle_price.unwrap().0, h1.moves_recent), (193.0, 5000, 3));
    assert_eq!((host("h2").state, host("h2").maintenance), (HostState::Asleep, true));
    assert_eq!(host("h3").power.unwrap().0[1], 89.5);
    assert_eq!((host("h4").capacity, host("h4").state), (None, HostState::Up));
    let vm = |id: &str| &world.vms[&id.parse::<drover_model::VmId>().unwrap()];
    let wanted: Vec<u64> = vm("web-1").load.iter().map(|(_, sample)| sample.cpu_wanted.0).collect();
    assert_eq!(wanted, [100, 100, 100, 900, 1250, 1250]);
    let (at, last) = vm("web-1").load.last().unwrap();
    assert_eq!((*at, last.memory_used, last.net_tx), (world.now, Bytes::mib(900), Bytes(512 << 10)));
    assert_eq!(last.dirty_rate, Some(Bytes::mib(20)));
    assert_eq!((vm("web-1").cpu_reserved, vm("web-1").disk), (CpuMillis(500), Bytes(10 << 30)));
    let two = vm("web-2");
    assert_eq!((two.name.as_str(), two.generation.0, two.pinned_to.len(), two.load.len()), ("web-two", 9, 2, 0));
    let left: Vec<_> = two.left.iter().map(|(at, from)| (world.now.since(*at).0, from.as_str())).collect();
    assert_eq!(left, [(400_000, "h2"), (20_500, "h3")], "oldest first");
    assert_eq!(two.movable, Movable::No { why: "it has a \"host\" device # really".to_owned() });
    assert_eq!(vm("web-3").movable, Movable::Moving { to: "h3".parse().unwrap() });
    assert_eq!((vm("web-3").load.len(), vm("web-3").pattern.days), (SAMPLES, 3));
    assert_eq!(vm("web-3").pattern.slots.len(), DailyPattern::SLOTS);
    assert_eq!(vm("web-3").pattern.slots[32].mean, 1500);
    assert_eq!((vm("new").host.as_ref(), vm("new").memory), (None, Bytes(100)));
    assert_eq!(world.rules.len(), 5);
    assert_eq!(world.rules[0].kind, RuleKind::Apart { within: Scope::Rack });
    assert_eq!(world.rules[1].kind, RuleKind::Together { within: Scope::Host });
    assert_eq!(world.rules[4].kind, RuleKind::HostsMax { count: 2 });
}

#[test]
fn what_a_host_measures_is_the_sum_of_its_vms() {
    let world = whole();
    let load = |id: &str| &world.hosts[&id.parse::<HostId>().unwrap()].load;
    let (at, newest) = load("h1").last().unwrap();
    assert_eq!((*at, newest.cpu_wanted, newest.memory_used), (world.now, CpuMillis(1750), Bytes::mib(932)));
    assert_eq!(load("h1").len(), SAMPLES);
    assert!(load("h2").is_empty() && load("h3").is_empty(), "asleep, and dark");
    assert_eq!(load("h4").last().unwrap().1.cpu_wanted, CpuMillis::ZERO);
}

#[test]
fn what_is_written_is_read_again() {
    let world = whole();
    let text = write(&world);
    assert_eq!(parse(&text).unwrap(), world, "{text}");
    assert_eq!(write(&parse(&text).unwrap()), text);
}

#[test]
fn the_text_is_short_and_the_same_each_time() {
    let text =
        write(&parse("host b cpu=2 mem=1G\nhost a cpu=4 mem=1G managed\nvm x vcpus=1 mem=64 on=a load=0.25").unwrap());
    let expected = "\
cluster now=1970-01-01T02:46:40Z revision=0 sample=1
host a cpu=4 mem=1024 managed boot=30 since=1000
host b cpu=2 mem=1024 boot=30 since=1000
vm x tenant=default generation=1 vcpus=1 mem=64 on=a res=32 load=0.25*60
";
    assert_eq!(text, expected);
}

#[test]
fn every_key_of_the_policy_comes_back() {
    let defaults = Policy::default();
    for (key, value) in policy_keys(&defaults) {
        let other = match value.as_str() {
            "true" => "false".to_owned(),
            "false" => "true".to_owned(),
            "act" => "observe".to_owned(),
            "balance" => "save".to_owned(),
            number => (number.parse::<f64>().unwrap() + 1.0).to_string(),
        };
        let mut policy = defaults.clone();
        set_policy(&mut policy, key, &other).unwrap();
        assert_ne!(policy, defaults, "{key}");
        assert_eq!(policy_keys(&policy).find(|(name, _)| *name == key).unwrap().1, other);
        set_policy(&mut policy, key, "").unwrap();
        assert_eq!(policy, defaults, "{key}= is its default");
    }
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    let wrong = |text: &str, message: &str| {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
    };
    wrong("\n# x\nhots h1", "line 3: hots, but expected cluster, policy, pool, host, vm or rule");
    wrong("host", "line 1: host without a name, but expected a name behind host");
    wrong("host cpu=4", "line 1: host without a name");
    wrong("host H1", "line 1: \"H1\", but expected another name: host \"H1\" is not a valid name");
    wrong("host h1\nhost h1", "line 2: a host that stands above already, but expected each once");
    wrong("host h1 cpu=four mem=1", "line 1: cpu=four, but expected cores, e.g. 4 or 0.5");
    wrong("host h1 cpu=-1 mem=1", "line 1: cpu=-1, but expected cores");
    wrong("host h1 cpu=nan mem=1", "line 1: cpu=nan");
    wrong("host h1 cpu=4", "line 1: a host without mem=");
    wrong("host h1 mem=4X cpu=1", "line 1: mem=4X, but expected a size in MiB");
    wrong("host h1 color=red", "line 1: color=red, but expected each once, of cpu=");
    wrong("host h1 draind", "line 1: draind, but expected each once");
    wrong("host h1 rack=a rack=b", "line 1: rack=b, but expected each once");
    wrong("host h1 state=off", "line 1: state=off, but expected up, unknown");
    wrong("host h1 power=300,86", "line 1: power=300,86, but expected two watts");
    wrong("host h1 refuses=1,x", "line 1: refuses=1,x, but expected names parted by commas");
    wrong("vm a vcpus=1 mem=1 on=h9", "line 1: on=h9, but expected a host that has a line of its own");
    wrong("vm a mem=1", "line 1: a vm without vcpus=");
    wrong("vm a vcpus=1 mem=1 pool=p", "line 1: pool=p, but expected a pool");
    wrong("vm a vcpus=1 mem=1 load=0.1*200", "line 1: load=0.1*200, but expected cores wanted");
    wrong("vm a vcpus=1 mem=1 load=", "line 1: load=, but");
    wrong("vm a vcpus=1 mem=1 moved=h1", "line 1: moved=h1, but expected seconds ago and the host it left");
    wrong("vm a vcpus=1 mem=1 pattern=1:0.1~0", "line 1: pattern=1:0.1~0, but expected days");
    wrong("host h\nvm a vcpus=1 mem=1 to=h fixed=x", "line 2: both fixed= and to=");
    wrong("vm a vcpus=1 mem=1 fixed=\"x", "line 1: quotes that are not closed");
    wrong("policy {\"aim\": \"auto\"}", "line 1: {aim:, but expected keys of the policy");
    wrong("policy aim=fast", "line 1: aim=fast, but expected balance, save or auto");
    wrong("policy hot_abov=1", "line 1: hot_abov=1, but expected a key of the policy");
    wrong("policy aim=auto\npolicy aim=save", "line 2: aim=save again");
    wrong(
        "policy aim=auto\npolicy fill_to=0.9",
        "line 2: a policy with a wrong fill_to, but expected that it must be below hot_above",
    );
    wrong("policy hot_evidence_k=9", "line 1: a policy with a wrong hot_evidence_k");
    wrong("pool a parent=b", "line 1: parent=b, but expected a pool");
    wrong("pool a parent=b\npool b parent=a", "line 1: pool a below itself");
    wrong("rule r vms=a", "line 1: a rule of no kind or of several");
    wrong("rule r apart together vms=a", "line 1: a rule of no kind or of several");
    wrong("rule r on vms=a", "line 1: a rule without hosts");
    wrong("rule r apart within=city", "line 1: within=city, but expected host, rack or zone");
    wrong("rule r hosts-max=0", "line 1: hosts-max=0");
    wrong("cluster now=2026-02-30T00:00:00Z", "line 1: now=2026-02-30T00:00:00Z, but expected a time as");
    wrong("cluster sample=0", "line 1: sample=0");
    wrong("cluster\ncluster", "line 2: cluster again");
}

#[test]
fn nothing_that_is_typed_makes_it_panic() {
    let pieces = [
        "\"",
        "\\",
        "=",
        "#",
        "é",
        "host",
        "vm",
        " ",
        "\n",
        "now=9999-12-31T23:59:59Z",
        "cpu=1e308",
        "*",
        "~",
        ":",
        ",,",
    ];
    let mut seed = 7_u64;
    for _ in 0..20_000 {
        // Knuth's MMIX generator: repeatable.
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize
        };
        let mut text = WHOLE.to_owned();
        for _ in 0..3 {
            let at = next() % (text.len() + 1);
            if text.is_char_boundary(at) {
                text.insert_str(at, pieces[next() % pieces.len()]);
            }
        }
        if let Ok(world) = parse(&text) {
            assert_eq!(parse(&write(&world)).unwrap(), world, "{text}");
        }
    }
}

#[test]
fn the_documented_example_is_a_cluster() {
    let page = include_str!("../../../../../docs/planner.md");
    let example = page.split("```").nth(1).unwrap();
    let world = parse(example).unwrap();
    assert_eq!((world.hosts.len(), world.vms.len(), world.rules.len(), world.pools.len()), (3, 4, 2, 2));
    for key in [read::HOST, read::VM, read::POOL, read::CLUSTER].join(", ").split(", ") {
        assert!(page.contains(&format!("`{key}`")), "{key} is not documented");
    }
}
