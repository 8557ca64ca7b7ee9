//! `drover rule`.

use super::Failure;
use super::confirm::confirm_removal;
use super::context::Context;
use super::output::{Columns, Output, cell};
use super::plan::Names;
use super::show;
use clap::{ArgGroup, Args, Subcommand};
use drover_api::v1::{CreatePlacementRule, PlacementRuleView, RuleWord};
use drover_model::placement::PlacementRule;
use drover_model::placement::Scope;
use drover_model::{HostId, Label, RackId, RuleId, ZoneId};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a rule; vms that break it are moved
    #[command(after_help = "Examples:\n  \
        drover rule create db-apart --apart --within rack --vms acme/db-a,acme/db-b\n  \
        drover rule create web-near --together --vms acme/web-1,acme/cache-1\n  \
        drover rule create oracle --on --labels oracle --vms acme/ora-1,acme/ora-2\n  \
        drover rule create no-attic --not-on --racks attic --vms acme/db-a\n  \
        drover rule create two-seats --hosts-max 2 --vms acme/cad-1,acme/cad-2,acme/cad-3")]
    Create(Box<Create>),
    /// List rules
    #[command(visible_alias = "list")]
    Ls,
    /// Show one rule
    #[command(visible_alias = "get")]
    Show { rule: String },
    /// Remove a rule; nothing moves for it
    #[command(visible_alias = "delete")]
    Rm {
        rule: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("kind").required(true).args(["together", "apart", "on", "not_on", "hosts_max"])))]
#[command(group(ArgGroup::new("place").multiple(true).args(["hosts", "racks", "zones", "labels"])))]
pub struct Create {
    /// Unique in the cluster
    name: RuleId,
    /// All of them in one host, or what --within says
    #[arg(long)]
    together: bool,
    /// No two of them in one host, or what --within says
    #[arg(long)]
    apart: bool,
    /// Only on --hosts, --racks, --zones or --labels
    #[arg(long, requires = "place")]
    on: bool,
    /// Never on --hosts, --racks, --zones or --labels
    #[arg(long, requires = "place")]
    not_on: bool,
    /// Together on no more hosts than this
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    hosts_max: Option<u32>,
    /// How near, or how far apart: host, rack or zone [default: host]
    #[arg(long, value_name = "SCOPE", value_parser = scope)]
    within: Option<Scope>,
    /// Each an id, a name, or TENANT/NAME
    #[arg(long, value_name = "VM,...", required = true, value_delimiter = ',')]
    vms: Vec<String>,
    #[arg(long, value_name = "HOST,...", value_delimiter = ',')]
    hosts: Vec<HostId>,
    #[arg(long, value_name = "RACK,...", value_delimiter = ',')]
    racks: Vec<RackId>,
    #[arg(long, value_name = "ZONE,...", value_delimiter = ',')]
    zones: Vec<ZoneId>,
    #[arg(long, value_name = "LABEL,...", value_delimiter = ',')]
    labels: Vec<Label>,
}

fn scope(text: &str) -> Result<Scope, String> {
    serde_json::from_value(text.into()).map_err(|_| format!("{text:?} is none of host, rack, zone"))
}

impl From<Create> for CreatePlacementRule {
    fn from(create: Create) -> Self {
        let Create { name, together, apart, on, not_on: _, hosts_max, within, vms, hosts, racks, zones, labels } =
            create;
        let rule = match (together, apart, on, hosts_max) {
            (true, ..) => RuleWord::Together,
            (_, true, ..) => RuleWord::Apart,
            (_, _, true, _) => RuleWord::On,
            (.., Some(_)) => RuleWord::HostsMax,
            // The group of kinds lets exactly one through.
            (.., None) => RuleWord::NotOn,
        };
        let (hosts, racks) = (hosts.into_iter().collect(), racks.into_iter().collect());
        let (zones, labels) = (zones.into_iter().collect(), labels.into_iter().collect());
        Self { name, rule, vms, within, hosts, racks, zones, labels, hosts_max }
    }
}

