//! `drover events`.

use super::Failure;
use super::context::Context;
use super::show;
use super::values;
use super::vm::VmRef;
use clap::Args;
use drover_api::client::{ApiError, Client, EventStreamStart};
use drover_api::v1::{ActorView, EVENTS_LIMIT_MAX, EventQuery, EventView};
use drover_model::EventSeq;
use drover_model::event::Severity;
use drover_model::intent::Vm;
use futures_util::StreamExt;
use std::time::Duration;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  drover events --limit 20\n  drover events --since 2h --severity warning\n  drover events --follow --object host/h1\n  \
    drover events --follow -o json | jq -r .text"
)]
pub struct Events {
    /// Go on with what happens from now on, over restarts of the server
    #[arg(short, long)]
    follow: bool,
    /// Only of this object: vm/web-1, host/h1, plan/42, migration/7, cluster
    #[arg(long)]
    object: Option<String>,
    /// Only after this sequence number
    #[arg(long, value_name = "SEQ")]
    after: Option<EventSeq>,
    /// Only before this sequence number: the page before one that was read
    #[arg(long, value_name = "SEQ", conflicts_with = "follow")]
    before: Option<EventSeq>,
    /// Only of this last span of time: 90s, 15m, 2h, 7d
    #[arg(long, value_name = "SPAN", value_parser = values::span)]
    since: Option<Duration>,
    /// Only of this severity or a higher one: info, warning, escalation
    #[arg(long, value_parser = severity)]
    severity: Option<Severity>,
    /// At most so many of those that have happened, the newest; after a given one, the oldest
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=EVENTS_LIMIT_MAX as i64))]
    limit: u16,
}

impl Events {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let client = &context.client;
        let object = match &self.object {
            Some(object) => Some(with_id(client, object).await?),
            None => None,
        };
        let query = EventQuery {
            after: self.after.map(|after| after.0),
            limit: Some(self.limit.into()),
            object: object.clone(),
            before: self.before.map(|before| before.0),
            since_ms: self.since.map(|span| super::now_ms().saturating_sub(span.as_millis() as u64)),
            severity: self.severity,
        };
        if !self.follow {
            return context.output.emit(&client.events(&query).await?, |list| {
                list.items.iter().map(|event| line(event) + "\n").collect()
            });
        }
        let after = match self.after {
            Some(after) => Some(after),
            None => {
                let past = client.events(&query).await?.items;
                past.iter().try_for_each(|event| context.output.emit_next(event, line))?;
                past.last().map(|event| event.seq)
            }
        };
        let mut stream = Box::pin(client.event_stream(EventStreamStart { after, object, severity: self.severity }));
        while let Some(event) = stream.next().await {
            context.output.emit_next(&event?, line)?;
        }
        Ok(())
    }
}

/// Events name a vm by its id; people by its name. A vm that is gone can still be asked for by its id.
async fn with_id(client: &Client, object: &str) -> Result<String, Failure> {
    let Some(vm) = object.strip_prefix("vm/") else { return Ok(object.to_owned()) };
    let named: VmRef = vm.parse().map_err(Failure::Usage)?;
    match client.of::<Vm>().within(named.query.tenant.as_deref()).get(&named.vm).await {
        Ok(view) => Ok(format!("vm/{}", view.id)),
        Err(ApiError::Problem(problem)) if problem.status == 404 => Ok(object.to_owned()),
        Err(error) => Err(error.into()),
    }
}

fn severity(text: &str) -> Result<Severity, String> {
    [Severity::Info, Severity::Warning, Severity::Escalation]
        .into_iter()
        .find(|severity| severity.to_string() == text)
        .ok_or_else(|| format!("{text:?} is not a severity: write info, warning or escalation"))
}

pub fn line(event: &EventView) -> String {
    let (at, by) = (show::time(event.at_ms), event.actor.as_ref().map(by).unwrap_or_default());
    format!("{at}  {:<10}  {:<20}  {}{by}", event.severity, event.object, event.text)
}

/// Who asked for it; nothing for what drover did by itself.
fn by(actor: &ActorView) -> String {
    match &actor.name {
        Some(name) => format!(" (by {name})"),
        None => format!(" (by role {})", actor.role),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_api::v1::RoleName;

    #[test]
    fn an_event_is_one_line() {
        let event: EventView = serde_json::from_value(serde_json::json!({
            "seq": 9, "at_ms": 1_795_294_064_999_u64, "severity": "warning", "object": "host/h1", "tenant": null,
            "kind": "host-hot", "text": "h1 is hot",
        }))
        .unwrap();
        let by_itself = "2026-11-21T20:47:44Z  warning     host/h1               h1 is hot";
        assert_eq!(line(&event), by_itself);
        for (name, said) in [(Some("ops-1"), "ops-1"), (None, "role operator")] {
            let actor = Some(ActorView { role: RoleName::Operator, name: name.map(str::to_owned) });
            assert_eq!(line(&EventView { actor, ..event.clone() }), format!("{by_itself} (by {said})"));
        }
    }
}
