//! `drover migration`.

use super::Failure;
use super::context::Context;
use super::output::{Columns, Output, cell, properties, state_cell};
use super::show::{self, or_nothing};
use super::wait::{Look, Timeout, until};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Subcommand, ValueEnum};
use drover_api::client::Client;
use drover_api::v1::{IntervalView, MigrationForecast, MigrationPrediction, MigrationView, SetPriority, StrategyView};
use drover_model::MigrationId;
use drover_model::migration::MigrationRecord;
use drover_model::migration::{Method, Priority};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List migrations, newest first
    #[command(visible_alias = "list")]
    Ls,
    /// Show one migration and its report
    #[command(visible_alias = "get")]
    Show { migration: MigrationId },
    /// Follow a migration until it is over; exit code 0 only if it arrived
    Watch {
        migration: MigrationId,
        #[command(flatten)]
        limit: Timeout,
    },
    /// Stop a migration; the vm runs on where it is. Refused once it is committed
    Cancel { migration: MigrationId },
    /// Hold a migration back: it sends next to nothing, or does not begin. Refused once it is committed
    Pause { migration: MigrationId },
    /// Let a migration that was held go on
    Resume { migration: MigrationId },
    /// Change a migration's place in the queue, and its part of the links
    Prioritise {
        migration: MigrationId,
        #[arg(long, value_enum)]
        priority: PriorityArg,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PriorityArg {
    Low,
    Normal,
    High,
}

/// For `--method`, with its words completed by the shell.
pub fn method_parser() -> impl TypedValueParser<Value = Method> {
    const METHODS: [Method; 3] = [Method::PreCopy, Method::PostCopy, Method::StopAndCopy];
    let known = |word: String| METHODS.into_iter().find(|method| method.word() == word).ok_or("no such method");
    PossibleValuesParser::new(METHODS.map(Method::word)).try_map(known)
}

impl From<PriorityArg> for Priority {
    fn from(priority: PriorityArg) -> Self {
        match priority {
            PriorityArg::Low => Self::Low,
            PriorityArg::Normal => Self::Normal,
            PriorityArg::High => Self::High,
        }
    }
}

pub async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let (client, output) = (&context.client, context.output);
    match verb {
        Verb::Ls => output.emit(&client.of::<MigrationRecord>().all().await?, |list| table(&list.items, output)),
        Verb::Show { migration } => emit(output, &client.of::<MigrationRecord>().get(&migration.to_string()).await?),
        Verb::Watch { migration, limit } => {
            let over = watch(client, migration, &limit).await?;
            emit(output, &over)?;
            outcome(&over)
        }
        Verb::Cancel { migration } => emit(output, &client.cancel_migration(migration).await?),
        Verb::Pause { migration } => emit(output, &client.pause_migration(migration).await?),
        Verb::Resume { migration } => emit(output, &client.resume_migration(migration).await?),
        Verb::Prioritise { migration, priority } => {
            let ask = SetPriority { priority: priority.into() };
            emit(output, &client.prioritise_migration(migration, ask).await?)
        }
    }
}

