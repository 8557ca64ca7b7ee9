//! Security groups.

use super::Api;
use super::condition::{Conditions, key, object};
use super::problem::Failure;
use super::read::{At, Body, Caller, Params, name, optional_name, owner};
use super::tenants::gone;
use crate::shell::now;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use drover_api::v1::{CreateSecurityGroup, List, SecurityGroupView, SecurityRule, SetSecurityRules, TenantQuery};
use drover_control::Control;
use drover_control::interface::{Action, Actor, Reply};
use drover_model::network::{self, SecurityGroup};
use drover_model::{SecurityGroupId, TenantName};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(list_groups, create_group)).routes(routes!(get_group, set_rules, remove_group))
}

fn view(control: &Control, group: &SecurityGroup) -> Option<SecurityGroupView> {
    let revision = control.revision_of(&key("security-group", &format!("{}/{}", group.tenant, group.id)))?;
    let mut view = SecurityGroupView::new(group, revision);
    let own = control.vms().filter(|vm| vm.spec.tenant == group.tenant);
    let cards = own.filter_map(|vm| vm.spec.nic.as_ref());
    view.vms = cards.filter(|nic| nic.security_groups.contains(&group.id)).count() as u64;
    Some(view)
}

async fn one(api: &Api, tenant: TenantName, id: SecurityGroupId, status: StatusCode) -> Result<Response, Failure> {
    let found = api.shell.query(move |control| view(control, control.security_group(&tenant, &id)?));
    let found = found.await?.ok_or_else(|| gone("security group"))?;
    Ok(object(status, found.revision, found))
}

/// The group that a request speaks of, if the caller may know of it.
async fn find(
    api: &Api,
    actor: &Actor,
    reference: SecurityGroupId,
    query: TenantQuery,
) -> Result<(TenantName, SecurityGroupId), Failure> {
    let tenant: Option<TenantName> = optional_name("tenant", query.tenant.as_deref())?;
    let actor = actor.clone();
    Ok(api.shell.query(move |control| control.find_security_group(&reference, &actor, tenant.as_ref())).await??)
}

fn read_rules(rules: &[SecurityRule]) -> Result<Vec<network::SecurityRule>, Failure> {
    let rule = |(n, rule)| {
        network::SecurityRule::try_from(rule)
            .map_err(|error| Failure::invalid("rules", format!("rule {}: {error}", n + 1)))
    };
    rules.iter().enumerate().map(rule).collect()
}

async fn answer(api: &Api, reply: Reply, status: StatusCode) -> Result<Response, Failure> {
    match reply {
        Reply::SecurityGroup { tenant, id } => one(api, tenant, id, status).await,
        _ => Err(gone("security group")),
    }
}

/// The caller's security groups; all of them for operators
#[utoipa::path(get, path = "/v1/security-groups", tag = "networks", params(TenantQuery),
    responses((status = 200, description = "Those that match", body = List<SecurityGroupView>)))]
async fn list_groups(
    State(api): State<Api>,
    caller: Caller,
    Params(query): Params<TenantQuery>,
) -> Result<Json<List<SecurityGroupView>>, Failure> {
    let asked: Option<TenantName> = optional_name("tenant", query.tenant.as_deref())?;
    let own = caller.tenant().cloned();
    let list = api.shell.query(move |control| {
        control
            .security_groups()
            .filter(|group| own.as_ref().is_none_or(|tenant| group.tenant == *tenant))
            .filter(|group| asked.as_ref().is_none_or(|tenant| group.tenant == *tenant))
            .filter_map(|group| view(control, group))
            .collect()
    });
    Ok(Json(list.await?))
}

/// A new security group
#[utoipa::path(post, path = "/v1/security-groups", tag = "networks", request_body = CreateSecurityGroup,
    responses((status = 201, description = "It was made", body = SecurityGroupView)))]
async fn create_group(
    State(api): State<Api>,
    caller: Caller,
    conditions: Conditions,
    Body(create): Body<CreateSecurityGroup>,
) -> Result<Response, Failure> {
    let group = SecurityGroup {
        id: name("name", &create.name)?,
        tenant: owner(caller.tenant(), create.tenant.as_deref(), "security group")?,
        rules: read_rules(&create.rules)?,
        created_at: now(),
    };
    let reply = api.shell.submit(conditions.change(caller.0, Action::CreateSecurityGroup { group })).await?;
    answer(&api, reply, StatusCode::CREATED).await
}

/// One security group
#[utoipa::path(get, path = "/v1/security-groups/{group}", tag = "networks",
    params(("group" = String, Path, description = "Its name"), TenantQuery),
    responses((status = 200, description = "The group", body = SecurityGroupView)))]
async fn get_group(
    State(api): State<Api>,
    Caller(actor): Caller,
    At(reference): At<SecurityGroupId>,
    Params(query): Params<TenantQuery>,
) -> Result<Response, Failure> {
    let (tenant, id) = find(&api, &actor, reference, query).await?;
    one(&api, tenant, id, StatusCode::OK).await
}

/// Replace all rules of a security group
#[utoipa::path(put, path = "/v1/security-groups/{group}", tag = "networks", request_body = SetSecurityRules,
    params(("group" = String, Path, description = "Its name"), TenantQuery),
    responses((status = 200, description = "It has these rules now", body = SecurityGroupView)))]
async fn set_rules(
    State(api): State<Api>,
    Caller(actor): Caller,
    conditions: Conditions,
    At(reference): At<SecurityGroupId>,
    Params(query): Params<TenantQuery>,
    Body(set): Body<SetSecurityRules>,
) -> Result<Response, Failure> {
    let rules = read_rules(&set.rules)?;
    let (tenant, id) = find(&api, &actor, reference, query).await?;
    let reply = api.shell.submit(conditions.change(actor, Action::SetSecurityRules { tenant, id, rules })).await?;
    answer(&api, reply, StatusCode::OK).await
}

/// Remove a security group that no vm is in and no other group's rule speaks of
#[utoipa::path(delete, path = "/v1/security-groups/{group}", tag = "networks",
    params(("group" = String, Path, description = "Its name"), TenantQuery),
    responses((status = 204, description = "It is gone")))]
async fn remove_group(
    State(api): State<Api>,
    Caller(actor): Caller,
    conditions: Conditions,
    At(reference): At<SecurityGroupId>,
    Params(query): Params<TenantQuery>,
) -> Result<StatusCode, Failure> {
    let (tenant, id) = find(&api, &actor, reference, query).await?;
    api.shell.submit(conditions.change(actor, Action::RemoveSecurityGroup { tenant, id })).await?;
    Ok(StatusCode::NO_CONTENT)
}
