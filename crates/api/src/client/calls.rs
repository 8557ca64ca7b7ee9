//! The routes of [`crate::v1`], one method each.

use super::{ApiError, Client, limits};
use crate::v1::{
    ClusterView, CreateImage, CreateJoinToken, CreateNetwork, CreatePlacementRule, CreatePort, CreateSecurityGroup,
    CreateTenant, CreateToken, CreateVm, CreatedJoinToken, CreatedToken, EventQuery, EventView, Explanation,
    ForecastQuery, Health, HostView, ImagePart, ImageView, List, MERGE_PATCH, MeasureVm, MigrateVm, MigrationForecast,
    MigrationView, NetworkView, PlacementRuleView, PlanNow, PlanView, Policy, PortView, SecurityGroupView, SetPower,
    SetPriority, SetSecurityGroups, SetSecurityRules, StagedFile, TenantQuery, TenantView, TokenView, VmListQuery,
    VmQuery, VmView, Whoami,
};
use drover_model::{MigrationId, PlanId, Revision};
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use serde_json::Value;
use std::path::Path;
use tokio_util::io::ReaderStream;

/// A value with the revision it was read at.
#[derive(Debug, Clone, PartialEq)]
pub struct Tagged<T> {
    pub value: T,
    pub revision: Option<Revision>,
}

/// The server itself.
impl Client {
    pub async fn health(&self) -> Result<Health, ApiError> {
        self.get(&["healthz"], &[]).await
    }

    /// In Prometheus' text format.
    pub async fn metrics(&self) -> Result<String, ApiError> {
        self.text(&["metrics"]).await
    }

    /// The OpenAPI document, as the server wrote it.
    pub async fn openapi(&self) -> Result<String, ApiError> {
        self.text(&["v1", "openapi.json"]).await
    }

    pub async fn whoami(&self) -> Result<Whoami, ApiError> {
        self.get(&["v1", "whoami"], &[]).await
    }

    pub async fn cluster(&self) -> Result<ClusterView, ApiError> {
        self.get(&["v1", "cluster"], &[]).await
    }

    /// All that the planner sees, in drover's own text format; `drover plan --from` reads it.
    pub async fn export(&self) -> Result<String, ApiError> {
        let request = self.request(Method::GET, &["v1", "cluster", "export"], &[]);
        let response = request.send().await.map_err(|error| self.transport_error(error))?;
        let answer = self.answer(response, limits::EXPORT_BYTES).await?;
        self.text_of(answer)
    }

    async fn text(&self, path: &[&str]) -> Result<String, ApiError> {
        let answer = self.get_answer(path, &[]).await?;
        self.text_of(answer)
    }

    fn text_of(&self, answer: super::Answer) -> Result<String, ApiError> {
        String::from_utf8(answer.body.into()).map_err(|_| self.unexpected(answer.status, "bytes that are no text"))
    }
}

/// Tenants and tokens.
impl Client {
    pub async fn tenants(&self) -> Result<List<TenantView>, ApiError> {
        self.get(&["v1", "tenants"], &[]).await
    }

    pub async fn create_tenant(&self, tenant: &CreateTenant) -> Result<TenantView, ApiError> {
        self.change(Method::POST, &["v1", "tenants"], &[], tenant).await
    }

    pub async fn remove_tenant(&self, id: &str) -> Result<(), ApiError> {
        self.delete(&["v1", "tenants", id]).await
    }

    pub async fn tokens(&self) -> Result<List<TokenView>, ApiError> {
        self.get(&["v1", "tokens"], &[]).await
    }

    pub async fn create_token(&self, token: &CreateToken) -> Result<CreatedToken, ApiError> {
        self.change(Method::POST, &["v1", "tokens"], &[], token).await
    }

    pub async fn remove_token(&self, id: &str) -> Result<(), ApiError> {
        self.delete(&["v1", "tokens", id]).await
    }
}

/// Hosts.
impl Client {
    pub async fn hosts(&self) -> Result<List<HostView>, ApiError> {
        self.get(&["v1", "hosts"], &[]).await
    }

    pub async fn host(&self, id: &str) -> Result<HostView, ApiError> {
        self.get(&["v1", "hosts", id], &[]).await
    }

    pub async fn remove_host(&self, id: &str) -> Result<(), ApiError> {
        self.delete(&["v1", "hosts", id]).await
    }

    /// Changes what is said of it by a JSON merge patch (RFC 7396).
    pub async fn patch_host(&self, id: &str, patch: &Value) -> Result<HostView, ApiError> {
        let request =
            self.request(Method::PATCH, &["v1", "hosts", id], &[]).json(patch).header(CONTENT_TYPE, MERGE_PATCH);
        let answer = self.send(request).await?;
        self.decode(&answer)
    }

