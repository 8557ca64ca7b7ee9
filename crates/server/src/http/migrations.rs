//! Live migrations.

use super::condition::Conditions;
use super::problem::Failure;
use super::read::{At, Body, Operator, Params, optional_name};
use super::{Api, crud};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use drover_api::v1::{ForecastQuery, MigrationForecast, MigrationPrediction, MigrationView, SetPriority, StrategyView};
use drover_control::interface::{Action, Actor, Refusal};
use drover_model::intent::Vm;
use drover_model::migration::MigrationRecord;
use drover_model::{HostId, MigrationId, TenantName};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Api> {
    crud::routes::<MigrationRecord>()
        .routes(routes!(cancel_migration))
        .routes(routes!(pause_migration))
        .routes(routes!(resume_migration))
        .routes(routes!(prioritise_migration))
        .routes(routes!(forecast_migration))
}

/// Cancel a migration that is not committed yet: the vm stays where it is
#[utoipa::path(post, path = "/v1/migrations/{migration}/cancel", tag = "migrations",
    params(("migration" = u64, Path, description = "Its number")),
    responses((status = 202, description = "It is being cancelled", body = MigrationView)))]
async fn cancel_migration(
    State(api): State<Api>,
    Operator(actor): Operator,
    conditions: Conditions,
    At(id): At<MigrationId>,
) -> Result<Response, Failure> {
    api.shell.submit(conditions.change(actor.clone(), Action::CancelMigration { id })).await?;
    crud::show::<MigrationRecord>(&api, actor, id, StatusCode::ACCEPTED).await
}

/// Hold a migration back: it sends next to nothing, or does not begin, until it is let go on
#[utoipa::path(post, path = "/v1/migrations/{migration}/pause", tag = "migrations",
    params(("migration" = u64, Path, description = "Its number")),
    responses((status = 200, description = "It is held", body = MigrationView)))]
async fn pause_migration(
    State(api): State<Api>,
    Operator(actor): Operator,
    conditions: Conditions,
    At(id): At<MigrationId>,
) -> Result<Response, Failure> {
    change(&api, conditions, actor, id, Action::HoldMigration { id, held: true }).await
}

/// Let a migration that was held go on
#[utoipa::path(post, path = "/v1/migrations/{migration}/resume", tag = "migrations",
    params(("migration" = u64, Path, description = "Its number")),
    responses((status = 200, description = "It goes on", body = MigrationView)))]
async fn resume_migration(
    State(api): State<Api>,
    Operator(actor): Operator,
    conditions: Conditions,
    At(id): At<MigrationId>,
) -> Result<Response, Failure> {
    change(&api, conditions, actor, id, Action::HoldMigration { id, held: false }).await
}

/// Change a migration's place in the queue, and its part of the links
#[utoipa::path(put, path = "/v1/migrations/{migration}/priority", tag = "migrations", request_body = SetPriority,
    params(("migration" = u64, Path, description = "Its number")),
    responses((status = 200, description = "It has the priority", body = MigrationView)))]
async fn prioritise_migration(
    State(api): State<Api>,
    Operator(actor): Operator,
    conditions: Conditions,
    At(id): At<MigrationId>,
    Body(SetPriority { priority }): Body<SetPriority>,
) -> Result<Response, Failure> {
    change(&api, conditions, actor, id, Action::PrioritiseMigration { id, priority }).await
}

async fn change(
    api: &Api,
    conditions: Conditions,
    actor: Actor,
    id: MigrationId,
    action: Action,
) -> Result<Response, Failure> {
    api.shell.submit(conditions.change(actor.clone(), action)).await?;
    crud::show::<MigrationRecord>(api, actor, id, StatusCode::OK).await
}

/// What moving a vm would take, how it would be done, and what forbids it; nothing is changed
#[utoipa::path(get, path = "/v1/vms/{vm}/migration-forecast", tag = "migrations",
    params(("vm" = String, Path, description = "Its id or name"), ForecastQuery),
    responses((status = 200, description = "What it would be", body = MigrationForecast)))]
async fn forecast_migration(
    State(api): State<Api>,
    Operator(actor): Operator,
    At(reference): At<String>,
    Params(query): Params<ForecastQuery>,
) -> Result<Json<MigrationForecast>, Failure> {
    let to: Option<HostId> = optional_name("to", query.to.as_deref())?;
    let tenant: Option<TenantName> = optional_name("tenant", query.tenant.as_deref())?;
    let forecast = api.shell.query(move |control| {
        let vm = &control.find::<Vm>(&reference, &actor, tenant.as_ref())?.value;
        let forecast = control.forecast_migration(control.now(), &vm.id, to, query.method)?;
        Ok((forecast, vm.spec.name.clone()))
    });
    let (forecast, name) = forecast.await?.map_err(|refusal: Refusal| Failure::from(refusal))?;
    Ok(Json(MigrationForecast {
        vm: forecast.vm,
        vm_name: name,
        from: forecast.from,
        to: forecast.to,
        strategy: StrategyView::from(&forecast.choice.strategy),
        because: forecast.choice.why,
        prediction: MigrationPrediction::from(&forecast.choice.prediction),
        forbidden: forecast.forbidden,
        waits_for: forecast.waits_for,
    }))
}
