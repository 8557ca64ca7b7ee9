//! The public API under `/v1`: the only way in for people and programs.
//!
//! One module per noun; each handler translates between the wire ([`drover_api::v1`]) and what the state
//! machine is asked, and decides nothing. Errors are problem documents (RFC 9457), also those of the framework.

mod cluster;
mod condition;
mod console;
mod crud;
mod events;
mod hosts;
mod images;
mod join;
mod linger;
mod migrations;
mod openapi;
mod patch;
mod plans;
mod policy;
mod problem;
mod read;
mod staging;
mod tokens;
mod vms;
mod watch;

pub use openapi::openapi_json;

use crate::ca::Ca;
use crate::config::{Intervals, Limits};
use crate::datadir::DataDir;
use crate::hub::Hub;
use crate::metrics::Metrics;
use crate::shell::ShellHandle;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::{Router, http};
use drover_api::problem::{Problem, ProblemType};
use drover_model::intent::Tenant;
use drover_model::network::{Network, Port, SecurityGroup};
use drover_model::placement::PlacementRule;
use problem::Failure;
use staging::Staging;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::trace::{DefaultOnFailure, TraceLayer};
use utoipa_axum::router::OpenApiRouter;

/// What the API is made of.
pub struct ApiParts {
    pub shell: ShellHandle,
    pub hub: Arc<Hub>,
    pub ca: Arc<Ca>,
    pub metrics: Arc<Metrics>,
    pub dirs: Arc<DataDir>,
    pub limits: Limits,
    pub intervals: Intervals,
    pub agent_port: u16,
    /// Cancelled when the server ends: streams end then, too.
    pub ending: CancellationToken,
}

/// Shared by all handlers.
#[derive(Clone)]
pub struct Api(Arc<Inner>);

struct Inner {
    parts: ApiParts,
    staging: Staging,
    requests: Semaphore,
    uploads: Arc<Semaphore>,
    event_streams: Arc<Semaphore>,
    consoles: Arc<Semaphore>,
}

impl std::ops::Deref for Api {
    type Target = ApiParts;
    fn deref(&self) -> &ApiParts {
        &self.0.parts
    }
}

impl Api {
    pub fn new(parts: ApiParts) -> Self {
        let limits = &parts.limits;
        let semaphore = |max| Arc::new(Semaphore::new(max));
        Self(Arc::new(Inner {
            staging: Staging::new(&parts.dirs, limits),
            requests: Semaphore::new(limits.requests_at_once_max),
            uploads: semaphore(limits.uploads_at_once_max),
            event_streams: semaphore(limits.event_streams_max),
            consoles: semaphore(limits.consoles_max),
            parts,
        }))
    }

    fn staging(&self) -> &Staging {
        &self.0.staging
    }

    pub fn router(self) -> Router {
        let (quick, _) = quick_routes().split_for_parts();
        let (long, _) = long_routes().split_for_parts();
        quick
            .layer(middleware::from_fn_with_state(self.clone(), bounded))
            .merge(long)
            .fallback(unknown_route)
            .method_not_allowed_fallback(wrong_method)
            .layer(CatchPanicLayer::custom(panicked))
            .layer(middleware::from_fn(linger::linger))
            // A refusal is the client's to read; what is the operator's to read is logged where it happens.
            .layer(TraceLayer::new_for_http().on_failure(DefaultOnFailure::new().level(tracing::Level::DEBUG)))
            .with_state(self)
    }
}

/// Answered within the request time-out.
fn quick_routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .merge(cluster::routes())
        .merge(join::routes())
        .merge(tokens::routes())
        .merge(crud::all_routes::<Tenant>())
        .merge(crud::all_routes::<Network>())
        .merge(crud::all_routes::<SecurityGroup>())
        .merge(crud::all_routes::<Port>())
        .merge(crud::all_routes::<PlacementRule>())
        .merge(hosts::routes())
        .merge(images::routes())
        .merge(vms::routes())
        .merge(plans::routes())
        .merge(migrations::routes())
        .merge(policy::routes())
        .merge(events::routes())
        .merge(watch::routes())
        .merge(openapi::routes())
}

/// Takes as long as the client keeps sending; bounded by its own limits.
fn long_routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().merge(images::upload_routes()).merge(console::routes())
}

/// A limit on requests at once and on each one's time. Waiting for a turn counts.
async fn bounded(State(api): State<Api>, request: Request, next: Next) -> Response {
    let limit = Duration::from_secs(api.limits.request_timeout_s);
    let answered = tokio::time::timeout(limit, async {
        // The semaphore is never closed.
        let _permit = api.0.requests.acquire().await;
        next.run(request).await
    });
    answered.await.unwrap_or_else(|_| {
        let detail =
            format!("not done within {} s; look whether it was carried out before you try again", limit.as_secs());
        Failure(Problem::new(ProblemType::TimedOut, detail)).into_response()
    })
}

async fn unknown_route(uri: http::Uri) -> Failure {
    let path: String = uri.path().chars().take(200).collect();
    Failure(Problem::new(
        ProblemType::NotFound,
        format!("there is no {path}; GET /v1/openapi.json lists what there is"),
    ))
}

async fn wrong_method(method: http::Method, uri: http::Uri) -> Failure {
    let path: String = uri.path().chars().take(200).collect();
    let detail = format!("{path} does not take {method}; the Allow header lists what it takes");
    Failure(Problem::new(ProblemType::MethodNotAllowed, detail))
}

fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    tracing::error!(panic = text, "a request handler failed");
    let detail = "this is a defect of the server; its log says more, please report it";
    Failure(Problem::new(ProblemType::Internal, detail)).into_response()
}

/// One of the long-lived things a client may have, or why not.
fn permit(of: &Arc<Semaphore>, what: &str) -> Result<OwnedSemaphorePermit, Failure> {
    of.clone().try_acquire_owned().map_err(|_| {
        let detail = format!("too many {what} at once; close one or try again later");
        Failure(Problem::new(ProblemType::TooManyRequests, detail))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::routing::get;
    use tower::ServiceExt as _;

    #[tokio::test]
    async fn a_handler_that_panics_is_a_problem_document() {
        async fn broken() -> &'static str {
            panic!("a secret detail")
        }
        let router: Router = Router::new().route("/", get(broken)).layer(CatchPanicLayer::custom(panicked));
        let response = router.oneshot(Request::new(Body::empty())).await.unwrap();
        assert_eq!(response.status(), 500);
        let body = axum::body::to_bytes(response.into_body(), 1 << 16).await.unwrap();
        let problem: Problem = serde_json::from_slice(&body).unwrap();
        assert_eq!(problem.status, 500);
        assert!(!problem.detail.contains("secret"), "{problem:?}");
    }
}
