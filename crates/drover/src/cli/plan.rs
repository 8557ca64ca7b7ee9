//! `drover plan`.

use super::context::Context;
use super::output::{Columns, Format, Output, cell, properties, state_cell};
use super::show::{self, or_nothing};
use super::{Failure, now_ms};
use clap::Subcommand;
use drover_api::v1::{ActionView, ListQuery, PlanView, StepView};
use drover_model::intent::Vm;
use drover_model::plan::PlanRecord;
use drover_model::{PlanId, VmId};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List plans, newest first
    #[command(visible_alias = "list")]
    Ls,
    /// Show a plan: its steps and their reasons, what it gains, what was rejected, how it came out
    #[command(visible_alias = "get")]
    Show { plan: PlanId },
    /// Carry a proposed plan out
    Approve { plan: PlanId },
    /// Refuse a proposed plan
    Reject { plan: PlanId },
    /// Make a plan at once
    Now,
    /// Print all that the planner sees, as text
    #[command(after_help = "Example:\n  drover plan export > cluster.txt")]
    Export,
}

pub async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let (client, output) = (&context.client, context.output);
    match verb {
        Verb::Ls => output.emit(&client.of::<PlanRecord>().all().await?, |list| table(&list.items, now_ms(), output)),
        Verb::Show { plan } => emit(context, &client.of::<PlanRecord>().get(&plan.to_string()).await?).await,
        Verb::Approve { plan } => emit(context, &client.approve_plan(plan).await?).await,
        Verb::Reject { plan } => emit(context, &client.reject_plan(plan).await?).await,
        Verb::Export => output.print(&client.export().await?),
        Verb::Now => {
            let now = client.plan_now().await?;
            let names = Names::of_vms(context).await?;
            output.emit(&now, |now| match (&now.plan, &now.why_none) {
                (Some(plan), _) => describe(plan, &names, output),
                (None, Some(why)) => format!("no plan: {why}\n"),
                (None, None) => "no plan\n".to_owned(),
            })
        }
    }
}

async fn emit(context: &Context, plan: &PlanView) -> Result<(), Failure> {
    let names = Names::of_vms(context).await?;
    context.output.emit(plan, |plan| describe(plan, &names, context.output))
}

/// Plans name vms by their ids, which never change; people know them by name.
#[derive(Debug, Default)]
pub struct Names(Vec<(VmId, String)>);

impl Names {
    /// Asked for only when people read.
    pub async fn of_vms(context: &Context) -> Result<Self, Failure> {
        if context.output.format != Format::Table {
            return Ok(Self::default());
        }
        let vms = context.client.of::<Vm>().list(&ListQuery::default()).await?.items;
        Ok(Self(vms.into_iter().map(|vm| (vm.id, format!("{}/{}", vm.tenant, vm.name))).collect()))
    }

    #[cfg(test)]
    pub fn with(mut self, vm: &str, name: &str) -> Self {
        self.0.push((vm.parse().expect("tests name vms by their ids"), name.to_owned()));
        self
    }

    /// Also inside sentences. A vm that is gone keeps its id.
    pub fn put_into(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (id, name)| text.replace(id.as_str(), name))
    }
}

fn table(plans: &[PlanView], now_ms: u64, output: Output) -> String {
    let mut columns = Columns::new(output, &[">PLAN", "STATE", "SCENARIO", ">STEPS", ">GAIN", "MADE", "WHY"]);
    for plan in plans {
        columns.row([
            cell(plan.id),
            state_cell(&plan.state),
            cell(plan.scenario),
            cell(plan.steps.len()),
            cell(show::money(plan.predicted.gain_micro)),
            cell(show::ago(now_ms, plan.made_at_ms)),
            cell(&plan.why),
        ]);
    }
    columns.text()
}

fn action(action: &ActionView) -> String {
    match action {
        ActionView::Migrate { vm, from, to, .. } => format!("migrate {vm} from {from} to {to}"),
        ActionView::PowerOn { host } => format!("power {host} on"),
        ActionView::PowerOff { host } => format!("power {host} off"),
    }
}

