//! Overlay networks of tenants: made and removed. What hosts make of them is [`crate::network`]'s.

use super::{Context, Reading, Resource, Wanted};
use crate::access::owner_of_new;
use crate::interface::Refusal;
use crate::network::{assignable, is_provider};
use crate::tables::Tables;
use drover_model::NetworkId;
use drover_model::intent::Role;
use drover_model::kind::Kind;
use drover_model::network::{Network, Subnet};
use drover_model::v1::{CreateNetwork, NetworkHostView, NetworkView, OnlyLabels};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// Overlay networks of the whole cluster.
const NETWORKS_MAX: usize = 10_000;
const DNS_MAX: usize = 4;
/// Shortest and longest prefix of a network: the longest still has two addresses for vms.
const PREFIX: std::ops::RangeInclusive<u8> = 8..=30;
const MTU: std::ops::RangeInclusive<u16> = 576..=8950;
/// What hosts keep for themselves (RFC 1122 section 3.2.1.3, RFC 3927), and what no interface has (RFC 5771, RFC 1112).
const RESERVED: [(Subnet, &str); 4] = [
    (subnet([0, 0, 0, 0], 8), "this network"),
    (subnet([127, 0, 0, 0], 8), "loopback"),
    (subnet([169, 254, 0, 0], 16), "link-local"),
    (subnet([224, 0, 0, 0], 3), "multicast or reserved"),
];

const fn subnet([a, b, c, d]: [u8; 4], prefix: u8) -> Subnet {
    Subnet { address: Ipv4Addr::new(a, b, c, d), prefix }
}

impl Resource for Network {
    fn create(context: &mut Context, create: CreateNetwork) -> Result<Self, Refusal> {
        let CreateNetwork { name, tenant, subnet, router, dns, mtu, labels } = create;
        let tenant = owner_of_new(context.actor, tenant, "network")?;
        context.within_quota(&tenant, Wanted { networks: 1, ..Wanted::default() })?;
        check_subnet(subnet)?;
        if let Some(router) = router {
            assignable(subnet, router).map_err(|why| Refusal::invalid("router", why))?;
        }
        if dns.len() > DNS_MAX {
            return Err(Refusal::invalid("dns", format!("names {} servers; at most {DNS_MAX} are taken", dns.len())));
        }
        if let Some(bad) = dns.iter().find(|server| server.is_unspecified() || server.is_multicast()) {
            return Err(Refusal::invalid("dns", format!("{bad} is no server's address")));
        }
        let mtu = mtu.unwrap_or(Self::MTU_DEFAULT);
        if !MTU.contains(&mtu) {
            let detail = format!("must lie between {} and {} bytes", MTU.start(), MTU.end());
            return Err(Refusal::invalid("mtu", detail));
        }
        let tables = &context.control.tables;
        if is_provider(tables, name.as_str()) {
            let detail = format!("{name} is a provider network of the hosts: choose another name");
            return Err(Refusal::conflict(detail).at("name"));
        }
        if tables.networks.len() >= NETWORKS_MAX {
            return Err(Refusal::conflict(format!("the cluster has {NETWORKS_MAX} networks, its limit")));
        }
        let id = format!("net-{}", context.fresh);
        let id: NetworkId =
            id.parse().map_err(|error: drover_model::BadName| Refusal::invalid("id", error.to_string()))?;
        let vni = free_vni(tables, &id).ok_or_else(|| {
            Refusal::conflict("every VXLAN network identifier is in use: remove a network first".to_owned())
        })?;
        Ok(Self { id, tenant, name, vni, subnet, router, dns, mtu, created_at: context.wall(), labels })
    }

    fn settings(&self) -> Option<OnlyLabels> {
        Some(OnlyLabels { labels: self.labels.clone() })
    }

    fn patch(&self, _context: &mut Context, settings: OnlyLabels) -> Result<Self, Refusal> {
        Ok(Self { labels: settings.labels, ..self.clone() })
    }

    fn view(&self, reading: Reading) -> NetworkView {
        let tables = &reading.control.tables;
        let mut view = NetworkView::new(self, reading.revision);
        view.vms = tables.vms.count_referring_to(&self.object_key()) as u64;
        view.ports = tables.ports.count_referring_to(&self.object_key()) as u64;
        // How hosts fare is the operator's business.
        view.hosts = (reading.alone && reading.actor.role == Role::Operator).then(|| {
            let standing = reading.control.network_standing(&self.id).into_iter();
            let host = |standing: crate::NetworkStanding| NetworkHostView {
                host: standing.host,
                overlay_address: standing.overlay_address,
                connected: standing.connected,
                applied: standing.applied,
                error: standing.error,
            };
            standing.map(host).collect()
        });
        view
    }
}

fn check_subnet(subnet: Subnet) -> Result<(), Refusal> {
    let bad = |why: String| Err(Refusal::invalid("subnet", why));
    if !PREFIX.contains(&subnet.prefix) {
        return bad(format!("its prefix must lie between {} and {}", PREFIX.start(), PREFIX.end()));
    }
    if subnet.address != subnet.network() {
        return bad(format!("{subnet} is an address in a network: write {}/{}", subnet.network(), subnet.prefix));
    }
    match RESERVED.iter().find(|(reserved, _)| reserved.overlaps(subnet)) {
        Some((reserved, what)) => bad(format!("{subnet} touches {reserved} ({what}): take private addresses")),
        None => Ok(()),
    }
}

/// Begins at a place derived from the id, which is random: one that was just given back is as good as never the next,
/// across restarts, too, without anybody remembering which those are.
fn free_vni(tables: &Tables, id: &NetworkId) -> Option<u32> {
    let used: BTreeSet<u32> = tables.all::<Network>().map(|network| network.vni).collect();
    let count = Network::VNI_MAX - Network::VNI_MIN + 1;
    // FNV-1a, 32 bits.
    let hash = id.as_str().bytes().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    (0..count).map(|n| Network::VNI_MIN + (hash % count + n) % count).find(|vni| !used.contains(vni))
}