/// Until it is over, one way or the other.
pub async fn watch(client: &Client, id: MigrationId, limit: &Timeout) -> Result<MigrationView, Failure> {
    let look = format!("drover migration watch {id}");
    until(limit, &format!("migration {id}"), &look, async || {
        let view = client.of::<MigrationRecord>().get(&id.to_string()).await?;
        if view.over {
            return Ok(Look::Done(view));
        }
        let line = match (&view.progress, &view.waits_for) {
            (_, Some(why)) => format!("{}, because {why}", view.stage),
            (Some(progress), None) => format!("{}: {}", view.stage, show::progress(progress)),
            (None, None) => view.stage.clone(),
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
    let after = if view.phase == "restarted" {
        format!("its memory was lost and it was started anew on {}", view.to)
    } else {
        format!("the vm runs on {}", view.from)
    };
    Err(Failure::Failed(format!("migration {} {}: {why}; {after}", view.id, view.phase)))
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
        Columns::new(output, &[">MIGRATION", "VM", "FROM", "TO", "STAGE", ">TOTAL", ">DOWNTIME", "STARTED", "BECAUSE"]);
    for migration in migrations {
        let report = migration.report.as_ref();
        columns.row([
            cell(migration.id),
            cell(vm_name(migration)),
            cell(&migration.from),
            cell(&migration.to),
            state_cell(&migration.stage),
            cell(or_nothing(report.map(|report| show::millis(report.total_ms)))),
            cell(or_nothing(report.map(|report| show::millis(report.downtime_ms)))),
            cell(show::time(migration.started_at_ms)),
            cell(&migration.reason),
        ]);
    }
    columns.text()
}

fn stage(migration: &MigrationView) -> String {
    let waits = migration.waits_for.as_ref().map(|why| format!(", because {why}")).unwrap_or_default();
    let anew = match migration.recoveries {
        0 => String::new(),
        count => format!(", connected anew {count} times"),
    };
    format!("{}{waits}{anew}", migration.stage)
}

/// As in `post-copy, encrypted, from 12.5 MB/s to 110 MB/s`.
fn strategy(strategy: &StrategyView) -> String {
    let mut words = vec![strategy.method.word().to_owned()];
    if strategy.channels > 1 {
        words.push(format!("{} channels", strategy.channels));
    }
    if strategy.compress {
        words.push("compressed".to_owned());
    }
    if strategy.throttle_max_percent > 0 {
        words.push(format!("guest slowed down by up to {} %", strategy.throttle_max_percent));
    }
    words.push(if strategy.tls { "encrypted" } else { "not encrypted" }.to_owned());
    match (strategy.pace_min_bytes_s, strategy.pace_max_bytes_s) {
        (0, 0) => {}
        (0, max) => words.push(format!("at most {}/s", show::bytes(max))),
        (min, 0) => words.push(format!("from {}/s", show::bytes(min))),
        (min, max) => words.push(format!("from {}/s to {}/s", show::bytes(min), show::bytes(max))),
    }
    words.join(", ")
}

fn predicted(prediction: &MigrationPrediction) -> Vec<(&'static str, String)> {
    let of = |interval: &IntervalView, say: fn(u64) -> String| {
        format!("{} ({} to {})", say(interval.expected), say(interval.low), say(interval.high))
    };
    vec![
        ("predicted total", of(&prediction.total_ms, show::millis)),
        ("predicted downtime", of(&prediction.downtime_ms, show::millis)),
        ("predicted to be sent", of(&prediction.transferred_bytes, show::bytes)),
    ]
}

/// What `drover vm migrate --dry-run` says.
pub fn forecast(forecast: &MigrationForecast) -> String {
    let mut pairs = vec![
        ("vm", format!("{} ({})", forecast.vm_name, forecast.vm)),
        ("from", forecast.from.to_string()),
        ("to", forecast.to.to_string()),
        ("strategy", strategy(&forecast.strategy)),
        ("because", forecast.because.clone()),
    ];
    pairs.extend(predicted(&forecast.prediction));
    let begins = match &forecast.waits_for {
        Some(why) => format!("later, because {why}"),
        None => "at once".to_owned(),
    };
    pairs.push(("would begin", begins));
    match &forecast.forbidden[..] {
        [] => pairs.push(("forbidden", "no".to_owned())),
        reasons => pairs.extend(reasons.iter().map(|why| ("forbidden", why.clone()))),
    }
    properties(pairs)
}

fn describe(migration: &MigrationView) -> String {
    let why = migration.why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    let mut pairs = vec![
        ("migration", migration.id.to_string()),
        ("vm", vm_with_id(migration)),
        ("from", migration.from.to_string()),
        ("to", migration.to.to_string()),
        ("phase", format!("{}{why}", migration.phase)),
        ("stage", stage(migration)),
        ("because", migration.reason.clone()),
        ("strategy", strategy(&migration.strategy)),
        ("priority", show::word(&migration.priority)),
        ("plan", or_nothing(migration.plan)),
        ("started", show::time(migration.started_at_ms)),
        ("finished", or_nothing(migration.finished_at_ms.map(show::time))),
    ];
    if let Some(prediction) = &migration.prediction {
        pairs.extend(predicted(prediction));
    }
    if let Some(progress) = migration.progress.as_ref().filter(|_| !migration.over) {
        pairs.push(("progress", show::progress(progress)));
    }
    if !migration.over {
        pairs.push(("expected to be done", or_nothing(migration.finish_eta_at_ms.map(show::time))));
    }
    if let Some(report) = &migration.report {
        pairs.push(("total", show::millis(report.total_ms)));
        let phases = [
            ("commit", report.downtime_commit_ms),
            ("copy", report.downtime_copy_ms),
            ("resume", report.downtime_resume_ms),
        ];
        let phases = phases.map(|(phase, ms)| format!("{phase} {}", show::millis(ms))).join(", ");
        pairs.push(("downtime", format!("{} ({phases})", show::millis(report.downtime_ms))));
        let (sent, memory) = (show::bytes(report.transferred_bytes), show::bytes(report.memory_bytes));
        let in_use = show::bytes(report.in_use_bytes);
        pairs.push(("sent", format!("{sent} for {in_use} in use of {memory} of memory, in {} rounds", report.rounds)));
        let (rate, wrote) = (show::bytes(report.throughput_bytes_s), show::bytes(report.dirty_bytes_s));
        pairs.push(("rate", format!("{rate}/s, while the guest wrote {wrote}/s")));
        if report.post_copied_bytes > 0 {
            pairs.push(("post-copied", show::bytes(report.post_copied_bytes)));
        }
        if report.throttled_percent > 0 {
            pairs.push(("slowed down", format!("by up to {} %", report.throttled_percent)));
        }
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
    fn a_dry_run_says_what_it_would_be_and_what_forbids_it() {
        let view = migration_view();
        let what = MigrationForecast {
            vm: view.vm,
            vm_name: view.vm_name.unwrap(),
            from: view.from,
            to: view.to,
            strategy: view.strategy,
            because: "it writes too fast for the link".to_owned(),
            prediction: view.prediction.unwrap(),
            forbidden: vec!["h2 is drained".to_owned()],
            waits_for: Some("as many migrations run as may at once".to_owned()),
        };
        insta::assert_snapshot!(forecast(&what));
    }

    #[test]
    fn what_was_started_anew_is_not_said_to_run_where_it_was() {
        let lost =
            MigrationView { phase: "restarted".to_owned(), why: Some("h1 is gone".to_owned()), ..migration_view() };
        let line = outcome(&lost).unwrap_err().line();
        assert!(line.contains("started anew on h2"), "{line}");
    }

    #[test]
    fn only_an_arrival_is_a_success() {
        assert!(outcome(&migration_view()).is_ok());
        let failed =
            MigrationView { phase: "failed".to_owned(), why: Some("the link broke".to_owned()), ..migration_view() };
        assert_eq!(outcome(&failed).unwrap_err().line(), "migration 7 failed: the link broke; the vm runs on h1");
    }
}
