use super::*;

const SMALL: &str = "\
default|u-1|preferred|blue,red|net-1
spare|u-2|last_resort||

n1|65536|1024|60416|1000|900|16|M|u-1|1
n2|65536|1024|-5|1000|900|16|Y|u-1|4|rack:a,ssd|Y|3|2|1.5
n3|?|?|?|?|?|?|N|u-2|1

web-1|4096|10|2|running|Y|n1||ext|web,blue|1
db-1|8192|20|4|ADMIN_down|N|n1|n2|drbd||3|2|N
next-1|1024|0|1|ERROR_up|Y|n2||rbd||1|-|Y

htools:iextags:web

|128,1,1024,1,1,1|128,1,1024,1,1,1;32768,8,1048576,16,8,12|drbd,ext|4.0|32.0
spare|128,1,1024,1,1,1|128,1,1024,1,1,1;256,2,2048,1,1,1;512,2,2048,1,1,1;1024,4,4096,1,1,1|ext|2.5|1.0
";

fn parse(text: &str) -> Cluster {
    text.parse().unwrap()
}

#[test]
fn every_field_is_read() {
    let cluster = parse(SMALL);
    assert_eq!(cluster.groups[0].tags, ["blue", "red"]);
    assert_eq!(cluster.groups[0].networks, ["net-1"]);
    assert_eq!(cluster.groups[1].allocation, Allocation::LastResort);
    let [n1, n2, n3] = cluster.nodes.as_slice() else { panic!("three nodes: {cluster:?}") };
    let resources = n1.resources.unwrap();
    assert_eq!(
        resources,
        Resources {
            memory_mib: 65536,
            own_memory_mib: 1024,
            free_memory_mib: 60416,
            disk_mib: 1000,
            free_disk_mib: 900,
            cpus: 16
        }
    );
    assert_eq!((n1.role, n1.spindles, n1.own_vcpus, n1.cpu_speed), (Role::Master, 1, 1, 1.0));
    assert_eq!(n2.resources.unwrap().free_memory_mib, -5);
    assert_eq!((n2.role, n2.spindles, n2.own_vcpus, n2.cpu_speed), (Role::Offline, 4, 2, 1.5));
    assert_eq!((n2.tags.join(" "), n2.exclusive_storage, n2.free_spindles), ("rack:a ssd".to_owned(), true, 3));
    assert_eq!((n3.resources, n3.group.as_str()), (None, "u-2"));
    let [web, db, next] = cluster.instances.as_slice() else { panic!("three instances: {cluster:?}") };
    assert_eq!((web.memory_mib, web.disk_mib, web.vcpus, web.status), (4096, 10, 2, Status::Running));
    assert_eq!((web.primary.as_str(), web.secondary.as_deref(), web.template), ("n1", None, Template::Ext));
    assert_eq!((web.auto_balance, web.spindle_use, web.spindles, web.forthcoming), (true, 1, None, false));
    assert_eq!(
        (db.secondary.as_deref(), db.auto_balance, db.spindle_use, db.spindles),
        (Some("n2"), false, 3, Some(2))
    );
    assert!(next.forthcoming && next.status.uses_memory() && !db.status.uses_memory());
    assert_eq!(cluster.tags, ["htools:iextags:web"]);
    assert_eq!(cluster.policies[0].group, None);
    assert_eq!(cluster.policies[0].templates, [Template::Drbd, Template::Ext]);
    assert_eq!((cluster.policies[1].group.as_deref(), cluster.policies[1].vcpu_ratio), (Some("spare"), 2.5));
    assert_eq!(cluster.policies[1].bounds.len(), 2);
    assert_eq!(cluster.policies[1].bounds[1].1.memory_mib, 1024);
}

#[test]
fn what_is_written_is_read_again() {
    let cluster = parse(SMALL);
    assert_eq!(parse(&cluster.to_string()), cluster);
    assert_eq!(cluster.to_string(), parse(&cluster.to_string()).to_string());
    let bare = Cluster { tags: Vec::new(), policies: Vec::new(), ..cluster.clone() };
    assert_eq!(parse(&bare.to_string()), bare);
    let untagged = Cluster { tags: Vec::new(), ..cluster.clone() };
    assert_eq!(parse(&untagged.to_string()), untagged);
    let lawless = Cluster { policies: Vec::new(), ..cluster };
    assert_eq!(parse(&lawless.to_string()), lawless);
}

