//! All clusters of a file in one row of arrays, and where every vm is while the search tries things.

use super::input::{self, Cluster, Move, Need, Place, Shape};

/// Signed, as rooms are.
pub const BLOCK: i32 = input::BLOCK as i32;

/// What does not change. Hosts and vms are numbered through all clusters.
#[derive(Debug)]
pub struct Site {
    pub clusters: usize,
    /// By host.
    cluster_of: Vec<usize>,
    active: Vec<bool>,
    pub vms: Vec<Resident>,
    sets: Vec<Vec<usize>>,
    /// By cluster: the first number of its hosts and of its vms.
    first: Vec<(usize, usize)>,
    rooms: Vec<Room>,
}

#[derive(Debug)]
pub struct Resident {
    pub origin: Place,
    shape: Shape,
    pub movable: bool,
    sets: Vec<usize>,
}

/// What a NUMA node has left. Below zero while several vms change places at once.
#[derive(Debug, Clone, Copy)]
struct Room {
    cores: i32,
    huge_mb: i64,
}

impl Site {
    pub fn new(clusters: &[Cluster]) -> Self {
        let mut site = Self {
            clusters: clusters.len(),
            cluster_of: Vec::new(),
            active: Vec::new(),
            vms: Vec::new(),
            sets: Vec::new(),
            first: Vec::new(),
            rooms: Vec::new(),
        };
        for (number, cluster) in clusters.iter().enumerate() {
            let (host_first, vm_first) = (site.active.len(), site.vms.len());
            site.first.push((host_first, vm_first));
            for host in &cluster.hosts {
                site.cluster_of.push(number);
                site.active.push(host.active);
                let rooms = host.nodes.iter();
                site.rooms.extend(
                    rooms.map(|node| Room { cores: node.cores_free as i32, huge_mb: node.huge_mb_free as i64 }),
                );
            }
            site.vms.extend(cluster.vms.iter().map(|vm| Resident {
                origin: Place { host: host_first + vm.place.host, ..vm.place },
                shape: vm.shape,
                movable: vm.movable,
                sets: Vec::new(),
            }));
            for set in &cluster.apart {
                let members: Vec<usize> = set.iter().map(|vm| vm_first + vm).collect();
                for &vm in &members {
                    site.vms[vm].sets.push(site.sets.len());
                }
                site.sets.push(members);
            }
        }
        site
    }

    pub fn cluster_of(&self, host: usize) -> usize {
        self.cluster_of[host]
    }

    pub fn hosts(&self) -> usize {
        self.active.len()
    }

    pub fn on_both(&self, vm: usize) -> bool {
        matches!(self.vms[vm].shape, Shape::Both(_))
    }

    /// As the file's clusters number it.
    pub fn to_move(&self, vm: usize, to: Place) -> Move {
        let cluster = self.cluster_of[to.host];
        let (host_first, vm_first) = self.first[cluster];
        Move { cluster, vm: vm - vm_first, to: Place { host: to.host - host_first, ..to } }
    }
}

/// Where every vm is.
#[derive(Debug, Clone)]
pub struct State<'a> {
    pub site: &'a Site,
    places: Vec<Place>,
    rooms: Vec<Room>,
    /// By host: the movable vms there, in no order, and each vm's index among them.
    residents: Vec<Vec<usize>>,
    index: Vec<usize>,
    /// By cluster: active hosts' nodes with free cores, in no order, and each node's index among them.
    roomy: Vec<Vec<usize>>,
    roomy_index: Vec<Option<usize>>,
    blocks: i32,
}

impl<'a> State<'a> {
    pub fn new(site: &'a Site) -> Self {
        let places: Vec<Place> = site.vms.iter().map(|vm| vm.origin).collect();
        let mut residents = vec![Vec::new(); site.hosts()];
        let mut index = vec![0; places.len()];
        for (vm, place) in places.iter().enumerate().filter(|(vm, _)| site.vms[*vm].movable) {
            index[vm] = residents[place.host].len();
            residents[place.host].push(vm);
        }
        let blocks = site.rooms.iter().map(|room| room.cores / BLOCK).sum();
        let mut state = Self {
            site,
            places,
            rooms: site.rooms.clone(),
            residents,
            index,
            roomy: vec![Vec::new(); site.clusters],
            roomy_index: vec![None; site.rooms.len()],
            blocks,
        };
        for node in 0..site.rooms.len() {
            state.note_room(node);
        }
        state
    }

    pub fn place(&self, vm: usize) -> Place {
        self.places[vm]
    }

    /// Whole blocks of free cores, over all nodes.
    pub fn blocks(&self) -> i32 {
        self.blocks
    }

