//! `drover status` and `drover explain`: the cluster as a whole, and why things are as they are.

use super::context::Context;
use super::output::{Columns, Output, cell, properties, state_cell};
use super::show::{self, or_nothing};
use super::vm::VmRef;
use super::{Failure, events};
use clap::Args;
use drover_api::v1::{ClusterView, Explanation, TenantQuery};

pub async fn status(context: &Context) -> Result<(), Failure> {
    let output = context.output;
    output.emit(&context.client.cluster().await?, |cluster| describe(cluster, output))
}

fn describe(cluster: &ClusterView, output: Output) -> String {
    let counts = &cluster.counts;
    let mut text = properties([
        ("scenario", or_nothing(cluster.scenario)),
        ("why", or_nothing(cluster.why.as_ref())),
        ("mode", show::word(&cluster.mode)),
        ("hosts", format!("{}, {} up", counts.hosts, counts.hosts_up)),
        ("vms", format!("{}, {} running", counts.vms, counts.vms_running)),
        ("tenants", counts.tenants.to_string()),
        ("migrations", format!("{} running", counts.migrations_running)),
        ("plans", format!("{} waiting for approval", counts.plans_proposed)),
        ("revision", cluster.revision.to_string()),
        ("server version", cluster.version.clone()),
    ]);
    if cluster.hosts.is_empty() {
        return text;
    }
    let mut columns = Columns::new(output, &["HOST", "HEAT", "RESOURCE", ">NOW", ">FORECAST", ">THRESHOLD", "SAMPLES"]);
    for (host, found) in &cluster.hosts {
        let evidence = found.evidence.as_ref();
        columns.row([
            cell(host),
            state_cell(show::word(&found.heat)),
            cell(or_nothing(evidence.map(|evidence| evidence.resource))),
            cell(or_nothing(evidence.map(|evidence| show::percent(evidence.last)))),
            cell(or_nothing(evidence.map(|evidence| show::percent(evidence.forecast)))),
            cell(or_nothing(evidence.map(|evidence| show::percent(evidence.threshold)))),
            cell(or_nothing(evidence.map(|e| format!("{} of {}, {} needed", e.hits, e.of, e.needed)))),
        ]);
    }
    text.push('\n');
    text.push_str(&columns.text());
    text
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  drover explain cluster\n  drover explain vm/web-3\n  drover explain vm/acme/web-3\n  \
    drover explain plan/42\n  drover explain host/h1"
)]
pub struct Explain {
    /// vm/NAME, host/NAME, plan/NUMBER, migration/NUMBER or cluster
    #[arg(value_parser = object)]
    object: (String, TenantQuery),
}

fn object(text: &str) -> Result<(String, TenantQuery), String> {
    let wrong = || {
        format!("{text:?} is nothing that can be explained: write vm/web-1, host/h1, plan/42, migration/7 or cluster")
    };
    match text.split_once('/') {
        None if text == "cluster" => Ok((text.to_owned(), TenantQuery::default())),
        Some(("vm", vm)) => {
            let named: VmRef = vm.parse()?;
            Ok((format!("vm/{}", named.vm), named.query))
        }
        Some(("host" | "plan" | "migration", id)) if !id.is_empty() && !id.contains('/') => {
            Ok((text.to_owned(), TenantQuery::default()))
        }
        _ => Err(wrong()),
    }
}

impl Explain {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let (object, query) = &self.object;
        context.output.emit(&context.client.explain(object, query).await?, explanation)
    }
}

fn explanation(explained: &Explanation) -> String {
    let mut text = format!("{}\n", explained.answer);
    for (title, lines) in [("Because", &explained.because), ("Rejected", &explained.rejected)] {
        if !lines.is_empty() {
            text.push_str(&format!("\n{title}\n"));
            lines.iter().for_each(|line| text.push_str(&format!("  {line}\n")));
        }
    }
    if !explained.history.is_empty() {
        text.push_str("\nHistory\n");
        explained.history.iter().for_each(|event| text.push_str(&format!("  {}\n", events::line(event))));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::{PLAIN, cluster_view};

    #[test]
    fn the_cluster_is_told_with_the_evidence_for_its_scenario() {
        insta::assert_snapshot!(describe(&cluster_view(), PLAIN));
    }

    #[test]
    fn only_what_can_be_explained_is_asked_for() {
        let vm = object("vm/acme/web-1").unwrap();
        assert_eq!((vm.0.as_str(), vm.1.tenant.as_deref()), ("vm/web-1", Some("acme")));
        for good in ["cluster", "plan/42", "host/h1", "migration/7", "vm/web-1"] {
            assert_eq!(object(good).unwrap().0, good);
        }
        for bad in ["", "web-1", "host/", "lun/1", "plan/1/2", "vm/a/b/c"] {
            assert!(object(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_explanation_leaves_out_what_is_empty() {
        let bare = Explanation {
            object: "vm/x".to_owned(),
            answer: "It runs.".to_owned(),
            because: vec!["h1 has room".to_owned()],
            rejected: Vec::new(),
            history: Vec::new(),
            why: None,
        };
        assert_eq!(explanation(&bare), "It runs.\n\nBecause\n  h1 has room\n");
    }
}
