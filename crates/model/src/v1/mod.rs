//! Version 1 of the public API: what the server and its clients say to each other over HTTP.
//!
//! Units are in the names (`memory_mib`, `cpu_millis`, `*_ms`, `*_micro` for millionths of the
//! currency unit); times are milliseconds since 1970-01-01 UTC, named `*_at_ms`. Names are strings,
//! the ids that the server counts up (plans, migrations, events) are integers. Requests refuse
//! unknown fields. Nothing that is `null` means "zero": it means "not known" or "not there".
//!
//! | method and path | request | answer | who |
//! |---|---|---|---|
//! | `GET /healthz` | | 200 [`Health`] | anyone |
//! | `GET /metrics` | | 200 Prometheus text | operator |
//! | `GET /v1/openapi.json` | | 200 OpenAPI 3.1 | anyone |
//! | `GET /v1/ca` | | 200 PEM, `application/x-pem-file` | anyone |
//! | `POST /v1/join` | `JoinRequest` | 200 `JoinResponse` | holder of a join token |
//! | `GET /v1/whoami` | | 200 [`Whoami`] | any token |
//! | `GET /v1/cluster` | | 200 [`ClusterView`] | operator |
//! | `GET /v1/cluster/export` | | 200 all that the planner sees, `text/plain` (docs/planner.md) | operator |
//! | `GET /v1/tenants` | [`ListQuery`] | 200 [`List`]`<`[`TenantView`]`>` | operator |
//! | `POST /v1/tenants` | [`CreateTenant`] | 201 [`TenantView`] | operator |
//! | `GET /v1/tenants/{ref}` | | 200 [`TenantView`] | operator |
//! | `PATCH /v1/tenants/{ref}` | merge patch of its [`TenantSettings`] | 200 [`TenantView`] | operator |
//! | `DELETE /v1/tenants/{ref}` | | 204 | operator |
//! | `GET /v1/tokens` | [`ListQuery`] | 200 [`List`]`<`[`TokenView`]`>` | operator |
//! | `POST /v1/tokens` | [`CreateToken`] | 201 [`CreatedToken`] | operator |
//! | `GET /v1/tokens/{ref}` | | 200 [`TokenView`] | operator |
//! | `DELETE /v1/tokens/{ref}` | | 204 | operator |
//! | `GET /v1/hosts` | [`ListQuery`] | 200 [`List`]`<`[`HostView`]`>` | operator |
//! | `GET /v1/hosts/{ref}` | | 200 [`HostView`] | operator |
//! | `PATCH /v1/hosts/{ref}` | merge patch of its [`HostAttributes`] | 200 [`HostView`] | operator |
//! | `DELETE /v1/hosts/{ref}` | | 204 | operator |
//! | `POST /v1/hosts/{host}/drain` | | 202 [`HostView`] | operator |
//! | `POST /v1/hosts/{host}/undrain` | | 200 [`HostView`] | operator |
//! | `POST /v1/hosts/{host}/lost` | | 200 [`HostView`] | operator |
//! | `POST /v1/hosts/{host}/power` | [`SetPower`] | 202 [`HostView`] | operator |
//! | `POST /v1/hosts/{host}/token` | [`CreateJoinToken`] | 201 [`CreatedJoinToken`] | operator |
//! | `GET /v1/images` | [`ListQuery`] | 200 [`List`]`<`[`ImageView`]`>` | any token |
//! | `GET /v1/images/{ref}` | | 200 [`ImageView`] | any token |
//! | `PATCH /v1/images/{ref}` | merge patch of its [`OnlyLabels`] | 200 [`ImageView`] | operator |
//! | `PUT /v1/images/{image}/files/{part}` | raw bytes; part: [`ImagePart`] | 200 [`StagedFile`] | operator |
//! | `POST /v1/images` | [`CreateImage`], of the files staged before | 201 [`ImageView`] | operator |
//! | `DELETE /v1/images/{ref}` | | 204 | operator |
//! | `GET /v1/vms` | [`ListQuery`] | 200 [`List`]`<`[`VmView`]`>` | any token, own tenant's |
//! | `POST /v1/vms` | [`CreateVm`] | 201 [`VmView`] | any token |
//! | `GET /v1/vms/{ref}` | [`TenantQuery`] | 200 [`VmView`] | any token, own tenant's |
//! | `DELETE /v1/vms/{ref}` | [`TenantQuery`] | 202 [`VmView`]; gone once its host has let go | same |
//! | `POST /v1/vms/{vm}/start` | [`TenantQuery`] | 202 [`VmView`] | same |
//! | `POST /v1/vms/{vm}/stop` | [`TenantQuery`] | 202 [`VmView`] | same |
//! | `POST /v1/vms/{vm}/migrate` | [`MigrateVm`], [`TenantQuery`] | 202 [`MigrationView`] | operator |
//! | `POST /v1/vms/{vm}/measure` | [`MeasureVm`], [`TenantQuery`] | 202 [`VmView`]; its load has the result later | any token, own tenant's |
//! | `PUT /v1/vms/{vm}/security-groups` | [`SetSecurityGroups`], [`TenantQuery`] | 200 [`VmView`] | any token, own tenant's |
//! | `GET /v1/vms/{vm}/console` | [`TenantQuery`] | WebSocket, binary frames both ways, at most [`CONSOLE_FRAME_MAX`] bytes each | any token, own tenant's |
//! | `GET /v1/networks` | [`ListQuery`] | 200 [`List`]`<`[`NetworkView`]`>` | any token, own tenant's |
//! | `POST /v1/networks` | [`CreateNetwork`] | 201 [`NetworkView`] | any token |
//! | `GET /v1/networks/{ref}` | [`TenantQuery`] | 200 [`NetworkView`] | any token, own tenant's |
//! | `PATCH /v1/networks/{ref}` | merge patch of its [`OnlyLabels`], [`TenantQuery`] | 200 [`NetworkView`] | same |
//! | `DELETE /v1/networks/{ref}` | [`TenantQuery`] | 204 | same |
//! | `GET /v1/security-groups` | [`ListQuery`] | 200 [`List`]`<`[`SecurityGroupView`]`>` | any token, own tenant's |
//! | `POST /v1/security-groups` | [`CreateSecurityGroup`] | 201 [`SecurityGroupView`] | any token |
//! | `GET /v1/security-groups/{ref}` | [`TenantQuery`] | 200 [`SecurityGroupView`] | any token, own tenant's |
//! | `PATCH /v1/security-groups/{ref}` | merge patch of its [`SecurityGroupSettings`], [`TenantQuery`] | 200 [`SecurityGroupView`] | same |
//! | `DELETE /v1/security-groups/{ref}` | [`TenantQuery`] | 204 | same |
//! | `GET /v1/ports` | [`ListQuery`] | 200 [`List`]`<`[`PortView`]`>` | operator |
//! | `POST /v1/ports` | [`CreatePort`] | 201 [`PortView`] | operator |
//! | `GET /v1/ports/{ref}` | | 200 [`PortView`] | operator |
//! | `PATCH /v1/ports/{ref}` | merge patch of its [`OnlyLabels`] | 200 [`PortView`] | operator |
//! | `DELETE /v1/ports/{ref}` | | 204 | operator |
//! | `GET /v1/placement-rules` | [`ListQuery`] | 200 [`List`]`<`[`PlacementRuleView`]`>` | operator |
//! | `POST /v1/placement-rules` | [`CreatePlacementRule`] | 201 [`PlacementRuleView`] | operator |
//! | `GET /v1/placement-rules/{ref}` | | 200 [`PlacementRuleView`] | operator |
//! | `DELETE /v1/placement-rules/{ref}` | | 204 | operator |
//! | `GET /v1/plans` | [`ListQuery`] | 200 [`List`]`<`[`PlanView`]`>`, newest first | operator |
//! | `GET /v1/plans/{ref}` | | 200 [`PlanView`] | operator |
//! | `POST /v1/plans` | | 201 or, with nothing worth doing, 200 [`PlanNow`] | operator |
//! | `POST /v1/plans/{plan}/approve` | | 202 [`PlanView`] | operator |
//! | `POST /v1/plans/{plan}/reject` | | 200 [`PlanView`] | operator |
//! | `GET /v1/vms/{vm}/migration-forecast` | [`ForecastQuery`] | 200 [`MigrationForecast`]; nothing is changed | operator |
//! | `GET /v1/migrations` | [`ListQuery`] | 200 [`List`]`<`[`MigrationView`]`>`, newest first | any token, own tenant's |
//! | `GET /v1/migrations/{ref}` | | 200 [`MigrationView`], live while it runs | any token, own tenant's |
//! | `POST /v1/migrations/{migration}/cancel` | | 202 [`MigrationView`] | operator |
//! | `POST /v1/migrations/{migration}/pause` | | 200 [`MigrationView`] | operator |
//! | `POST /v1/migrations/{migration}/resume` | | 200 [`MigrationView`] | operator |
//! | `PUT /v1/migrations/{migration}/priority` | [`SetPriority`] | 200 [`MigrationView`] | operator |
//! | `GET /v1/policy` | | 200 [`Policy`] | operator |
//! | `PUT /v1/policy` | [`Policy`], whole | 200 [`Policy`] | operator |
//! | `PATCH /v1/policy` | merge patch | 200 [`Policy`] | operator |
//! | `GET /v1/events` | [`EventQuery`] | 200 [`List`]`<`[`EventView`]`>`, oldest first | any token, own tenant's |
//! | `GET /v1/events`, `Accept: text/event-stream` | [`EventQuery`], `Last-Event-ID` | server-sent events: `id` is the sequence number, `data` an [`EventView`] | same |
//! | `GET /v1/watch`, `Accept: text/event-stream` | [`WatchQuery`], `Last-Event-ID` | server-sent events: `id` is the revision, `data` a [`ChangeView`] | any token, own tenant's |
//! | `GET /v1/explain/{kind}/{id}`, `GET /v1/explain/cluster` | | 200 [`Explanation`] | operator; of its own vms any token |
//!
//! Authentication: `Authorization: Bearer drover_<token id>_<64 hexadecimal digits>`.
//!
//! `{ref}` is an object's id, its name, or `tenant%2Fname`; of a name that several tenants use, [`TenantQuery`] says whose.
//! A list is answered in pages ([`ListQuery`]). A merge patch (RFC 7396) is sent as [`MERGE_PATCH`] or as JSON.
//!
//! Every object answered alone carries `ETag: "<revision>"`; `If-Match` on a change makes it conditional (412 when
//! the object has changed since). A POST with an [`IDEMPOTENCY_KEY`] header can be repeated: the same key and body
//! give the first answer and change nothing more. Errors are `Problem`s.