    /// Free cores of a node, numbered through: twice the host, plus the node.
    pub fn cores(&self, node: usize) -> i32 {
        self.rooms[node].cores
    }

    /// What a vm has on this node of its host.
    pub fn cores_on(&self, vm: usize, node: usize) -> i32 {
        match self.site.vms[vm].shape {
            Shape::One(need) if self.places[vm].node == node % 2 => need.cores as i32,
            Shape::One(_) => 0,
            Shape::Both(needs) => needs[node % 2].cores as i32,
        }
    }

    /// What is left of the fragments when a vm comes, if it costs no block.
    pub fn fragment_left(&self, vm: usize, to: Place) -> Option<i32> {
        let left = |node: usize, need: Need| {
            let left = self.rooms[2 * to.host + node].cores.rem_euclid(BLOCK) - need.cores as i32;
            (left >= 0).then_some(left)
        };
        match self.site.vms[vm].shape {
            Shape::One(need) => left(to.node, need),
            Shape::Both(needs) => Some(left(0, needs[0])? + left(1, needs[1])?),
        }
    }

    pub fn residents(&self, host: usize) -> &[usize] {
        &self.residents[host]
    }

    /// Nodes, numbered through, that have free cores and take vms.
    pub fn roomy(&self, cluster: usize) -> &[usize] {
        &self.roomy[cluster]
    }

    /// Whether a vm that may be moved may come to this place now, with those who are there.
    pub fn admits(&self, vm: usize, to: Place) -> bool {
        if !self.lawful(vm, to) {
            return false;
        }
        let fits = |node: usize, need: Need| {
            let room = self.rooms[2 * to.host + node];
            need.cores as i32 <= room.cores && need.huge_mb as i64 <= room.huge_mb
        };
        match self.site.vms[vm].shape {
            Shape::One(need) => fits(to.node, need),
            Shape::Both(needs) => fits(0, needs[0]) && fits(1, needs[1]),
        }
    }

    /// As [`Self::admits`], but for room.
    pub fn lawful(&self, vm: usize, to: Place) -> bool {
        let (resident, from) = (&self.site.vms[vm], self.places[vm]);
        let elsewhere = from.host != to.host || (from.node != to.node && !self.site.on_both(vm));
        let alone = || {
            let mates = resident.sets.iter().flat_map(|&set| &self.site.sets[set]);
            mates.into_iter().all(|&mate| mate == vm || self.places[mate].host != to.host)
        };
        elsewhere && self.site.active[to.host] && alone()
    }

    /// Whether no node of this host is overfull.
    pub fn holds(&self, host: usize) -> bool {
        self.rooms[2 * host..2 * host + 2].iter().all(|room| room.cores >= 0 && room.huge_mb >= 0)
    }

    pub fn put(&mut self, vm: usize, to: Place) {
        let from = self.places[vm];
        match self.site.vms[vm].shape {
            Shape::One(need) => {
                self.change(2 * from.host + from.node, need, 1);
                self.change(2 * to.host + to.node, need, -1);
            }
            Shape::Both(needs) => {
                for (node, need) in needs.into_iter().enumerate() {
                    self.change(2 * from.host + node, need, 1);
                    self.change(2 * to.host + node, need, -1);
                }
            }
        }
        self.places[vm] = to;
        let gone = self.index[vm];
        self.residents[from.host].swap_remove(gone);
        if let Some(&fills) = self.residents[from.host].get(gone) {
            self.index[fills] = gone;
        }
        self.index[vm] = self.residents[to.host].len();
        self.residents[to.host].push(vm);
    }

    fn change(&mut self, node: usize, need: Need, sign: i32) {
        let room = &mut self.rooms[node];
        self.blocks -= room.cores.div_euclid(BLOCK);
        room.cores += sign * need.cores as i32;
        room.huge_mb += i64::from(sign) * need.huge_mb as i64;
        self.blocks += room.cores.div_euclid(BLOCK);
        self.note_room(node);
    }

    fn note_room(&mut self, node: usize) {
        let host = node / 2;
        let roomy = &mut self.roomy[self.site.cluster_of[host]];
        let is = self.rooms[node].cores > 0 && self.site.active[host];
        match self.roomy_index[node] {
            None if is => {
                self.roomy_index[node] = Some(roomy.len());
                roomy.push(node);
            }
            Some(gone) if !is => {
                roomy.swap_remove(gone);
                if let Some(&fills) = roomy.get(gone) {
                    self.roomy_index[fills] = Some(gone);
                }
                self.roomy_index[node] = None;
            }
            Some(_) | None => {}
        }
    }
}
