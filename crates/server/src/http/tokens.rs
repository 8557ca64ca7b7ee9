//! API tokens: making one shows its secret, once.

use super::condition::{Conditions, object};
use super::crud::gone;
use super::problem::Failure;
use super::read::{Body, Operator, name, optional_name};
use super::{Api, crud};
use crate::secret;
use crate::shell::now;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use drover_api::problem::ProblemType;
use drover_api::v1::{CreateToken, CreatedToken, RoleName, TokenView};
use drover_control::interface::{Action, Reply};
use drover_control::kinds::Entity as _;
use drover_model::Millis;
use drover_model::intent::{ApiToken, Role};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Longest life of a token that expires: a hundred years, so that no sum overflows.
const EXPIRES_S_MAX: u64 = 100 * 365 * 86_400;

pub(super) fn routes() -> OpenApiRouter<Api> {
    crud::routes::<ApiToken>().routes(routes!(create_token))
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
    let reply = api.shell.submit(conditions.change(actor, Action::CreateToken { token })).await?;
    let Reply::Object(key) = reply else { return Err(gone("token")) };
    let view = api.shell.query(move |control| {
        let row = ApiToken::table(control.rows()).row(&key.id.parse().ok()?)?;
        Some((TokenView::new(&row.value, row.revision), row.value.secret_sha256 == secret_sha256))
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
