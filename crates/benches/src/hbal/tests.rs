use super::*;
use crate::random::Random;
use drover_planner::text::ganeti::{Instance, Role, Status, Template};
use state::State;

/// One thing of each kind that counts.
const VARIED: &str = "\
default|u-1|preferred||

n1|10000|1000|5000|50000|20000|8|M|u-1|2|place:a,kind:x|N|0|1|1.0
n2|12000|1000|9500|40000|30000|8|N|u-1|2|place:a|N|0|2|1.5
n3|10000|500|800|50000|45000|16|N|u-1|2|place:b,kind:x|N|0|1|1.0
n4|10000|500|9500|50000|50000|16|Y|u-1|2||N|0|1|1.0

i1|1000|5000|2|running|Y|n1|n2|drbd|web-1,place:b|1|-|N
i2|2000|0|4|running|Y|n1||ext|web-1|1|-|N
i3|500|0|1|ADMIN_down|Y|n2||rbd|web-1,db|1|-|N
i4|700|3000|1|ADMIN_offline|N|n3|n1|drbd|db|3|-|N
i5|900|0|2|ERROR_up|Y|n3||ext|web-1,place:a|1|-|N
i6|300|2000|1|running|Y|n2||plain||2|-|N
i7|400|0|3|running|Y|n4||ext||1|-|N
i8|600|1000|2|running|Y|n3|n1|drbd||1|-|N
i9|250|500|1|running|Y|n2||plain|web-1|1|-|Y
i10|5200|1000|2|running|Y|n1|n3|drbd||1|-|N

htools:iextags:web
htools:nlocation:place
htools:desiredlocation:place

default|128,1,1024,1,1,1|128,1,0,1,1,1;65536,16,1048576,16,8,12|drbd,ext,plain,rbd|2.0|8.0
";
const VARIED_LOAD: &str = "\
i1 0.5 0.25 0.125 1
i2 1.5 0.5 0.3 0.2
i4 0.1 0.2 0.3 0.4
i7 0.1 0.9 0.7 0.3
i10 2 3 0.1 0.7
";
/// `hbal -t VARIED -U VARIED_LOAD -l 0 -v -v`, Ganeti 3.0.2.
const VARIED_SCORE: f64 = 36.491_150_32;
const VARIED_COMPONENTS: [f64; 20] = [
    0.335_482_88,
    0.209_496_75,
    4.0,
    0.211_560_92,
    1.0,
    1.0,
    0.378_201_36,
    0.920_144_92,
    0.782_091_21,
    0.234_816_71,
    0.216_024_69,
    2.0,
    0.077_951_20,
    0.299_966_30,
    0.208_249_98,
    0.360_977_54,
    0.051_031_04,
    3.0,
    2.0,
    0.663_333_33,
];

fn varied() -> (Cluster, BTreeMap<String, Load>) {
    (VARIED.parse().unwrap(), parse_load(VARIED_LOAD).unwrap())
}

#[test]
fn the_score_is_what_hbal_prints() {
    let (cluster, loads) = varied();
    let score = Score::of(&cluster, &loads);
    for ((ours, theirs), (name, _)) in score.components.iter().zip(VARIED_COMPONENTS).zip(score::COMPONENTS) {
        assert!((ours - theirs).abs() <= DIGITS, "{name}: {ours}, but hbal says {theirs}");
    }
    assert!((score.total() - VARIED_SCORE).abs() <= 2.0 * DIGITS, "{}", score.total());
}

/// Five nodes that differ, and instances of all kinds: some tagged, down, planned, mirrored, or on a node that is offline.
fn odd(seed: u64) -> (Cluster, BTreeMap<String, Load>) {
    let (mut cluster, loads) = generate::cluster(seed, 5);
    let mut random = Random(seed);
    cluster.tags =
        ["iextags:one", "nlocation:rack", "desiredlocation:rack", "migration:cpu", "allowmigration:cpu:a::cpu:b"]
            .map(|tag| format!("htools:{tag}"))
            .to_vec();
    for (n, node) in cluster.nodes.iter_mut().enumerate() {
        node.role = if n == 4 && seed.is_multiple_of(2) { Role::Offline } else { node.role };
        node.tags = vec![format!("rack:{}", n % 2), format!("cpu:{}", if n == 3 { "b" } else { "a" })];
        node.cpu_speed = [1.0, 1.0, 1.25, 1.0, 2.0][n];
        let resources = node.resources.as_mut().unwrap();
        resources.cpus = 8 + random.below(40);
        resources.free_memory_mib -= random.below(3) as i64 * 10_000 - 10_000;
    }
    for (n, instance) in cluster.instances.iter_mut().enumerate() {
        match random.below(12) {
            0 => instance.status = Status::AdminDown,
            1 => instance.status = Status::AdminOffline,
            2 => instance.forthcoming = true,
            3 => instance.auto_balance = false,
            4 => {
                instance.template = Template::Drbd;
                instance.secondary = Some(format!("n{}", n % 5)).filter(|name| *name != instance.primary);
            }
            5 | 6 => instance.tags = vec![format!("one-{}", random.below(3))],
            7 => instance.tags = vec![format!("rack:{}", random.below(2)), "one-0".to_owned()],
            _ => {}
        }
    }
    (cluster, loads)
}

