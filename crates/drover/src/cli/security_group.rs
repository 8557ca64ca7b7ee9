//! `drover security-group`.

use super::Failure;
use super::confirm::confirm_removal;
use super::context::Context;
use super::network::OwnedRef;
use super::output::{Columns, Output, cell};
use super::show;
use clap::Subcommand;
use drover_api::v1::{CreateSecurityGroup, SecurityGroupView, SecurityRule};
use drover_model::network::SecurityGroup;
use drover_model::network::{Direction, Protocol};
use drover_model::{SecurityGroupId, TenantName};

const RULES: &str = "A rule is a direction and what it lets through:\n  \
    ingress:tcp:22                     to port 22, from anywhere\n  \
    ingress:tcp:8000-8100:10.1.0.0/16  to a range of ports, from a subnet\n  \
    ingress:any:@web                   everything, from the vms of security group web\n  \
    egress:udp:53                      out to port 53; without any egress rule everything may leave\n\
    Replies to what was let through always pass.";

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Create a security group
    #[command(after_help = RULES)]
    Create {
        /// Unique within the tenant
        name: SecurityGroupId,
        /// Whose it is; operators must say
        #[arg(long)]
        tenant: Option<TenantName>,
        /// May be given several times; nothing reaches the vms of a group without rules
        #[arg(long = "rule", value_name = "RULE", value_parser = rule)]
        rules: Vec<SecurityRule>,
    },
    /// List security groups
    #[command(visible_alias = "list")]
    Ls {
        /// Only this tenant's
        #[arg(long)]
        tenant: Option<String>,
    },
    /// Show one security group, rule by rule
    #[command(visible_alias = "get")]
    Show { group: OwnedRef },
    /// Replace all rules of a security group
    #[command(after_help = RULES)]
    SetRules {
        group: OwnedRef,
        /// May be given several times
        #[arg(long = "rule", value_name = "RULE", value_parser = rule, required_unless_present = "none")]
        rules: Vec<SecurityRule>,
        /// No rules at all: nothing reaches its vms
        #[arg(long, conflicts_with = "rules")]
        none: bool,
    },
    /// Remove a security group that no vm is in
    #[command(visible_alias = "delete")]
    Rm {
        group: OwnedRef,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

pub async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let (client, output) = (&context.client, context.output);
    match verb {
        Verb::Create { name, tenant, rules } => {
            let created = client
                .of::<SecurityGroup>()
                .create(&CreateSecurityGroup { name, tenant, rules, labels: Default::default() })
                .await?;
            output.emit(&created, |group| rules_table(group, output))
        }
        Verb::Ls { tenant } => {
            let list = client.of::<SecurityGroup>().within(tenant.as_deref()).all().await?;
            output.emit(&list, |list| table(&list.items, output))
        }
        Verb::Show { group } => {
            let view = client.of::<SecurityGroup>().within(group.query.tenant.as_deref()).get(&group.name).await?;
            output.emit(&view, |group| rules_table(group, output))
        }
        Verb::SetRules { group, rules, none: _ } => {
            let changed = client
                .of::<SecurityGroup>()
                .within(group.query.tenant.as_deref())
                .patch(&group.name, &serde_json::json!({"rules": rules}))
                .await?;
            output.emit(&changed, |group| rules_table(group, output))
        }
        Verb::Rm { group, yes } => {
            let what = format!("security group {}", group.name);
            confirm_removal(&what, yes)?;
            client.of::<SecurityGroup>().within(group.query.tenant.as_deref()).remove(&group.name).await.map(drop)?;
            output.say(&format!("{what} was removed"));
            Ok(())
        }
    }
}

fn table(groups: &[SecurityGroupView], output: Output) -> String {
    let mut columns = Columns::new(output, &["SECURITY GROUP", "TENANT", ">RULES", ">VMS", "CREATED"]);
    for group in groups {
        columns.row([
            cell(&group.name),
            cell(&group.tenant),
            cell(group.rules.len()),
            cell(group.vms),
            cell(show::time(group.created_at_ms)),
        ]);
    }
    columns.text()
}