    pub async fn drain_host(&self, id: &str) -> Result<HostView, ApiError> {
        self.act(&["v1", "hosts", id, "drain"], &[]).await
    }

    pub async fn undrain_host(&self, id: &str) -> Result<HostView, ApiError> {
        self.act(&["v1", "hosts", id, "undrain"], &[]).await
    }

    pub async fn power_host(&self, id: &str, power: SetPower) -> Result<HostView, ApiError> {
        self.change(Method::POST, &["v1", "hosts", id, "power"], &[], &power).await
    }

    pub async fn create_join_token(&self, id: &str, token: &CreateJoinToken) -> Result<CreatedJoinToken, ApiError> {
        self.change(Method::POST, &["v1", "hosts", id, "token"], &[], token).await
    }
}

/// Images.
impl Client {
    pub async fn images(&self) -> Result<List<ImageView>, ApiError> {
        self.get(&["v1", "images"], &[]).await
    }

    pub async fn image(&self, id: &str) -> Result<ImageView, ApiError> {
        self.get(&["v1", "images", id], &[]).await
    }

    /// Uploads a file; `sent` hears how many bytes have left so far.
    pub async fn stage_image_file(
        &self,
        id: &str,
        part: ImagePart,
        path: &Path,
        sent: impl FnMut(u64) + Send + 'static,
    ) -> Result<StagedFile, ApiError> {
        let file_error = |source| ApiError::File { path: path.display().to_string(), source };
        let file = tokio::fs::File::open(path).await.map_err(file_error)?;
        let size_bytes = file.metadata().await.map_err(file_error)?.len();
        let body = reqwest::Body::wrap_stream(counted(ReaderStream::new(file), sent));
        let request = self
            .request(Method::PUT, &["v1", "images", id, "files", part.as_str()], &[])
            .timeout(limits::UPLOAD)
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(reqwest::header::CONTENT_LENGTH, size_bytes)
            .body(body);
        let answer = self.send(request).await?;
        self.decode(&answer)
    }

    /// Makes an image of what was staged under its name.
    pub async fn create_image(&self, image: &CreateImage) -> Result<ImageView, ApiError> {
        self.change(Method::POST, &["v1", "images"], &[], image).await
    }

    pub async fn remove_image(&self, id: &str) -> Result<(), ApiError> {
        self.delete(&["v1", "images", id]).await
    }
}

fn counted(
    stream: ReaderStream<tokio::fs::File>,
    mut sent: impl FnMut(u64) + Send + 'static,
) -> impl futures_util::Stream<Item = std::io::Result<bytes::Bytes>> + Send + 'static {
    let mut total = 0;
    futures_util::StreamExt::inspect(stream, move |chunk| {
        if let Ok(chunk) = chunk {
            total += chunk.len() as u64;
            sent(total);
        }
    })
}

/// Vms. `vm` is an id, or a name within the tenant of the token or of the query.
impl Client {
    pub async fn vms(&self, query: &VmListQuery) -> Result<List<VmView>, ApiError> {
        let query = [("tenant", query.tenant.as_deref()), ("host", query.host.as_deref())];
        self.get(&["v1", "vms"], &query).await
    }

    pub async fn vm(&self, vm: &str, query: &VmQuery) -> Result<VmView, ApiError> {
        self.get(&["v1", "vms", vm], &[("tenant", query.tenant.as_deref())]).await
    }

    pub async fn create_vm(&self, vm: &CreateVm) -> Result<VmView, ApiError> {
        self.change(Method::POST, &["v1", "vms"], &[], vm).await
    }

    /// It is gone once its host has let go of it.
    pub async fn remove_vm(&self, vm: &str, query: &VmQuery) -> Result<VmView, ApiError> {
        let query = [("tenant", query.tenant.as_deref())];
        let answer = self.send(self.request(Method::DELETE, &["v1", "vms", vm], &query)).await?;
        self.decode(&answer)
    }

    pub async fn start_vm(&self, vm: &str, query: &VmQuery) -> Result<VmView, ApiError> {
        self.act(&["v1", "vms", vm, "start"], &[("tenant", query.tenant.as_deref())]).await
    }

    pub async fn stop_vm(&self, vm: &str, query: &VmQuery) -> Result<VmView, ApiError> {
        self.act(&["v1", "vms", vm, "stop"], &[("tenant", query.tenant.as_deref())]).await
    }

    pub async fn migrate_vm(&self, vm: &str, query: &VmQuery, ask: &MigrateVm) -> Result<MigrationView, ApiError> {
        let query = [("tenant", query.tenant.as_deref())];
        self.change(Method::POST, &["v1", "vms", vm, "migrate"], &query, ask).await
    }

