//! `drover network`.

use super::Failure;
use super::confirm::confirm_removal;
use super::context::Context;
use super::output::{Columns, Output, cell, properties, state_cell};
use super::show::{self, or_nothing};
use clap::{Args, Subcommand};
use drover_api::v1::{CreateNetwork, NetworkHostView, NetworkView, TenantQuery};
use drover_model::network::Network;
use drover_model::network::Subnet;
use drover_model::{NetworkName, TenantName};
use std::net::Ipv4Addr;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Create an overlay network
    #[command(
        after_help = "Example:\n  drover network create lan --tenant acme --subnet 10.1.0.0/16 --router 10.1.0.1"
    )]
    Create(Create),
    /// List overlay networks
    #[command(visible_alias = "list")]
    Ls {
        /// Only this tenant's
        #[arg(long)]
        tenant: Option<String>,
    },
    /// Show one network and, to operators, how far the hosts have set it up
    #[command(visible_alias = "get")]
    Show { network: OwnedRef },
    /// Remove a network that no vm and no port is on
    #[command(visible_alias = "delete")]
    Rm {
        network: OwnedRef,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub struct Create {
    /// Unique within the tenant
    name: NetworkName,
    /// Whose it is; operators must say
    #[arg(long)]
    tenant: Option<TenantName>,
    /// E.g. 10.1.0.0/16; two tenants may use the same
    #[arg(long, value_name = "CIDR")]
    subnet: Subnet,
    /// Address of the subnet that guests are told as their default route
    #[arg(long, value_name = "ADDRESS")]
    router: Option<Ipv4Addr>,
    /// Name server that guests are told; may be given several times
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<Ipv4Addr>,
    /// Largest packet of a guest, in bytes [default: 1450]
    #[arg(long, value_name = "BYTES")]
    mtu: Option<u16>,
}

/// A name, an id, or `TENANT/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedRef {
    pub name: String,
    pub query: TenantQuery,
}

impl std::str::FromStr for OwnedRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (tenant, name) = text.split_once('/').map_or((None, text), |(tenant, name)| (Some(tenant), name));
        if name.is_empty() || name.contains('/') || tenant.is_some_and(str::is_empty) {
            return Err(format!("{text:?} names nothing: write its name, or TENANT/NAME"));
        }
        Ok(Self { name: name.to_owned(), query: TenantQuery { tenant: tenant.map(str::to_owned) } })
    }
}

pub async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let (client, output) = (&context.client, context.output);
    match verb {
        Verb::Create(Create { name, tenant, subnet, router, dns, mtu }) => {
            let created = client
                .of::<Network>()
                .create(&CreateNetwork { name, tenant, subnet, router, dns, mtu, labels: Default::default() })
                .await?;
            output.emit(&created, |network| table(std::slice::from_ref(network), output))
        }
        Verb::Ls { tenant } => {
            let list = client.of::<Network>().within(tenant.as_deref()).all().await?;
            output.emit(&list, |list| table(&list.items, output))
        }
        Verb::Show { network } => {
            let view = client.of::<Network>().within(network.query.tenant.as_deref()).get(&network.name).await?;
            output.emit(&view, |network| describe(network, output))
        }
        Verb::Rm { network, yes } => {
            let what = format!("network {}", network.name);
            confirm_removal(&what, yes)?;
            client.of::<Network>().within(network.query.tenant.as_deref()).remove(&network.name).await.map(drop)?;
            output.say(&format!("{what} was removed"));
            Ok(())
        }
    }
}

fn table(networks: &[NetworkView], output: Output) -> String {
    let names = ["NETWORK", "TENANT", "SUBNET", "ROUTER", ">VNI", ">MTU", ">VMS", ">PORTS", "ID"];
    let mut columns = Columns::new(output, &names);
    for network in networks {
        columns.row([
            cell(&network.name),
            cell(&network.tenant),
            cell(network.subnet),
            cell(or_nothing(network.router)),
            cell(network.vni),
            cell(network.mtu),
            cell(network.vms),
            cell(network.ports),
            cell(&network.id),
        ]);
    }
    columns.text()
}

fn describe(network: &NetworkView, output: Output) -> String {
    let dns: Vec<String> = network.dns.iter().map(ToString::to_string).collect();
    let text = properties([
        ("network", network.name.to_string()),
        ("id", network.id.to_string()),
        ("tenant", network.tenant.to_string()),
        ("subnet", network.subnet.to_string()),
        ("router", or_nothing(network.router)),
        ("name servers", if dns.is_empty() { show::NOTHING.to_owned() } else { dns.join(" ") }),
        ("mtu", format!("{} bytes", network.mtu)),
        ("vni", network.vni.to_string()),
        ("vms", network.vms.to_string()),
        ("ports", network.ports.to_string()),
        ("created", show::time(network.created_at_ms)),
        ("revision", network.revision.to_string()),
    ]);
    match network.hosts.as_deref() {
        None | Some([]) => text,
        Some(hosts) => format!("{text}\n{}", hosts_table(hosts, output)),
    }
}

fn hosts_table(hosts: &[NetworkHostView], output: Output) -> String {
    let mut columns = Columns::new(output, &["HOST", "OVERLAY ADDRESS", "STATE", "WHY"]);
    for host in hosts {
        let state = match host {
            NetworkHostView { connected: false, .. } => "unknown",
            NetworkHostView { error: Some(_), .. } => "failed",
            NetworkHostView { applied: true, .. } => "applied",
            NetworkHostView { applied: false, .. } => "waiting",
        };
        columns.row([
            cell(&host.host),
            cell(or_nothing(host.overlay_address)),
            state_cell(state),
            cell(host.error.as_deref().unwrap_or_default()),
        ]);
    }
    columns.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::PLAIN;
    use serde_json::json;

    fn network() -> NetworkView {
        let host = |host: &str, connected: bool, applied: bool, error: Option<&str>| json!({"host": host, "overlay_address": "10.0.0.1", "connected": connected, "applied": applied, "error": error});
        serde_json::from_value(json!({
            "id": "net-aaaaaaaaaaaa", "name": "lan", "tenant": "acme", "revision": 9, "vni": 70000,
            "subnet": "10.1.0.0/16", "router": "10.1.0.1", "dns": ["9.9.9.9"], "mtu": 1450,
            "created_at_ms": 1_795_294_000_000_u64, "vms": 3, "ports": 1,
            "hosts": [
                host("h1", true, true, None), host("h2", true, false, None), host("h3", false, false, None),
                host("h4", true, false, Some("nft is missing")),
            ],
        }))
        .unwrap()
    }

    #[test]
    fn a_list_of_networks_reads_at_a_glance() {
        insta::assert_snapshot!(table(&[network()], PLAIN));
    }

    #[test]
    fn one_network_is_shown_with_how_its_hosts_fare() {
        insta::assert_snapshot!(describe(&network(), PLAIN));
    }

    #[test]
    fn a_network_is_named_alone_or_with_its_tenant() {
        let named: OwnedRef = "acme/lan".parse().unwrap();
        assert_eq!((named.name.as_str(), named.query.tenant.as_deref()), ("lan", Some("acme")));
        for bad in ["", "/lan", "acme/", "a/b/c"] {
            assert!(bad.parse::<OwnedRef>().is_err(), "{bad}");
        }
    }
}
