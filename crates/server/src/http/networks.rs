//! Overlay networks.

use super::Api;
use super::condition::{Conditions, key, object};
use super::problem::Failure;
use super::read::{At, Body, Caller, Params, name, optional_name, owner};
use super::tenants::gone;
use crate::secret;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use drover_api::v1::{CreateNetwork, List, NetworkHostView, NetworkView, TenantQuery};
use drover_control::Control;
use drover_control::interface::{Action, Actor, NetworkSpec, Reply};
use drover_model::intent::Role;
use drover_model::network::Network;
use drover_model::{NetworkId, TenantName};
use std::net::Ipv4Addr;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(list_networks, create_network)).routes(routes!(get_network, remove_network))
}

fn view(control: &Control, network: &Network) -> Option<NetworkView> {
    let mut view = NetworkView::new(network, control.revision_of(&key("network", &network.id))?);
    let cards = control.vms().filter_map(|vm| vm.spec.nic.as_ref());
    view.vms = cards.filter(|nic| nic.network == network.id).count() as u64;
    view.ports = control.ports().filter(|port| port.network == network.id).count() as u64;
    Some(view)
}

/// Where vms run is told with each vm; how hosts fare is the operator's business.
fn hosts(control: &Control, network: &NetworkId, actor: &Actor) -> Option<Vec<NetworkHostView>> {
    let standing = control.network_standing(network).into_iter().map(|standing| NetworkHostView {
        host: standing.host,
        overlay_address: standing.overlay_address,
        connected: standing.connected,
        applied: standing.applied,
        error: standing.error,
    });
    (actor.role == Role::Operator).then(|| standing.collect())
}

async fn one(api: &Api, actor: Actor, id: NetworkId, status: StatusCode) -> Result<Response, Failure> {
    let found = api.shell.query(move |control| {
        let view = view(control, control.network(&id)?)?;
        Some(NetworkView { hosts: hosts(control, &id, &actor), ..view })
    });
    let found = found.await?.ok_or_else(|| gone("network"))?;
    Ok(object(status, found.revision, found))
}

/// The network that a request speaks of, if the caller may know of it.
pub(super) async fn find(
    api: &Api,
    actor: &Actor,
    reference: String,
    tenant: Option<&str>,
) -> Result<NetworkId, Failure> {
    let tenant: Option<TenantName> = optional_name("tenant", tenant)?;
    let actor = actor.clone();
    Ok(api.shell.query(move |control| control.find_network(&reference, &actor, tenant.as_ref())).await??)
}

/// The caller's overlay networks; all of them for operators
#[utoipa::path(get, path = "/v1/networks", tag = "networks", params(TenantQuery),
    responses((status = 200, description = "Those that match", body = List<NetworkView>)))]
async fn list_networks(
    State(api): State<Api>,
    caller: Caller,
    Params(query): Params<TenantQuery>,
) -> Result<Json<List<NetworkView>>, Failure> {
    let asked: Option<TenantName> = optional_name("tenant", query.tenant.as_deref())?;
    let own = caller.tenant().cloned();
    let list = api.shell.query(move |control| {
        control
            .networks()
            .filter(|network| own.as_ref().is_none_or(|tenant| network.tenant == *tenant))
            .filter(|network| asked.as_ref().is_none_or(|tenant| network.tenant == *tenant))
            .filter_map(|network| view(control, network))
            .collect()
    });
    Ok(Json(list.await?))
}

/// A new overlay network
#[utoipa::path(post, path = "/v1/networks", tag = "networks", request_body = CreateNetwork,
    responses((status = 201, description = "It was made", body = NetworkView)))]
async fn create_network(
    State(api): State<Api>,
    caller: Caller,
    conditions: Conditions,
    Body(create): Body<CreateNetwork>,
) -> Result<Response, Failure> {
    let spec = NetworkSpec {
        tenant: owner(caller.tenant(), create.tenant.as_deref(), "network")?,
        name: name("name", &create.name)?,
        subnet: create
            .subnet
            .parse()
            .map_err(|error: drover_model::network::BadSubnet| Failure::invalid("subnet", error.to_string()))?,
        router: create.router.as_deref().map(|text| address("router", text)).transpose()?,
        dns: create.dns.iter().map(|text| address("dns", text)).collect::<Result<_, _>>()?,
        mtu: create.mtu.unwrap_or(Network::MTU_DEFAULT),
    };
    let (id, actor) = (secret::network_id(), caller.0);
    match api.shell.submit(conditions.change(actor.clone(), Action::CreateNetwork { id, spec })).await? {
        Reply::Network(id) => one(&api, actor, id, StatusCode::CREATED).await,
        _ => Err(gone("network")),
    }
}

/// One overlay network, by id or name
#[utoipa::path(get, path = "/v1/networks/{network}", tag = "networks",
    params(("network" = String, Path, description = "Its id or name"), TenantQuery),
    responses((status = 200, description = "The network", body = NetworkView)))]
async fn get_network(
    State(api): State<Api>,
    Caller(actor): Caller,
    At(reference): At<String>,
    Params(query): Params<TenantQuery>,
) -> Result<Response, Failure> {
    let network = find(&api, &actor, reference, query.tenant.as_deref()).await?;
    one(&api, actor, network, StatusCode::OK).await
}

/// Remove an overlay network that no vm and no port is on
#[utoipa::path(delete, path = "/v1/networks/{network}", tag = "networks",
    params(("network" = String, Path, description = "Its id or name"), TenantQuery),
    responses((status = 204, description = "It is gone")))]
async fn remove_network(
    State(api): State<Api>,
    Caller(actor): Caller,
    conditions: Conditions,
    At(reference): At<String>,
    Params(query): Params<TenantQuery>,
) -> Result<StatusCode, Failure> {
    let id = find(&api, &actor, reference, query.tenant.as_deref()).await?;
    api.shell.submit(conditions.change(actor, Action::RemoveNetwork { id })).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) fn address(field: &str, text: &str) -> Result<Ipv4Addr, Failure> {
    text.parse().map_err(|_| {
        let shown: String = text.chars().take(80).collect();
        Failure::invalid(field, format!("{shown:?} is no IPv4 address: write e.g. 10.1.0.1"))
    })
}
