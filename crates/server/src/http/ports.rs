//! Ports: interfaces of hosts on overlay networks.

use super::Api;
use super::condition::{Conditions, key, object};
use super::networks::{address, find};
use super::problem::Failure;
use super::read::{At, Body, Operator, name};
use super::tenants::gone;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use drover_api::v1::{CreatePort, List, PortView};
use drover_control::Control;
use drover_control::interface::{Action, PortSpec, Reply};
use drover_model::PortId;
use drover_model::network::Port;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(list_ports, create_port)).routes(routes!(get_port, remove_port))
}

fn view(control: &Control, port: &Port) -> Option<PortView> {
    Some(PortView::new(port, control.revision_of(&key("port", &port.id))?))
}

async fn one(api: &Api, id: PortId, status: StatusCode) -> Result<Response, Failure> {
    let name = id.clone();
    let found = api.shell.query(move |control| view(control, control.port(&id)?)).await?;
    let found =
        found.ok_or_else(|| Failure::not_found(format!("there is no port {name}; `drover port ls` lists them")))?;
    Ok(object(status, found.revision, found))
}

/// All ports
#[utoipa::path(get, path = "/v1/ports", tag = "networks",
    responses((status = 200, description = "All of them", body = List<PortView>)))]
async fn list_ports(State(api): State<Api>, _operator: Operator) -> Result<Json<List<PortView>>, Failure> {
    let list = api.shell.query(|control| control.ports().filter_map(|port| view(control, port)).collect());
    Ok(Json(list.await?))
}

/// A new port: its host makes the interface
#[utoipa::path(post, path = "/v1/ports", tag = "networks", request_body = CreatePort,
    responses((status = 201, description = "It was made", body = PortView)))]
async fn create_port(
    State(api): State<Api>,
    Operator(actor): Operator,
    conditions: Conditions,
    Body(create): Body<CreatePort>,
) -> Result<Response, Failure> {
    let id: PortId = name("name", &create.name)?;
    let host = name("host", &create.host)?;
    let address = create.address.as_deref().map(|text| address("address", text)).transpose()?;
    let network = find(&api, &actor, create.network, create.tenant.as_deref()).await?;
    let spec = PortSpec { id, network, host, interface: create.interface, mac: create.mac, address };
    match api.shell.submit(conditions.change(actor, Action::CreatePort { spec })).await? {
        Reply::Port(id) => one(&api, id, StatusCode::CREATED).await,
        _ => Err(gone("port")),
    }
}

/// One port
#[utoipa::path(get, path = "/v1/ports/{port}", tag = "networks",
    params(("port" = String, Path, description = "Its name")),
    responses((status = 200, description = "The port", body = PortView)))]
async fn get_port(State(api): State<Api>, _operator: Operator, At(id): At<PortId>) -> Result<Response, Failure> {
    one(&api, id, StatusCode::OK).await
}

/// Remove a port; its host removes the interface
#[utoipa::path(delete, path = "/v1/ports/{port}", tag = "networks",
    params(("port" = String, Path, description = "Its name")),
    responses((status = 204, description = "It is gone")))]
async fn remove_port(
    State(api): State<Api>,
    Operator(actor): Operator,
    conditions: Conditions,
    At(id): At<PortId>,
) -> Result<StatusCode, Failure> {
    api.shell.submit(conditions.change(actor, Action::RemovePort { id })).await?;
    Ok(StatusCode::NO_CONTENT)
}