fn moved(cluster: &Cluster, problem: &Problem, instance: usize, to: usize) -> Result<Cluster> {
    let name = cluster.instances[problem.instances[instance].index].name.as_str();
    check::carry_out(cluster, [(name, cluster.nodes[to].name.as_str())])
}

#[test]
fn each_move_is_taken_and_valued_as_on_the_written_cluster() {
    let (mut taken, mut refused) = (0, 0);
    for seed in 0..12 {
        let (mut cluster, loads) = odd(seed);
        let problem = Problem::of(&cluster, &loads);
        let mut state = State::start(&problem);
        let mut random = Random(seed);
        for _ in 0..60 {
            let instance = random.below(problem.instances.len() as u64) as usize;
            let to = random.below(problem.nodes.len() as u64) as usize;
            if to == state.node_of[instance] {
                continue;
            }
            let after = moved(&cluster, &problem, instance, to);
            assert_eq!(state.takes(to, instance), after.is_ok(), "seed {seed}: {instance} to {to}: {:?}", after.err());
            let Ok(after) = after else {
                refused += 1;
                continue;
            };
            taken += 1;
            let change = state.change(instance, to);
            let truly = Score::of(&after, &loads).total() - Score::of(&cluster, &loads).total();
            assert!((change - truly).abs() < 1e-9, "seed {seed}: {instance} to {to}: {change}, but truly {truly}");
            state.apply(instance, to, change);
            cluster = after;
        }
        let summed = state.score;
        state.refresh();
        assert!((state.score - summed).abs() < 1e-9, "seed {seed}: {summed} by and by, {} anew", state.score);
    }
    assert!(taken > 100 && refused > 100, "{taken} taken, {refused} refused: too few to tell");
}

#[test]
fn each_swap_is_valued_as_on_the_written_cluster() {
    let mut seen = 0;
    for seed in 0..12 {
        let (cluster, loads) = odd(seed);
        let problem = Problem::of(&cluster, &loads);
        let state = State::start(&problem);
        let online = |instance: usize| problem.nodes[state.node_of[instance]].online;
        for one in 0..problem.instances.len() {
            for other in one + 1..problem.instances.len() {
                let (p, q) = (state.node_of[one], state.node_of[other]);
                if p == q || !online(one) || !online(other) {
                    continue;
                }
                let after = moved(&cluster, &problem, one, q).and_then(|after| moved(&after, &problem, other, p));
                let Ok(after) = after else { continue };
                seen += 1;
                assert!(state.swappable(one, other), "seed {seed}: {one} with {other}");
                let change = state.change_of_swap(one, other);
                let truly = Score::of(&after, &loads).total() - Score::of(&cluster, &loads).total();
                assert!((change - truly).abs() < 1e-9, "seed {seed}: {one} with {other}: {change}, truly {truly}");
            }
        }
    }
    assert!(seen > 100, "{seen} swaps: too few to tell");
}

/// Score at the start and in the end, and how many moves; they are carried out by hbal's rules.
fn balanced(cluster: &Cluster, loads: &BTreeMap<String, Load>, limits: &Limits) -> (f64, f64, usize) {
    let texts = Texts { name: String::new(), cluster: cluster.to_string(), load: Some(write_load(loads)) };
    let answer = ours(&texts, limits).unwrap();
    assert_eq!(answer.moves, ours(&texts, limits).unwrap().moves, "not the same twice");
    let moves = answer.moves.iter().map(|(instance, to)| (instance.as_str(), to.as_str()));
    let after = check::carry_out(cluster, moves).unwrap();
    (Score::of(cluster, loads).total(), Score::of(&after, loads).total(), answer.moves.len())
}

const FREE: Limits = Limits { moves_max: usize::MAX, gain_min: 1e-3, candidates_max: u64::MAX };

#[test]
fn results_keep_the_rules_and_are_better() {
    for seed in 0..12 {
        let (cluster, loads) = odd(seed);
        let (start, end, _) = balanced(&cluster, &loads, &FREE);
        assert!(end < start, "seed {seed}: from {start} to {end}");
        let (cluster, loads) = generate::cluster(seed, 8);
        let (start, end, free) = balanced(&cluster, &loads, &FREE);
        assert!(end < start / 4.0, "seed {seed}: from {start} to {end}");
        let (_, ten, moves) = balanced(&cluster, &loads, &Limits { moves_max: 10, ..FREE });
        assert!(moves <= 10 && free > 10 && end < ten && ten < start, "seed {seed}: {moves} moves to {ten}");
        let (_, hasty, _) = balanced(&cluster, &loads, &Limits { candidates_max: 2000, ..FREE });
        assert!(hasty < start && end < hasty, "seed {seed}: {hasty} after few candidates");
    }
}

