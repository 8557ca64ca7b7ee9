//! Who is where on which network, and which hosts have yet to be told.
//!
//! The indices follow the rows: each step hands over the keys of what it changed, and only the hosts that this concerns
//! are worked out anew. Lost with the server and rebuilt from the rows; every agent is told anew when it connects.

use crate::Control;
use crate::interface::{ConnectionId, Effect, NetworkReport};
use crate::kinds::Object;
use crate::live::Live;
use crate::tables::{Change, Tables};
use drover_model::command::Command;
use drover_model::event::Severity;
use drover_model::intent::{Host, Nic, Vm};
use drover_model::migration::MigrationRecord;
use drover_model::network::{HostNetwork, Network, Port, Remote, SecurityGroup};
use drover_model::{HostId, NetworkId, PortId, SecurityGroupId, TenantName, TimeMs, VmId, VmName};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// An index from something to the vms of it.
type Index<K> = BTreeMap<K, BTreeSet<VmId>>;

/// Two to this power: more than are sent in a millisecond.
const GENERATIONS_BITS: u32 = 10;
/// What one host can be told of: stations, and addresses in rules. At some 100 bytes each they fit into a frame.
const ENTRIES_MAX: usize = 100_000;

#[derive(Debug, Default)]
pub struct Fabric {
    /// Of the last [`HostNetwork`] that was sent.
    generation: u64,
    members: BTreeMap<VmId, Member>,
    by_host: Index<HostId>,
    by_network: Index<NetworkId>,
    by_group: Index<(TenantName, SecurityGroupId)>,
    ports: BTreeMap<PortId, (NetworkId, HostId)>,
    ports_by_network: BTreeMap<NetworkId, BTreeSet<PortId>>,
    end_points: BTreeMap<HostId, IpAddr>,
    /// Hosts for which something may have changed.
    stale: BTreeSet<HostId>,
    sent: BTreeMap<HostId, Sent>,
    /// Hosts that were last found to have too much to be told.
    overflown: BTreeSet<HostId>,
}

/// A vm with a network card.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Member {
    pub tenant: TenantName,
    pub name: VmName,
    pub nic: Nic,
    /// Has the right to run it: where the others send frames to.
    pub host: Option<HostId>,
    /// Hosts that have it, are about to, or have not been seen without it.
    pub present: BTreeSet<HostId>,
}

#[derive(Debug)]
struct Sent {
    connection: ConnectionId,
    network: HostNetwork,
}

/// How a host stands to what it was told of networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkStanding {
    pub host: HostId,
    /// Whether it takes part: it has told where frames are to be sent to.
    pub overlay_address: Option<IpAddr>,
    pub connected: bool,
    /// It has made true all that it was told, and there is nothing more to tell.
    pub applied: bool,
    /// Why it could not.
    pub error: Option<String>,
}

impl Fabric {
    /// Generations begin at `now`, so that they grow across runs of the server, too.
    pub fn load(tables: &Tables, now: TimeMs) -> Self {
        let mut fabric = Self { generation: now.0 << GENERATIONS_BITS, ..Self::default() };
        for host in tables.hosts.keys() {
            fabric.note_host(tables, host);
        }
        for vm in tables.vms.keys() {
            fabric.note_vm(tables, vm);
        }
        for port in tables.ports.keys() {
            fabric.note_port(tables, port);
        }
        fabric
    }

    /// The step changed this object.
    pub fn changed(&mut self, tables: &Tables, change: Change<'_>) {
        match change.after.or(change.before) {
            Some(Object::Vm(vm)) => self.note_vm(tables, &vm.id),
            Some(Object::Migration(record)) => self.note_vm(tables, &record.vm),
            Some(Object::Port(port)) => self.note_port(tables, &port.id),
            Some(Object::Host(host)) => self.note_host(tables, &host.id),
            Some(Object::SecurityGroup(group)) => self.stale_by_group(&(group.tenant.clone(), group.id.clone())),
            // A network does not change in what hosts are told of it, and goes only when nobody is on it.
            Some(
                Object::Tenant(_)
                | Object::ApiToken(_)
                | Object::JoinToken(_)
                | Object::Image(_)
                | Object::Plan(_)
                | Object::Policy(_)
                | Object::Idempotency(_)
                | Object::Network(_)
                | Object::PlacementRule(_),
            )
            | None => {}
        }
    }