pub async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let (client, output) = (&context.client, context.output);
    let names = Names::of_vms(context).await?;
    let emit_one =
        |rule: &PlacementRuleView| output.emit(rule, |rule| table(std::slice::from_ref(rule), &names, output));
    match verb {
        Verb::Create(create) => emit_one(&client.of::<PlacementRule>().create(&(*create).into()).await?),
        Verb::Ls => output.emit(&client.of::<PlacementRule>().all().await?, |list| table(&list.items, &names, output)),
        Verb::Show { rule } => emit_one(&client.of::<PlacementRule>().get(&rule).await?),
        Verb::Rm { rule, yes } => {
            let what = format!("placement rule {}", rule);
            confirm_removal(&what, yes)?;
            client.of::<PlacementRule>().remove(&rule).await.map(drop)?;
            output.say(&format!("{what} was removed"));
            Ok(())
        }
    }
}

fn table(rules: &[PlacementRuleView], names: &Names, output: Output) -> String {
    let mut columns = Columns::new(output, &["RULE", "KIND", "WHERE", "VMS"]);
    for rule in rules {
        let vms: Vec<String> = rule.vms.iter().map(|vm| names.put_into(vm.as_str())).collect();
        columns.row([cell(&rule.name), cell(show::word(&rule.rule)), cell(place(rule)), cell(vms.join(" "))]);
    }
    columns.text()
}

fn place(rule: &PlacementRuleView) -> String {
    if let Some(within) = rule.within {
        return format!("within {within}");
    }
    if let Some(count) = rule.hosts_max {
        return format!("at most {count} hosts");
    }
    let hosts = rule.hosts.iter().map(ToString::to_string);
    let racks = rule.racks.iter().map(|rack| format!("rack={rack}"));
    let zones = rule.zones.iter().map(|zone| format!("zone={zone}"));
    let labels = rule.labels.iter().map(|label| format!("label={label}"));
    hosts.chain(racks).chain(zones).chain(labels).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::PLAIN;
    use clap::Parser;
    use serde_json::json;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        verb: Verb,
    }

    fn typed(line: &str) -> Result<CreatePlacementRule, clap::Error> {
        let words = ["rule", "create"].into_iter().chain(line.split(' '));
        Line::try_parse_from(words).map(|line| match line.verb {
            Verb::Create(create) => (*create).into(),
            verb => panic!("{verb:?}"),
        })
    }

    #[test]
    fn a_rule_is_of_one_kind_with_what_belongs_to_it() {
        let apart = typed("db --apart --within rack --vms acme/a,acme/b").unwrap();
        assert_eq!((apart.rule, apart.within, apart.vms.len()), (RuleWord::Apart, Some(Scope::Rack), 2));
        let off = typed("db --not-on --racks r1,r2 --labels old --vms a").unwrap();
        assert_eq!((off.rule, off.racks.len(), off.labels.len()), (RuleWord::NotOn, 2, 1));
        assert_eq!(typed("db --hosts-max 2 --vms a").unwrap().hosts_max, Some(2));
        for bad in [
            "db --vms a",
            "db --apart --together --vms a,b",
            "db --on --vms a",
            "db --apart",
            "db --hosts-max 0 --vms a",
            "db --apart --within row --vms a,b",
        ] {
            assert!(typed(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_list_of_rules_reads_at_a_glance() {
        let rule = |fields: serde_json::Value| -> PlacementRuleView {
            let mut rule = json!({
                "revision": 4, "vms": ["vm-aaaaaaaaaaaa", "vm-bbbbbbbbbbbb"], "within": null, "hosts": [], "racks": [],
                "zones": [], "labels": [], "hosts_max": null,
            });
            rule.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            serde_json::from_value(rule).unwrap()
        };
        let rules = [
            rule(json!({"name": "db-apart", "rule": "apart", "within": "rack"})),
            rule(json!({"name": "oracle", "rule": "on", "hosts": ["h7"], "labels": ["oracle"]})),
            rule(json!({"name": "seats", "rule": "hosts-max", "hosts_max": 2})),
        ];
        let names = Names::default().with("vm-aaaaaaaaaaaa", "acme/db-a");
        insta::assert_snapshot!(table(&rules, &names, PLAIN));
    }
}
