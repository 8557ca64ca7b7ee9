//! API tokens. Their secrets are made by the server and never come here.

use super::{Context, Reading, Resource, Wanted};
use crate::access;
use crate::interface::{Refusal, Reply};
use drover_model::event::Severity;
use drover_model::intent::{ApiToken, Role};
use drover_model::kind::Kind;
use drover_model::v1::TokenView;

const TOKENS_MAX: usize = 10_000;

impl Resource for ApiToken {
    fn may_remove(&self, context: &Context) -> Result<(), Refusal> {
        let tokens = context.control.tables.all::<Self>();
        let mut operators = tokens.filter(|token| token.role == Role::Operator && token.expires_at.is_none());
        match (operators.next(), operators.next()) {
            (Some(last), None) if last.id == self.id => Err(Refusal::conflict(
                "this is the last operator token that does not expire: make another first, or nobody could".to_owned(),
            )),
            _ => Ok(()),
        }
    }

    fn view(&self, reading: Reading) -> TokenView {
        TokenView::new(self, reading.revision)
    }
}

pub(crate) fn create(context: &mut Context, token: ApiToken) -> Result<Reply, Refusal> {
    access::may_write::<ApiToken>(context.actor)?;
    if let Some(tenant) = token.role.tenant() {
        context.within_quota(tenant, Wanted { tokens: 1, ..Wanted::default() })?;
    }
    if context.control.tables.get::<ApiToken>(&token.id).is_some() {
        let detail = format!("there is a token {} already: choose another name", token.id);
        return Err(Refusal::conflict(detail).at("id"));
    }
    if context.control.tables.api_tokens.len() >= TOKENS_MAX {
        return Err(Refusal::conflict(format!("there are {TOKENS_MAX} tokens: remove some first")));
    }
    let (id, key) = (token.id.clone(), token.object_key());
    let text = format!("{} created token {id}", context.actor.name);
    context.control.tables.put(token);
    context.control.tables.event(context.now, Severity::Info, key.to_string(), None, "api-token-created", text);
    Ok(Reply::Object(key))
}