fn rules_table(group: &SecurityGroupView, output: Output) -> String {
    let mut columns = Columns::new(output, &["SECURITY GROUP", "TENANT", "DIRECTION", "PROTOCOL", "PORTS", "REMOTE"]);
    if group.rules.is_empty() {
        columns.row([&group.name.to_string(), &group.tenant.to_string(), "-", "-", "-", "-"].map(cell));
    }
    for rule in &group.rules {
        let ports = match (rule.first_port, rule.last_port) {
            (None, _) => "all".to_owned(),
            (Some(first), Some(last)) if last != first => format!("{first}-{last}"),
            (Some(first), _) => first.to_string(),
        };
        let remote = match (&rule.subnet, &rule.group) {
            (Some(subnet), _) => subnet.clone(),
            (None, Some(group)) => format!("@{group}"),
            (None, None) => "anybody".to_owned(),
        };
        columns.row([
            cell(&group.name),
            cell(&group.tenant),
            cell(show::word(&rule.direction)),
            cell(show::word(&rule.protocol)),
            cell(ports),
            cell(remote),
        ]);
    }
    columns.text()
}

/// `DIRECTION:PROTOCOL[:PORTS][:REMOTE]`; ports with tcp and udp only.
fn rule(text: &str) -> Result<SecurityRule, String> {
    let wrong = |what: &str| format!("{text:?} is no rule: {what}; e.g. ingress:tcp:22 or ingress:tcp:80:10.0.0.0/8");
    let mut words = text.split(':').peekable();
    let direction = match words.next() {
        Some("ingress") => Direction::Ingress,
        Some("egress") => Direction::Egress,
        _ => return Err(wrong("it begins with ingress or egress")),
    };
    let protocol = match words.next() {
        Some("any") => Protocol::Any,
        Some("tcp") => Protocol::Tcp,
        Some("udp") => Protocol::Udp,
        Some("icmp") => Protocol::Icmp,
        _ => return Err(wrong("the protocol is any, tcp, udp or icmp")),
    };
    let mut rule = SecurityRule { direction, protocol, first_port: None, last_port: None, subnet: None, group: None };
    let begins_with_digit = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit());
    if let Some(ports) = words.next_if(|word| begins_with_digit(word) && !word.contains('.')) {
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let port = |text: &str| text.parse::<u16>().map_err(|_| wrong("ports lie between 1 and 65535"));
        (rule.first_port, rule.last_port) = (Some(port(first)?), Some(port(last)?));
    }
    match words.next() {
        None => {}
        Some(remote) => match remote.strip_prefix('@') {
            Some(group) if !group.is_empty() => rule.group = Some(group.to_owned()),
            None if remote.contains('/') => rule.subnet = Some(remote.to_owned()),
            Some(_) | None => return Err(wrong("the remote is a subnet or @GROUP")),
        },
    }
    match words.next() {
        None => Ok(rule),
        Some(_) => Err(wrong("there is too much of it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::PLAIN;
    use serde_json::json;

    #[test]
    fn rules_are_typed_as_the_help_says() {
        let read = |text: &str| {
            let rule = rule(text).unwrap();
            (rule.direction, rule.protocol, rule.first_port, rule.last_port, rule.subnet, rule.group)
        };
        use Direction::Ingress;
        let subnet = |text: &str| Some(text.to_owned());
        assert_eq!(read("ingress:tcp:22"), (Ingress, Protocol::Tcp, Some(22), Some(22), None, None));
        let expected = (Ingress, Protocol::Tcp, Some(8000), Some(8100), subnet("10.1.0.0/16"), None);
        assert_eq!(read("ingress:tcp:8000-8100:10.1.0.0/16"), expected);
        let expected = (Ingress, Protocol::Any, None, None, None, subnet("web"));
        assert_eq!(read("ingress:any:@web"), expected);
        assert_eq!(read("egress:icmp:10.0.0.0/8").4, subnet("10.0.0.0/8"));
        for bad in [
            "",
            "in:tcp",
            "ingress",
            "ingress:sctp",
            "ingress:tcp:99999",
            "ingress:tcp:22:@",
            "ingress:tcp:22:x",
            "ingress:tcp:1:@a:b",
        ] {
            assert!(rule(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_group_is_shown_rule_by_rule() {
        let group: SecurityGroupView = serde_json::from_value(json!({
            "name": "web", "tenant": "acme", "revision": 4, "created_at_ms": 1_795_294_000_000_u64, "vms": 2,
            "rules": [
                {"direction": "ingress", "protocol": "tcp", "first_port": 80, "last_port": 80},
                {"direction": "ingress", "protocol": "udp", "first_port": 1, "last_port": 9, "subnet": "10.0.0.0/8"},
                {"direction": "egress", "protocol": "any", "group": "db"},
            ],
        }))
        .unwrap();
        insta::assert_snapshot!(rules_table(&group, PLAIN) + &table(&[group], PLAIN));
    }
}
