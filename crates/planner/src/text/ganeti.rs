//! Ganeti's text format: a cluster (`htools -t`, usually `.data`) and the load of its instances (`hbal -U`, `.load`).
//!
//! ```text
//!   groups      name|uuid|allocation|tags|networks                          sections are parted by one empty line,
//!                                                                           fields by |, lists by commas
//!   nodes       name|total memory|own memory|free memory|total disk|free disk|cpus|role|group uuid|spindles
//!               |tags|exclusive storage|free spindles|own vcpus|cpu speed
//!
//!   instances   name|memory|disk|vcpus|status|auto-balance|primary|secondary|disk template|tags|spindle use
//!               |spindles|forthcoming
//!
//!   tags        one a line
//!
//!   policies    group, or nothing for the cluster|standard|min;max;...|disk templates|vcpu ratio|spindle ratio
//! ```
//! Later fields may be left out. So may the policies, and as only empty lines tell the sections apart, a file that has
//! policies and one empty line where the tags would stand has tags that look like policies: it is read so here, too.
//!
//! Source: htools(1) and hbal(1) of Ganeti 3.0, and what its `hbal` accepts. Memory and disk are in MiB.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    pub groups: Vec<Group>,
    pub nodes: Vec<Node>,
    pub instances: Vec<Instance>,
    pub tags: Vec<String>,
    /// At most one for the cluster and one for each group.
    pub policies: Vec<Policy>,
}

/// Nodes among which an instance may move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub name: String,
    pub uuid: String,
    pub allocation: Allocation,
    pub tags: Vec<String>,
    pub networks: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub name: String,
    /// `None`: the file says `?` in one of the numbers. Such a node counts as offline.
    pub resources: Option<Resources>,
    pub role: Role,
    /// The uuid of a group.
    pub group: String,
    pub spindles: u64,
    pub tags: Vec<String>,
    pub exclusive_storage: bool,
    pub free_spindles: i64,
    /// What the node's own system uses.
    pub own_vcpus: u64,
    /// Relative to a standard node of the group; above 0.
    pub cpu_speed: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    pub memory_mib: u64,
    /// What the node's own system uses.
    pub own_memory_mib: u64,
    /// As the node reports it.
    pub free_memory_mib: i64,
    pub disk_mib: u64,
    pub free_disk_mib: i64,
    pub cpus: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    pub name: String,
    pub memory_mib: u64,
    pub disk_mib: u64,
    pub vcpus: u64,
    pub status: Status,
    /// Whether it may be moved without being asked for.
    pub auto_balance: bool,
    /// The name of a node.
    pub primary: String,
    /// The name of another node, where the disk template has two.
    pub secondary: Option<String>,
    pub template: Template,
    pub tags: Vec<String>,
    pub spindle_use: u64,
    pub spindles: Option<u64>,
    /// Not created yet, only planned.
    pub forthcoming: bool,
}

/// What instances may be, and how far processors and spindles are shared.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// The name of a group; `None` for the cluster.
    pub group: Option<String>,
    pub standard: Spec,
    /// Smallest and largest.
    pub bounds: Vec<(Spec, Spec)>,
    pub templates: Vec<Template>,
    /// Virtual per physical processor, at most.
    pub vcpu_ratio: f64,
    pub spindle_ratio: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spec {
    pub memory_mib: u64,
    pub vcpus: u64,
    pub disk_mib: u64,
    pub disks: u64,
    pub nics: u64,
    pub spindles: u64,
}

/// Load of an instance, in units of whoever wrote it; equal units for equal resources.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    pub cpu: f64,
    pub memory: f64,
    pub disk: f64,
    pub network: f64,
}

/// The word of a value, and back.
macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name {
            $($variant),+
        }

        impl $name {
            const WORDS: &[&str] = &[$($word),+];

            fn of(word: &str) -> Option<Self> {
                match word {
                    $($word => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $word),+
                })
            }
        }
    };
}

