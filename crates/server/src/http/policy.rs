//! The policy: read whole, replaced whole, or changed by a merge patch.

use super::Api;
use super::condition::{Conditions, object};
use super::patch::{PATCH_TRIES_MAX, bad_patch, lost_race};
use super::problem::Failure;
use super::read::{Body, MergePatch, Operator};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use drover_api::problem::{Problem, ProblemType};
use drover_api::v1::{BadPolicy, Policy};
use drover_control::interface::{Action, Actor, Refusal};
use drover_model::Revision;
use drover_model::kind::ObjectKey;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(get_policy, put_policy, patch_policy))
}

/// The revision is 0 while the policy is still that of the configuration.
async fn read(api: &Api) -> Result<(Policy, Revision), Refusal> {
    let read = api.shell.query(|control| {
        let revision = control
            .revision_of(&ObjectKey::of::<drover_model::policy::Policy>(&drover_model::policy::TheOne))
            .unwrap_or(Revision(0));
        (Policy::from(control.policy()), revision)
    });
    read.await
}

async fn set(api: &Api, actor: Actor, conditions: Conditions, policy: &Policy) -> Result<(), Failure> {
    let policy = policy.checked().map_err(|BadPolicy { field, problem }| {
        Failure(Problem::new(ProblemType::Invalid, problem).with_field(field))
    })?;
    api.shell.submit(conditions.change(actor, Action::SetPolicy { policy: Box::new(policy) })).await?;
    Ok(())
}

async fn answer(api: &Api) -> Result<Response, Failure> {
    let (policy, revision) = read(api).await?;
    Ok(object(StatusCode::OK, revision, policy))
}

/// The policy
#[utoipa::path(get, path = "/v1/policy", tag = "policy",
    responses((status = 200, description = "The policy", body = Policy)))]
async fn get_policy(State(api): State<Api>, _operator: Operator) -> Result<Response, Failure> {
    answer(&api).await
}

/// Replace the policy; keys left out take their defaults
#[utoipa::path(put, path = "/v1/policy", tag = "policy", request_body = Policy,
    responses((status = 200, description = "The new policy", body = Policy)))]
async fn put_policy(
    State(api): State<Api>,
    Operator(actor): Operator,
    conditions: Conditions,
    Body(policy): Body<Policy>,
) -> Result<Response, Failure> {
    set(&api, actor, conditions, &policy).await?;
    answer(&api).await
}

/// Change some keys of the policy (RFC 7396); `null` brings a key back to its default
#[utoipa::path(patch, path = "/v1/policy", tag = "policy",
    request_body(content = Policy, content_type = "application/merge-patch+json"),
    responses((status = 200, description = "The new policy", body = Policy)))]
async fn patch_policy(
    State(api): State<Api>,
    Operator(actor): Operator,
    conditions: Conditions,
    MergePatch(patch): MergePatch,
) -> Result<Response, Failure> {
    let mut tries = 0;
    loop {
        tries += 1;
        let (policy, revision) = read(&api).await?;
        let policy = policy.patched(&patch).map_err(|error| bad_patch(&error))?;
        // Without a condition of its own, a patch must not undo what came between reading and writing.
        let mut guarded = conditions.clone();
        guarded.if_match = guarded.if_match.or(Some(revision).filter(|revision| *revision != Revision(0)));
        match set(&api, actor.clone(), guarded, &policy).await {
            Err(failure) if conditions.if_match.is_none() && lost_race(&failure) && tries < PATCH_TRIES_MAX => {}
            Err(failure) => return Err(failure),
            Ok(()) => return answer(&api).await,
        }
    }
}
