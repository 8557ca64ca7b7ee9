//! Tenants and API tokens.

use super::Api;
use super::condition::{Conditions, key, object};
use super::problem::Failure;
use super::read::{At, Body, Operator, name, optional_name};
use crate::secret;
use crate::shell::now;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use drover_api::problem::ProblemType;
use drover_api::v1::{CreateTenant, CreateToken, CreatedToken, List, RoleName, TenantView, TokenView};
use drover_control::interface::{Action, Refusal, Reply};
use drover_model::intent::{ApiToken, Role};
use drover_model::{Millis, TenantName, TokenId};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Longest life of a token that expires: a hundred years, so that no sum overflows.
const EXPIRES_S_MAX: u64 = 100 * 365 * 86_400;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list_tenants, create_tenant))
        .routes(routes!(remove_tenant))
        .routes(routes!(list_tokens, create_token))
        .routes(routes!(remove_token))
}

/// All tenants
#[utoipa::path(get, path = "/v1/tenants", tag = "tenants",
    responses((status = 200, description = "All of them", body = List<TenantView>)))]
async fn list_tenants(State(api): State<Api>, _operator: Operator) -> Result<Json<List<TenantView>>, Failure> {
    let list = api.shell.query(|control| {
        let view = |tenant: &drover_model::intent::Tenant| {
            Some(TenantView::new(tenant, control.revision_of(&key("tenant", &tenant.id))?))
        };
        control.tenants().filter_map(view).collect()
    });
    Ok(Json(list.await?))
}

/// A new tenant
#[utoipa::path(post, path = "/v1/tenants", tag = "tenants", request_body = CreateTenant,
    responses((status = 201, description = "It was made", body = TenantView)))]
async fn create_tenant(
    State(api): State<Api>,
    Operator(actor): Operator,
    conditions: Conditions,
    Body(create): Body<CreateTenant>,
) -> Result<Response, Failure> {
    let id: TenantName = name("id", &create.id)?;
    let ask = Action::CreateTenant { id: id.clone() };
    api.shell.submit(conditions.change(actor, ask)).await.map_err(named_by_id)?;
    let view = api.shell.query(move |control| {
        let revision = control.revision_of(&key("tenant", &id))?;
        control.tenant(&id).map(|tenant| TenantView::new(tenant, revision))
    });
    let view = view.await?.ok_or_else(|| gone("tenant"))?;
    Ok(object(StatusCode::CREATED, view.revision, view))
}

/// Remove a tenant that has no vms
#[utoipa::path(delete, path = "/v1/tenants/{tenant}", tag = "tenants",
    params(("tenant" = String, Path, description = "Its name")),
    responses((status = 204, description = "It is gone")))]
async fn remove_tenant(
    State(api): State<Api>,
    Operator(actor): Operator,
    conditions: Conditions,
    At(id): At<TenantName>,
) -> Result<StatusCode, Failure> {
    api.shell.submit(conditions.change(actor, Action::RemoveTenant { id })).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// All API tokens, without their secrets
#[utoipa::path(get, path = "/v1/tokens", tag = "tenants",
    responses((status = 200, description = "All of them", body = List<TokenView>)))]
async fn list_tokens(State(api): State<Api>, _operator: Operator) -> Result<Json<List<TokenView>>, Failure> {
    let list = api.shell.query(|control| {
        let view = |token: &ApiToken| Some(TokenView::new(token, control.revision_of(&key("api-token", &token.id))?));
        control.api_tokens().filter_map(view).collect()
    });
    Ok(Json(list.await?))
}

/// A new API token; its secret is in this answer and nowhere else
#[utoipa::path(post, path = "/v1/tokens", tag = "tenants", request_body = CreateToken,
    responses((status = 201, description = "It was made", body = CreatedToken)))]
async fn create_token(
    State(api): State<Api>,
    Operator(actor): Operator,
    conditions: Conditions,
    Body(create): Body<CreateToken>,
) -> Result<Response, Failure> {
    let (role, prefix) = match (create.role, create.tenant.as_deref()) {
        (RoleName::Operator, None) => (Role::Operator, "operator"),
        (RoleName::Operator, Some(_)) => {
            return Err(Failure::invalid("tenant", "an operator's token has no tenant: leave it out"));
        }
        (RoleName::Tenant, Some(tenant)) => (Role::Tenant { tenant: name("tenant", tenant)? }, "tenant"),
        (RoleName::Tenant, None) => return Err(Failure::invalid("tenant", "say whose token it is")),
    };
    let expires_at = match create.expires_s {
        None => None,
        Some(seconds @ 1..=EXPIRES_S_MAX) => Some(now().plus(Millis::secs(seconds))),
        Some(_) => {
            return Err(Failure::invalid("expires_s", format!("must lie between 1 and {EXPIRES_S_MAX} seconds")));
        }
    };
    let id = optional_name("id", create.id.as_deref())?.unwrap_or_else(|| secret::token_id(prefix));
    let secret = secret::api_token(&id);
    let secret_sha256 = secret.sha256();
    let token = ApiToken { id, secret_sha256: secret_sha256.clone(), role, created_at: now(), expires_at };
    let reply = api.shell.submit(conditions.change(actor, Action::CreateToken { token })).await.map_err(named_by_id)?;
    let Reply::Token(id) = reply else { return Err(gone("token")) };
    let view = api.shell.query(move |control| {
        let revision = control.revision_of(&key("api-token", &id))?;
        let token = control.api_tokens().find(|token| token.id == id)?;
        Some((TokenView::new(token, revision), token.secret_sha256 == secret_sha256))
    });
    match view.await?.ok_or_else(|| gone("token"))? {
        (view, true) => {
            let revision = view.revision;
            let created = CreatedToken { view, token: secret.reveal().to_owned() };
            Ok(object(StatusCode::CREATED, revision, created))
        }
        (view, false) => Err(Failure::new(
            ProblemType::Conflict,
            format!(
                "token {} was made under this Idempotency-Key before, and its secret is shown only once; remove it \
                     and make another",
                view.id
            ),
        )),
    }
}

/// Remove an API token: whoever holds it is refused from now on
#[utoipa::path(delete, path = "/v1/tokens/{token}", tag = "tenants",
    params(("token" = String, Path, description = "Its id")),
    responses((status = 204, description = "It is gone")))]
async fn remove_token(
    State(api): State<Api>,
    Operator(actor): Operator,
    conditions: Conditions,
    At(id): At<TokenId>,
) -> Result<StatusCode, Failure> {
    api.shell.submit(conditions.change(actor, Action::RemoveToken { id })).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The field that others call `name` is `id` in these requests.
fn named_by_id(mut refusal: Refusal) -> Refusal {
    if refusal.field == Some("name") {
        refusal.field = Some("id");
    }
    refusal
}

/// It was made or changed, and removed by somebody else before it could be shown.
pub(super) fn gone(what: &str) -> Failure {
    Failure::not_found(format!("the {what} was removed meanwhile"))
}