words!(Allocation { Preferred = "preferred", LastResort = "last_resort", Unallocable = "unallocable" });
words!(Role { Master = "M", Online = "N", Offline = "Y" });
words!(Status {
    Running = "running",
    AdminDown = "ADMIN_down",
    AdminOffline = "ADMIN_offline",
    UserDown = "USER_down",
    ErrorDown = "ERROR_down",
    ErrorUp = "ERROR_up",
    ErrorNodeDown = "ERROR_nodedown",
    ErrorNodeOffline = "ERROR_nodeoffline",
    ErrorWrongNode = "ERROR_wrongnode",
});
words!(
    /// Where the disks are.
    Template {
        Diskless = "diskless",
        File = "file",
        SharedFile = "sharedfile",
        Plain = "plain",
        Block = "blockdev",
        Drbd = "drbd",
        Rbd = "rbd",
        Ext = "ext",
        Gluster = "gluster",
    }
);

/// What stands in the text is not what must stand there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {found}, but expected {expected}")]
pub struct ParseError {
    /// From 1.
    pub line: usize,
    pub found: String,
    pub expected: String,
}

impl Status {
    /// Whether the instance takes memory of its node.
    pub fn uses_memory(self) -> bool {
        match self {
            Self::Running | Self::ErrorUp | Self::ErrorNodeDown | Self::ErrorNodeOffline | Self::ErrorWrongNode => true,
            Self::AdminDown | Self::AdminOffline | Self::UserDown | Self::ErrorDown => false,
        }
    }
}

impl Template {
    /// Whether the disks take room on the nodes of the instance.
    pub fn is_local(self) -> bool {
        matches!(self, Self::Plain | Self::Drbd)
    }

    /// Whether every node of the group reaches the disks, so that an instance moves without them.
    pub fn is_shared(self) -> bool {
        match self {
            Self::SharedFile | Self::Block | Self::Rbd | Self::Ext | Self::Gluster => true,
            Self::Diskless | Self::File | Self::Plain | Self::Drbd => false,
        }
    }
}

impl FromStr for Cluster {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let lines: Vec<Line> = text.lines().enumerate().map(|(at, text)| Line { number: at + 1, text }).collect();
        let sections: Vec<&[Line]> = lines.split(|line| line.text.is_empty()).collect();
        let [groups, nodes, instances, tags, rest @ ..] = sections.as_slice() else {
            return Err(ParseError {
                line: lines.len().max(1),
                found: format!("the end after {} sections", sections.len()),
                expected: "groups, nodes, instances, tags and policies, parted by one empty line each".to_owned(),
            });
        };
        // Sections after the fifth are of later versions, and nobody's here.
        let policies = rest.first().copied().unwrap_or_default();
        let cluster = Self {
            groups: groups.iter().map(Line::group).collect::<Result<_, _>>()?,
            nodes: nodes.iter().map(Line::node).collect::<Result<_, _>>()?,
            instances: instances.iter().map(Line::instance).collect::<Result<_, _>>()?,
            tags: tags.iter().map(|line| line.text.to_owned()).collect(),
            policies: policies.iter().map(Line::policy).collect::<Result<_, _>>()?,
        };
        cluster.check(groups, nodes, instances, policies)?;
        Ok(cluster)
    }
}

impl Cluster {
    /// Names are there once, and what is referred to is there.
    fn check(&self, groups: &[Line], nodes: &[Line], instances: &[Line], policies: &[Line]) -> Result<(), ParseError> {
        let uuids = once(groups, self.groups.iter().map(|group| group.uuid.as_str()), "the uuid of a group")?;
        let group_names = once(groups, self.groups.iter().map(|group| group.name.as_str()), "the name of a group")?;
        let node_names = once(nodes, self.nodes.iter().map(|node| node.name.as_str()), "the name of a node")?;
        once(instances, self.instances.iter().map(|instance| instance.name.as_str()), "the name of an instance")?;
        for (line, node) in nodes.iter().zip(&self.nodes) {
            line.known(&uuids, &node.group, "the uuid of a group of the first section")?;
        }
        for (line, instance) in instances.iter().zip(&self.instances) {
            line.known(&node_names, &instance.primary, "the name of a node of the second section")?;
            if let Some(secondary) = &instance.secondary {
                line.known(&node_names, secondary, "the name of a node of the second section")?;
                if *secondary == instance.primary {
                    return Err(
                        line.error(format!("node {secondary} twice"), "a secondary node that is not the primary")
                    );
                }
            }
        }
        let mut owners = BTreeSet::new();
        for (line, policy) in policies.iter().zip(&self.policies) {
            if let Some(group) = &policy.group {
                line.known(&group_names, group, "the name of a group of the first section, or nothing")?;
            }
            if !owners.insert(&policy.group) {
                return Err(line.error("a second policy of the same owner".to_owned(), "one for each"));
            }
        }
        Ok(())
    }
}

