//! The cluster as a whole: health, metrics, the caller, what was found, and why things are as they are.

use super::Api;
use super::problem::Failure;
use super::read::{Caller, Operator, Params, optional_name};
use crate::metrics::{MEDIA_TYPE, Now};
use crate::shell::now;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use drover_api::problem::ProblemType;
use drover_api::v1::{
    ClusterView, Counts, ElsewhereView, EventView, Explanation, ForbiddenView, Health, HostFindingView, StuckView,
    TenantQuery, Whoami, WhyView,
};
use drover_control::interface::{Actor, Refusal};
use drover_control::{Control, Why};
use drover_model::TenantName;
use drover_model::plan::{Objection, PlanState};
use drover_model::world::HostState;
use drover_planner::text::native;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(healthz))
        .routes(routes!(metrics))
        .routes(routes!(whoami))
        .routes(routes!(cluster))
        .routes(routes!(export))
        .routes(routes!(explain))
        .routes(routes!(explain_cluster))
}

/// Whether the server can carry out changes
#[utoipa::path(get, path = "/healthz", tag = "cluster", security(()),
    responses((status = 200, description = "It can", body = Health)))]
async fn healthz(State(api): State<Api>) -> Result<Json<Health>, Failure> {
    // Through the state machine, so that a stuck one shows.
    api.shell.query(|_| ()).await?;
    if !api.shell.serving() {
        return Err(Failure::new(ProblemType::Unavailable, "the store can't be written; the server's log says why"));
    }
    Ok(Json(Health { status: "ok".to_owned() }))
}

/// For Prometheus
#[utoipa::path(get, path = "/metrics", tag = "cluster",
    responses((status = 200, description = "OpenMetrics text", content_type = "application/openmetrics-text")))]
async fn metrics(State(api): State<Api>, _operator: Operator) -> Result<Response, Failure> {
    let now = api.shell.query(Now::read).await?;
    let page = api
        .metrics
        .render(&now, &api.hub)
        .map_err(|_| Failure::new(ProblemType::Internal, "the metrics can't be written as text"))?;
    Ok(([(header::CONTENT_TYPE, MEDIA_TYPE)], page).into_response())
}

/// Whom the token speaks for
#[utoipa::path(get, path = "/v1/whoami", tag = "cluster",
    responses((status = 200, description = "The caller", body = Whoami)))]
async fn whoami(Caller(actor): Caller) -> Json<Whoami> {
    Json(Whoami::new(actor.name, &actor.role))
}

/// Scenario, findings and counts
#[utoipa::path(get, path = "/v1/cluster", tag = "cluster",
    responses((status = 200, description = "The cluster", body = ClusterView)))]
async fn cluster(State(api): State<Api>, _operator: Operator) -> Result<Json<ClusterView>, Failure> {
    Ok(Json(api.shell.query(cluster_view).await?))
}

/// All that the planner sees, as text: what `drover plan --from` reads
#[utoipa::path(get, path = "/v1/cluster/export", tag = "cluster",
    responses((status = 200, description = "The cluster in drover's text format", body = String, content_type = "text/plain")))]
async fn export(State(api): State<Api>, _operator: Operator) -> Result<Response, Failure> {
    let world = api.shell.query(|control| control.world(control.now())).await?;
    // A large cluster takes a while to write; neither the loops nor other requests wait for it.
    let text = tokio::task::spawn_blocking(move || native::write(&world)).await;
    let text = text.map_err(|_| Failure::new(ProblemType::Internal, "the cluster can't be written as text"))?;
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response())
}

