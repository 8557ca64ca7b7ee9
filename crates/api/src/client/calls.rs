//! The routes of [`crate::v1`], one method each.

use super::{ApiError, Client, limits};
use crate::v1::{
    ClusterView, CreateImage, CreateJoinToken, CreateToken, CreatedJoinToken, CreatedToken, EventQuery, EventView,
    Explanation, ForecastQuery, Health, HostView, ImagePart, ImageView, List, MERGE_PATCH, MeasureVm, MigrateVm,
    MigrationForecast, MigrationView, PlanNow, PlanView, Policy, SetPower, SetPriority, SetSecurityGroups, StagedFile,
    TenantQuery, VmView, Whoami,
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
    pub async fn create_token(&self, token: &CreateToken) -> Result<CreatedToken, ApiError> {
        self.change(Method::POST, &["v1", "tokens"], &[], token).await
    }
}

/// Hosts.
impl Client {
    pub async fn drain_host(&self, id: &str) -> Result<HostView, ApiError> {
        self.act(&["v1", "hosts", id, "drain"], &[]).await
    }

    pub async fn undrain_host(&self, id: &str) -> Result<HostView, ApiError> {
        self.act(&["v1", "hosts", id, "undrain"], &[]).await
    }

    /// What ran on it counts as gone.
    pub async fn declare_host_lost(&self, id: &str) -> Result<HostView, ApiError> {
        self.act(&["v1", "hosts", id, "lost"], &[]).await
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
    pub async fn start_vm(&self, vm: &str, query: &TenantQuery) -> Result<VmView, ApiError> {
        self.act(&["v1", "vms", vm, "start"], &[("tenant", query.tenant.as_deref())]).await
    }

    pub async fn stop_vm(&self, vm: &str, query: &TenantQuery) -> Result<VmView, ApiError> {
        self.act(&["v1", "vms", vm, "stop"], &[("tenant", query.tenant.as_deref())]).await
    }

    pub async fn migrate_vm(&self, vm: &str, query: &TenantQuery, ask: &MigrateVm) -> Result<MigrationView, ApiError> {
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
    pub async fn measure_vm(&self, vm: &str, query: &TenantQuery, ask: MeasureVm) -> Result<VmView, ApiError> {
        let query = [("tenant", query.tenant.as_deref())];
        self.change(Method::POST, &["v1", "vms", vm, "measure"], &query, &ask).await
    }
}

/// Networks, security groups and ports. A network is named by id, or like a group by its name within the tenant of the
/// token or of the query.
impl Client {
    /// Takes a vm out of the groups it is in, and puts it into these.
    pub async fn set_security_groups(
        &self,
        vm: &str,
        query: &TenantQuery,
        groups: &SetSecurityGroups,
    ) -> Result<VmView, ApiError> {
        let query = [("tenant", query.tenant.as_deref())];
        self.change(Method::PUT, &["v1", "vms", vm, "security-groups"], &query, groups).await
    }
}

/// Plans and migrations.
impl Client {
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
    pub async fn explain(&self, object: &str, query: &TenantQuery) -> Result<Explanation, ApiError> {
        let path: Vec<&str> = ["v1", "explain"].into_iter().chain(object.split('/')).collect();
        self.get(&path, &[("tenant", query.tenant.as_deref())]).await
    }
}