/// Each name, which must stand there once.
fn once<'a>(lines: &[Line], names: impl Iterator<Item = &'a str>, what: &str) -> Result<BTreeSet<&'a str>, ParseError> {
    let mut seen = BTreeSet::new();
    for (line, name) in lines.iter().zip(names) {
        if name.is_empty() || !seen.insert(name) {
            return Err(line.error(format!("{name:?}"), &format!("{what} that no other has")));
        }
    }
    Ok(seen)
}

/// Reads the load of instances: a line `name cpu memory disk network` for each.
pub fn parse_load(text: &str) -> Result<BTreeMap<String, Load>, ParseError> {
    let mut loads = BTreeMap::new();
    for (at, text) in text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let line = Line { number: at + 1, text };
        let fields: Vec<&str> = text.split_ascii_whitespace().collect();
        let [name, cpu, memory, disk, network] = fields.as_slice() else {
            return Err(line.error(
                format!("{} fields", fields.len()),
                "an instance and its load of cpu, memory, disk and network, parted by blanks",
            ));
        };
        let load = |text| line.amount(text, "a load, not below 0");
        let load = Load { cpu: load(cpu)?, memory: load(memory)?, disk: load(disk)?, network: load(network)? };
        if loads.insert((*name).to_owned(), load).is_some() {
            return Err(line.error(format!("{name} again"), "each instance once"));
        }
    }
    Ok(loads)
}

/// What [`parse_load`] reads.
pub fn write_load(loads: &BTreeMap<String, Load>) -> String {
    let line = |(name, load): (&String, &Load)| {
        format!("{name} {} {} {} {}\n", load.cpu, load.memory, load.disk, load.network)
    };
    loads.iter().map(line).collect()
}

/// A line of the text and where it stands.
struct Line<'a> {
    number: usize,
    text: &'a str,
}

impl<'a> Line<'a> {
    fn error(&self, found: String, expected: &str) -> ParseError {
        ParseError { line: self.number, found, expected: expected.to_owned() }
    }

    fn known(&self, names: &BTreeSet<&str>, name: &str, expected: &str) -> Result<(), ParseError> {
        if names.contains(name) { Ok(()) } else { Err(self.error(format!("{name:?}"), expected)) }
    }

