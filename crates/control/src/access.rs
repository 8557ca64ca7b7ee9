//! Who may come in: tenants, API tokens, join tokens, and a host's joining.

use crate::Control;
use crate::interface::{Refusal, RefusalKind, Reply};
use drover_model::event::Severity;
use drover_model::intent::{ApiToken, Host, JoinToken, PowerIntent, Role, Tenant};
use drover_model::{HostId, TenantName, TimeMs, TokenId};

const TOKENS_MAX: usize = 10_000;

pub fn create_tenant(control: &mut Control, now: TimeMs, id: TenantName) -> Result<Reply, Refusal> {
    if control.tenant(&id).is_some() {
        return Err(Refusal::conflict(format!("there is a tenant {id} already: choose another name")).at("name"));
    }
    control.tables.put(Tenant { id: id.clone(), created_at: control.to_wall(now) });
    control.tables.event(
        now,
        Severity::Info,
        format!("tenant/{id}"),
        None,
        "tenant-created",
        format!("tenant {id} was made"),
    );
    Ok(Reply::Tenant(id))
}

pub fn remove_tenant(control: &mut Control, now: TimeMs, id: &TenantName) -> Result<Reply, Refusal> {
    control.require::<Tenant>(id, "tenant")?;
    let vms = control.vms().filter(|vm| vm.spec.tenant == *id).count();
    if vms > 0 {
        return Err(Refusal::conflict(format!("{id} still has {vms} vms: remove them first")));
    }
    let networks = control.networks().filter(|network| network.tenant == *id).count();
    let groups = control.security_groups().filter(|group| group.tenant == *id).count();
    if networks + groups > 0 {
        let detail = format!("{id} still has {networks} networks and {groups} security groups: remove them first");
        return Err(Refusal::conflict(detail));
    }
    let speaks_for = |token: &&ApiToken| matches!(&token.role, Role::Tenant { tenant } if tenant == id);
    let tokens: Vec<TokenId> = control.api_tokens().filter(speaks_for).map(|token| token.id.clone()).collect();
    for token in tokens {
        control.tables.remove::<ApiToken>(&token);
    }
    control.tables.remove::<Tenant>(id);
    let text = format!("tenant {id} was removed, and its tokens with it");
    control.tables.event(now, Severity::Info, format!("tenant/{id}"), None, "tenant-removed", text);
    Ok(Reply::Done)
}

pub fn create_token(control: &mut Control, now: TimeMs, token: ApiToken) -> Result<Reply, Refusal> {
    if let Role::Tenant { tenant } = &token.role {
        control.require::<Tenant>(tenant, "tenant").map_err(|refusal| refusal.at("tenant"))?;
    }
    if control.tables.get::<ApiToken>(&token.id).is_some() {
        return Err(Refusal::conflict(format!("there is a token {} already: choose another name", token.id)).at("name"));
    }
    if control.tables.api_tokens.len() >= TOKENS_MAX {
        return Err(Refusal::conflict(format!("there are {TOKENS_MAX} tokens: remove some first")));
    }
    let id = token.id.clone();
    control.tables.put(token);
    control.tables.event(
        now,
        Severity::Info,
        format!("token/{id}"),
        None,
        "token-created",
        format!("token {id} was made"),
    );
    Ok(Reply::Token(id))
}

pub fn remove_token(control: &mut Control, now: TimeMs, id: &TokenId) -> Result<Reply, Refusal> {
    let operators = control.api_tokens().filter(|token| token.role == Role::Operator && token.expires_at.is_none());
    let last = operators.map(|token| &token.id).eq([id]);
    control.require::<ApiToken>(id, "token")?;
    if last {
        return Err(Refusal::conflict(
            "this is the last operator token that does not expire: make another first, or nobody could".to_owned(),
        ));
    }
    control.tables.remove::<ApiToken>(id);
    control.tables.event(
        now,
        Severity::Info,
        format!("token/{id}"),
        None,
        "token-removed",
        format!("token {id} was removed"),
    );
    Ok(Reply::Done)
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
