//! Errors on the wire: problem details for HTTP APIs (RFC 9457).

use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// Media type of a [`Problem`].
pub const MEDIA_TYPE: &str = "application/problem+json";

/// Why a request was not carried out. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// A stable word for programs, as a relative reference: `/problems/not-found`, ...
    #[serde(rename = "type", default = "blank_type")]
    pub kind: String,
    /// The same for every problem of this type.
    #[serde(default)]
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong with this request and what to do instead.
    #[serde(default)]
    pub detail: String,
    /// The request's field that is wrong, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

/// RFC 9457 section 4.2.1: the type when none is given.
fn blank_type() -> String {
    "about:blank".to_owned()
}

/// The types of problem there are, and the one status each comes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProblemType {
    /// The request is not HTTP or JSON as it should be.
    Malformed,
    /// No token, or one that is unknown or expired.
    Unauthorized,
    /// The token's role does not allow it.
    Forbidden,
    /// There is no such thing, or it is another tenant's.
    NotFound,
    MethodNotAllowed,
    /// Not as things stand now.
    Conflict,
    /// The object has changed since it was read.
    PreconditionFailed,
    TooLarge,
    UnsupportedMediaType,
    /// Well-formed, but makes no sense.
    Invalid,
    TooManyRequests,
    Internal,
    /// Not at the moment.
    Unavailable,
    TimedOut,
    /// No room: in the cluster for a vm, or on the server's disk.
    NoRoom,
}

impl ProblemType {
    pub const ALL: [Self; 15] = [
        Self::Malformed,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Conflict,
        Self::PreconditionFailed,
        Self::TooLarge,
        Self::UnsupportedMediaType,
        Self::Invalid,
        Self::TooManyRequests,
        Self::Internal,
        Self::Unavailable,
        Self::TimedOut,
        Self::NoRoom,
    ];

    fn parts(self) -> (u16, &'static str, &'static str) {
        match self {
            Self::Malformed => (400, "malformed", "The request can't be read"),
            Self::Unauthorized => (401, "unauthorized", "A valid token is needed"),
            Self::Forbidden => (403, "forbidden", "The token's role does not allow this"),
            Self::NotFound => (404, "not-found", "There is no such thing"),
            Self::MethodNotAllowed => (405, "method-not-allowed", "The path does not take this method"),
            Self::Conflict => (409, "conflict", "Not possible as things stand"),
            Self::PreconditionFailed => (412, "precondition-failed", "The object has changed since"),
            Self::TooLarge => (413, "too-large", "The request is too large"),
            Self::UnsupportedMediaType => (415, "unsupported-media-type", "The body is of the wrong media type"),
            Self::Invalid => (422, "invalid", "The request makes no sense as it stands"),
            Self::TooManyRequests => (429, "too-many-requests", "Too many requests at once"),
            Self::Internal => (500, "internal", "The server failed"),
            Self::Unavailable => (503, "unavailable", "Not possible at the moment"),
            Self::TimedOut => (504, "timed-out", "It took too long"),
            Self::NoRoom => (507, "no-room", "There is no room"),
        }
    }

    pub fn status(self) -> u16 {
        self.parts().0
    }

    pub fn title(self) -> &'static str {
        self.parts().2
    }

    /// As in [`Problem::kind`].
    pub fn uri(self) -> String {
        format!("/problems/{}", self.parts().1)
    }
}

impl Problem {
    pub fn new(kind: ProblemType, detail: impl Into<String>) -> Self {
        Self {
            kind: kind.uri(),
            title: kind.title().to_owned(),
            status: kind.status(),
            detail: detail.into(),
            field: None,
        }
    }

    #[must_use]
    pub fn with_field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = if self.detail.is_empty() { &self.title } else { &self.detail };
        match &self.field {
            Some(field) if !said.contains(field.as_str()) => write!(f, "{field}: {said}"),
            _ if said.is_empty() => write!(f, "the server answered with HTTP status {}", self.status),
            _ => f.write_str(said),
        }
    }
}

impl std::error::Error for Problem {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_written_as_rfc_9457_says() {
        let problem = Problem::new(ProblemType::Invalid, "must be at least 1").with_field("vcpus");
        assert_eq!(
            serde_json::to_value(&problem).unwrap(),
            serde_json::json!({
                "type": "/problems/invalid",
                "title": "The request makes no sense as it stands",
                "status": 422,
                "detail": "must be at least 1",
                "field": "vcpus",
            })
        );
        assert_eq!(problem.to_string(), "vcpus: must be at least 1");
    }

    #[test]
    fn a_problem_from_elsewhere_is_read_too() {
        let problem: Problem = serde_json::from_str(r#"{"status": 502, "instance": "/x"}"#).unwrap();
        assert_eq!(problem.kind, "about:blank");
        assert_eq!(problem.to_string(), "the server answered with HTTP status 502");
    }

    #[test]
    fn every_type_has_a_status_of_its_own() {
        for (n, kind) in ProblemType::ALL.iter().enumerate() {
            assert!((400..600).contains(&kind.status()));
            assert!(ProblemType::ALL[n + 1..].iter().all(|other| other.status() != kind.status()), "{kind:?}");
        }
    }
}
