//! `drover tenant`.

use super::Failure;
use super::context::Context;
use super::output::{Columns, Output, cell};
use super::show;
use clap::Subcommand;
use drover_api::v1::{CreateTenant, TenantView};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Create a tenant
    Create { tenant: String },
    /// List tenants
    Ls,
    /// Remove a tenant that has no vms
    Rm { tenant: String },
}

pub async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let (client, output) = (&context.client, context.output);
    match verb {
        Verb::Create { tenant } => {
            let created = client.create_tenant(&CreateTenant { id: tenant }).await?;
            output.emit(&created, |tenant| table(std::slice::from_ref(tenant), output))
        }
        Verb::Ls => output.emit(&client.tenants().await?, |list| table(&list.items, output)),
        Verb::Rm { tenant } => Ok(client.remove_tenant(&tenant).await?),
    }
}

fn table(tenants: &[TenantView], output: Output) -> String {
    let mut columns = Columns::new(output, &["TENANT", "CREATED"]);
    for tenant in tenants {
        columns.row([cell(&tenant.id), cell(show::time(tenant.created_at_ms))]);
    }
    columns.text()
}