    fn note_vm(&mut self, tables: &Tables, vm: &VmId) {
        let member = tables.get::<Vm>(vm).and_then(|row| member(tables, row));
        let before = self.members.remove(vm);
        if before == member {
            self.members.extend(member.map(|member| (vm.clone(), member)));
            return;
        }
        let card_changed = before.as_ref().map(|member| &member.nic) != member.as_ref().map(|member| &member.nic);
        for concerned in [&before, &member].into_iter().flatten() {
            self.stale.extend(concerned.present.iter().cloned());
            if tables.get::<Network>(&concerned.nic.network).is_some() {
                self.stale.extend(self.hosts_of(tables, &concerned.nic.network));
            }
            if card_changed {
                for group in &concerned.nic.security_groups {
                    self.stale_by_remote(tables, &concerned.tenant, group);
                }
            }
        }
        if let Some(before) = before {
            self.index(vm, &before, |set, vm| {
                set.remove(vm);
            });
        }
        if let Some(member) = member {
            self.index(vm, &member, |set, vm| {
                set.insert(vm.clone());
            });
            self.members.insert(vm.clone(), member);
        }
    }

    fn index(&mut self, vm: &VmId, member: &Member, change: impl Fn(&mut BTreeSet<VmId>, &VmId)) {
        fn at<K: Ord + Clone>(index: &mut Index<K>, key: &K, vm: &VmId, change: impl Fn(&mut BTreeSet<VmId>, &VmId)) {
            let set = index.entry(key.clone()).or_default();
            change(set, vm);
            if set.is_empty() {
                index.remove(key);
            }
        }
        for host in &member.present {
            at(&mut self.by_host, host, vm, &change);
        }
        at(&mut self.by_network, &member.nic.network, vm, &change);
        for group in &member.nic.security_groups {
            at(&mut self.by_group, &(member.tenant.clone(), group.clone()), vm, &change);
        }
    }

    fn note_port(&mut self, tables: &Tables, id: &PortId) {
        let port = tables.get::<Port>(id).map(|port| (port.network.clone(), port.host.clone()));
        if let Some((network, host)) = self.ports.remove(id) {
            self.stale.extend(self.hosts_of(tables, &network));
            self.stale.insert(host);
            if let Some(ports) = self.ports_by_network.get_mut(&network) {
                ports.remove(id);
                if ports.is_empty() {
                    self.ports_by_network.remove(&network);
                }
            }
        }
        if let Some((network, host)) = port {
            self.ports_by_network.entry(network.clone()).or_default().insert(id.clone());
            self.stale.extend(self.hosts_of(tables, &network));
            self.ports.insert(id.clone(), (network, host));
        }
    }

    /// Frames to it go elsewhere: everybody on its networks must know.
    fn note_host(&mut self, tables: &Tables, host: &HostId) {
        let row = tables.get::<Host>(host);
        if row.is_none() {
            self.sent.remove(host);
            self.stale.remove(host);
        }
        let address = row.and_then(|row| row.overlay_address);
        if self.end_points.get(host).copied() == address {
            return;
        }
        match address {
            Some(address) => drop(self.end_points.insert(host.clone(), address)),
            None => drop(self.end_points.remove(host)),
        }
        let of_vms = self.present(host).map(|(_, member)| member.nic.network.clone());
        let of_ports = self.ports.values().filter(|(_, at)| at == host).map(|(network, _)| network.clone());
        let networks: BTreeSet<NetworkId> = of_vms.chain(of_ports).collect();
        for network in networks.into_iter().filter(|id| tables.get::<Network>(id).is_some()) {
            self.stale.extend(self.hosts_of(tables, &network));
        }
    }