mod attributes;
mod cluster;
mod event;
mod host;
mod image;
mod migration;
mod network;
mod placement;
mod plan;
mod policy;
mod schema;
mod tenant;
mod vm;
mod watch;

pub use attributes::*;
pub use cluster::*;
pub use event::*;
pub use host::*;
pub use image::*;
pub use migration::*;
pub use network::*;
pub use placement::*;
pub use plan::*;
pub use policy::*;
pub use tenant::*;
pub use vm::*;
pub use watch::*;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Header that makes a POST repeatable; 1 to [`IDEMPOTENCY_KEY_MAX`] visible ASCII characters.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
pub const IDEMPOTENCY_KEY_MAX: usize = 128;

/// Longest request body the server reads, but for image files.
pub const BODY_MAX: usize = 1 << 20;

/// Longest frame of a console session, either way.
pub const CONSOLE_FRAME_MAX: usize = 16 << 10;

/// Media type of a JSON merge patch (RFC 7396).
pub const MERGE_PATCH: &str = "application/merge-patch+json";

/// Objects of one kind, in the order of their keys (plans and migrations: newest first); a page of them where there are
/// many.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct List<T> {
    pub items: Vec<T>,
    /// Where the next page begins: the `cursor` of the next request. Absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl<T> FromIterator<T> for List<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        Self { items: items.into_iter().collect(), next: None }
    }
}

