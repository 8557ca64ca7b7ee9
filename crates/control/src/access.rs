//! Who may do what: the one place where roles are held against objects; and a host's joining.

use crate::Control;
use crate::interface::{Action, Actor, Refusal, RefusalKind, Reply};
use drover_model::event::Severity;
use drover_model::intent::{ApiToken, Host, JoinToken, PowerIntent, Role};
use drover_model::kind::{Audience, Exposed, Owner};
use drover_model::{HostId, TimeMs, TokenId};

fn forbidden(detail: &str) -> Refusal {
    Refusal::new(RefusalKind::Forbidden, detail.to_owned())
}

/// Whether the caller may know of an object of this kind that belongs to `owner`.
pub fn sees<K: Exposed>(actor: &Actor, owner: Owner<'_>) -> bool {
    match (&actor.role, K::ACCESS.read) {
        (Role::Operator, _) | (Role::Tenant { .. }, Audience::Everyone) => true,
        (Role::Tenant { .. }, Audience::Operators) => false,
        (Role::Tenant { tenant }, Audience::Owner) => owner.tenant() == Some(tenant),
    }
}

/// Whether the caller may read objects of this kind at all.
pub fn may_read<K: Exposed>(actor: &Actor) -> Result<(), Refusal> {
    match (&actor.role, K::ACCESS.read) {
        (Role::Operator, _) | (Role::Tenant { .. }, Audience::Owner | Audience::Everyone) => Ok(()),
        (Role::Tenant { .. }, Audience::Operators) => Err(forbidden("only an operator may do this")),
    }
}

/// Whether the caller may make, change or remove objects of this kind at all.
pub fn may_write<K: Exposed>(actor: &Actor) -> Result<(), Refusal> {
    match (&actor.role, K::ACCESS.write) {
        (Role::Operator, _) | (Role::Tenant { .. }, Audience::Owner | Audience::Everyone) => Ok(()),
        (Role::Tenant { .. }, Audience::Operators) => Err(forbidden("only an operator may do this")),
    }
}

/// Whether the caller may make, change or remove this object, which it may know of.
pub fn may_change<K: Exposed>(actor: &Actor, owner: Owner<'_>) -> Result<(), Refusal> {
    may_write::<K>(actor)?;
    match &actor.role {
        Role::Operator => Ok(()),
        Role::Tenant { tenant } if owner.tenant() == Some(tenant) => Ok(()),
        Role::Tenant { .. } => Err(forbidden(&format!("a tenant makes {}s for itself only", K::TITLE)).at("tenant")),
    }
}

/// Whether the caller's role allows the action at all. Whether it may touch the object concerned is looked at with the object.
pub fn authorize(actor: &Actor, action: &Action) -> Result<(), Refusal> {
    match action {
        // By the kind's own rule.
        Action::Create(_)
        | Action::Patch { .. }
        | Action::Remove { .. }
        | Action::CreateToken { .. }
        | Action::CreateImage { .. } => Ok(()),
        // The join token itself authenticates this request; there is no caller yet.
        Action::Join { .. } => Ok(()),
        // The owner of the vm may.
        Action::CreateVm { .. }
        | Action::SetRun { .. }
        | Action::RemoveVm { .. }
        | Action::MeasureVm { .. }
        | Action::SetSecurityGroups { .. } => Ok(()),
        Action::CreateJoinToken { .. }
        | Action::DrainHost { .. }
        | Action::UndrainHost { .. }
        | Action::DeclareHostLost { .. }
        | Action::PowerHost { .. }
        | Action::MigrateVm { .. }
        | Action::CancelMigration { .. }
        | Action::HoldMigration { .. }
        | Action::PrioritiseMigration { .. }
        | Action::PlanNow
        | Action::ApprovePlan { .. }
        | Action::RejectPlan { .. }
        | Action::SetPolicy { .. } => only_operators(actor),
    }
}

fn only_operators(actor: &Actor) -> Result<(), Refusal> {
    match &actor.role {
        Role::Operator => Ok(()),
        Role::Tenant { .. } => Err(forbidden("only an operator may do this")),
    }
}

/// Whose a new object is: the tenant's that an operator names, or the caller's own.
pub fn owner_of_new(
    actor: &Actor,
    named: Option<drover_model::TenantName>,
    title: &str,
) -> Result<drover_model::TenantName, Refusal> {
    match (actor.role.tenant(), named) {
        (None, Some(tenant)) => Ok(tenant),
        (None, None) => {
            Err(Refusal::invalid("tenant", format!("say whose {title} it is; `drover tenant ls` lists tenants")))
        }
        (Some(own), None) => Ok(own.clone()),
        (Some(own), Some(tenant)) if tenant == *own => Ok(tenant),
        (Some(_), Some(_)) => {
            Err(Refusal::invalid("tenant", format!("your token makes {title}s of your own tenant only")))
        }
    }
}

impl Control {
    /// Who a bearer's secret (its SHA-256 in lower-case hexadecimal) speaks for. `None`: unknown, or expired at `wall`.
    pub fn authenticate(&self, secret_sha256: &str, wall: TimeMs) -> Option<Actor> {
        let key = drover_model::v1::secret_key(secret_sha256);
        let token: &ApiToken = self.tables.api_tokens.referring_to(&key).next()?;
        let holds = token.expires_at.is_none_or(|at| wall < at);
        holds.then(|| Actor { name: token.id.to_string(), role: token.role.clone() })
    }
}

/// One per host: a new one takes the place of an unused one.
pub fn create_join_token(control: &mut Control, token: JoinToken) -> Result<Reply, Refusal> {
    let older: Vec<TokenId> =
        control.tables.all::<JoinToken>().filter(|t| t.host == token.host).map(|t| t.id.clone()).collect();
    for id in older {
        control.tables.remove::<JoinToken>(&id);
    }
    let id = token.id.clone();
    control.tables.put(token);
    Ok(Reply::Token(id))
}

pub fn join(
    control: &mut Control,
    now: TimeMs,
    host: &HostId,
    id: &TokenId,
    secret_sha256: &str,
) -> Result<Reply, Refusal> {
    let refused = |what: &str| {
        let detail = format!("{what}: make a new one with `drover host token {host}`");
        Err(Refusal::new(RefusalKind::Unauthorized, detail))
    };
    let Some(token) = control.tables.get::<JoinToken>(id).filter(|token| token.secret_sha256 == secret_sha256) else {
        return refused("this join token is unknown or was used already");
    };
    if control.to_wall(now) >= token.expires_at {
        return refused("this join token has expired");
    }
    if token.host != *host {
        return refused(&format!("this join token is for another host, not for {host}"));
    }
    control.tables.remove::<JoinToken>(id);
    if control.host(host).is_none() {
        control.tables.put(Host {
            id: host.clone(),
            joined_at: control.to_wall(now),
            maintenance: false,
            drained_at: None,
            power: PowerIntent::On,
            capacity: None,
            networks: Default::default(),
            overlay_address: None,
            boot_time: None,
            attributes: Default::default(),
            power_cycles: 0,
            off_since: None,
            wake_failed: None,
            lost: None,
        });
    }
    control.tables.event(
        now,
        Severity::Info,
        format!("host/{host}"),
        None,
        "host-joined",
        format!("{host} has joined"),
    );
    Ok(Reply::Host(host.clone()))
}
