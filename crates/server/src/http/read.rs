//! Reading requests: who asks, path, query and body; each mistake becomes a problem that names what is wrong.

use super::Api;
use super::problem::Failure;
use crate::secret::sha256_hex;
use crate::shell::now;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use drover_api::problem::{Problem, ProblemType};
use drover_control::interface::Actor;
use drover_model::intent::Role;
use drover_model::{BadName, TenantName};
use serde::de::DeserializeOwned;
use std::str::FromStr;

/// Whoever holds a valid token.
pub struct Caller(pub Actor);

impl Caller {
    /// `None` for operators, who see everything.
    pub fn tenant(&self) -> Option<&TenantName> {
        match &self.0.role {
            Role::Operator => None,
            Role::Tenant { tenant } => Some(tenant),
        }
    }
}

/// What a long-lived connection was opened with: looked at again, so that a removed token ends it.
#[derive(Debug, Clone)]
pub struct Credential {
    secret_sha256: String,
}

impl Credential {
    pub async fn holds(&self, api: &Api) -> bool {
        let hash = self.secret_sha256.clone();
        let actor = api.shell.query(move |control| control.authenticate(&hash, now())).await;
        actor.is_ok_and(|actor| actor.is_some())
    }
}

impl FromRequestParts<Api> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Failure> {
        let refuse = |detail: &str| Failure::new(ProblemType::Unauthorized, detail);
        let header = parts.headers.get(header::AUTHORIZATION).ok_or_else(|| {
            refuse("send `Authorization: Bearer TOKEN`; an operator makes one with `drover token create`")
        })?;
        let token = header
            .to_str()
            .ok()
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
            .ok_or_else(|| refuse("the Authorization header must read `Bearer TOKEN`"))?;
        let hash = sha256_hex(token.as_bytes());
        parts.extensions.insert(Credential { secret_sha256: hash.clone() });
        let actor = api.shell.query(move |control| control.authenticate(&hash, now())).await?;
        actor.map(Self).ok_or_else(|| refuse("the token is unknown or expired; ask an operator for a new one"))
    }
}

/// An operator. Tenants are refused.
pub struct Operator(pub Actor);

impl FromRequestParts<Api> for Operator {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Failure> {
        let Caller(actor) = Caller::from_request_parts(parts, api).await?;
        match actor.role {
            Role::Operator => Ok(Self(actor)),
            Role::Tenant { .. } => Err(Failure::new(ProblemType::Forbidden, "only an operator may do this")),
        }
    }
}

/// Whose a new thing is: a tenant's own, or the tenant's that an operator names.
pub fn owner(own: Option<&TenantName>, asked: Option<&str>, what: &str) -> Result<TenantName, Failure> {
    match (own, optional_name::<TenantName>("tenant", asked)?) {
        (None, Some(tenant)) => Ok(tenant),
        (None, None) => {
            Err(Failure::invalid("tenant", format!("say whose {what} it is; `drover tenant ls` lists tenants")))
        }
        (Some(own), None) => Ok(own.clone()),
        (Some(own), Some(tenant)) if tenant == *own => Ok(tenant),
        (Some(_), Some(_)) => {
            Err(Failure::invalid("tenant", format!("your token makes {what}s of your own tenant only")))
        }
    }
}

/// A JSON body that must be there.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Api> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, api: &Api) -> Result<Self, Failure> {
        require_media_type(&request, &["application/json"])?;
        let bytes = read_whole(request, api).await?;
        parse(&bytes).map(Self)
    }
}

/// A JSON merge patch (RFC 7396).
pub struct MergePatch(pub serde_json::Value);

impl FromRequest<Api> for MergePatch {
    type Rejection = Failure;

    async fn from_request(request: Request, api: &Api) -> Result<Self, Failure> {
        require_media_type(&request, &[drover_api::v1::MERGE_PATCH, "application/json"])?;
        let bytes = read_whole(request, api).await?;
        parse(&bytes).map(Self)
    }
}

fn require_media_type(request: &Request, allowed: &[&str]) -> Result<(), Failure> {
    let given = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = given.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    if allowed.contains(&essence.as_str()) {
        return Ok(());
    }
    let detail = format!("send the body with `Content-Type: {}`", allowed[0]);
    Err(Failure::new(ProblemType::UnsupportedMediaType, detail))
}

async fn read_whole(request: Request, api: &Api) -> Result<Bytes, Failure> {
    let max = api.limits.request_body_bytes_max;
    let too_large = || Failure::new(ProblemType::TooLarge, format!("a request body may have {max} bytes at most"));
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: u64| length > max as u64) {
        return Err(too_large());
    }
    // The same extractor that the framework bounds, with our bound.
    let request = request.map(|body| axum::body::Body::new(http_body_util::Limited::new(body, max)));
    Bytes::from_request(request, &()).await.map_err(|rejection: BytesRejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => too_large(),
        _ => Failure::new(ProblemType::Malformed, "the body ended before it was complete"),
    })
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        bad_json(Some(path.as_str()).filter(|path| *path != "."), error.inner())
    })?;
    deserializer.end().map_err(|error| bad_json(None, &error))?;
    Ok(value)
}

/// Not JSON at all is malformed; JSON of another shape is invalid, in a field.
fn bad_json(path: Option<&str>, error: &serde_json::Error) -> Failure {
    let kind = match error.classify() {
        serde_json::error::Category::Data => ProblemType::Invalid,
        _ => ProblemType::Malformed,
    };
    let said = error.to_string();
    // "unknown field `x`" and "missing field `x`" name a field that the path stops short of.
    let named = (said.starts_with("unknown field") || said.starts_with("missing field"))
        .then(|| said.split('`').nth(1))
        .flatten();
    let field = match (path, named) {
        (Some(path), Some(named)) if path.rsplit('.').next() != Some(named) => Some(format!("{path}.{named}")),
        (None, Some(named)) => Some(named.to_owned()),
        (path, _) => path.map(str::to_owned),
    };
    let problem = Problem::new(kind, format!("the body is not as it should be: {said}"));
    Failure(match (kind, field) {
        (ProblemType::Invalid, Some(field)) => problem.with_field(field),
        _ => problem,
    })
}

/// The last variable part of the path, as a name or a number. One that can't exist is not found.
pub struct At<T>(pub T);

impl<T> FromRequestParts<Api> for At<T>
where
    T: FromStr<Err: std::fmt::Display> + Send,
{
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Failure> {
        let Path(text): Path<String> = Path::from_request_parts(parts, api)
            .await
            .map_err(|rejection| Failure::not_found(rejection.body_text()))?;
        text.parse().map(Self).map_err(|error| {
            let text: String = text.chars().take(80).collect();
            Failure::not_found(format!("there is no {text:?}: {error}"))
        })
    }
}

/// The query string.
pub struct Params<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<Api> for Params<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Failure> {
        let Query(value) = Query::from_request_parts(parts, api).await.map_err(|rejection| {
            let said = rejection.body_text();
            let problem = Problem::new(ProblemType::Invalid, said.clone());
            Failure(match said.split('`').nth(1) {
                Some(field) if said.contains("unknown field") => problem.with_field(field),
                _ => problem,
            })
        })?;
        Ok(Self(value))
    }
}

/// A name in a field of a request.
pub fn name<T: FromStr<Err = BadName>>(field: &str, text: &str) -> Result<T, Failure> {
    text.parse().map_err(|error: BadName| Failure::invalid(field, error.to_string()))
}

pub fn optional_name<T: FromStr<Err = BadName>>(field: &str, text: Option<&str>) -> Result<Option<T>, Failure> {
    text.map(|text| name(field, text)).transpose()
}