    /// At least as many fields as there are names without `default`; the others have theirs.
    fn fields<const N: usize>(
        &self,
        least: usize,
        defaults: [&'a str; N],
        expected: &str,
    ) -> Result<[&'a str; N], ParseError> {
        let mut fields = defaults;
        let mut count = 0;
        // What later versions add stands behind, and is no fault of the file.
        for (field, text) in fields.iter_mut().zip(self.text.split('|')) {
            *field = text;
            count += 1;
        }
        if count < least {
            return Err(self.error(format!("{count} fields parted by |"), &format!("at least {least}: {expected}")));
        }
        Ok(fields)
    }

    fn number<T: FromStr>(&self, text: &str, what: &str) -> Result<T, ParseError> {
        text.parse().map_err(|_| self.error(format!("{text:?}"), &format!("{what}, a whole number")))
    }

    fn amount(&self, text: &str, what: &str) -> Result<f64, ParseError> {
        match text.parse() {
            Ok(amount) if f64::is_finite(amount) && amount >= 0.0 => Ok(amount),
            _ => Err(self.error(format!("{text:?}"), what)),
        }
    }

    fn word<T>(&self, text: &str, words: &[&str], of: fn(&str) -> Option<T>) -> Result<T, ParseError> {
        of(text).ok_or_else(|| self.error(format!("{text:?}"), &format!("one of {}", words.join(", "))))
    }

    fn yes(&self, text: &str, what: &str) -> Result<bool, ParseError> {
        match text {
            "Y" => Ok(true),
            "N" => Ok(false),
            _ => Err(self.error(format!("{text:?}"), &format!("{what}, Y or N"))),
        }
    }

    fn group(&self) -> Result<Group, ParseError> {
        let [name, uuid, allocation, tags, networks] =
            self.fields(4, [""; 5], "name, uuid, allocation policy and tags of a group")?;
        Ok(Group {
            name: name.to_owned(),
            uuid: uuid.to_owned(),
            allocation: self.word(allocation, Allocation::WORDS, Allocation::of)?,
            tags: list(tags),
            networks: list(networks),
        })
    }

    fn node(&self) -> Result<Node, ParseError> {
        let defaults = ["", "", "", "", "", "", "", "", "", "1", "", "N", "0", "1", "1"];
        let [name, memory, own, free, disk, disk_free, cpus, role, group, spindles, more @ ..] =
            self.fields(9, defaults, "name, total, own and free memory, total and free disk, cpus, role and group")?;
        let [tags, exclusive, free_spindles, own_vcpus, speed] = more;
        let unknown = [memory, own, free, disk, disk_free, cpus].contains(&"?");
        let resources = || -> Result<Resources, ParseError> {
            Ok(Resources {
                memory_mib: self.number(memory, "the total memory in MiB, or ?")?,
                own_memory_mib: self.number(own, "the memory of the node's own system in MiB, or ?")?,
                free_memory_mib: self.number(free, "the free memory in MiB, or ?")?,
                disk_mib: self.number(disk, "the total disk in MiB, or ?")?,
                free_disk_mib: self.number(disk_free, "the free disk in MiB, or ?")?,
                cpus: self.number(cpus, "the number of cpus, or ?")?,
            })
        };
        let cpu_speed = self.amount(speed, "the speed of the cpus, above 0")?;
        if cpu_speed == 0.0 {
            return Err(self.error(format!("{speed:?}"), "the speed of the cpus, above 0"));
        }
        Ok(Node {
            name: name.to_owned(),
            resources: if unknown { None } else { Some(resources()?) },
            role: self.word(role, Role::WORDS, Role::of)?,
            group: group.to_owned(),
            spindles: self.number(spindles, "the spindles")?,
            tags: list(tags),
            exclusive_storage: self.yes(exclusive, "whether storage is exclusive")?,
            free_spindles: self.number(free_spindles, "the free spindles")?,
            own_vcpus: self.number(own_vcpus, "the vcpus of the node's own system")?,
            cpu_speed,
        })
    }

    fn instance(&self) -> Result<Instance, ParseError> {
        let defaults = ["", "", "", "", "", "", "", "", "", "", "1", "-", "N"];
        let [name, memory, disk, vcpus, status, auto, primary, secondary, template, tags, more @ ..] = self.fields(
            10,
            defaults,
            "name, memory, disk, vcpus, status, auto-balance, nodes, disk template and tags",
        )?;
        let [spindle_use, spindles, forthcoming] = more;
        Ok(Instance {
            name: name.to_owned(),
            memory_mib: self.number(memory, "the memory in MiB")?,
            disk_mib: self.number(disk, "the disk in MiB")?,
            vcpus: self.number(vcpus, "the vcpus")?,
            status: self.word(status, Status::WORDS, Status::of)?,
            auto_balance: self.yes(auto, "auto-balance")?,
            primary: primary.to_owned(),
            secondary: if secondary.is_empty() { None } else { Some(secondary.to_owned()) },
            template: self.word(template, Template::WORDS, Template::of)?,
            tags: list(tags),
            spindle_use: self.number(spindle_use, "the use of spindles")?,
            spindles: if spindles == "-" { None } else { Some(self.number(spindles, "the spindles or -")?) },
            forthcoming: self.yes(forthcoming, "forthcoming")?,
        })
    }

    fn policy(&self) -> Result<Policy, ParseError> {
        let [group, standard, bounds, templates, vcpu_ratio, spindle_ratio] = self.fields(
            6,
            [""; 6],
            "owner, standard, bounds, disk templates, vcpu ratio and spindle ratio of a policy",
        )?;
        let bounds: Vec<Spec> = bounds.split(';').map(|spec| self.spec(spec)).collect::<Result<_, _>>()?;
        if !bounds.len().is_multiple_of(2) {
            return Err(self.error(format!("{} bounds", bounds.len()), "a largest for each smallest, parted by ;"));
        }
        Ok(Policy {
            group: if group.is_empty() { None } else { Some(group.to_owned()) },
            standard: self.spec(standard)?,
            bounds: bounds.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect(),
            templates: templates
                .split(',')
                .map(|word| self.word(word, Template::WORDS, Template::of))
                .collect::<Result<_, _>>()?,
            vcpu_ratio: self.amount(vcpu_ratio, "the vcpu ratio, not below 0")?,
            spindle_ratio: self.amount(spindle_ratio, "the spindle ratio, not below 0")?,
        })
    }

    fn spec(&self, text: &str) -> Result<Spec, ParseError> {
        let fields: Vec<u64> =
            text.split(',').map(|field| self.number(field, "a part of a spec")).collect::<Result<_, _>>()?;
        let [memory_mib, vcpus, disk_mib, disks, nics, spindles] = fields[..] else {
            return Err(self.error(format!("{text:?}"), "a spec: memory,cpus,disk,disks,nics,spindles"));
        };
        Ok(Spec { memory_mib, vcpus, disk_mib, disks, nics, spindles })
    }
}

fn list(text: &str) -> Vec<String> {
    text.split(',').filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

impl fmt::Display for Cluster {
    /// Ganeti's text; [`FromStr`] reads the same cluster from it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.groups.iter().try_for_each(|group| writeln!(f, "{group}"))?;
        writeln!(f)?;
        self.nodes.iter().try_for_each(|node| writeln!(f, "{node}"))?;
        writeln!(f)?;
        self.instances.iter().try_for_each(|instance| writeln!(f, "{instance}"))?;
        writeln!(f)?;
        self.tags.iter().try_for_each(|tag| writeln!(f, "{tag}"))?;
        if self.policies.is_empty() && !self.tags.is_empty() {
            return Ok(());
        }
        writeln!(f)?;
        self.policies.iter().try_for_each(|policy| writeln!(f, "{policy}"))
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, uuid, allocation, tags, networks } = self;
        write!(f, "{name}|{uuid}|{allocation}|{}|{}", tags.join(","), networks.join(","))
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}|", self.name)?;
        match &self.resources {
            None => write!(f, "?|?|?|?|?|?")?,
            Some(Resources { memory_mib, own_memory_mib, free_memory_mib, disk_mib, free_disk_mib, cpus }) => {
                write!(f, "{memory_mib}|{own_memory_mib}|{free_memory_mib}|{disk_mib}|{free_disk_mib}|{cpus}")?;
            }
        }
        write!(f, "|{}|{}|{}", self.role, self.group, self.spindles)?;
        let extended = !self.tags.is_empty()
            || self.exclusive_storage
            || (self.free_spindles, self.own_vcpus, self.cpu_speed) != (0, 1, 1.0);
        if !extended {
            return Ok(());
        }
        write!(f, "|{}|{}|{}", self.tags.join(","), yes(self.exclusive_storage), self.free_spindles)?;
        // Read as a fraction there: it needs its point.
        write!(f, "|{}|{:?}", self.own_vcpus, self.cpu_speed)
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, memory_mib, disk_mib, vcpus, status, primary, template, spindle_use, .. } = self;
        write!(f, "{name}|{memory_mib}|{disk_mib}|{vcpus}|{status}|{}|{primary}", yes(self.auto_balance))?;
        let secondary = self.secondary.as_deref().unwrap_or_default();
        write!(f, "|{secondary}|{template}|{}|{spindle_use}", self.tags.join(","))?;
        match self.spindles {
            None if !self.forthcoming => Ok(()),
            None => write!(f, "|-|{}", yes(self.forthcoming)),
            Some(spindles) => write!(f, "|{spindles}|{}", yes(self.forthcoming)),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bounds: Vec<String> = self.bounds.iter().map(|(min, max)| format!("{min};{max}")).collect();
        let templates: Vec<String> = self.templates.iter().map(Template::to_string).collect();
        write!(f, "{}|{}|{}", self.group.as_deref().unwrap_or_default(), self.standard, bounds.join(";"))?;
        write!(f, "|{}|{:?}|{:?}", templates.join(","), self.vcpu_ratio, self.spindle_ratio)
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { memory_mib, vcpus, disk_mib, disks, nics, spindles } = self;
        write!(f, "{memory_mib},{vcpus},{disk_mib},{disks},{nics},{spindles}")
    }
}

fn yes(value: bool) -> char {
    if value { 'Y' } else { 'N' }
}

#[cfg(test)]
mod tests;