    /// Hosts of the group's own vms.
    fn stale_by_group(&mut self, group: &(TenantName, SecurityGroupId)) {
        let vms = self.by_group.get(group).into_iter().flatten();
        let hosts: Vec<HostId> =
            vms.filter_map(|vm| self.members.get(vm)).flat_map(|member| member.present.iter().cloned()).collect();
        self.stale.extend(hosts);
    }

    /// Hosts of vms that a rule guards which speaks of this group.
    fn stale_by_remote(&mut self, tables: &Tables, tenant: &TenantName, remote: &SecurityGroupId) {
        let speaks = |group: &&SecurityGroup| {
            group.rules.iter().any(|rule| matches!(&rule.remote, Remote::Group { group } if group == remote))
        };
        let own = tables.all::<SecurityGroup>().filter(|group| group.tenant == *tenant);
        let groups: Vec<_> = own.filter(speaks).map(|group| (group.tenant.clone(), group.id.clone())).collect();
        for group in groups {
            self.stale_by_group(&group);
        }
    }
}

/// Looking things up.
impl Fabric {
    pub(super) fn present<'a>(&'a self, host: &HostId) -> impl Iterator<Item = (&'a VmId, &'a Member)> {
        self.members_in(self.by_host.get(host))
    }

    pub(super) fn members_of<'a>(&'a self, network: &NetworkId) -> impl Iterator<Item = (&'a VmId, &'a Member)> {
        self.members_in(self.by_network.get(network))
    }

    pub(super) fn group_members<'a>(
        &'a self,
        tenant: &TenantName,
        group: &SecurityGroupId,
    ) -> impl Iterator<Item = &'a Member> {
        self.members_in(self.by_group.get(&(tenant.clone(), group.clone()))).map(|(_, member)| member)
    }

    fn members_in<'a>(&'a self, vms: Option<&'a BTreeSet<VmId>>) -> impl Iterator<Item = (&'a VmId, &'a Member)> {
        vms.into_iter().flatten().filter_map(|vm| Some((vm, self.members.get(vm)?)))
    }

    pub(super) fn ports_of<'a>(&'a self, network: &NetworkId) -> impl Iterator<Item = &'a PortId> {
        self.ports_by_network.get(network).into_iter().flatten()
    }

    /// Every host with a vm or a port of the network.
    pub(super) fn hosts_of(&self, tables: &Tables, network: &NetworkId) -> BTreeSet<HostId> {
        let of_vms = self.members_of(network).flat_map(|(_, member)| member.present.iter().cloned());
        let of_ports = self.ports_of(network).filter_map(|id| Some(tables.get::<Port>(id)?.host.clone()));
        of_vms.chain(of_ports).collect()
    }
}

fn entries(network: &HostNetwork) -> usize {
    let stations = network.overlays.iter().map(|overlay| overlay.stations.len() + overlay.peers.len());
    let rules = network.vms.iter().filter_map(|vm| vm.perimeter.as_ref()).flatten();
    let addresses = rules.map(|rule| 1 + rule.remotes.as_ref().map_or(0, Vec::len));
    stations.chain(addresses).sum()
}

fn member(tables: &Tables, vm: &Vm) -> Option<Member> {
    let nic = vm.spec.nic.clone()?;
    let moving = vm.migration.and_then(|id| tables.get::<MigrationRecord>(&id));
    let ends = moving.into_iter().flat_map(|record| [&record.from, &record.to]);
    let present = vm.host.iter().chain(ends).chain(&vm.remains_on).cloned().collect();
    Some(Member { tenant: vm.spec.tenant.clone(), name: vm.spec.name.clone(), nic, host: vm.host.clone(), present })
}

/// Telling the hosts.
impl Fabric {
    /// Its agent may have forgotten, or never known.
    pub fn connected(&mut self, host: &HostId) {
        self.sent.remove(host);
        self.stale.insert(host.clone());
    }