/// Which objects of a kind, and how many at once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// At most so many; 500 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<usize>,
    /// `next` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Only this tenant's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Only those that are called this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Only those in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Only those with these labels: `env=prod,tier`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Only those on this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
}

impl ListQuery {
    pub const LIMIT_DEFAULT: usize = 500;
    pub const LIMIT_MAX: usize = 1_000;
}

/// Whose object, when an operator names it by a name that several tenants use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct TenantQuery {
    /// Only this tenant's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intent::{ApiToken, Role, Vm};
    use crate::{Revision, TimeMs};
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    fn refused<T: DeserializeOwned>(value: Value) -> String {
        serde_json::from_value::<T>(value).err().expect("it should have been refused").to_string()
    }

    #[test]
    fn requests_refuse_fields_they_do_not_know() {
        let extra = "surprise";
        for error in [
            refused::<CreateTenant>(json!({"name": "acme", extra: 1})),
            refused::<CreateTenant>(json!({"name": "acme", "quota": {extra: 1}})),
            refused::<TenantSettings>(json!({extra: 1})),
            refused::<OnlyLabels>(json!({extra: 1})),
            refused::<SecurityGroupSettings>(json!({"rules": [], extra: 1})),
            refused::<CreateToken>(json!({"role": "operator", extra: 1})),
            refused::<CreateJoinToken>(json!({extra: 1})),
            refused::<SetPower>(json!({"on": true, extra: 1})),
            refused::<CreateImage>(json!({"name": "a", "files": [], extra: 1})),
            refused::<CreateVm>(json!({"name": "a", "image": "i", "vcpus": 1, "memory_mib": 64, extra: 1})),
            refused::<MigrateVm>(json!({extra: 1})),
            refused::<MeasureVm>(json!({extra: 1})),
            refused::<CreateNetwork>(json!({"name": "lan", "subnet": "10.0.0.0/8", extra: 1})),
            refused::<CreateSecurityGroup>(json!({"name": "web", extra: 1})),
            refused::<CreateSecurityGroup>(json!({"name": "web", "rules": [{"direction": "ingress", extra: 1}]})),
            refused::<SetSecurityGroups>(json!({"security_groups": [], extra: 1})),
            refused::<CreatePort>(json!({"name": "p", "network": "n", "host": "h1", "interface": "gw0", extra: 1})),
            refused::<CreatePlacementRule>(json!({"name": "a", "rule": "apart", "vms": [], extra: 1})),
            refused::<Policy>(json!({extra: 1})),
        ] {
            assert!(error.contains("unknown field `surprise`"), "{error}");
        }
    }

    #[test]
    fn a_vm_needs_only_what_nobody_can_guess() {
        let vm: CreateVm =
            serde_json::from_value(json!({"name": "web-1", "image": "tiny", "vcpus": 1, "memory_mib": 96})).unwrap();
        assert_eq!(vm.tenant, None);
        let back = serde_json::to_value(&vm).unwrap();
        assert_eq!(back, json!({"name": "web-1", "image": "tiny", "vcpus": 1, "memory_mib": 96}));
        let error = refused::<CreateVm>(json!({"name": "web-1", "image": "tiny", "memory_mib": 96}));
        assert!(error.contains("vcpus"), "{error}");
    }

    #[test]
    fn a_measurement_takes_two_seconds_unless_said_otherwise() {
        let seconds = |body| serde_json::from_value::<MeasureVm>(body).unwrap().seconds;
        assert_eq!((seconds(json!({})), seconds(json!({"seconds": 5}))), (2, 5));
    }

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let secret = "5ec7e7".repeat(10);
        let token = ApiToken {
            id: "ops".parse().unwrap(),
            secret_sha256: String::new(),
            role: Role::Operator,
            created_at: TimeMs(1),
            expires_at: None,
        };
        let created = CreatedToken { view: TokenView::new(&token, Revision(3)), token: secret.clone() };
        assert!(!format!("{created:?}").contains(&secret));
        let join = CreatedJoinToken {
            id: "join-1".parse().unwrap(),
            host: "h1".parse().unwrap(),
            expires_at_ms: 5,
            token: secret.clone(),
        };
        assert!(!format!("{join:?}").contains(&secret));
        let flat = serde_json::to_value(&created).unwrap();
        assert_eq!((&flat["id"], &flat["token"], &flat["role"]), (&json!("ops"), &json!(secret), &json!("operator")));
    }

    #[test]
    fn a_vm_view_reads_back() {
        let vm: Vm = serde_json::from_value(json!({
            "id": "vm-abcdefghijkl", "created_at": 5, "run": "running", "host": "h1", "generation": 3,
            "migration": null, "deleting": false,
            "spec": {
                "name": "web-1", "tenant": "acme", "image": "tiny", "vcpus": 1, "memory": 96 << 20,
                "nic": {"network": "prov", "mac": "52:00:00:00:00:01", "address": "10.78.0.11/24"},
                "anti_affinity": null, "pinned_to": ["h1"], "guest_args": {"cpu": "5"},
            },
        }))
        .unwrap();
        let view = VmView::new(&vm, Revision(9), "running");
        let wire = serde_json::to_value(&view).unwrap();
        assert_eq!(wire["memory_mib"], 96);
        assert_eq!(wire["why"], Value::Null);
        assert_eq!(serde_json::from_value::<VmView>(wire).unwrap(), view);
    }
}
