//! `drover tenant`.

use super::Failure;
use super::confirm::confirm_removal;
use super::context::Context;
use super::output::{Columns, Output, cell};
use super::show;
use clap::Subcommand;
use drover_api::v1::{CreateTenant, TenantView};
use drover_model::TenantName;
use drover_model::intent::Tenant;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Create a tenant
    Create { tenant: TenantName },
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

pub async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let (client, output) = (&context.client, context.output);
    match verb {
        Verb::Create { tenant } => {
            let created = client
                .of::<Tenant>()
                .create(&CreateTenant { name: tenant, labels: Default::default(), quota: Default::default() })
                .await?;
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