    /// What must leave before the step's own commands: a host's networks stand before it is told to run or receive there.
    pub fn ahead(&mut self, tables: &Tables, live: &Live) -> Vec<Effect> {
        let needs = |effect: &Effect| match effect {
            Effect::Send { host, command: Command::Run { .. } | Command::PrepareIncoming { .. }, .. } => {
                Some(host.clone())
            }
            _ => None,
        };
        let never = self.stale.iter().filter(|host| !self.sent.contains_key(*host)).cloned();
        let hosts: BTreeSet<HostId> = live.effects.iter().filter_map(needs).chain(never).collect();
        self.tell(tables, live, hosts)
    }

    /// Everything else that is due.
    pub fn due(&mut self, tables: &Tables, live: &Live) -> Vec<Effect> {
        self.tell(tables, live, self.stale.clone())
    }

    fn tell(&mut self, tables: &Tables, live: &Live, hosts: BTreeSet<HostId>) -> Vec<Effect> {
        let mut effects = Vec::new();
        for host in hosts {
            // A host that is away is told when it comes.
            let connection = live.hosts.get(&host).and_then(|live| live.connection);
            if !self.stale.remove(&host) {
                continue;
            }
            let Some(connection) = connection else { continue };
            let mut network = self.host_network(tables, &host);
            if entries(&network) > ENTRIES_MAX {
                self.overflown.insert(host);
                continue;
            }
            self.overflown.remove(&host);
            if let Some(sent) = self.sent.get(&host).filter(|sent| sent.connection == connection) {
                network.generation = sent.network.generation;
                if network == sent.network {
                    continue;
                }
            }
            self.generation += 1;
            network.generation = self.generation;
            self.sent.insert(host.clone(), Sent { connection, network: network.clone() });
            effects.push(Effect::Network { host, connection, network });
        }
        effects
    }

    fn is_applied(&self, host: &HostId, connection: ConnectionId, report: Option<&NetworkReport>) -> bool {
        let sent = self.sent.get(host).filter(|sent| sent.connection == connection && !self.stale.contains(host));
        sent.zip(report)
            .is_some_and(|(sent, report)| report.generation >= sent.network.generation && report.error.is_none())
    }
}

impl Control {
    pub(crate) fn network_error(&self, host: &HostId) -> Option<String> {
        self.live.hosts.get(host)?.network.as_ref()?.error.clone()
    }

    /// Hosts that have, or are about to have, a vm or port of the network, in the order of their names.
    pub fn network_standing(&self, network: &NetworkId) -> Vec<NetworkStanding> {
        let hosts = self.fabric.hosts_of(&self.tables, network);
        let standing = |host: HostId| {
            let live = self.live.hosts.get(&host);
            let connection = live.and_then(|live| live.connection);
            let report = live.and_then(|live| live.network.as_ref());
            NetworkStanding {
                overlay_address: self.host(&host).and_then(|row| row.overlay_address),
                connected: connection.is_some(),
                applied: connection.is_some_and(|connection| self.fabric.is_applied(&host, connection, report)),
                error: match self.fabric.overflown.contains(&host) {
                    true => Some(overflow()),
                    false => report.and_then(|report| report.error.clone()),
                },
                host,
            }
        };
        hosts.into_iter().map(standing).collect()
    }
}

fn overflow() -> String {
    format!(
        "it has more than {ENTRIES_MAX} stations and addresses in security rules to know of, so it goes on as it was \
         told before: let rules speak of subnets instead of groups, or use smaller networks"
    )
}

/// A host tells how it got on; said once for as long as it stays the same.
pub fn reported(control: &mut Control, now: TimeMs, host: &HostId, before: Option<&str>) {
    // One that has not reported since it connected has said nothing.
    let Some(report) = control.live.hosts.get(host).and_then(|live| live.network.as_ref()) else { return };
    let error = report.error.clone();
    let (severity, kind, text) = match (before, error) {
        (before, Some(error)) if before != Some(error.as_str()) => {
            (Severity::Warning, "network-failed", format!("{host} could not set up its networks as told: {error}"))
        }
        (Some(_), None) => (Severity::Info, "network-applied", format!("{host} has set up its networks as told")),
        _ => return,
    };
    control.tables.event(now, severity, format!("host/{host}"), None, kind, text);
}