fn cluster_view(control: &Control) -> ClusterView {
    let findings = control.findings();
    let up = |host: &&drover_model::intent::Host| control.host_status(&host.id).state == HostState::Up;
    let proposed = |plan: &&drover_model::plan::PlanRecord| matches!(plan.state, PlanState::Proposed);
    let phase_runs = |phase| matches!(phase, "running" | "migrating");
    ClusterView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        now_ms: now().0,
        revision: control.revision(),
        mode: control.policy().mode,
        scenario: findings.map(|found| found.scenario),
        why: findings.map(|found| found.why.clone()),
        found_at_ms: findings.map(|found| control.to_wall(found.at).0),
        hosts: findings
            .iter()
            .flat_map(|found| &found.hosts)
            .map(|(host, found)| (host.clone(), HostFindingView::from(found)))
            .collect(),
        counts: Counts {
            tenants: control.tenants().count() as u64,
            hosts: control.hosts().count() as u64,
            hosts_up: control.hosts().filter(up).count() as u64,
            vms: control.vms().count() as u64,
            vms_running: control.vms().filter(|vm| phase_runs(control.vm_status(&vm.id).phase)).count() as u64,
            migrations_running: control.migrations().filter(|migration| !migration.phase.is_over()).count() as u64,
            plans_proposed: control.plans().filter(proposed).count() as u64,
        },
    }
}

/// Why an object is as it is, and why not otherwise
#[utoipa::path(get, path = "/v1/explain/{kind}/{id}", tag = "cluster",
    params(("kind" = String, Path, description = "`vm`, `host`, `plan` or `migration`"),
           ("id" = String, Path, description = "Its id; a vm's name will do"), TenantQuery),
    responses((status = 200, description = "The explanation", body = Explanation)))]
async fn explain(
    State(api): State<Api>,
    Caller(actor): Caller,
    Path((kind, id)): Path<(String, String)>,
    Params(query): Params<TenantQuery>,
) -> Result<Json<Explanation>, Failure> {
    let tenant: Option<TenantName> = optional_name("tenant", query.tenant.as_deref())?;
    let object = match tenant {
        Some(tenant) if kind == "vm" => format!("vm/{tenant}/{id}"),
        Some(_) | None => format!("{kind}/{id}"),
    };
    explanation(&api, actor, object).await
}

/// Why the cluster's scenario is what it is
#[utoipa::path(get, path = "/v1/explain/cluster", tag = "cluster",
    responses((status = 200, description = "The explanation", body = Explanation)))]
async fn explain_cluster(State(api): State<Api>, Caller(actor): Caller) -> Result<Json<Explanation>, Failure> {
    explanation(&api, actor, "cluster".to_owned()).await
}

async fn explanation(api: &Api, actor: Actor, object: String) -> Result<Json<Explanation>, Failure> {
    let caller = Caller(actor);
    let asked = move |control: &Control| {
        let explained = control.explain(&object, &caller.0, control.now())?;
        Ok::<_, Refusal>(Explanation {
            object: explained.object,
            answer: explained.answer,
            because: explained.because,
            rejected: explained.rejected,
            history: explained.history.iter().map(|event| EventView::new(event, caller.tenant())).collect(),
            why: explained.why.as_ref().map(|why| why_view(control, why)),
        })
    };
    Ok(Json(api.shell.query(asked).await??))
}

/// Its sentences say vms' names, as the rest of an explanation does.
fn why_view(control: &Control, why: &Why) -> WhyView {
    let say = |because: &Objection| control.with_names(&because.to_string());
    let sentence = control.with_names(why.sentence());
    match why {
        Why::On(on) => {
            let stuck = on.stuck.iter().map(|vm| StuckView { vm: vm.vm.clone(), because: say(&vm.because) });
            WhyView::HostOn {
                host: on.host.clone(),
                sentence,
                rules: on.rules.iter().map(say).collect(),
                stuck: stuck.collect(),
                saved_micro: on.saved.map(|money| money.0),
                cost_micro: on.cost.map(|money| money.0),
            }
        }
        Why::Off(off) => WhyView::HostOff {
            host: off.host.clone(),
            sentence,
            asked: off.asked.0,
            wake_above: off.wake_above.0,
            cost_micro: off.cost.0,
        },
        Why::Stays(stays) => {
            let best = stays.best.as_ref().map(|best| ElsewhereView {
                host: best.host.clone(),
                gain_micro: best.gain.0,
                needed_micro: best.needed.0,
            });
            let forbidden = stays.forbidden.iter();
            let forbidden =
                forbidden.map(|host| ForbiddenView { host: host.host.clone(), because: say(&host.because) });
            WhyView::VmStays {
                vm: stays.vm.clone(),
                host: stays.host.clone(),
                sentence,
                rests: stays.rests.as_ref().map(say),
                best,
                forbidden: forbidden.collect(),
            }
        }
    }
}
