//! The host's networks (design section 7): taps on bridges, overlays between hosts, who may speak to whom, and the way
//! that frames take while a vm moves.
//!
//! ```text
//!  guest ─ tap dv… ─┬─ bridge drb<vni> ─┬─ VXLAN drx<vni> ─── other hosts
//!  guest ─ tap dv… ─┘                   └─ drp… ═ a port's interface on this host
//!  guest ─ tap dv… ─── the provider's bridge (configuration) ─── uplink
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | `state` | what is to stand, written down; the route of each vm's frames |
//! | `links` | interfaces |
//! | `paths`, `kernel` | forwarding entries and filters, by rtnetlink |
//! | `rules` | the packet filter: spoofing, perimeters |
//! | `dhcp`, `packet` | answers at a vm's own tap; announcements |
//!
//! What stands in the kernel stays when the agent goes. Frames need no agent, only changes do.

mod dhcp;
mod kernel;
mod links;
mod moving;
mod names;
mod packet;
mod paths;
mod rules;
mod state;
#[cfg(test)]
mod tests;

pub use kernel::KernelError;
pub use names::{is_own, tap_name};

use crate::clock::now_ms;
use crate::error_chain::chain;
use crate::tool::{Tool, ToolError};
use dhcp::Answering;
use drover_model::network::{Bandwidth, HostNetwork};
use drover_model::{NetworkId, VmId};
use kernel::{Filter, Kernel, Side};
use links::Links;
use names::{Mac, bridge_name, shaper_name};
use paths::Led;
use state::{Presence, State};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;
use tokio::sync::Mutex;

/// How long what arrives for a vm that has left is sent after it. Every other host has been told by then, or is not
/// connected to the server, and finds the vm when it is.
const REDIRECT: Duration = Duration::from_secs(10);

/// Is there where br_netfilter is loaded.
const BRIDGE_FILTER: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// How often what the server told is tried, and the time between: after that it waits for the server's next word.
const APPLY_TRIES_MAX: u32 = 5;
const APPLY_AGAIN: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
pub struct NetConfig {
    /// What is to stand, over restarts of the agent.
    pub state_file: PathBuf,
    /// Provider networks and their bridges.
    pub providers: BTreeMap<NetworkId, String>,
    /// For one call of a tool or of the kernel.
    pub wait_max: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("network {0} is not on this host: name its bridge in [networks], or wait until the server has told of it")]
    UnknownNetwork(NetworkId),
    #[error("the server has not told how to guard the network card of {0}: try again")]
    NotTold(VmId),
    #[error("the network card of {vm} is {asked}, but the server told to guard {told}")]
    OtherCard { vm: VmId, asked: String, told: String },
    #[error("{0} is on no overlay network here: there is nothing to relay")]
    NotOverlay(VmId),
    #[error("what the server told of networks can't stand: {what}")]
    BadNetwork { what: String },
    #[error("this host takes part in overlay networks, but has no address for it: set overlay_address")]
    NoOverlayAddress,
    #[error(
        "a vm has a perimeter, but this kernel does not show bridged packets to conntrack: load br_netfilter (`modprobe br_netfilter`)"
    )]
    NoBridgeFilter,
    #[error("there are more networks on this host than it can keep apart")]
    TooManyNetworks,
    #[error("can't write {path}: is there space on its file system?", path = path.display())]
    Store {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("can't {what}")]
    Tool {
        what: String,
        #[source]
        source: ToolError,
    },
    #[error("can't understand what `ip` says of the interfaces: is iproute2 of a known version?")]
    Links(#[source] serde_json::Error),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("can't {what} at interface {interface}")]
    Packet {
        what: &'static str,
        interface: String,
        #[source]
        source: io::Error,
    },
}

/// Why a tap is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coming {
    /// The vm starts here.
    Fresh,
    /// It will come by migration and runs elsewhere until then.
    Incoming,
}

/// The networks of the namespace it was opened in. There must be one only: what it does not know of drover's
/// interfaces, it cuts off.
#[derive(Clone)]
pub struct Net {
    inner: Arc<Inner>,
}

