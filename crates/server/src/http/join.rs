//! How a host gets its certificate: the two requests that need no API token (see [`drover_api::join`]).

use super::Api;
use super::problem::Failure;
use super::read::Body;
use crate::ca::CaError;
use crate::secret::sha256_hex;
use crate::shell::{Change, chain, now};
use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use drover_api::join::{JoinRequest, JoinResponse};
use drover_api::problem::ProblemType;
use drover_control::interface::{Action, Actor};
use drover_model::TokenId;
use drover_model::intent::Role;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(ca)).routes(routes!(join))
}

/// The cluster's CA certificate
///
/// Trust it only if its SHA-256 is the one in the join token, or came another safe way.
#[utoipa::path(get, path = "/v1/ca", tag = "joining", security(()),
    responses((status = 200, description = "PEM", content_type = "application/x-pem-file")))]
async fn ca(State(api): State<Api>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/x-pem-file")], api.ca.pem().to_owned())
}

/// A certificate for a host, against its one-time token
#[utoipa::path(post, path = "/v1/join", tag = "joining", security(()), request_body = JoinRequest,
    responses((status = 200, description = "The host has joined", body = JoinResponse)))]
async fn join(State(api): State<Api>, Body(request): Body<JoinRequest>) -> Result<Json<JoinResponse>, Failure> {
    let (token, secret_sha256) = token_parts(&request.token)?;
    // The token is spent only on a request that can be signed.
    let csr = api.ca.read_request(&request.csr_pem).map_err(|error| match error {
        CaError::BadRequest { .. } => Failure::invalid("csr_pem", error.to_string()),
        _ => Failure::new(ProblemType::Internal, error.to_string()),
    })?;
    let host = request.host;
    // Its token alone says what it may do.
    let actor = Actor { name: format!("host/{host}"), role: Role::Operator };
    api.shell.submit(Change::new(actor, Action::Join { host: host.clone(), token, secret_sha256 })).await?;
    let certificate_pem = api.ca.issue_host(&host, &csr, now()).map_err(|error| {
        tracing::error!(%host, error = %chain(&error), "a certificate could not be signed");
        Failure::new(ProblemType::Internal, "the certificate could not be signed; make a new token and join again")
    })?;
    Ok(Json(JoinResponse { certificate_pem, ca_pem: api.ca.pem().to_owned(), agent_port: api.agent_port }))
}

/// The token's id and the hash of its secret.
fn token_parts(text: &str) -> Result<(TokenId, String), Failure> {
    let bad = || {
        Failure::invalid(
            "token",
            "this is not a join token: make one with `drover host token HOST` and pass it on whole",
        )
    };
    let mut parts = text.trim().split('.');
    let (id, secret) = parts.next().zip(parts.next()).ok_or_else(bad)?;
    let hex64 = secret.len() == 64 && secret.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !hex64 || parts.count() > 1 {
        return Err(bad());
    }
    Ok((id.parse().map_err(|_| bad())?, sha256_hex(secret.as_bytes())))
}
