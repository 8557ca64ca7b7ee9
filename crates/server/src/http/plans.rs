//! Plans: what was decided, and a person's say in it.

use super::condition::{Conditions, object};
use super::crud::gone;
use super::problem::Failure;
use super::read::{At, Operator};
use super::{Api, crud};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use drover_api::v1::{PlanNow, PlanView};
use drover_control::interface::{Action, Reply};
use drover_control::kinds::Entity as _;
use drover_model::PlanId;
use drover_model::plan::PlanRecord;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Api> {
    crud::routes::<PlanRecord>().routes(routes!(plan_now)).routes(routes!(approve_plan)).routes(routes!(reject_plan))
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
    match api.shell.submit(conditions.change(actor.clone(), Action::PlanNow)).await? {
        Reply::Plan(id) => {
            let made = api.shell.query(move |control| {
                let row = PlanRecord::table(control.rows()).row(&id)?;
                Some((row.revision, control.view(row, &actor, true)))
            });
            let (revision, plan) = made.await?.ok_or_else(|| gone("plan"))?;
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
    api.shell.submit(conditions.change(actor.clone(), Action::ApprovePlan { id })).await?;
    crud::show::<PlanRecord>(&api, actor, id, StatusCode::ACCEPTED).await
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
    api.shell.submit(conditions.change(actor.clone(), Action::RejectPlan { id })).await?;
    crud::show::<PlanRecord>(&api, actor, id, StatusCode::OK).await
}