    /// What a move would be and take, and what forbids it. Changes nothing.
    pub async fn forecast_migration(&self, vm: &str, query: &ForecastQuery) -> Result<MigrationForecast, ApiError> {
        let method = query.method.map(drover_model::migration::Method::word);
        let query = [("tenant", query.tenant.as_deref()), ("to", query.to.as_deref()), ("method", method)];
        self.get(&["v1", "vms", vm, "migration-forecast"], &query).await
    }

    /// The result is in the vm's load some time after the answer.
    pub async fn measure_vm(&self, vm: &str, query: &VmQuery, ask: MeasureVm) -> Result<VmView, ApiError> {
        let query = [("tenant", query.tenant.as_deref())];
        self.change(Method::POST, &["v1", "vms", vm, "measure"], &query, &ask).await
    }
}

/// Networks, security groups and ports. A network is named by id, or like a group by its name within the tenant of the
/// token or of the query.
impl Client {
    pub async fn networks(&self, query: &TenantQuery) -> Result<List<NetworkView>, ApiError> {
        self.get(&["v1", "networks"], &[("tenant", query.tenant.as_deref())]).await
    }

    pub async fn network(&self, network: &str, query: &TenantQuery) -> Result<NetworkView, ApiError> {
        self.get(&["v1", "networks", network], &[("tenant", query.tenant.as_deref())]).await
    }

    pub async fn create_network(&self, network: &CreateNetwork) -> Result<NetworkView, ApiError> {
        self.change(Method::POST, &["v1", "networks"], &[], network).await
    }

    pub async fn remove_network(&self, network: &str, query: &TenantQuery) -> Result<(), ApiError> {
        self.delete_of(&["v1", "networks", network], query).await
    }

    pub async fn security_groups(&self, query: &TenantQuery) -> Result<List<SecurityGroupView>, ApiError> {
        self.get(&["v1", "security-groups"], &[("tenant", query.tenant.as_deref())]).await
    }

    pub async fn security_group(&self, group: &str, query: &TenantQuery) -> Result<SecurityGroupView, ApiError> {
        self.get(&["v1", "security-groups", group], &[("tenant", query.tenant.as_deref())]).await
    }

    pub async fn create_security_group(&self, group: &CreateSecurityGroup) -> Result<SecurityGroupView, ApiError> {
        self.change(Method::POST, &["v1", "security-groups"], &[], group).await
    }

    /// Replaces all rules of the group.
    pub async fn set_security_rules(
        &self,
        group: &str,
        query: &TenantQuery,
        rules: &SetSecurityRules,
    ) -> Result<SecurityGroupView, ApiError> {
        let query = [("tenant", query.tenant.as_deref())];
        self.change(Method::PUT, &["v1", "security-groups", group], &query, rules).await
    }

    pub async fn remove_security_group(&self, group: &str, query: &TenantQuery) -> Result<(), ApiError> {
        self.delete_of(&["v1", "security-groups", group], query).await
    }

    /// Takes a vm out of the groups it is in, and puts it into these.
    pub async fn set_security_groups(
        &self,
        vm: &str,
        query: &VmQuery,
        groups: &SetSecurityGroups,
    ) -> Result<VmView, ApiError> {
        let query = [("tenant", query.tenant.as_deref())];
        self.change(Method::PUT, &["v1", "vms", vm, "security-groups"], &query, groups).await
    }

    pub async fn ports(&self) -> Result<List<PortView>, ApiError> {
        self.get(&["v1", "ports"], &[]).await
    }

    pub async fn port(&self, port: &str) -> Result<PortView, ApiError> {
        self.get(&["v1", "ports", port], &[]).await
    }

    pub async fn create_port(&self, port: &CreatePort) -> Result<PortView, ApiError> {
        self.change(Method::POST, &["v1", "ports"], &[], port).await
    }

    pub async fn remove_port(&self, port: &str) -> Result<(), ApiError> {
        self.delete(&["v1", "ports", port]).await
    }

    async fn delete_of(&self, path: &[&str], query: &TenantQuery) -> Result<(), ApiError> {
        let query = [("tenant", query.tenant.as_deref())];
        self.send(self.request(Method::DELETE, path, &query)).await.map(drop)
    }
}

/// Rules of placement.
impl Client {
    pub async fn placement_rules(&self) -> Result<List<PlacementRuleView>, ApiError> {
        self.get(&["v1", "placement-rules"], &[]).await
    }

    pub async fn placement_rule(&self, name: &str) -> Result<PlacementRuleView, ApiError> {
        self.get(&["v1", "placement-rules", name], &[]).await
    }

