//! Revisions as entity tags (RFC 9110 section 8.8.3, 13.1.1), and idempotency keys.

use super::Api;
use super::problem::Failure;
use crate::shell::Change;
use axum::Json;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use drover_api::problem::{Problem, ProblemType};
use drover_api::v1::{IDEMPOTENCY_KEY, IDEMPOTENCY_KEY_MAX};
use drover_control::interface::{Action, Actor};
use drover_model::Revision;
use serde::Serialize;

/// What a change depends on.
#[derive(Debug, Clone)]
pub struct Conditions {
    idempotency_key: Option<String>,
    pub if_match: Option<Revision>,
}

impl Conditions {
    pub fn change(self, actor: Actor, action: Action) -> Change {
        Change { actor, idempotency_key: self.idempotency_key, if_match: self.if_match, action }
    }
}

impl FromRequestParts<Api> for Conditions {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _api: &Api) -> Result<Self, Failure> {
        Ok(Self { idempotency_key: idempotency_key(&parts.headers)?, if_match: if_match(&parts.headers)? })
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Failure> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let key = value.to_str().unwrap_or("");
    if (1..=IDEMPOTENCY_KEY_MAX).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(Some(key.to_owned()));
    }
    let detail = format!("must be 1 to {IDEMPOTENCY_KEY_MAX} visible ASCII characters, e.g. a UUID");
    Err(Failure::invalid("Idempotency-Key", detail))
}

fn if_match(headers: &HeaderMap) -> Result<Option<Revision>, Failure> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = value.to_str().unwrap_or("").trim();
    if text == "*" {
        return Ok(None);
    }
    let revision = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).and_then(|text| text.parse().ok());
    revision.map(Some).ok_or_else(|| {
        let detail = "must be one ETag as it was given, e.g. \"42\" with its quotes, or *";
        Failure(Problem::new(ProblemType::Malformed, detail).with_field("If-Match"))
    })
}

/// One object, with its revision as entity tag.
pub fn object<T: Serialize>(status: StatusCode, revision: Revision, view: T) -> Response {
    let mut response = (status, Json(view)).into_response();
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{revision}\"")) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}
