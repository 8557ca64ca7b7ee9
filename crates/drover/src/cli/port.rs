//! `drover port`.

use super::Failure;
use super::confirm::confirm_removal;
use super::context::Context;
use super::network::OwnedRef;
use super::output::{Columns, Output, cell};
use super::show;
use clap::{Args, Subcommand};
use drover_api::v1::{CreatePort, PortView};
use drover_model::network::Port;
use drover_model::{HostId, PortId};
use std::net::Ipv4Addr;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Give a host an interface on an overlay network
    #[command(
        after_help = "Example:\n  drover port create gw --network acme/lan --host h1 --interface gw0 --address 10.1.0.1"
    )]
    Create(Create),
    /// List ports
    #[command(visible_alias = "list")]
    Ls,
    /// Show one port
    #[command(visible_alias = "get")]
    Show { port: String },
    /// Remove a port and its interface
    #[command(visible_alias = "delete")]
    Rm {
        port: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub struct Create {
    /// Unique in the cluster
    name: PortId,
    /// Its id, its name, or TENANT/NAME
    #[arg(long)]
    network: OwnedRef,
    #[arg(long)]
    host: HostId,
    /// The interface's name on the host
    #[arg(long, value_name = "NAME")]
    interface: String,
    /// The lowest free one when left out
    #[arg(long)]
    address: Option<Ipv4Addr>,
    /// Derived from the port's name when left out
    #[arg(long)]
    mac: Option<String>,
}

pub async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let (client, output) = (&context.client, context.output);
    let emit_one = |port: &PortView| output.emit(port, |port| table(std::slice::from_ref(port), output));
    match verb {
        Verb::Create(Create { name, network, host, interface, address, mac }) => {
            let (network, tenant) = (network.name, super::values::tenant(network.query.tenant.as_deref())?);
            let labels = Default::default();
            emit_one(
                &client
                    .of::<Port>()
                    .create(&CreatePort { name, network, tenant, host, interface, mac, address, labels })
                    .await?,
            )
        }
        Verb::Ls => output.emit(&client.of::<Port>().all().await?, |list| table(&list.items, output)),
        Verb::Show { port } => emit_one(&client.of::<Port>().get(&port).await?),
        Verb::Rm { port, yes } => {
            let what = format!("port {}", port);
            confirm_removal(&what, yes)?;
            client.of::<Port>().remove(&port).await.map(drop)?;
            output.say(&format!("{what} was removed"));
            Ok(())
        }
    }
}

fn table(ports: &[PortView], output: Output) -> String {
    let mut columns = Columns::new(output, &["PORT", "NETWORK", "HOST", "INTERFACE", "ADDRESS", "MAC", "CREATED"]);
    for port in ports {
        columns.row([
            cell(&port.id),
            cell(&port.network),
            cell(&port.host),
            cell(&port.interface),
            cell(port.address),
            cell(&port.mac),
            cell(show::time(port.created_at.0)),
        ]);
    }
    columns.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::PLAIN;
    use serde_json::json;

    #[test]
    fn a_list_of_ports_reads_at_a_glance() {
        let port: PortView = serde_json::from_value(json!({
            "name": "gw", "revision": 4, "network": "net-aaaaaaaaaaaa", "host": "h1", "interface": "gw0",
            "mac": "52:00:00:00:00:01", "address": "10.1.0.1", "created_at_ms": 1_795_294_000_000_u64,
        }))
        .unwrap();
        insta::assert_snapshot!(table(&[port], PLAIN));
    }
}
