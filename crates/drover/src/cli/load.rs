//! `drover load record`: what vms want, over time, as `drover sim replay` reads it.

use super::context::Context;
use super::{Exit, Failure, now_ms, values};
use clap::Subcommand;
use drover_api::v1::{ListQuery, VmView};
use drover_model::intent::Vm;
use drover_sim::replay::HEADER;
use std::fmt::Write;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior};

/// So many turns in a row without an answer, and nothing is recorded any more.
const FAILURES_MAX: u32 = 30;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Print what each vm wants, as CSV (time,vm,cpu_millis,memory_mib): a line for each that is measured, at each turn
    #[command(after_help = "Example:\n  drover load record --every 10s --for 12h > monday.csv\n  \
        drover plan export > cluster.txt\n  drover sim replay monday.csv --cluster cluster.txt")]
    Record {
        #[arg(long, value_name = "SPAN", value_parser = values::span, default_value = "1s")]
        every: Duration,
        #[arg(long = "for", value_name = "SPAN", value_parser = values::span, default_value = "1h")]
        lasting: Duration,
    },
}

pub async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let Verb::Record { every, lasting } = verb;
    let output = context.output;
    output.print(&format!("{HEADER}\n"))?;
    let end = Instant::now() + lasting;
    let mut turns = tokio::time::interval(every);
    turns.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut failures = 0;
    while turns.tick().await < end {
        match context.client.of::<Vm>().list(&ListQuery::default()).await {
            Ok(vms) => {
                failures = 0;
                output.print(&records(now_ms(), &vms.items))?;
            }
            Err(error) => {
                failures += 1;
                let failure = Failure::Api(error);
                // Another answer than none will be the same a moment later.
                if failures >= FAILURES_MAX || failure.exit() != Exit::Unreachable {
                    return Err(failure);
                }
                if failures == 1 {
                    output.say(&format!("turns are missed until a server answers: {}", failure.line()));
                }
            }
        }
    }
    Ok(())
}

/// Vms that are not measured have no line.
fn records(at_ms: u64, vms: &[VmView]) -> String {
    let mut text = String::new();
    for vm in vms {
        if let Some(load) = &vm.load {
            let (seconds, ms) = (at_ms / 1000, at_ms % 1000);
            let _ = writeln!(text, "{seconds}.{ms:03},{},{},{}", vm.id, load.cpu_wanted_millis, load.memory_used_mib);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::vm_view;
    use drover_sim::replay::Recording;

    #[test]
    fn what_is_recorded_can_be_replayed() {
        let mut silent = vm_view("silent");
        silent.load = None;
        let first = records(1_795_294_064_007, &[vm_view("web-1"), silent]);
        assert_eq!(first, "1795294064.007,vm-aaaaaaaaaaaa,612,90\n");
        let text = format!("{HEADER}\n{first}{}", records(1_795_294_066_007, &[vm_view("web-1")]));
        let recording = Recording::from_csv(&text, None).unwrap();
        assert_eq!((recording.start.0, recording.step.0, recording.len()), (1_795_294_064_007, 2000, 2));
        let point = recording.point(&"vm-aaaaaaaaaaaa".parse().unwrap(), 1).unwrap();
        assert_eq!((point.cpu.0, point.memory.0), (612, 90 << 20));
    }
}
