//! `drover migration`.

use super::Failure;
use super::context::Context;
use super::output::{Columns, Output, cell, properties, state_cell};
use super::show::{self, or_nothing};
use super::wait::{Look, Timeout, until};
use clap::Subcommand;
use drover_api::client::Client;
use drover_api::v1::MigrationView;
use drover_model::MigrationId;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List migrations, newest first
    Ls,
    /// Show one migration and its report
    Show { migration: MigrationId },
    /// Follow a migration until it is over; exit code 0 only if it arrived
    Watch {
        migration: MigrationId,
        #[command(flatten)]
        limit: Timeout,
    },
    /// Stop a migration; the vm runs on where it is. Refused once it is committed
    Cancel { migration: MigrationId },
}

pub async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let (client, output) = (&context.client, context.output);
    match verb {
        Verb::Ls => output.emit(&client.migrations().await?, |list| table(&list.items, output)),
        Verb::Show { migration } => emit(output, &client.migration(migration).await?),
        Verb::Watch { migration, limit } => {
            let over = watch(client, migration, &limit).await?;
            emit(output, &over)?;
            outcome(&over)
        }
        Verb::Cancel { migration } => emit(output, &client.cancel_migration(migration).await?),
    }
}

/// Until it is over, one way or the other.
pub async fn watch(client: &Client, id: MigrationId, limit: &Timeout) -> Result<MigrationView, Failure> {
    let look = format!("drover migration watch {id}");
    until(limit, &format!("migration {id}"), &look, async || {
        let view = client.migration(id).await?;
        if view.over {
            return Ok(Look::Done(view));
        }
        let line = match &view.progress {
            Some(progress) => format!("{}: {}", view.phase, show::progress(progress)),
            None => view.phase.clone(),
        };
        Ok(Look::Going { line, share: view.progress.as_ref().map(show::migration_share) })
    })
    .await
}

/// Only an arrival is a success.
pub fn outcome(view: &MigrationView) -> Result<(), Failure> {
    if !view.over || view.phase == "done" {
        return Ok(());
    }
    let why = view.why.as_deref().unwrap_or("no reason was given");
    Err(Failure::Failed(format!("migration {} {}: {why}; the vm runs on {}", view.id, view.phase, view.from)))
}

pub fn emit(output: Output, view: &MigrationView) -> Result<(), Failure> {
    output.emit(view, describe)
}

fn vm_name(view: &MigrationView) -> String {
    match (&view.tenant, &view.vm_name) {
        (Some(tenant), Some(name)) => format!("{tenant}/{name}"),
        _ => view.vm.to_string(),
    }
}

/// A vm that is gone has its id only.
fn vm_with_id(view: &MigrationView) -> String {
    match view.vm_name {
        Some(_) => format!("{} ({})", vm_name(view), view.vm),
        None => format!("{}, gone since", view.vm),
    }
}

fn table(migrations: &[MigrationView], output: Output) -> String {
    let mut columns =
        Columns::new(output, &[">MIGRATION", "VM", "FROM", "TO", "PHASE", ">TOTAL", ">DOWNTIME", "STARTED", "BECAUSE"]);
    for migration in migrations {
        let report = migration.report.as_ref();
        columns.row([
            cell(migration.id),
            cell(vm_name(migration)),
            cell(&migration.from),
            cell(&migration.to),
            state_cell(&migration.phase),
            cell(or_nothing(report.map(|report| show::millis(report.total_ms)))),
            cell(or_nothing(report.map(|report| show::millis(report.downtime_ms)))),
            cell(show::time(migration.started_at_ms)),
            cell(&migration.reason),
        ]);
    }
    columns.text()
}

fn describe(migration: &MigrationView) -> String {
    let why = migration.why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    let mut pairs = vec![
        ("migration", migration.id.to_string()),
        ("vm", vm_with_id(migration)),
        ("from", migration.from.to_string()),
        ("to", migration.to.to_string()),
        ("phase", format!("{}{why}", migration.phase)),
        ("because", migration.reason.clone()),
        ("plan", or_nothing(migration.plan)),
        ("started", show::time(migration.started_at_ms)),
        ("finished", or_nothing(migration.finished_at_ms.map(show::time))),
    ];
    if let Some(progress) = migration.progress.as_ref().filter(|_| !migration.over) {
        pairs.push(("progress", show::progress(progress)));
    }
    if let Some(report) = &migration.report {
        let (total, predicted) = (show::millis(report.total_ms), show::millis(report.predicted_total_ms));
        pairs.push(("total", format!("{total}, {predicted} predicted")));
        let phases = [
            ("commit", report.downtime_commit_ms),
            ("copy", report.downtime_copy_ms),
            ("resume", report.downtime_resume_ms),
        ];
        let phases = phases.map(|(phase, ms)| format!("{phase} {}", show::millis(ms))).join(", ");
        pairs.push(("downtime", format!("{} ({phases})", show::millis(report.downtime_ms))));
        let (sent, memory) = (show::bytes(report.transferred_bytes), show::bytes(report.memory_bytes));
        pairs.push(("sent", format!("{sent} for {memory} of memory, in {} rounds", report.rounds)));
    }
    pairs.push(("revision", migration.revision.to_string()));
    properties(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::{PLAIN, migration_view};

    #[test]
    fn a_migration_is_shown_with_its_report() {
        insta::assert_snapshot!(describe(&migration_view()));
        insta::assert_snapshot!(table(&[migration_view()], PLAIN));
    }

    #[test]
    fn only_an_arrival_is_a_success() {
        assert!(outcome(&migration_view()).is_ok());
        let failed =
            MigrationView { phase: "failed".to_owned(), why: Some("the link broke".to_owned()), ..migration_view() };
        assert_eq!(outcome(&failed).unwrap_err().line(), "migration 7 failed: the link broke; the vm runs on h1");
    }
}