struct Inner {
    config: NetConfig,
    ip: Tool<'static>,
    tc: Tool<'static>,
    nft: Tool<'static>,
    kernel: Kernel,
    /// Taken first, and for long: one change at a time that starts programs.
    slow: Mutex<Slow>,
    /// Taken for moments only: between a guest's stop and its start elsewhere somebody waits for it.
    current: Mutex<Current>,
    applied: StdMutex<Applied>,
    /// The server's newest word, until somebody has taken it up: whoever comes next does.
    told: StdMutex<Option<DesiredNetwork>>,
}

struct DesiredNetwork {
    network: HostNetwork,
    local: Option<IpAddr>,
}

#[derive(Default)]
struct Slow {
    /// The rules that stand, as they would be at the beginning of time.
    rules: Option<String>,
    answering: BTreeMap<VmId, Answering>,
    shaped: BTreeMap<VmId, (u32, Bandwidth)>,
}

#[derive(Default)]
struct Current {
    state: State,
    led: BTreeMap<VmId, Led>,
}

#[derive(Debug, Clone, Default)]
struct Applied {
    generation: u64,
    error: Option<String>,
}

impl Net {
    /// Makes stand again what stood when the last agent ended. What still does is not touched.
    pub async fn open(config: NetConfig) -> Result<Self, NetError> {
        let wait_max = config.wait_max;
        let tool = |program, package| Tool { program, package, wait_max };
        let state = State::load(&config.state_file);
        let known = state.is_some();
        let current = Current { state: state.unwrap_or_default(), led: BTreeMap::new() };
        let net = Self {
            inner: Arc::new(Inner {
                ip: tool("ip", "iproute2"),
                tc: tool("tc", "iproute2"),
                nft: tool("nft", "nftables"),
                kernel: Kernel::open(wait_max)?,
                slow: Mutex::default(),
                current: Mutex::new(current),
                applied: StdMutex::default(),
                told: StdMutex::default(),
                config,
            }),
        };
        if known {
            let mut slow = net.inner.slow.lock().await;
            // The server hears of it with its next word; vms that run need nothing of this.
            if let Err(error) = net.apply_desired(&mut slow).await {
                tracing::warn!(error = chain(&error), "networks could not be set up as they were");
            }
            drop(slow);
            net.forget_later();
        }
        Ok(net)
    }

    pub async fn is_bridge(&self, name: &str) -> bool {
        // Asked of the kernel: sysfs shows the namespace it was mounted in, not ours.
        let found = self.inner.ip.run(&["-o", "link", "show", "dev", name, "type", "bridge"]).await;
        found.is_ok_and(|line| !line.is_empty())
    }

    /// Whether a vm can be attached to this network. What the server told before this counts.
    pub async fn carries(&self, network: &NetworkId) -> bool {
        if self.inner.config.providers.contains_key(network) {
            return true;
        }
        self.adopt_newest(&mut *self.inner.slow.lock().await).await;
        self.inner.current.lock().await.state.overlay(network).is_some()
    }

    /// Generation of the newest network that stands, and why a newer one does not.
    pub fn applied(&self) -> (u64, Option<String>) {
        let applied = locked(&self.inner.applied).clone();
        (applied.generation, applied.error)
    }

    /// A new connection to the server: generations begin anew with a server's run.
    pub fn connected(&self) {
        *locked(&self.inner.told) = None;
        *locked(&self.inner.applied) = Applied::default();
    }

