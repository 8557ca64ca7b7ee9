//! Plans: what was decided, and a person's say in it.

use super::Api;
use super::condition::{Conditions, key, object};
use super::problem::Failure;
use super::read::{At, Operator};
use super::tenants::gone;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use drover_api::v1::{List, PlanNow, PlanView};
use drover_control::Control;
use drover_control::interface::{Action, Reply};
use drover_model::{PlanId, TimeMs};
use drover_model::plan::PlanRecord;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list_plans, plan_now))
        .routes(routes!(get_plan))
        .routes(routes!(approve_plan))
        .routes(routes!(reject_plan))
}

fn view(control: &Control, plan: &PlanRecord) -> Option<PlanView> {
    let mut view = PlanView::new(plan, control.revision_of(&key("plan", &plan.id))?);
    let steps = view.steps.iter_mut().filter_map(|step| step.state_at_ms.as_mut());
    let verified = view.verification.iter_mut().map(|verification| &mut verification.at_ms);
    for at_ms in [&mut view.made_at_ms].into_iter().chain(view.finished_at_ms.as_mut()).chain(steps).chain(verified) {
        *at_ms = control.to_wall(TimeMs(*at_ms)).0;
    }
    Some(view)
}

async fn find(api: &Api, id: PlanId) -> Result<PlanView, Failure> {
    let found = api.shell.query(move |control| control.plan(id).and_then(|plan| view(control, plan))).await?;
    found
        .ok_or_else(|| Failure::not_found(format!("there is no plan {id}; `drover plan ls` lists those that are kept")))
}

async fn one(api: &Api, id: PlanId, status: StatusCode) -> Result<Response, Failure> {
    let plan = find(api, id).await?;
    Ok(object(status, plan.revision, plan))
}

/// All plans that are kept, newest first
#[utoipa::path(get, path = "/v1/plans", tag = "plans",
    responses((status = 200, description = "Newest first", body = List<PlanView>)))]
async fn list_plans(State(api): State<Api>, _operator: Operator) -> Result<Json<List<PlanView>>, Failure> {
    let list = api.shell.query(|control| control.plans().rev().filter_map(|plan| view(control, plan)).collect());
    Ok(Json(list.await?))
}

/// One plan
#[utoipa::path(get, path = "/v1/plans/{plan}", tag = "plans",
    params(("plan" = u64, Path, description = "Its number")),
    responses((status = 200, description = "The plan", body = PlanView)))]
async fn get_plan(State(api): State<Api>, _operator: Operator, At(id): At<PlanId>) -> Result<Response, Failure> {
    one(&api, id, StatusCode::OK).await
}

/// Plan now, whatever the loop's timing
#[utoipa::path(post, path = "/v1/plans", tag = "plans",
    responses((status = 201, description = "A plan was made", body = PlanNow),
              (status = 200, description = "Nothing is worth doing", body = PlanNow)))]
async fn plan_now(
    State(api): State<Api>,
    Operator(actor): Operator,
    conditions: Conditions,
) -> Result<Response, Failure> {
    match api.shell.submit(conditions.change(actor, Action::PlanNow)).await? {
        Reply::Plan(id) => {
            let plan = find(&api, id).await?;
            let revision = plan.revision;
            Ok(object(StatusCode::CREATED, revision, PlanNow { plan: Some(plan), why_none: None }))
        }
        Reply::NoPlan(why) => Ok(Json(PlanNow { plan: None, why_none: Some(why) }).into_response()),
        _ => Err(gone("plan")),
    }
}

/// Let a proposed plan be carried out
#[utoipa::path(post, path = "/v1/plans/{plan}/approve", tag = "plans",
    params(("plan" = u64, Path, description = "Its number")),
    responses((status = 202, description = "It is being carried out", body = PlanView)))]
async fn approve_plan(
    State(api): State<Api>,
    Operator(actor): Operator,
    conditions: Conditions,
    At(id): At<PlanId>,
) -> Result<Response, Failure> {
    api.shell.submit(conditions.change(actor, Action::ApprovePlan { id })).await?;
    one(&api, id, StatusCode::ACCEPTED).await
}

/// Say no to a proposed plan
#[utoipa::path(post, path = "/v1/plans/{plan}/reject", tag = "plans",
    params(("plan" = u64, Path, description = "Its number")),
    responses((status = 200, description = "It will not be carried out", body = PlanView)))]
async fn reject_plan(
    State(api): State<Api>,
    Operator(actor): Operator,
    conditions: Conditions,
    At(id): At<PlanId>,
) -> Result<Response, Failure> {
    api.shell.submit(conditions.change(actor, Action::RejectPlan { id })).await?;
    one(&api, id, StatusCode::OK).await
}