/// As `hbal -v -v` shows: "Loaded cluster tags: |128,...".
#[test]
fn policies_behind_one_empty_line_are_tags() {
    let text = SMALL.replace("htools:iextags:web\n\n", "");
    let cluster = parse(&text);
    assert_eq!((cluster.tags.len(), cluster.policies.len()), (2, 0));
    assert!(cluster.to_string().ends_with(&format!("\n\n{}\n", cluster.tags.join("\n"))), "{cluster}");
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    let wrong = |from: &str, to: &str, message: &str| {
        assert!(SMALL.contains(from), "{from:?} is not in the text");
        let error = SMALL.replacen(from, to, 1).parse::<Cluster>().unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
    };
    wrong("|preferred", "|often", "line 1: \"often\", but expected one of preferred, last_resort");
    wrong("spare|u-2", "spare|u-1", "line 2: \"u-1\", but expected the uuid of a group that no other has");
    wrong("n1|65536", "n1|64G", "line 4: \"64G\", but expected the total memory in MiB");
    wrong("16|M|u-1|1", "16", "line 4: 7 fields parted by |, but expected at least 9: name, total");
    wrong("16|M|u-1", "16|M|u-9", "line 4: \"u-9\", but expected the uuid of a group of the first section");
    wrong("|2|1.5", "|2|0", "line 5: \"0\", but expected the speed of the cpus, above 0");
    wrong("running|Y", "running|yes", "line 8: \"yes\", but expected auto-balance, Y or N");
    wrong("running", "asleep", "line 8: \"asleep\", but expected one of running, ADMIN_down");
    wrong("Y|n1|", "Y|n7|", "line 8: \"n7\", but expected the name of a node of the second section");
    wrong("n1|n2|drbd", "n1|n1|drbd", "line 9: node n1 twice, but expected a secondary node");
    wrong("|drbd||", "|floppy||", "line 9: \"floppy\", but expected one of diskless, file");
    wrong("db-1", "web-1", "line 9: \"web-1\", but expected the name of an instance that no other has");
    wrong(";32768,8,1048576,16,8,12", "", "line 14: 1 bounds, but expected a largest for each smallest");
    wrong(",8,12|", ",8|", "line 14: \"32768,8,1048576,16,8\", but expected a spec");
    wrong("|4.0|", "|four|", "line 14: \"four\", but expected the vcpu ratio");
    wrong("\nspare|128", "\nelse|128", "line 15: \"else\", but expected the name of a group");
    wrong("\nspare|128", "\n|128", "line 15: a second policy of the same owner");
    let error = "a|b|preferred|\n".parse::<Cluster>().unwrap_err().to_string();
    assert!(error.starts_with("line 1: the end after 1 sections, but expected groups, nodes"), "{error}");
    assert!("".parse::<Cluster>().unwrap_err().to_string().starts_with("line 1: "));
}

#[test]
fn loads_are_read_and_written() {
    let text = "web-1 0.443 0.116 0.172 0.027\nweb-2 1 0 0 2.5\n";
    let loads = parse_load(text).unwrap();
    assert_eq!(loads["web-1"], Load { cpu: 0.443, memory: 0.116, disk: 0.172, network: 0.027 });
    assert_eq!(write_load(&loads), text);
    let wrong = |text: &str, message: &str| {
        let error = parse_load(text).unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
    };
    wrong("a 1 2 3 4\n\nb 1 2 3\n", "line 3: 4 fields, but expected an instance and its load");
    wrong("a 1 2 3 x\n", "line 1: \"x\", but expected a load, not below 0");
    wrong("a 1 2 -3 4\n", "line 1: \"-3\", but expected a load, not below 0");
    wrong("a 1 2 3 4\na 1 2 3 4\n", "line 2: a again, but expected each instance once");
}
