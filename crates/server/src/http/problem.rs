//! Refusals and mistakes as problem documents.

use crate::shell::chain;
use crate::store::StoreError;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use drover_api::problem::{MEDIA_TYPE, Problem, ProblemType};
use drover_control::interface::{Refusal, RefusalKind};

/// A request that was not carried out.
#[derive(Debug)]
pub struct Failure(pub Problem);

impl Failure {
    pub fn new(kind: ProblemType, detail: impl Into<String>) -> Self {
        Self(Problem::new(kind, detail))
    }

    pub fn invalid(field: &str, detail: impl Into<String>) -> Self {
        Self(Problem::new(ProblemType::Invalid, detail).with_field(field))
    }

    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(ProblemType::NotFound, detail)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let kind = match refusal.kind {
            RefusalKind::Invalid => ProblemType::Invalid,
            RefusalKind::NotFound => ProblemType::NotFound,
            RefusalKind::Forbidden => ProblemType::Forbidden,
            RefusalKind::Unauthorized => ProblemType::Unauthorized,
            RefusalKind::Conflict => ProblemType::Conflict,
            RefusalKind::Precondition => ProblemType::PreconditionFailed,
            RefusalKind::NoRoom => ProblemType::NoRoom,
            RefusalKind::Unavailable => ProblemType::Unavailable,
        };
        let problem = Problem::new(kind, refusal.detail);
        Self(match refusal.field {
            Some(field) => problem.with_field(field),
            None => problem,
        })
    }
}

impl From<StoreError> for Failure {
    /// Where a reader's connection fails. What it says of files is the operator's to read, in the log.
    fn from(error: StoreError) -> Self {
        tracing::error!(error = %chain(&error), "the store can't be read");
        Self::new(
            ProblemType::Unavailable,
            "the store can't be read at the moment; try again, and see the server's log",
        )
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.0)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        match status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"drover\""));
            }
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }
}
