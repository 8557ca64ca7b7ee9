//! `drover policy`.

use super::Failure;
use super::context::{self, Context};
use super::output::{Columns, Output, cell};
use clap::Subcommand;
use drover_api::v1::Policy;
use drover_model::Revision;
use serde_json::{Map, Value};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Show the policy; keys that differ from their default are marked
    #[command(visible_alias = "get")]
    Show,
    /// Change some keys; KEY= alone brings the default back
    #[command(after_help = "Examples:\n  drover policy set mode=propose\n  \
        drover policy set aim=auto hosts_up_min=2 spare_hosts=1\n  drover policy set hot_above=")]
    Set {
        #[arg(required = true, value_name = "KEY=VALUE", value_parser = super::values::key_value)]
        changes: Vec<(String, String)>,
        /// Only if the policy is still at this revision
        #[arg(long, value_name = "REVISION")]
        if_match: Option<Revision>,
    },
    /// Replace the policy by a file's (YAML or JSON); keys left out take their defaults
    #[command(after_help = "Example:\n  drover policy show -o yaml > policy.yaml && $EDITOR policy.yaml && \
        drover policy edit-from policy.yaml")]
    EditFrom {
        file: PathBuf,
        /// Only if the policy is still at this revision
        #[arg(long, value_name = "REVISION")]
        if_match: Option<Revision>,
    },
}

pub async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let output = context.output;
    let client = |if_match: Option<Revision>| match if_match {
        Some(revision) => context.client.with_if_match(revision),
        None => context.client.clone(),
    };
    let policy = match verb {
        Verb::Show => {
            let policy = context.client.policy().await?;
            if let Some(revision) = policy.revision {
                output.say(&format!("revision {revision}"));
            }
            policy.value
        }
        Verb::Set { changes, if_match } => client(if_match).patch_policy(&patch(&changes)?).await?,
        Verb::EditFrom { file, if_match } => {
            let text = context::read(&file)?;
            // Every JSON document is a YAML document.
            let policy: Policy = serde_yaml_ng::from_str(&text)
                .map_err(|error| Failure::Usage(format!("{}: {error}", file.display())))?;
            client(if_match).set_policy(&policy).await?
        }
    };
    output.emit(&policy, |policy| table(policy, output))
}

/// Values are JSON where they can be, else words; none at all is the default.
fn patch(changes: &[(String, String)]) -> Result<Value, Failure> {
    let mut patch = Map::new();
    for (key, value) in changes {
        let value = match value.as_str() {
            "" => Value::Null,
            text => serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned())),
        };
        if patch.insert(key.clone(), value).is_some() {
            return Err(Failure::Usage(format!("{key} is given twice")));
        }
    }
    Ok(Value::Object(patch))
}

fn table(policy: &Policy, output: Output) -> String {
    let defaults = keys(&Policy::default());
    let mut columns = Columns::new(output, &["KEY", "VALUE", "DEFAULT"]);
    for ((key, value), (_, default)) in keys(policy).into_iter().zip(defaults) {
        let default = if value == default { String::new() } else { default };
        columns.row([cell(key), cell(value), cell(default)]);
    }
    columns.text()
}

/// In the order of the type, which keeps together what belongs together.
fn keys(policy: &Policy) -> Vec<(String, String)> {
    let Ok(serde_yaml_ng::Value::Mapping(keys)) = serde_yaml_ng::to_value(policy) else {
        unreachable!("a struct serialises to a mapping");
    };
    let plain = |value: serde_yaml_ng::Value| {
        serde_yaml_ng::to_string(&value).expect("a policy holds words and figures only").trim_end().to_owned()
    };
    keys.into_iter().map(|(key, value)| (plain(key), plain(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::PLAIN;
    use serde_json::json;

    #[test]
    fn values_become_the_json_they_look_like() {
        let pairs = [("mode", "propose"), ("aim", "auto"), ("hot_above", "0.9"), ("settle_ms", "")];
        let changes = pairs.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let expected = json!({"mode": "propose", "aim": "auto", "hot_above": 0.9, "settle_ms": null});
        assert_eq!(patch(&changes).unwrap(), expected);
        let twice = [("a".to_owned(), "1".to_owned()), ("a".to_owned(), "2".to_owned())];
        assert!(patch(&twice).is_err());
    }

    #[test]
    fn a_changed_key_shows_its_default() {
        let policy = Policy { hosts_up_min: 2, ..Policy::default() };
        let text = table(&policy, PLAIN);
        let line = text.lines().find(|line| line.starts_with("hosts_up_min")).unwrap();
        assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["hosts_up_min", "2", "1"]);
        let line = text.lines().find(|line| line.starts_with("mode")).unwrap();
        assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["mode", "act"]);
    }
}
