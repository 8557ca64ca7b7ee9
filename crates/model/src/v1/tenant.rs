//! Tenants and API tokens.

use crate::intent::{ApiToken, JoinToken, Quota, Role, Tenant};
use crate::kind::{Access, Exposed, Fixed, Kind, Labels, ObjectKey, Owner, Versioned};
use crate::network::Subnet;
use crate::{NetworkId, Revision, TenantName, TokenId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use utoipa::ToSchema;

/// A tenant as it is shown.
pub type TenantView = Versioned<Tenant>;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateTenant {
    pub name: TenantName,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// What is left out is as the server has it.
    #[serde(default, skip_serializing_if = "Quota::is_default")]
    pub quota: Quota,
    /// Provider networks that its tokens may put vms on, with address ranges (CIDR); no range: any address.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, Vec<String>>)]
    pub provider_networks: BTreeMap<NetworkId, Vec<Subnet>>,
}

impl CreateTenant {
    /// Without labels and grants, with the default quota.
    pub fn named(name: TenantName) -> Self {
        Self { name, labels: Labels::default(), quota: Quota::default(), provider_networks: BTreeMap::new() }
    }
}

/// What `PATCH` changes of a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TenantSettings {
    #[serde(default)]
    pub labels: Labels,
    #[serde(default)]
    pub quota: Quota,
    /// As in [`CreateTenant`].
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, Vec<String>>)]
    pub provider_networks: BTreeMap<NetworkId, Vec<Subnet>>,
}

impl Kind for Tenant {
    const NAME: &'static str = "tenant";
    type Key = TenantName;

    fn key(&self) -> TenantName {
        self.name.clone()
    }

    fn owner(&self) -> Owner<'_> {
        Owner::Cluster
    }

    fn labels(&self) -> Option<&Labels> {
        Some(&self.labels)
    }
}

impl Exposed for Tenant {
    const TITLE: &'static str = "tenant";
    const PLURAL: &'static str = "tenants";
    const TAG: &'static str = "tenants";
    const ACCESS: Access = Access::OPERATORS;
    type Create = CreateTenant;
    type View = TenantView;
    type Settings = TenantSettings;
}

impl Kind for ApiToken {
    const NAME: &'static str = "api-token";
    type Key = TokenId;

    fn key(&self) -> TokenId {
        self.id.clone()
    }

    fn owner(&self) -> Owner<'_> {
        Owner::Cluster
    }

    fn references(&self) -> Vec<ObjectKey> {
        let tenant = self.role.tenant();
        tenant.map(ObjectKey::of::<Tenant>).into_iter().chain([secret_key(&self.secret_sha256)]).collect()
    }
}

/// Tokens are looked up by the hash of their secret with every request.
pub fn secret_key(sha256: &str) -> ObjectKey {
    ObjectKey { kind: "secret-sha256".into(), id: sha256.to_owned() }
}

impl Exposed for ApiToken {
    const TITLE: &'static str = "token";
    const PLURAL: &'static str = "tokens";
    const TAG: &'static str = "tenants";
    const ACCESS: Access = Access::OPERATORS;
    type Create = CreateToken;
    type View = TokenView;
    type Settings = Fixed;
    /// Its secret is made by the server and shown once.
    const CREATABLE: bool = false;
    const PATCHABLE: bool = false;
}

impl Kind for JoinToken {
    const NAME: &'static str = "join-token";
    type Key = TokenId;

    fn key(&self) -> TokenId {
        self.id.clone()
    }

    fn owner(&self) -> Owner<'_> {
        Owner::Cluster
    }
}

/// Whom a token speaks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RoleName {
    /// Owns hosts, images and policy; sees everything.
    Operator,
    /// Sees and changes its own things only.
    Tenant,
}

impl fmt::Display for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Operator => "operator",
            Self::Tenant => "tenant",
        })
    }
}

impl From<&Role> for RoleName {
    fn from(role: &Role) -> Self {
        match role {
            Role::Operator => Self::Operator,
            Role::Tenant { .. } => Self::Tenant,
        }
    }
}

/// An API token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenView {
    pub id: TokenId,
    #[schema(value_type = u64)]
    pub revision: Revision,
    pub role: RoleName,
    /// With role `tenant` only.
    pub tenant: Option<TenantName>,
    pub created_at_ms: u64,
    /// `null`: never.
    pub expires_at_ms: Option<u64>,
}

impl TokenView {
    pub fn new(token: &ApiToken, revision: Revision) -> Self {
        Self {
            id: token.id.clone(),
            revision,
            role: RoleName::from(&token.role),
            tenant: token.role.tenant().cloned(),
            created_at_ms: token.created_at.0,
            expires_at_ms: token.expires_at.map(|at| at.0),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// A name for it; made up when left out.
    #[serde(default)]
    pub id: Option<String>,
    pub role: RoleName,
    /// Required with role `tenant`, refused with `operator`.
    #[serde(default)]
    pub tenant: Option<String>,
    /// Seconds from now; without it the token does not expire.
    #[serde(default)]
    #[schema(minimum = 1)]
    pub expires_s: Option<u64>,
}

/// The only answer that ever carries the token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreatedToken {
    #[serde(flatten)]
    pub view: TokenView,
    /// `drover_<id>_<64 hexadecimal digits>`.
    pub token: String,
}

/// Never the secret: this type ends up in logs.
impl fmt::Debug for CreatedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CreatedToken({})", self.view.id)
    }
}

/// Who the caller is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Whoami {
    /// The token's id.
    pub name: String,
    pub role: RoleName,
    pub tenant: Option<TenantName>,
}

impl Whoami {
    pub fn new(name: impl Into<String>, role: &Role) -> Self {
        Self { name: name.into(), role: RoleName::from(role), tenant: role.tenant().cloned() }
    }
}