fn describe(plan: &PlanView, names: &Names, output: Output) -> String {
    let predicted = &plan.predicted;
    let why = plan.state_why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    let mut pairs = vec![
        ("plan", plan.id.to_string()),
        ("state", format!("{}{why}", plan.state)),
        ("scenario", plan.scenario.to_string()),
        ("why", plan.why.clone()),
        ("made", show::time(plan.made_at_ms)),
        ("finished", or_nothing(plan.finished_at_ms.map(show::time))),
        (
            "cost rate",
            format!(
                "{}/h now, {}/h after{}",
                show::money(predicted.rate_before_micro_h),
                show::money(predicted.rate_after_micro_h),
                predicted.rate_bound_micro_h.map(bound).unwrap_or_default()
            ),
        ),
        (
            "gain",
            format!("{}, moving costs {}", show::money(predicted.gain_micro), show::money(predicted.moving_cost_micro)),
        ),
    ];
    if plan.makespan_ms > 0 {
        let (takes, bound) = (show::millis(plan.makespan_ms), show::millis(plan.makespan_bound_ms));
        pairs.push(("takes", format!("{takes}, no order could take less than {bound}")));
    }
    if let Some(verification) = &plan.verification {
        pairs.push(("outcome", verification.summary.clone()));
    }
    pairs.push(("revision", format!("{}, made from {}", plan.revision, plan.parent_revision)));
    let mut text = properties(pairs);
    if !plan.steps.is_empty() {
        text.push_str("\nSteps\n");
        text.push_str(&steps(&plan.steps, names, output));
    }
    if plan.steps.iter().any(|step| !step.alternatives.is_empty()) {
        text.push_str("\nAlternatives\n");
        for (number, step) in plan.steps.iter().enumerate() {
            for lost in &step.alternatives {
                let line = format!("  to step {}: {}: {}\n", number + 1, action(&lost.action), lost.because);
                text.push_str(&names.put_into(&line));
            }
        }
    }
    if !predicted.hosts.is_empty() {
        text.push_str("\nHosts\n");
        text.push_str(&hosts(plan, output));
    }
    if !plan.rejected.is_empty() {
        text.push_str("\nRejected\n");
        for rejected in &plan.rejected {
            let line = format!("  {}: {}\n", action(&rejected.action), rejected.because);
            text.push_str(&names.put_into(&line));
        }
    }
    text
}

fn bound(rate_micro_h: i64) -> String {
    format!("; no placement could cost less than {}/h", show::money(rate_micro_h))
}

fn steps(steps: &[StepView], names: &Names, output: Output) -> String {
    let mut columns =
        Columns::new(output, &[">STEP", "STATE", "AFTER", "ACTION", ">GAIN", ">COST", ">STARTS", ">TAKES", "BECAUSE"]);
    for (number, step) in steps.iter().enumerate() {
        let after: Vec<String> = step.after.iter().map(|step| (step + 1).to_string()).collect();
        let why = step.state_why.as_ref().map(|why| format!("; failed: {why}")).unwrap_or_default();
        columns.row([
            cell(number + 1),
            state_cell(&step.state),
            cell(if after.is_empty() { show::NOTHING.to_owned() } else { after.join(",") }),
            cell(names.put_into(&action(&step.action))),
            cell(show::money(step.gain_micro)),
            cell(show::money(step.cost_micro)),
            cell(format!("+{}", show::millis(step.start_ms))),
            cell(match step.bandwidth_bytes_s {
                Some(rate) => format!("{} at {}/s", show::millis(step.duration_ms), show::bytes(rate)),
                None => show::millis(step.duration_ms),
            }),
            cell(names.put_into(&format!("{}{why}", step.reason))),
        ]);
    }
    columns.text()
}

/// Predicted against measured, of each host the plan touches.
fn hosts(plan: &PlanView, output: Output) -> String {
    let mut columns =
        Columns::new(output, &["HOST", ">CPU NOW", ">CPU AFTER", ">CPU MEASURED", ">MEMORY NOW", ">MEMORY AFTER"]);
    for (host, predicted) in &plan.predicted.hosts {
        let outcome = plan.verification.as_ref().and_then(|verification| verification.hosts.get(host));
        columns.row([
            cell(host),
            cell(show::percent(predicted.cpu_before)),
            cell(show::percent(predicted.cpu_after)),
            cell(or_nothing(outcome.map(|outcome| show::percent(outcome.cpu_measured)))),
            cell(show::percent(predicted.memory_before)),
            cell(show::percent(predicted.memory_after)),
        ]);
    }
    columns.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::{PLAIN, plan_view};

    #[test]
    fn a_plan_is_shown_with_its_reasons_its_outcome_and_what_was_rejected() {
        let names = Names::default().with("vm-aaaaaaaaaaaa", "acme/web-1");
        insta::assert_snapshot!(describe(&plan_view(), &names, PLAIN));
    }

    #[test]
    fn a_list_of_plans_reads_at_a_glance() {
        insta::assert_snapshot!(table(&[plan_view()], 1_795_294_070_000, PLAIN));
    }
}
