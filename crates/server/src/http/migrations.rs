//! Live migrations.

use super::Api;
use super::condition::{Conditions, key, object};
use super::problem::Failure;
use super::read::{At, Body, Caller, Operator, Params, optional_name};
use super::tenants::gone;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use drover_api::v1::{
    ForecastQuery, List, MigrationForecast, MigrationNow, MigrationPrediction, MigrationView, SetPriority, StrategyView,
};
use drover_control::Control;
use drover_control::interface::{Action, Actor, Refusal};
use drover_model::migration::MigrationRecord;
use drover_model::{HostId, MigrationId, TenantName};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list_migrations))
        .routes(routes!(get_migration))
        .routes(routes!(cancel_migration))
        .routes(routes!(pause_migration))
        .routes(routes!(resume_migration))
        .routes(routes!(prioritise_migration))
        .routes(routes!(forecast_migration))
}

/// `tenant` `None`: of everybody. A tenant sees those of its own vms.
fn view(control: &Control, migration: &MigrationRecord, tenant: Option<&TenantName>) -> Option<MigrationView> {
    let vm = control.vm(&migration.vm);
    if tenant.is_some() && vm.map(|vm| &vm.spec.tenant) != tenant {
        return None;
    }
    let revision = control.revision_of(&key("migration", &migration.id))?;
    let outlook = control.migration_outlook(migration.id);
    let now = MigrationNow {
        stage: control.migration_stage(migration),
        progress: control.migration_progress(migration.id),
        start_eta: outlook.and_then(|outlook| outlook.start_at).map(|at| control.to_wall(at)),
        finish_eta: outlook.and_then(|outlook| outlook.finish_at).map(|at| control.to_wall(at)),
        waits_for: outlook.and_then(|outlook| outlook.waits_for.as_deref()),
        recoveries: control.migration_recoveries(migration.id),
    };
    Some(MigrationView {
        started_at_ms: control.to_wall(migration.started_at).0,
        finished_at_ms: migration.finished_at.map(|at| control.to_wall(at).0),
        ..MigrationView::new(migration, revision, vm, &now)
    })
}

/// As [`view`]; another tenant's migration is not found.
pub(super) async fn one(
    api: &Api,
    id: MigrationId,
    tenant: Option<TenantName>,
    status: StatusCode,
) -> Result<Response, Failure> {
    let found = api
        .shell
        .query(move |control| control.migration(id).and_then(|migration| view(control, migration, tenant.as_ref())))
        .await?
        .ok_or_else(|| Failure::not_found(format!("there is no migration {id}; `drover migration ls` lists yours")))?;
    Ok(object(status, found.revision, found))
}

/// Migrations that are kept, newest first
#[utoipa::path(get, path = "/v1/migrations", tag = "migrations",
    responses((status = 200, description = "Newest first", body = List<MigrationView>)))]
async fn list_migrations(State(api): State<Api>, caller: Caller) -> Result<Json<List<MigrationView>>, Failure> {
    let tenant = caller.tenant().cloned();
    let list = api.shell.query(move |control| {
        control.migrations().rev().filter_map(|migration| view(control, migration, tenant.as_ref())).collect()
    });
    Ok(Json(list.await?))
}

/// One migration, with its progress while it runs
#[utoipa::path(get, path = "/v1/migrations/{migration}", tag = "migrations",
    params(("migration" = u64, Path, description = "Its number")),
    responses((status = 200, description = "The migration", body = MigrationView)))]
async fn get_migration(State(api): State<Api>, caller: Caller, At(id): At<MigrationId>) -> Result<Response, Failure> {
    one(&api, id, caller.tenant().cloned(), StatusCode::OK).await
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
    api.shell.submit(conditions.change(actor, Action::CancelMigration { id })).await?;
    one(&api, id, None, StatusCode::ACCEPTED).await
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
    ask: Action,
) -> Result<Response, Failure> {
    api.shell.submit(conditions.change(actor, ask)).await?;
    one(api, id, None, StatusCode::OK).await
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
        let vm = control.find_vm(&reference, &actor, tenant.as_ref())?;
        let forecast = control.forecast_migration(control.now(), &vm, to, query.method)?;
        let name = control.vm(&vm).map(|row| row.spec.name.clone());
        Ok((forecast, name))
    });
    let (forecast, name) = forecast.await?.map_err(|refusal: Refusal| Failure::from(refusal))?;
    Ok(Json(MigrationForecast {
        vm: forecast.vm,
        vm_name: name.ok_or_else(|| gone("vm"))?,
        from: forecast.from,
        to: forecast.to,
        strategy: StrategyView::from(&forecast.choice.strategy),
        because: forecast.choice.why,
        prediction: MigrationPrediction::from(&forecast.choice.prediction),
        forbidden: forecast.forbidden,
        waits_for: forecast.waits_for,
    }))
}