/// Node by node its instances, each `memory:load`; nodes of 1,000 MiB and 8 cpus.
fn small(nodes: &[&[(u64, f64)]]) -> (Cluster, BTreeMap<String, Load>) {
    let (mut cluster, _) = generate::cluster(1, nodes.len());
    let pattern = cluster.instances[0].clone();
    cluster.instances.clear();
    let mut loads = BTreeMap::new();
    for (node, instances) in cluster.nodes.iter_mut().zip(nodes) {
        let used: u64 = instances.iter().map(|(memory, _)| memory).sum();
        let resources = node.resources.as_mut().unwrap();
        (resources.memory_mib, resources.own_memory_mib) = (1000, 0);
        (resources.free_memory_mib, resources.cpus) = (1000 - used as i64, 8);
        for (memory_mib, cpu) in *instances {
            let name = format!("i{}", cluster.instances.len());
            loads.insert(name.clone(), Load { cpu: *cpu, memory: 0.0, disk: 0.0, network: 0.0 });
            let primary = node.name.clone();
            cluster.instances.push(Instance { name, memory_mib: *memory_mib, primary, vcpus: 1, ..pattern.clone() });
        }
    }
    (cluster, loads)
}

#[test]
fn an_exchange_that_finds_no_room_goes_by_way_of_a_third_node() {
    // Both nodes are all but full of memory; the loads want the large ones apart. The third has room to wait.
    let (cluster, loads) = small(&[&[(450, 4.0), (450, 4.0)], &[(450, 0.0), (450, 0.0)], &[(300, 4.0), (100, 0.0)]]);
    let (start, end, moves) = balanced(&cluster, &loads, &FREE);
    assert!(end < start - 1.0 && moves == 3, "from {start} to {end} in {moves}");
    // Two moves alone don't do it: then nothing is started.
    let (_, end, moves) = balanced(&cluster, &loads, &Limits { moves_max: 2, ..FREE });
    assert!(moves <= 2 && end <= start, "{end} in {moves}");
}

#[test]
fn an_offline_node_is_emptied() {
    let (mut cluster, loads) = small(&[&[(100, 1.0), (100, 1.0)], &[(100, 1.0)], &[]]);
    cluster.nodes[0].role = Role::Offline;
    let (start, end, moves) = balanced(&cluster, &loads, &FREE);
    assert!(start > 40.0 && end < 2.0 && moves == 2, "from {start} to {end} in {moves}");
}

#[test]
fn the_checker_says_what_it_objects_to() {
    let (mut cluster, _) = small(&[&[(600, 1.0), (300, 1.0)], &[(500, 1.0)], &[(100, 1.0)]]);
    let refused = |cluster: &Cluster, instance: &str, to: &str| {
        format!("{:#}", check::carry_out(cluster, [(instance, to)]).unwrap_err())
    };
    assert_eq!(refused(&cluster, "i0", "n1"), "move 1: i0 to n1: the node has -100 MiB left with it");
    assert!(refused(&cluster, "i0", "n0").ends_with("it is there already"));
    cluster.tags = vec!["htools:iextags:db".to_owned()];
    cluster.instances[1].tags = vec!["db-1".to_owned()];
    cluster.instances[2].tags = vec!["db-1".to_owned()];
    assert!(refused(&cluster, "i1", "n1").ends_with("an instance with the same exclusion tag is there"));
    cluster.nodes[2].resources.as_mut().unwrap().cpus = 0;
    assert!(refused(&cluster, "i1", "n2").contains("vcpus per cpu"));
    cluster.nodes[2].role = Role::Offline;
    assert!(refused(&cluster, "i1", "n2").ends_with("the node is offline"));
    cluster.instances[0].auto_balance = false;
    assert!(refused(&cluster, "i0", "n1").contains("not to be moved"));
}

#[test]
fn an_input_that_hbal_would_not_take_is_refused() {
    let refused = |cluster: &str, load: &str| {
        let texts = Texts { name: String::new(), cluster: cluster.to_owned(), load: Some(load.to_owned()) };
        format!("{:#}", texts.parse().unwrap_err())
    };
    assert!(refused(VARIED, "i77 1 1 1 1\n").contains("i77, which is no instance of the cluster"));
    let two = VARIED.replace("preferred||\n", "preferred||\nother|u-2|preferred||\n").replace("16|Y|u-1", "16|Y|u-2");
    assert!(refused(&two, "").contains("node n4 is in another group than the first"));
    assert!(refused(&VARIED.replace("10000|1000", "ten|1000"), "").starts_with("in the file of the cluster: line 3: "));
}
