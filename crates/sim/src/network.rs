//! Networks of the virtual hosts: what each was last told, and whether the frames of a vm would find it.

use crate::cluster::Cluster;
use crate::fleet::Host;
use drover_control::Control;
use drover_control::interface::{Action, Draft, NetworkReport};
use drover_model::command::{Command, VmRun};
use drover_model::intent::{Nic, RunIntent, Vm};
use drover_model::network::{HostNetwork, Overlay};
use drover_model::v1::CreateNetwork;
use drover_model::{NetworkId, TenantName, VmId};

/// Each tenant has one of this name and subnet: the addresses of both are the same.
const NAME: &str = "lan";
const SUBNET: &str = "10.0.0.0/20";
/// Vms of the workload with a card, counted in the order they are made: fewer than a network takes.
const WITH_CARD_MAX: u64 = 500;

/// Every third vm has no card.
pub fn card(number: u64, vm: &VmId) -> Option<Nic> {
    (number <= WITH_CARD_MAX && !number.is_multiple_of(3)).then(|| Nic {
        network: NAME.parse().expect("the network's name is a label"),
        mac: Vm::derived_mac(vm),
        address: None,
        security_groups: Default::default(),
        bandwidth: Default::default(),
    })
}

impl Host {
    /// An agent replaces what there is; of two, the one with the greater generation is the newer.
    pub fn take_network(&mut self, network: HostNetwork) {
        if network.generation > self.network.generation {
            self.network = network;
        }
    }

    pub fn network_report(&self) -> NetworkReport {
        NetworkReport { generation: self.network.generation, error: None }
    }

    fn overlay(&self, network: &NetworkId) -> Option<&Overlay> {
        self.network.overlays.iter().find(|overlay| overlay.network == *network)
    }

    /// What a command that starts a vm here, or lets it arrive, does not find on this host.
    pub fn lacks_network(&self, command: &Command) -> Option<String> {
        let (Command::Run { run, .. } | Command::PrepareIncoming { run, .. }) = command else { return None };
        let VmRun { vm, nic: Some(nic), .. } = run else { return None };
        let guarded = self.network.vms.iter().any(|port| port.vm == *vm && port.mac == nic.mac);
        let reaches = self.overlay(&nic.network).is_some();
        (!guarded || !reaches).then(|| format!("{} is told of {vm} before it is told of {}", self.id, nic.network))
    }
}

impl Cluster {
    pub(crate) fn make_network(&mut self, tenant: TenantName) {
        let draft = CreateNetwork {
            name: NAME.parse().expect("the network's name is a label"),
            tenant: Some(tenant),
            subnet: SUBNET.parse().expect("the network's subnet is one"),
            router: None,
            dns: Vec::new(),
            mtu: None,
            labels: Default::default(),
        };
        let _made = self.ask(Action::Create(Draft::Network(draft)));
    }

    /// A vm whose frames would not find it, from some host.
    pub(crate) fn network_unsettled(&self, control: &Control) -> Option<String> {
        self.around.witness.vms().find_map(|vm| self.lost_on_network(control, vm))
    }

    fn lost_on_network(&self, control: &Control, vm: &Vm) -> Option<String> {
        let nic = vm.spec.nic.as_ref()?;
        control.network(&nic.network)?;
        let at = vm.host.as_ref().filter(|_| vm.run == RunIntent::Running && !vm.deleting)?;
        let there = self.fleet.host(at)?;
        let name = &vm.spec.name;
        let stations = |overlay: &Overlay| -> Vec<_> {
            overlay.stations.iter().filter(|station| station.mac == nic.mac).map(|station| station.at).collect()
        };
        for host in self.fleet.hosts.values().filter(|host| host.on) {
            let Some(overlay) = host.overlay(&nic.network) else {
                if host.id == *at {
                    return Some(format!("{at} runs {name} and has not its network {}", nic.network));
                }
                continue;
            };
            let found = stations(overlay);
            if host.id == *at {
                if !found.is_empty() {
                    return Some(format!("{at} runs {name} and sends its frames to {found:?}"));
                }
            } else if found != [there.address] {
                return Some(format!("{} sends frames of {name} to {found:?}; it runs at {}", host.id, there.address));
            } else if !overlay.peers.contains(&there.address) {
                return Some(format!("{} does not know {at} as a peer on {}", host.id, nic.network));
            }
        }
        None
    }
}
