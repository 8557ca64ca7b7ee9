//! Hosts.

use super::Api;
use super::condition::{Conditions, key, object};
use super::patch::{PATCH_TRIES_MAX, bad_patch, lost_race};
use super::problem::Failure;
use super::read::{At, Body, MergePatch, Operator};
use super::tenants::gone;
use crate::secret;
use crate::shell::now;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use drover_api::join::JoinTokenText;
use drover_api::problem::{Problem, ProblemType};
use drover_api::v1::{
    BadAttributes, CapacityView, CreateJoinToken, CreatedJoinToken, EvacuationView, HostAttributes, HostFactsView,
    HostLoad, HostView, List, SetPower,
};
use drover_control::interface::{Action, Actor, Reply};
use drover_control::{Control, Evacuation};
use drover_model::intent::{Host, JoinToken};
use drover_model::plan::Heat;
use drover_model::{Bytes, HostId, Millis};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list_hosts))
        .routes(routes!(get_host, patch_host, remove_host))
        .routes(routes!(drain_host))
        .routes(routes!(undrain_host))
        .routes(routes!(power_host))
        .routes(routes!(create_join_token))
}

fn view(control: &Control, host: &Host) -> Option<HostView> {
    let status = control.host_status(&host.id);
    let heat = control.findings().and_then(|found| found.hosts.get(&host.id)).map_or(Heat::Unknown, |found| found.heat);
    let vms = || control.vms().filter(|vm| vm.host.as_ref() == Some(&host.id));
    let promised: Bytes = vms().map(|vm| vm.spec.memory).sum();
    Some(HostView {
        id: host.id.clone(),
        revision: control.revision_of(&key("host", &host.id))?,
        joined_at_ms: host.joined_at.0,
        state: status.state,
        state_since_ms: status.since.0,
        connected: status.connected,
        last_report_at_ms: status.last_report.map(|at| at.0),
        maintenance: host.maintenance,
        power: host.power,
        power_managed: status.power_managed,
        wake_problem: status.wake_problem.map(str::to_owned),
        off_since_ms: host.off_since.map(|at| control.to_wall(at).0),
        power_cycles: host.power_cycles,
        boot_time_ms: host.boot_time.map(|time| time.0),
        capacity: host.capacity.as_ref().map(CapacityView::from),
        facts: status.facts.map(HostFactsView::from),
        load: status.sample.filter(|_| status.connected).map(HostLoad::from),
        heat,
        vms: vms().map(|vm| vm.id.clone()).collect(),
        memory_promised_mib: promised.0 >> 20,
        evacuation: control.evacuation(&host.id).map(|found| evacuation(control, found)),
        attributes: HostAttributes::from(&host.attributes),
    })
}

fn evacuation(control: &Control, evacuation: &Evacuation) -> EvacuationView {
    let Evacuation { since, total, done, moving, waiting, stuck, eta_at, promised_at, slips, finished_at, .. } =
        *evacuation;
    let ms = |at| control.to_wall(at).0;
    EvacuationView {
        since_ms: ms(since),
        total,
        done,
        moving,
        waiting,
        stuck,
        finish_eta_at_ms: eta_at.map(ms),
        promised_at_ms: promised_at.map(ms),
        slips,
        finished_at_ms: finished_at.map(ms),
    }
}

async fn one(api: &Api, id: HostId, status: StatusCode) -> Result<Response, Failure> {
    let name = id.clone();
    let found = api.shell.query(move |control| control.host(&id).and_then(|host| view(control, host))).await?;
    let found = found.ok_or_else(|| not_there(&name))?;
    Ok(object(status, found.revision, found))
}

fn not_there(host: &HostId) -> Failure {
    Failure::not_found(format!("there is no host {host}; `drover host ls` lists them"))
}

/// All hosts
#[utoipa::path(get, path = "/v1/hosts", tag = "hosts",
    responses((status = 200, description = "All of them", body = List<HostView>)))]
async fn list_hosts(State(api): State<Api>, _operator: Operator) -> Result<Json<List<HostView>>, Failure> {
    let list = api.shell.query(|control| control.hosts().filter_map(|host| view(control, host)).collect());
    Ok(Json(list.await?))
}

/// One host
#[utoipa::path(get, path = "/v1/hosts/{host}", tag = "hosts",
    params(("host" = String, Path, description = "Its name")),
    responses((status = 200, description = "The host", body = HostView)))]
async fn get_host(State(api): State<Api>, _operator: Operator, At(id): At<HostId>) -> Result<Response, Failure> {
    one(&api, id, StatusCode::OK).await
}

/// Change what is said of a host: rack, zone, labels, disk, link, power (RFC 7396); `null` takes it back
#[utoipa::path(patch, path = "/v1/hosts/{host}", tag = "hosts",
    params(("host" = String, Path, description = "Its name")),
    request_body(content = HostAttributes, content_type = "application/merge-patch+json"),
    responses((status = 200, description = "The host", body = HostView)))]
