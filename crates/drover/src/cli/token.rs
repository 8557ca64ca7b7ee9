//! `drover token` and `drover whoami`.

use super::Failure;
use super::confirm::confirm_removal;
use super::context::{Context, write_secret};
use super::output::{Columns, Output, cell, properties};
use super::show::{self, or_nothing};
use clap::{Args, Subcommand};
use drover_api::v1::{CreateToken, RoleName, TokenView};
use drover_model::intent::ApiToken;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a token; it is shown this once
    #[command(after_help = "Examples:\n  drover token create ci --tenant acme --expires 30d --save ci.token\n  \
        drover token create second-operator --operator --save op2.token")]
    Create(Create),
    /// List tokens
    #[command(visible_alias = "list")]
    Ls,
    /// Remove a token: it stops working at once
    #[command(visible_alias = "delete")]
    Rm {
        token: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub struct Create {
    /// A name for it; made up when left out
    name: Option<String>,
    /// It speaks for this tenant
    #[arg(long, required_unless_present = "operator", conflicts_with = "operator")]
    tenant: Option<String>,
    /// It speaks for an operator, who may do everything
    #[arg(long)]
    operator: bool,
    /// E.g. 30d; without it the token does not expire
    #[arg(long, value_name = "SPAN", value_parser = super::values::span)]
    expires: Option<Duration>,
    /// Write it into a new file for its owner only, instead of standard output
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

pub async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let (client, output) = (&context.client, context.output);
    match verb {
        Verb::Create(create) => create_token(context, create).await,
        Verb::Ls => output.emit(&client.of::<ApiToken>().all().await?, |list| table(&list.items, output)),
        Verb::Rm { token, yes } => {
            let what = format!("token {}", token);
            confirm_removal(&what, yes)?;
            client.of::<ApiToken>().remove(&token).await.map(drop)?;
            output.say(&format!("{what} was removed"));
            Ok(())
        }
    }
}

async fn create_token(context: &Context, create: Create) -> Result<(), Failure> {
    let ask = CreateToken {
        id: create.name,
        role: if create.operator { RoleName::Operator } else { RoleName::Tenant },
        tenant: create.tenant,
        expires_s: create.expires.map(|span| span.as_secs()),
    };
    let created = context.client.create_token(&ask).await?;
    let until =
        created.view.expires_at_ms.map_or("does not expire".to_owned(), |at| format!("expires {}", show::time(at)));
    context.output.say(&format!("token {} {until}", created.view.id));
    match create.save {
        Some(path) => write_secret(&path, &(created.token + "\n")),
        None => context.output.emit(&created, |created| created.token.clone() + "\n"),
    }
}

fn table(tokens: &[TokenView], output: Output) -> String {
    let mut columns = Columns::new(output, &["TOKEN", "ROLE", "TENANT", "CREATED", "EXPIRES"]);
    for token in tokens {
        columns.row([
            cell(&token.id),
            cell(token.role),
            cell(or_nothing(token.tenant.as_ref())),
            cell(show::time(token.created_at_ms)),
            cell(token.expires_at_ms.map_or("never".to_owned(), show::time)),
        ]);
    }
    columns.text()
}

pub async fn whoami(context: &Context) -> Result<(), Failure> {
    context.output.emit(&context.client.whoami().await?, |whoami| {
        properties([
            ("token", whoami.name.clone()),
            ("role", whoami.role.to_string()),
            ("tenant", or_nothing(whoami.tenant.as_ref())),
            ("server", context.client.server().to_owned()),
        ])
    })
}
