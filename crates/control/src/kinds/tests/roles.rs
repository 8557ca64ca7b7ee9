//! Who may do what: each action by each role.

use super::*;
use drover_model::kind::Owned;
use drover_model::migration::Priority;
use drover_model::{MigrationId, PlanId, TokenId, VmId};
use std::collections::BTreeSet;

/// What a caller meets who is not an operator.
#[derive(Debug, Clone, Copy, PartialEq)]
enum May {
    Do,
    /// It is as if the object were not there.
    NotFind,
    /// His role does not allow it.
    Not,
    /// He must not say that it is somebody else's.
    NotForOthers,
}

const OWN: [May; 2] = [May::Do, May::NotFind];
const NONE: [May; 2] = [May::Not, May::Not];

/// What tenant blue may do, and what green may do with what is blue's. Every action has its place here.
fn tenants_may(action: &Action) -> [May; 2] {
    match action {
        Action::Create(draft) => match draft {
            Draft::Network(_) | Draft::SecurityGroup(_) => [May::Do, May::NotForOthers],
            Draft::Tenant(_) | Draft::Port(_) | Draft::PlacementRule(_) => NONE,
        },
        Action::Patch { key, .. } | Action::Remove { key } => match &*key.kind {
            "network" | "security-group" => OWN,
            "tenant" | "api-token" | "host" | "image" | "port" | "placement-rule" => NONE,
            other => panic!("{other} can't be changed this way"),
        },
        Action::CreateVm { .. } => [May::Do, May::Not],
        Action::SetRun { .. }
        | Action::RemoveVm { .. }
        | Action::MeasureVm { .. }
        | Action::SetSecurityGroups { .. } => OWN,
        // Its token says all.
        Action::Join { .. } => [May::Do, May::Do],
        Action::CreateToken { .. }
        | Action::CreateImage { .. }
        | Action::CreateJoinToken { .. }
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
        | Action::SetPolicy { .. } => NONE,
    }
}

/// Of what is there in [`peopled`].
fn each_action(lan: &ObjectKey) -> Vec<Action> {
    let id: VmId = "vm-a".parse().unwrap();
    let join: TokenId = "join-h3".parse().unwrap();
    let join_token = JoinToken {
        id: "join-h4".parse().unwrap(),
        secret_sha256: String::new(),
        host: host("h4"),
        created_at: TimeMs(1),
        expires_at: TimeMs(u64::MAX),
    };
    let group_id = Owned { tenant: "blue".parse().unwrap(), name: "web".parse().unwrap() };
    let keys = [
        key::<Tenant>("red"),
        key::<ApiToken>("ci"),
        key::<Host>("h2"),
        key::<Image>("big"),
        lan.clone(),
        ObjectKey::of::<SecurityGroup>(&group_id),
        key::<Port>("gw"),
        key::<PlacementRule>("seat"),
    ];
    let migration = MigrationId(1);
    let mut actions = vec![
        tenant("pink"),
        network("blue", "new"),
        group("blue", "new"),
        port("new", &lan.id),
        rule("new", "vm-a"),
        token("new", Role::Operator, "s9"),
        Action::CreateJoinToken { token: join_token },
        Action::Join { host: host("h3"), token: join, secret_sha256: String::new() },
        Action::DrainHost { host: host("h1") },
        Action::UndrainHost { host: host("h1") },
        Action::DeclareHostLost { host: host("h1") },
        Action::PowerHost { host: host("h1"), on: true },
        image("new", 1),
        vm("vm-new", small_vm("blue", "new")),
        Action::SetRun { vm: id.clone(), run: RunIntent::Stopped },
        Action::RemoveVm { vm: id.clone() },
        Action::MigrateVm { vm: id.clone(), to: None, method: None },
        Action::CancelMigration { id: migration },
        Action::HoldMigration { id: migration, held: true },
        Action::PrioritiseMigration { id: migration, priority: Priority::High },
        Action::MeasureVm { vm: id.clone(), span: Millis::secs(2) },
        Action::SetSecurityGroups { vm: id, groups: BTreeSet::new() },
        Action::PlanNow,
        Action::ApprovePlan { id: PlanId(1) },
        Action::RejectPlan { id: PlanId(1) },
        Action::SetPolicy { policy: Box::default() },
    ];
    actions.extend(keys.iter().map(|key| patch(key, json!({}))));
    actions.extend(keys.iter().map(remove));
    actions
}

/// Something of each kind, nothing of it in use but the image tiny and the networks that a port is on.
fn peopled() -> (Site, ObjectKey) {
    let mut site = site();
    site.create_vm("a");
    let lan = made(&mut site, network("blue", "lan"));
    let other = made(&mut site, network("blue", "other"));
    for action in [
        tenant("red"),
        group("blue", "web"),
        port("gw", &other.id),
        rule("seat", "vm-a"),
        image("big", 1),
        token("ci", Role::Operator, "s1"),
        token("ops", Role::Operator, "s2"),
    ] {
        site.ask(action).unwrap();
    }
    site.control.tables.put(JoinToken {
        id: "join-h3".parse().unwrap(),
        secret_sha256: String::new(),
        host: host("h3"),
        created_at: TimeMs(1),
        expires_at: TimeMs(u64::MAX),
    });
    site.pass(Millis::secs(2));
    (site, lan)
}

#[test]
fn everybody_may_do_what_the_role_allows_and_no_more() {
    let (mut site, lan) = peopled();
    let mut kinds = BTreeSet::new();
    for action in each_action(&lan) {
        kinds.insert(serde_json::to_value(&action).unwrap()["ask"].as_str().unwrap().to_owned());
        for (tenant, may) in ["blue", "green"].into_iter().zip(tenants_may(&action)) {
            let expected = match may {
                May::Do => None,
                May::NotFind => Some(RefusalKind::NotFound),
                May::Not => Some(RefusalKind::Forbidden),
                May::NotForOthers => Some(RefusalKind::Invalid),
            };
            match expected {
                Some(kind) => {
                    let refusal = refused(&mut site, of(tenant), action.clone());
                    assert_eq!(refusal.kind, kind, "{tenant}: {action:?}: {refusal}");
                    let field = (may == May::NotForOthers).then_some("tenant");
                    assert!(field.is_none() || refusal.field.as_deref() == field, "{tenant}: {action:?}");
                }
                None => allowed(of(tenant), &action),
            }
        }
        allowed(operator(), &action);
    }
    assert_eq!(kinds.len(), 24, "an action is missing: {kinds:?}");
}

/// Not refused for who asks. In a cluster of its own: it may take effect.
fn allowed(actor: Actor, action: &Action) {
    let (mut site, _) = peopled();
    if let Err(refusal) = site.ask_with(actor.clone(), None, None, action.clone()) {
        let who = matches!(refusal.kind, RefusalKind::Forbidden | RefusalKind::Unauthorized);
        let hidden = actor != operator() && refusal.kind == RefusalKind::NotFound;
        assert!(!who && !hidden, "{}: {action:?}: {refusal}", actor.name);
    }
}
