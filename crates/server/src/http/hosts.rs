//! Hosts.

use super::condition::Conditions;
use super::crud::gone;
use super::problem::Failure;
use super::read::{At, Body, Operator};
use super::{Api, crud};
use crate::secret;
use crate::shell::now;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use drover_api::join::JoinTokenText;
use drover_api::problem::ProblemType;
use drover_api::v1::{CreateJoinToken, CreatedJoinToken, HostView, SetPower};
use drover_control::interface::{Action, Actor, Reply};
use drover_model::intent::{Host, JoinToken};
use drover_model::{HostId, Millis};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Api> {
    crud::routes::<Host>()
        .routes(routes!(drain_host))
        .routes(routes!(undrain_host))
        .routes(routes!(declare_host_lost))
        .routes(routes!(power_host))
        .routes(routes!(create_join_token))
}

async fn change(
    api: &Api,
    actor: Actor,
    conditions: Conditions,
    host: HostId,
    action: Action,
    status: StatusCode,
) -> Result<Response, Failure> {
    api.shell.submit(conditions.change(actor.clone(), action)).await?;
    crud::show::<Host>(api, actor, host, status).await
}

/// Empty a host for maintenance: its vms leave, none come
#[utoipa::path(post, path = "/v1/hosts/{host}/drain", tag = "hosts",
    params(("host" = String, Path, description = "Its name")),
    responses((status = 202, description = "It is being emptied", body = HostView)))]
async fn drain_host(
    State(api): State<Api>,
    Operator(actor): Operator,
    conditions: Conditions,
    At(host): At<HostId>,
) -> Result<Response, Failure> {
    change(&api, actor, conditions, host.clone(), Action::DrainHost { host }, StatusCode::ACCEPTED).await
}

/// Give a drained host back
#[utoipa::path(post, path = "/v1/hosts/{host}/undrain", tag = "hosts",
    params(("host" = String, Path, description = "Its name")),
    responses((status = 200, description = "It takes vms again", body = HostView)))]
async fn undrain_host(
    State(api): State<Api>,
    Operator(actor): Operator,
    conditions: Conditions,
    At(host): At<HostId>,
) -> Result<Response, Failure> {
    change(&api, actor, conditions, host.clone(), Action::UndrainHost { host }, StatusCode::OK).await
}

/// Declare a host lost that does not answer: what ran on it counts as gone, and is started elsewhere. Power it off first
#[utoipa::path(post, path = "/v1/hosts/{host}/lost", tag = "hosts",
    params(("host" = String, Path, description = "Its name")),
    responses((status = 200, description = "It counts as lost", body = HostView)))]
async fn declare_host_lost(
    State(api): State<Api>,
    Operator(actor): Operator,
    conditions: Conditions,
    At(host): At<HostId>,
) -> Result<Response, Failure> {
    change(&api, actor, conditions, host.clone(), Action::DeclareHostLost { host }, StatusCode::OK).await
}

/// Switch a host on or off
#[utoipa::path(post, path = "/v1/hosts/{host}/power", tag = "hosts", request_body = SetPower,
    params(("host" = String, Path, description = "Its name")),
    responses((status = 202, description = "It is being switched", body = HostView)))]
async fn power_host(
    State(api): State<Api>,
    Operator(actor): Operator,
    conditions: Conditions,
    At(host): At<HostId>,
    Body(SetPower { on }): Body<SetPower>,
) -> Result<Response, Failure> {
    change(&api, actor, conditions, host.clone(), Action::PowerHost { host, on }, StatusCode::ACCEPTED).await
}

/// A one-time token for a host to join with; it is in this answer and nowhere else
#[utoipa::path(post, path = "/v1/hosts/{host}/token", tag = "hosts", request_body = CreateJoinToken,
    params(("host" = String, Path, description = "The name the host will have")),
    responses((status = 201, description = "It was made", body = CreatedJoinToken)))]
async fn create_join_token(
    State(api): State<Api>,
    Operator(actor): Operator,
    conditions: Conditions,
    At(host): At<HostId>,
    Body(create): Body<CreateJoinToken>,
) -> Result<Response, Failure> {
    let max = api.limits.join_token_life_s_max.min(CreateJoinToken::EXPIRES_S_MAX);
    let seconds = create.expires_s.unwrap_or(CreateJoinToken::EXPIRES_S_DEFAULT.min(max));
    if !(1..=max).contains(&seconds) {
        return Err(Failure::invalid("expires_s", format!("must lie between 1 and {max} seconds")));
    }
    let (id, secret, created_at) = (secret::token_id("join"), secret::join_secret(), now());
    let expires_at = created_at.plus(Millis::secs(seconds));
    let secret_sha256 = secret.sha256();
    let token = JoinToken { id: id.clone(), secret_sha256, host: host.clone(), created_at, expires_at };
    let reply = api.shell.submit(conditions.change(actor, Action::CreateJoinToken { token })).await?;
    match reply {
        Reply::Token(made) if made == id => {}
        Reply::Token(made) => {
            let detail = format!(
                "token {made} was made under this Idempotency-Key before, and is shown only once; make another"
            );
            return Err(Failure::new(ProblemType::Conflict, detail));
        }
        _ => return Err(gone("token")),
    }
    let text = JoinTokenText { id: id.clone(), secret: secret.reveal().to_owned(), ca_sha256: api.ca.fingerprint() };
    let created = CreatedJoinToken { id, host, expires_at_ms: expires_at.0, token: text.to_string() };
    Ok((StatusCode::CREATED, Json(created)).into_response())
}