    pub async fn create_placement_rule(&self, rule: &CreatePlacementRule) -> Result<PlacementRuleView, ApiError> {
        self.change(Method::POST, &["v1", "placement-rules"], &[], rule).await
    }

    pub async fn remove_placement_rule(&self, name: &str) -> Result<(), ApiError> {
        self.delete(&["v1", "placement-rules", name]).await
    }
}

/// Plans and migrations.
impl Client {
    pub async fn plans(&self) -> Result<List<PlanView>, ApiError> {
        self.get(&["v1", "plans"], &[]).await
    }

    pub async fn plan(&self, id: PlanId) -> Result<PlanView, ApiError> {
        self.get(&["v1", "plans", &id.to_string()], &[]).await
    }

    /// Makes a plan at once, whatever the loop's timing.
    pub async fn plan_now(&self) -> Result<PlanNow, ApiError> {
        self.act(&["v1", "plans"], &[]).await
    }

    pub async fn approve_plan(&self, id: PlanId) -> Result<PlanView, ApiError> {
        self.act(&["v1", "plans", &id.to_string(), "approve"], &[]).await
    }

    pub async fn reject_plan(&self, id: PlanId) -> Result<PlanView, ApiError> {
        self.act(&["v1", "plans", &id.to_string(), "reject"], &[]).await
    }

    pub async fn migrations(&self) -> Result<List<MigrationView>, ApiError> {
        self.get(&["v1", "migrations"], &[]).await
    }

    pub async fn migration(&self, id: MigrationId) -> Result<MigrationView, ApiError> {
        self.get(&["v1", "migrations", &id.to_string()], &[]).await
    }

    pub async fn cancel_migration(&self, id: MigrationId) -> Result<MigrationView, ApiError> {
        self.act(&["v1", "migrations", &id.to_string(), "cancel"], &[]).await
    }

    /// Holds it back: it sends next to nothing, or does not begin.
    pub async fn pause_migration(&self, id: MigrationId) -> Result<MigrationView, ApiError> {
        self.act(&["v1", "migrations", &id.to_string(), "pause"], &[]).await
    }

    pub async fn resume_migration(&self, id: MigrationId) -> Result<MigrationView, ApiError> {
        self.act(&["v1", "migrations", &id.to_string(), "resume"], &[]).await
    }

    pub async fn prioritise_migration(&self, id: MigrationId, ask: SetPriority) -> Result<MigrationView, ApiError> {
        self.change(Method::PUT, &["v1", "migrations", &id.to_string(), "priority"], &[], &ask).await
    }
}

/// Policy, events, explanations.
impl Client {
    pub async fn policy(&self) -> Result<Tagged<Policy>, ApiError> {
        let answer = self.get_answer(&["v1", "policy"], &[]).await?;
        Ok(Tagged { value: self.decode(&answer)?, revision: answer.revision })
    }

    /// Replaces it whole; what is left out takes its default.
    pub async fn set_policy(&self, policy: &Policy) -> Result<Policy, ApiError> {
        self.change(Method::PUT, &["v1", "policy"], &[], policy).await
    }

    /// Changes some keys by a JSON merge patch (RFC 7396).
    pub async fn patch_policy(&self, patch: &Value) -> Result<Policy, ApiError> {
        let request = self.request(Method::PATCH, &["v1", "policy"], &[]).json(patch).header(CONTENT_TYPE, MERGE_PATCH);
        let answer = self.send(request).await?;
        self.decode(&answer)
    }

    /// What has happened, oldest first; [`Client::event_stream`] goes on from there.
    pub async fn events(&self, query: &EventQuery) -> Result<List<EventView>, ApiError> {
        let after = query.after.map(|after| after.to_string());
        let before = query.before.map(|before| before.to_string());
        let since = query.since_ms.map(|since| since.to_string());
        let severity = query.severity.map(|severity| severity.to_string());
        let limit = query.limit.map(|limit| limit.to_string());
        let query = [
            ("after", after.as_deref()),
            ("before", before.as_deref()),
            ("since_ms", since.as_deref()),
            ("severity", severity.as_deref()),
            ("limit", limit.as_deref()),
            ("object", query.object.as_deref()),
        ];
        self.get(&["v1", "events"], &query).await
    }

    /// `object` is `vm/web-3`, `plan/42`, `host/h1`, `migration/7` or `cluster`.
    pub async fn explain(&self, object: &str, query: &VmQuery) -> Result<Explanation, ApiError> {
        let path: Vec<&str> = ["v1", "explain"].into_iter().chain(object.split('/')).collect();
        self.get(&path, &[("tenant", query.tenant.as_deref())]).await
    }
}
