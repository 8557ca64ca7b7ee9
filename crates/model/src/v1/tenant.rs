//! Tenants and API tokens.

use crate::intent::{ApiToken, Role, Tenant};
use crate::{Revision, TenantName, TokenId};
use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TenantView {
    #[schema(value_type = String)]
    pub id: TenantName,
    #[schema(value_type = u64)]
    pub revision: Revision,
    pub created_at_ms: u64,
}

impl TenantView {
    pub fn new(tenant: &Tenant, revision: Revision) -> Self {
        Self { id: tenant.id.clone(), revision, created_at_ms: tenant.created_at.0 }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateTenant {
    /// 1 to 63 lower-case letters, digits and hyphens.
    pub id: String,
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

fn tenant_of(role: &Role) -> Option<TenantName> {
    match role {
        Role::Operator => None,
        Role::Tenant { tenant } => Some(tenant.clone()),
    }
}

/// An API token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenView {
    #[schema(value_type = String)]
    pub id: TokenId,
    #[schema(value_type = u64)]
    pub revision: Revision,
    pub role: RoleName,
    /// With role `tenant` only.
    #[schema(value_type = Option<String>)]
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
            tenant: tenant_of(&token.role),
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
    #[schema(value_type = Option<String>)]
    pub tenant: Option<TenantName>,
}

impl Whoami {
    pub fn new(name: impl Into<String>, role: &Role) -> Self {
        Self { name: name.into(), role: RoleName::from(role), tenant: tenant_of(role) }
    }
}