async fn patch_host(
    State(api): State<Api>,
    Operator(actor): Operator,
    conditions: Conditions,
    At(host): At<HostId>,
    MergePatch(patch): MergePatch,
) -> Result<Response, Failure> {
    let mut tries = 0;
    loop {
        tries += 1;
        let id = host.clone();
        let read = move |control: &Control| {
            let said = HostAttributes::from(&control.host(&id)?.attributes);
            Some((said, control.revision_of(&key("host", &id))?))
        };
        let (said, revision) = api.shell.query(read).await?.ok_or_else(|| not_there(&host))?;
        let said = said.patched(&patch).map_err(|error| bad_patch(&error))?;
        let attributes = said.checked().map_err(|BadAttributes { field, problem }| {
            Failure(Problem::new(ProblemType::Invalid, problem).with_field(field))
        })?;
        // Without a condition of its own, a patch must not undo what came between reading and writing.
        let mut guarded = conditions.clone();
        guarded.if_match = guarded.if_match.or(Some(revision));
        let ask = Action::SetHostAttributes { host: host.clone(), attributes };
        match api.shell.submit(guarded.change(actor.clone(), ask)).await.map_err(Failure::from) {
            Err(failure) if conditions.if_match.is_none() && lost_race(&failure) && tries < PATCH_TRIES_MAX => {}
            Err(failure) => return Err(failure),
            Ok(_) => return one(&api, host, StatusCode::OK).await,
        }
    }
}

/// Remove a host that has no vms; it may join again
#[utoipa::path(delete, path = "/v1/hosts/{host}", tag = "hosts",
    params(("host" = String, Path, description = "Its name")),
    responses((status = 204, description = "It is gone")))]
async fn remove_host(
    State(api): State<Api>,
    Operator(actor): Operator,
    conditions: Conditions,
    At(host): At<HostId>,
) -> Result<StatusCode, Failure> {
    api.shell.submit(conditions.change(actor, Action::RemoveHost { host })).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn change(
    api: &Api,
    actor: Actor,
    conditions: Conditions,
    host: HostId,
    ask: Action,
    status: StatusCode,
) -> Result<Response, Failure> {
    api.shell.submit(conditions.change(actor, ask)).await?;
    one(api, host, status).await
}

/// Empty a host for maintenance: its vms leave, none come
#[utoipa::path(post, path = "/v1/hosts/{host}/drain", tag = "hosts",
    params(("host" = String, Path, description = "Its name")),
    responses((status = 202, description = "It is being emptied", body = HostView)))]
async fn drain_host(
    State(api): State<Api>,
    Operator(actor): Operator,
    conditions: Conditions,
    At(host): At<HostId>,
) -> Result<Response, Failure> {
    change(&api, actor, conditions, host.clone(), Action::DrainHost { host }, StatusCode::ACCEPTED).await
}

/// Give a drained host back
#[utoipa::path(post, path = "/v1/hosts/{host}/undrain", tag = "hosts",
    params(("host" = String, Path, description = "Its name")),
    responses((status = 200, description = "It takes vms again", body = HostView)))]
async fn undrain_host(
    State(api): State<Api>,
    Operator(actor): Operator,
    conditions: Conditions,
    At(host): At<HostId>,
) -> Result<Response, Failure> {
    change(&api, actor, conditions, host.clone(), Action::UndrainHost { host }, StatusCode::OK).await
}

/// Switch a host on or off
#[utoipa::path(post, path = "/v1/hosts/{host}/power", tag = "hosts", request_body = SetPower,
    params(("host" = String, Path, description = "Its name")),
    responses((status = 202, description = "It is being switched", body = HostView)))]
async fn power_host(
    State(api): State<Api>,
    Operator(actor): Operator,
    conditions: Conditions,
    At(host): At<HostId>,
    Body(SetPower { on }): Body<SetPower>,
) -> Result<Response, Failure> {
    change(&api, actor, conditions, host.clone(), Action::PowerHost { host, on }, StatusCode::ACCEPTED).await
}

/// A one-time token for a host to join with; it is in this answer and nowhere else
#[utoipa::path(post, path = "/v1/hosts/{host}/token", tag = "hosts", request_body = CreateJoinToken,
    params(("host" = String, Path, description = "The name the host will have")),
    responses((status = 201, description = "It was made", body = CreatedJoinToken)))]
async fn create_join_token(
    State(api): State<Api>,
    Operator(actor): Operator,
    conditions: Conditions,
    At(host): At<HostId>,
    Body(create): Body<CreateJoinToken>,
) -> Result<Response, Failure> {
    let max = api.limits.join_token_life_s_max.min(CreateJoinToken::EXPIRES_S_MAX);
    let seconds = create.expires_s.unwrap_or(CreateJoinToken::EXPIRES_S_DEFAULT.min(max));
    if !(1..=max).contains(&seconds) {
        return Err(Failure::invalid("expires_s", format!("must lie between 1 and {max} seconds")));
    }
    let (id, secret, created_at) = (secret::token_id("join"), secret::join_secret(), now());
    let expires_at = created_at.plus(Millis::secs(seconds));
    let secret_sha256 = secret.sha256();
    let token = JoinToken { id: id.clone(), secret_sha256, host: host.clone(), created_at, expires_at };
    let reply = api.shell.submit(conditions.change(actor, Action::CreateJoinToken { token })).await?;
    match reply {
        Reply::Token(made) if made == id => {}
        Reply::Token(made) => {
            let detail = format!(
                "token {made} was made under this Idempotency-Key before, and is shown only once; make another"
            );
            return Err(Failure::new(ProblemType::Conflict, detail));
        }
        _ => return Err(gone("token")),
    }
    let text = JoinTokenText { id: id.clone(), secret: secret.reveal().to_owned(), ca_sha256: api.ca.fingerprint() };
    let created = CreatedJoinToken { id, host, expires_at_ms: expires_at.0, token: text.to_string() };
    Ok((StatusCode::CREATED, Json(created)).into_response())
}
