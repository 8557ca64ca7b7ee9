//! `drover tenant`.

use super::Failure;
use super::confirm::confirm_removal;
use super::context::Context;
use super::output::{Columns, Output, cell};
use super::show;
use clap::{Args, Subcommand};
use drover_api::v1::{CreateTenant, TenantView};
use drover_model::intent::Tenant;
use drover_model::network::Subnet;
use drover_model::{NetworkId, TenantName};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Create a tenant
    #[command(after_help = "Example:\n  drover tenant create acme --provider-network prov=10.78.0.0/28 --vms 50")]
    Create(Create),
    /// List tenants
    #[command(visible_alias = "list")]
    Ls,
    /// Remove a tenant that has no vms
    #[command(visible_alias = "delete")]
    Rm {
        tenant: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub struct Create {
    tenant: TenantName,
    /// A network of the hosts that its tokens may put vms on, with the addresses it may have there; may be given several times
    #[arg(long = "provider-network", value_name = "NETWORK[=CIDR,...]", value_parser = grant)]
    provider_networks: Vec<(NetworkId, Vec<Subnet>)>,
    /// Most vms that it may have
    #[arg(long)]
    vms: Option<u64>,
    /// Most vcpus of all its vms together
    #[arg(long)]
    vcpus: Option<u64>,
    /// Most memory of all its vms together, e.g. 64G
    #[arg(long, value_parser = super::values::memory_mib)]
    memory: Option<u64>,
}

fn grant(text: &str) -> Result<(NetworkId, Vec<Subnet>), String> {
    let (network, ranges) = text.split_once('=').unwrap_or((text, ""));
    let network = network.parse().map_err(|error: drover_model::BadName| error.to_string())?;
    let ranges = ranges
        .split(',')
        .filter(|range| !range.is_empty())
        .map(|range| range.parse().map_err(|error: drover_model::network::BadSubnet| error.to_string()));
    Ok((network, ranges.collect::<Result<_, _>>()?))
}

impl From<Create> for CreateTenant {
    fn from(create: Create) -> Self {
        let Create { tenant, provider_networks, vms, vcpus, memory } = create;
        let mut made = Self::named(tenant);
        made.provider_networks = provider_networks.into_iter().collect();
        let quota = &mut made.quota;
        quota.vms = vms.unwrap_or(quota.vms);
        quota.vcpus = vcpus.unwrap_or(quota.vcpus);
        quota.memory_mib = memory.unwrap_or(quota.memory_mib);
        made
    }
}

pub async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let (client, output) = (&context.client, context.output);
    match verb {
        Verb::Create(create) => {
            let created = client.of::<Tenant>().create(&create.into()).await?;
            output.emit(&created, |tenant| table(std::slice::from_ref(tenant), output))
        }
        Verb::Ls => output.emit(&client.of::<Tenant>().all().await?, |list| table(&list.items, output)),
        Verb::Rm { tenant, yes } => {
            let what = format!("tenant {}", tenant);
            confirm_removal(&what, yes)?;
            client.of::<Tenant>().remove(&tenant).await.map(drop)?;
            output.say(&format!("{what} was removed"));
            Ok(())
        }
    }
}

fn table(tenants: &[TenantView], output: Output) -> String {
    let mut columns = Columns::new(output, &["TENANT", "CREATED"]);
    for tenant in tenants {
        columns.row([cell(&tenant.name), cell(show::time(tenant.created_at.0))]);
    }
    columns.text()
}
