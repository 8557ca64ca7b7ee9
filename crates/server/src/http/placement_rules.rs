//! Rules of placement.

use super::Api;
use super::condition::{Conditions, key, object};
use super::problem::Failure;
use super::read::{At, Body, Operator, name};
use super::tenants::gone;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use drover_api::v1::{CreatePlacementRule, List, PlacementRuleView, RuleWord};
use drover_control::Control;
use drover_control::interface::{Action, Actor, Reply};
use drover_model::placement::{HostSet, PlacementRule, RuleKind, Scope};
use drover_model::{BadName, RuleId, TenantName, VmId};
use std::collections::BTreeSet;
use std::str::FromStr;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(list_rules, create_rule)).routes(routes!(get_rule, remove_rule))
}

fn view(control: &Control, rule: &PlacementRule) -> Option<PlacementRuleView> {
    Some(PlacementRuleView::new(rule, control.revision_of(&key("placement-rule", &rule.id))?))
}

async fn one(api: &Api, id: RuleId, status: StatusCode) -> Result<Response, Failure> {
    let name = id.clone();
    let found = api.shell.query(move |control| view(control, control.placement_rule(&id)?)).await?;
    let found = found
        .ok_or_else(|| Failure::not_found(format!("there is no placement rule {name}; `drover rule ls` lists them")))?;
    Ok(object(status, found.revision, found))
}

/// All rules of placement
#[utoipa::path(get, path = "/v1/placement-rules", tag = "placement",
    responses((status = 200, description = "All of them", body = List<PlacementRuleView>)))]
async fn list_rules(State(api): State<Api>, _operator: Operator) -> Result<Json<List<PlacementRuleView>>, Failure> {
    let list = api.shell.query(|control| control.placement_rules().filter_map(|rule| view(control, rule)).collect());
    Ok(Json(list.await?))
}

/// A new rule of placement; vms that break it are moved
#[utoipa::path(post, path = "/v1/placement-rules", tag = "placement", request_body = CreatePlacementRule,
    responses((status = 201, description = "It was made", body = PlacementRuleView)))]
async fn create_rule(
    State(api): State<Api>,
    Operator(actor): Operator,
    conditions: Conditions,
    Body(create): Body<CreatePlacementRule>,
) -> Result<Response, Failure> {
    if let Some(field) = create.misplaced() {
        return Err(Failure::invalid(field, "means nothing for this kind of rule: leave it out"));
    }
    if create.vms.len() > CreatePlacementRule::VMS_MAX {
        let detail = format!("names {} vms; at most {} are taken", create.vms.len(), CreatePlacementRule::VMS_MAX);
        return Err(Failure::invalid("vms", detail));
    }
    let id = name("name", &create.name)?;
    let kind = kind_of(&create)?;
    let vms = find_vms(&api, &actor, create.vms).await?;
    let rule = PlacementRule { id, vms, kind };
    match api.shell.submit(conditions.change(actor, Action::CreateRule { rule })).await? {
        Reply::Rule(id) => one(&api, id, StatusCode::CREATED).await,
        _ => Err(gone("placement rule")),
    }
}

fn kind_of(create: &CreatePlacementRule) -> Result<RuleKind, Failure> {
    let within = create.within.unwrap_or(Scope::Host);
    let hosts = || -> Result<HostSet, Failure> {
        Ok(HostSet {
            hosts: names("hosts", &create.hosts)?,
            racks: names("racks", &create.racks)?,
            zones: names("zones", &create.zones)?,
            labels: names("labels", &create.labels)?,
        })
    };
    Ok(match create.rule {
        RuleWord::Together => RuleKind::Together { within },
        RuleWord::Apart => RuleKind::Apart { within },
        RuleWord::On => RuleKind::On { hosts: hosts()? },
        RuleWord::NotOn => RuleKind::NotOn { hosts: hosts()? },
        RuleWord::HostsMax => {
            let missing = || Failure::invalid("hosts_max", "say on how many hosts, e.g. 2");
            RuleKind::HostsMax { count: create.hosts_max.ok_or_else(missing)? }
        }
    })
}

fn names<T: FromStr<Err = BadName> + Ord>(field: &str, texts: &[String]) -> Result<BTreeSet<T>, Failure> {
    texts.iter().map(|text| name(field, text)).collect()
}

/// Each by its id, its name, or `tenant/name`.
async fn find_vms(api: &Api, actor: &Actor, references: Vec<String>) -> Result<BTreeSet<VmId>, Failure> {
    let split = |text: String| match text.split_once('/') {
        Some((tenant, vm)) => Ok((vm.to_owned(), Some(name::<TenantName>("vms", tenant)?))),
        None => Ok((text, None)),
    };
    let references: Vec<(String, Option<TenantName>)> =
        references.into_iter().map(split).collect::<Result<_, Failure>>()?;
    let actor = actor.clone();
    let found = api.shell.query(move |control| {
        let find = |(vm, tenant): &(String, Option<TenantName>)| control.find_vm(vm, &actor, tenant.as_ref());
        references.iter().map(find).collect::<Result<BTreeSet<_>, _>>()
    });
    // The path is there; what the body names is not.
    found.await?.map_err(|refusal| Failure::invalid("vms", refusal.detail))
}

/// One rule of placement
#[utoipa::path(get, path = "/v1/placement-rules/{rule}", tag = "placement",
    params(("rule" = String, Path, description = "Its name")),
    responses((status = 200, description = "The rule", body = PlacementRuleView)))]
async fn get_rule(State(api): State<Api>, _operator: Operator, At(id): At<RuleId>) -> Result<Response, Failure> {
    one(&api, id, StatusCode::OK).await
}

/// Remove a rule of placement; nothing moves for it
#[utoipa::path(delete, path = "/v1/placement-rules/{rule}", tag = "placement",
    params(("rule" = String, Path, description = "Its name")),
    responses((status = 204, description = "It is gone")))]
async fn remove_rule(
    State(api): State<Api>,
    Operator(actor): Operator,
    conditions: Conditions,
    At(id): At<RuleId>,
) -> Result<StatusCode, Failure> {
    api.shell.submit(conditions.change(actor, Action::RemoveRule { id })).await?;
    Ok(StatusCode::NO_CONTENT)
}
