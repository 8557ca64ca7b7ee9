//! Live migrations.

use super::Api;
use super::condition::{Conditions, key, object};
use super::problem::Failure;
use super::read::{At, Caller, Operator};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use drover_api::v1::{List, MigrationView};
use drover_control::Control;
use drover_control::interface::Ask;
use drover_model::migration::MigrationRecord;
use drover_model::{MigrationId, TenantId};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list_migrations))
        .routes(routes!(get_migration))
        .routes(routes!(cancel_migration))
}

/// `tenant` `None`: of everybody. A tenant sees those of its own vms.
fn view(control: &Control, migration: &MigrationRecord, tenant: Option<&TenantId>) -> Option<MigrationView> {
    let vm = control.vm(&migration.vm);
    if tenant.is_some() && vm.map(|vm| &vm.spec.tenant) != tenant {
        return None;
    }
    let revision = control.revision_of(&key("migration", &migration.id))?;
    Some(MigrationView::new(migration, revision, vm, control.migration_progress(migration.id)))
}

/// As [`view`]; another tenant's migration is not found.
pub(super) async fn one(
    api: &Api,
    id: MigrationId,
    tenant: Option<TenantId>,
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
    api.shell.ask(conditions.change(actor, Ask::CancelMigration { id })).await?;
    one(&api, id, None, StatusCode::ACCEPTED).await
}