    /// Replaces what the server told before. `local` is this host's tunnel end point. It stands, or has failed, before a
    /// vm is attached after this; [`Self::applied`] says which. Older words than the last are ignored.
    pub fn tell(&self, network: HostNetwork, local: Option<IpAddr>) {
        let generation = network.generation;
        {
            let mut told = locked(&self.inner.told);
            let newest = told.as_ref().map_or(0, |told| told.network.generation);
            if generation < newest.max(locked(&self.inner.applied).generation) {
                return;
            }
            *told = Some(DesiredNetwork { network, local });
        }
        let inner = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            for _ in 0..APPLY_TRIES_MAX {
                let Some(inner) = inner.upgrade() else { return };
                let net = Self { inner };
                net.adopt_newest(&mut *net.inner.slow.lock().await).await;
                if locked(&net.inner.told).is_none() {
                    return;
                }
                drop(net);
                tokio::time::sleep(APPLY_AGAIN).await;
            }
        });
    }

    /// Tells, and waits until it stands or has failed.
    #[cfg(test)]
    pub async fn apply(&self, network: HostNetwork, local: Option<IpAddr>) -> Result<(), String> {
        self.tell(network, local);
        self.adopt_newest(&mut *self.inner.slow.lock().await).await;
        self.applied().1.map_or(Ok(()), Err)
    }

    /// Makes stand what was told, if that has not been done. What failed is kept, to be tried again.
    async fn adopt_newest(&self, slow: &mut Slow) {
        let Some(told) = locked(&self.inner.told).take() else { return };
        let generation = told.network.generation;
        let result = self.replace(slow, &told).await;
        let mut applied = locked(&self.inner.applied);
        match result {
            Ok(()) => *applied = Applied { generation, error: None },
            Err(error) => {
                tracing::warn!(generation, error = chain(&error), "the host's networks are not as the server told");
                applied.error = Some(chain(&error).to_string());
                locked(&self.inner.told).get_or_insert(told);
            }
        }
    }

    async fn replace(&self, slow: &mut Slow, told: &DesiredNetwork) -> Result<(), NetError> {
        state::check(&told.network, &self.inner.config.providers)?;
        if told.local.is_none() && !told.network.overlays.is_empty() {
            return Err(NetError::NoOverlayAddress);
        }
        {
            let mut current = self.inner.current.lock().await;
            let mut next = current.state.clone();
            next.accept(told.network.clone(), told.local)?;
            current.state = next;
        }
        self.apply_desired(slow).await
    }

    /// Makes the state stand, in an order in which nothing is open that should be shut.
    async fn apply_desired(&self, slow: &mut Slow) -> Result<(), NetError> {
        self.drop_expired().await?;
        let links = self.links().await?;
        self.adopt(&links).await;
        let state = self.inner.current.lock().await.state.clone();
        state.store(&self.inner.config.state_file)?;
        if state.network.vms.iter().any(|port| port.perimeter.is_some()) && !Path::new(BRIDGE_FILTER).exists() {
            return Err(NetError::NoBridgeFilter);
        }
        self.load_rules(slow, &state).await?;
        let mut lines = links.networks(&state);
        lines.extend(links.filtered(&self.filtered_bridges(&state)));
        for (vm, card) in &state.cards {
            let (tap, bridge) = (tap_name(vm), self.bridge_of(&state, &card.network));
            if let (Some(seen), Some(bridge)) = (links.get(&tap), bridge)
                && seen.master.as_ref() != Some(&bridge)
            {
                lines.extend(links::enslave(&tap, &bridge, state.overlay(&card.network).is_some()));
            }
        }
        self.ip_lines("set up the host's networks", &lines).await?;
        let links = if lines.is_empty() { links } else { self.links().await? };
        self.settle(&links).await?;
        for port in state.ports() {
            self.shape(slow, &links, &port.vm, port.bandwidth).await?;
            self.serve_dhcp(slow, &links, &state, &port.vm);
        }
        let listed: BTreeSet<VmId> = state.ports().into_iter().map(|port| port.vm).collect();
        slow.answering.retain(|vm, _| listed.contains(vm));
        slow.shaped.retain(|vm, _| listed.contains(vm));
        self.ip_lines("remove networks that are gone", &links.left_over(&state)).await
    }

    /// Vms that were attached before anything was written down.
    async fn adopt(&self, links: &Links) {
        let mut current = self.inner.current.lock().await;
        let state = &mut current.state;
        for port in state.network.vms.clone() {
            if !state.cards.contains_key(&port.vm) && links.get(&tap_name(&port.vm)).is_some() {
                let card = state.new_card(&port.mac, &port.network, Presence::Home);
                state.cards.insert(port.vm, card);
            }
        }
    }

    async fn settle(&self, links: &Links) -> Result<(), NetError> {
        let mut current = self.inner.current.lock().await;
        let Current { state, led } = &mut *current;
        for vm in state.cards.keys() {
            paths::lead_vm(&self.inner.kernel, state, led, vm).await?;
        }
        let index = |name: &str| links.get(name).map(|link| link.ifindex);
        Ok(paths::settle(&self.inner.kernel, &paths::wanted(state, index)).await?)
    }

    async fn load_rules(&self, slow: &mut Slow, state: &State) -> Result<(), NetError> {
        let at = |now| rules::render(state, &self.inner.config.providers, now);
        let timeless = at(drover_model::TimeMs(0));
        if slow.rules.as_ref() == Some(&timeless) {
            return Ok(());
        }
        slow.rules = None;
        let what = "load the packet filter's rules".to_owned();
        let loaded = self.inner.nft.run_with(&["-f", "-"], &at(now_ms())).await;
        loaded.map_err(|source| NetError::Tool { what, source })?;
        slow.rules = Some(timeless);
        Ok(())
    }

    async fn links(&self) -> Result<Links, NetError> {
        let what = || "list the host's interfaces".to_owned();
        let said = self.inner.ip.run(&["-json", "-details", "link", "show"]).await;
        let said = said.map_err(|source| NetError::Tool { what: what(), source })?;
        Links::read(&said).map_err(NetError::Links)
    }

    async fn ip_lines(&self, what: &str, lines: &[String]) -> Result<(), NetError> {
        self.lines(&self.inner.ip, what, lines).await
    }

    async fn lines(&self, tool: &Tool<'_>, what: &str, lines: &[String]) -> Result<(), NetError> {
        if lines.is_empty() {
            return Ok(());
        }
        let done = tool.run_with(&["-batch", "-"], &(lines.join("\n") + "\n")).await;
        done.map(drop).map_err(|source| NetError::Tool { what: what.to_owned(), source })
    }

    fn bridge_of(&self, state: &State, network: &NetworkId) -> Option<String> {
        let overlay = state.overlay(network).map(|overlay| bridge_name(overlay.vni));
        overlay.or_else(|| self.inner.config.providers.get(network).cloned())
    }

    /// The provider's bridges that a vm with a perimeter is on.
    fn filtered_bridges(&self, state: &State) -> BTreeSet<String> {
        let bounded = state.network.vms.iter().filter(|port| port.perimeter.is_some());
        bounded.filter_map(|port| self.inner.config.providers.get(&port.network).cloned()).collect()
    }

    async fn shape(&self, slow: &mut Slow, links: &Links, vm: &VmId, bandwidth: Bandwidth) -> Result<(), NetError> {
        let Some(tap) = links.get(&tap_name(vm)).map(|link| link.ifindex) else { return Ok(()) };
        if slow.shaped.get(vm) == Some(&(tap, bandwidth)) {
            return Ok(());
        }
        let (ip, tc) = links.shaping(vm, bandwidth);
        let what = format!("limit what {vm} sends and receives");
        self.ip_lines(&what, &ip).await?;
        self.lines(&self.inner.tc, &what, &tc).await?;
        let kernel = &self.inner.kernel;
        kernel.make_filterable(tap).await?;
        kernel.remove_filter(tap, Side::Ingress, paths::SHAPE).await?;
        if bandwidth.egress_max.0 > 0 {
            let device = kernel.index(&shaper_name(vm)).await?;
            kernel.add_filter(tap, Side::Ingress, paths::SHAPE, &Filter::SendAll { device }).await?;
        }
        slow.shaped.insert(vm.clone(), (tap, bandwidth));
        Ok(())
    }

    /// A guest without an answer asks again; it is no reason to keep a vm from starting.
    fn serve_dhcp(&self, slow: &mut Slow, links: &Links, state: &State, vm: &VmId) {
        let tap = tap_name(vm);
        let port = state.port_of(vm).filter(|port| port.lease.is_some() && port.address.is_some());
        let (Some(port), Some(device)) = (port, links.get(&tap).map(|link| link.ifindex)) else {
            slow.answering.remove(vm);
            return;
        };
        if slow.answering.get(vm).is_some_and(|answering| answering.serves(port, device)) {
            return;
        }
        match Answering::start(port.clone(), &tap, device) {
            Ok(answering) => {
                slow.answering.insert(vm.clone(), answering);
            }
            Err(error) => tracing::warn!(%vm, %error, "nobody answers the guest's DHCP"),
        }
    }

    /// Makes the vm's tap, or finds it, guards it, and puts it on its network. Gives the tap's name.
    pub async fn attach(&self, vm: &VmId, mac: &str, network: &NetworkId, coming: Coming) -> Result<String, NetError> {
        let mut slow = self.inner.slow.lock().await;
        self.adopt_newest(&mut slow).await;
        let tap = tap_name(vm);
        let parsed: Mac = mac.parse().map_err(|error| NetError::BadNetwork { what: format!("{vm}: {error}") })?;
        let state = {
            let mut current = self.inner.current.lock().await;
            let state = &mut current.state;
            if self.bridge_of(state, network).is_none() {
                return Err(NetError::UnknownNetwork(network.clone()));
            }
            match state.port_of(vm) {
                Some(port) if !port.mac.eq_ignore_ascii_case(mac) => {
                    return Err(NetError::OtherCard { vm: vm.clone(), asked: mac.to_owned(), told: port.mac.clone() });
                }
                None if state.overlay(network).is_some() => return Err(NetError::NotTold(vm.clone())),
                Some(_) | None => {}
            }
            let presence = match coming {
                Coming::Fresh => Presence::Home,
                Coming::Incoming => Presence::Incoming,
            };
            let card = state.new_card(mac, network, presence);
            // Whatever was under way with it here before is over.
            if let Some(before) = state.cards.insert(vm.clone(), card)
                && let Some(card) = state.cards.get_mut(vm)
            {
                card.slot = before.slot;
            }
            state.clone()
        };
        state.store(&self.inner.config.state_file)?;
        self.load_rules(&mut slow, &state).await?;
        let links = self.links().await?;
        let overlay = state.overlay(network);
        let lines = links.tap(vm, parsed, overlay.map(|overlay| overlay.mtu));
        self.ip_lines(&format!("make the tap {tap}"), &lines).await?;
        let bridge = self.bridge_of(&state, network).ok_or_else(|| NetError::UnknownNetwork(network.clone()))?;
        self.prepare_filters(vm).await?;
        let what = format!("put the tap {tap} on bridge {bridge}");
        self.ip_lines(&what, &links::enslave(&tap, &bridge, overlay.is_some())).await?;
        let links = self.links().await?;
        self.settle(&links).await?;
        let bandwidth = state.port_of(vm).map_or(Bandwidth::default(), |port| port.bandwidth);
        self.shape(&mut slow, &links, vm, bandwidth).await?;
        self.serve_dhcp(&mut slow, &links, &state, vm);
        Ok(tap)
    }

    /// Before the tap is on its bridge: what waits in it would else begin with what is for everybody.
    async fn prepare_filters(&self, vm: &VmId) -> Result<(), NetError> {
        let current = self.inner.current.lock().await;
        let tap = self.inner.kernel.index(&tap_name(vm)).await?;
        if let Some(card) = current.state.cards.get(vm)
            && let Ok(mac) = card.mac.parse()
        {
            let place = paths::Place { mac, tap: Some(tap), tunnel: None };
            paths::take(&self.inner.kernel, &paths::steps(card, current.state.route(card), &place)).await?;
        }
        Ok(())
    }

    /// Removes the vm's tap if there is one. What still arrives for a vm that was released goes on being sent after it.
    pub async fn detach(&self, vm: &VmId) -> Result<(), NetError> {
        let mut slow = self.inner.slow.lock().await;
        slow.answering.remove(vm);
        slow.shaped.remove(vm);
        let mut lines = Vec::new();
        for name in [tap_name(vm), shaper_name(vm)] {
            if self.inner.kernel.find(&name).await?.is_some() {
                lines.push(format!("link delete dev {name}"));
            }
        }
        let state = {
            let mut current = self.inner.current.lock().await;
            current.led.remove(vm);
            current.state.cards.retain(|of, card| of != vm || card.redirect_until.is_some());
            current.state.clone()
        };
        state.store(&self.inner.config.state_file)?;
        let removed = self.ip_lines(&format!("remove the tap {}", tap_name(vm)), &lines).await;
        if removed.is_err() && self.inner.kernel.find(&tap_name(vm)).await?.is_some() {
            return removed;
        }
        let links = self.links().await?;
        self.settle(&links).await?;
        // A provider's vm that the server never told of is not guarded any more.
        self.load_rules(&mut slow, &state).await
    }
}

/// What is in these locks is whole at every unlock: nothing between can panic half-way.
fn locked<T>(mutex: &StdMutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
