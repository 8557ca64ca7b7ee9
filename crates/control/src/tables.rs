//! The intent in memory, row for row as in the store, and the transaction that one step makes of its changes.
//!
//! `Control` is the store's only writer, so the rows here are the truth as soon as the step's
//! [`Commit`] is durable. Every change goes through [`Tables::put`] and [`Tables::remove`], which keep the
//! revision each object had before the step: the store checks it again.

use crate::interface::{Commit, Idempotency, Object, ObjectKey, Stored, Write};
use crate::journal::{Append, Retention};
use drover_model::event::{Event, EventActor, Severity};
use drover_model::intent::{ApiToken, Host, Image, JoinToken, Tenant, Vm};
use drover_model::migration::MigrationRecord;
use drover_model::network::{Network, Port, SecurityGroup};
use drover_model::placement::PlacementRule;
use drover_model::plan::PlanRecord;
use drover_model::policy::Policy;
use drover_model::{
    EventSeq, HostId, ImageId, MigrationId, NetworkId, PlanId, PortId, Revision, RuleId, SecurityGroupId, TenantName,
    TimeMs, TokenId, VmId,
};
use std::collections::{BTreeMap, VecDeque};

/// Events kept in memory for the API; the store keeps at least as many.
pub const EVENTS_MAX: usize = 10_000;

#[derive(Debug, Clone, PartialEq)]
pub struct Row<T> {
    pub revision: Revision,
    pub value: T,
}

pub type Table<K, T> = BTreeMap<K, Row<T>>;

#[derive(Debug, Default)]
pub struct Tables {
    /// Of the last commit; the step under way makes the next one.
    pub revision: Revision,
    pub tenants: Table<TenantName, Tenant>,
    pub api_tokens: Table<TokenId, ApiToken>,
    pub join_tokens: Table<TokenId, JoinToken>,
    pub hosts: Table<HostId, Host>,
    pub images: Table<ImageId, Image>,
    pub vms: Table<VmId, Vm>,
    pub migrations: Table<MigrationId, MigrationRecord>,
    pub plans: Table<PlanId, PlanRecord>,
    pub policy: Table<(), Policy>,
    pub idempotency: Table<String, Idempotency>,
    pub networks: Table<NetworkId, Network>,
    /// A group's name is unique within its tenant.
    pub security_groups: Table<(TenantName, SecurityGroupId), SecurityGroup>,
    pub ports: Table<PortId, Port>,
    pub rules: Table<RuleId, PlacementRule>,
    pub events: VecDeque<Event>,
    /// Records that the step under way adds to the store's streams.
    pub appends: Vec<Append>,
    /// How long streams keep their records, where the step under way says so.
    pub retention: Vec<Retention>,
    /// Whose request is being handled: every event made meanwhile says so.
    pub actor: Option<EventActor>,
    next_event: EventSeq,
    changes: Changes,
}

/// What the step under way has changed so far.
#[derive(Debug, Default)]
struct Changes {
    writes: BTreeMap<ObjectKey, Change>,
    events: Vec<Event>,
}

#[derive(Debug)]
struct Change {
    /// The revision before the step; `None` if the object is new in it.
    before: Option<Revision>,
    tenant: Option<TenantName>,
    /// `None`: removed.
    object: Option<Object>,
}

/// A kind of object that has a table here.
pub trait Entity: Clone + Sized {
    type Key: Ord + Clone;
    fn key(&self) -> Self::Key;
    fn table(tables: &Tables) -> &Table<Self::Key, Self>;
    fn table_mut(tables: &mut Tables) -> &mut Table<Self::Key, Self>;
    fn wrap(self) -> Object;
}

macro_rules! entity {
    ($type:ty, $key:ty, $table:ident, $wrap:path, |$value:ident| $of:expr) => {
        impl Entity for $type {
            type Key = $key;
            fn key(&self) -> $key {
                let $value = self;
                $of
            }
            fn table(tables: &Tables) -> &Table<$key, Self> {
                &tables.$table
            }
            fn table_mut(tables: &mut Tables) -> &mut Table<$key, Self> {
                &mut tables.$table
            }
            fn wrap(self) -> Object {
                $wrap(self)
            }
        }
    };
}

entity!(Tenant, TenantName, tenants, Object::Tenant, |t| t.id.clone());
entity!(ApiToken, TokenId, api_tokens, Object::ApiToken, |t| t.id.clone());
entity!(JoinToken, TokenId, join_tokens, Object::JoinToken, |t| t.id.clone());
entity!(Host, HostId, hosts, Object::Host, |h| h.id.clone());
entity!(Image, ImageId, images, Object::Image, |i| i.id.clone());
entity!(Vm, VmId, vms, Object::Vm, |v| v.id.clone());
entity!(MigrationRecord, MigrationId, migrations, Object::Migration, |m| m.id);
entity!(PlanRecord, PlanId, plans, Object::Plan, |p| p.id);
entity!(Policy, (), policy, Object::Policy, |_p| ());
entity!(Idempotency, String, idempotency, Object::Idempotency, |i| i.key.clone());
entity!(Network, NetworkId, networks, Object::Network, |n| n.id.clone());
entity!(SecurityGroup, (TenantName, SecurityGroupId), security_groups, Object::SecurityGroup, |g| (
    g.tenant.clone(),
    g.id.clone()
));
entity!(Port, PortId, ports, Object::Port, |p| p.id.clone());
entity!(PlacementRule, RuleId, rules, Object::PlacementRule, |r| r.id.clone());

impl Tables {
    pub fn load(stored: Vec<Stored>, events: Vec<Event>, revision: Revision) -> Self {
        let mut tables = Self { revision, ..Self::default() };
        fn insert<T: Entity>(tables: &mut Tables, revision: Revision, value: T) {
            T::table_mut(tables).insert(value.key(), Row { revision, value });
        }
        for Stored { revision, object } in stored {
            match object {
                Object::Tenant(value) => insert(&mut tables, revision, value),
                Object::ApiToken(value) => insert(&mut tables, revision, value),
                Object::JoinToken(value) => insert(&mut tables, revision, value),
                Object::Host(value) => insert(&mut tables, revision, value),
                Object::Image(value) => insert(&mut tables, revision, value),
                Object::Vm(value) => insert(&mut tables, revision, value),
                Object::Migration(value) => insert(&mut tables, revision, value),
                Object::Plan(value) => insert(&mut tables, revision, value),
                Object::Policy(value) => insert(&mut tables, revision, value),
                Object::Idempotency(value) => insert(&mut tables, revision, value),
                Object::Network(value) => insert(&mut tables, revision, value),
                Object::SecurityGroup(value) => insert(&mut tables, revision, value),
                Object::Port(value) => insert(&mut tables, revision, value),
                Object::PlacementRule(value) => insert(&mut tables, revision, value),
            }
        }
        tables.next_event = events.last().map_or(EventSeq(1), |event| event.seq.next());
        tables.events = events.into();
        tables
    }

    pub fn get<T: Entity>(&self, key: &T::Key) -> Option<&T> {
        T::table(self).get(key).map(|row| &row.value)
    }

    pub fn all<T: Entity + 'static>(&self) -> impl DoubleEndedIterator<Item = &T> {
        T::table(self).values().map(|row| &row.value)
    }

    pub fn put<T: Entity>(&mut self, value: T) {
        let revision = self.revision.next();
        let key = value.key();
        let before = T::table_mut(self).insert(key, Row { revision, value: value.clone() }).map(|row| row.revision);
        let object = value.wrap();
        let change = self.changes.writes.entry(object.key()).or_insert(Change { before, tenant: None, object: None });
        change.object = Some(object);
    }

    /// Changes an object in place and notes it for the commit. Nothing happens if it is not there.
    pub fn change<T: Entity>(&mut self, key: &T::Key, change: impl FnOnce(&mut T)) {
        if let Some(mut value) = self.get::<T>(key).cloned() {
            change(&mut value);
            self.put(value);
        }
    }

    pub fn remove<T: Entity>(&mut self, key: &T::Key) {
        if let Some(Row { revision, value }) = T::table_mut(self).remove(key) {
            let object = value.wrap();
            let change = self.changes.writes.entry(object.key()).or_insert(Change {
                before: Some(revision),
                tenant: None,
                object: None,
            });
            change.tenant = object.tenant().cloned();
            change.object = None;
        }
    }

    /// Notes what happened; durable with the step's other changes.
    pub fn event(
        &mut self,
        at: TimeMs,
        severity: Severity,
        object: impl Into<String>,
        tenant: Option<&TenantName>,
        kind: &str,
        text: impl Into<String>,
    ) {
        let event = Event {
            seq: self.next_event,
            at,
            severity,
            object: object.into(),
            tenant: tenant.cloned(),
            kind: kind.to_owned(),
            text: text.into(),
            actor: self.actor.clone(),
        };
        self.next_event = self.next_event.next();
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event.clone());
        self.changes.events.push(event);
    }

    /// The objects that the step under way has changed so far.
    pub fn changed(&self) -> impl Iterator<Item = &ObjectKey> {
        self.changes.writes.keys()
    }

    /// Ends the step: everything it changed, as one transaction; `None` if it changed nothing.
    pub fn take_commit(&mut self) -> Option<Commit> {
        let Changes { writes, events } = std::mem::take(&mut self.changes);
        let writes: Vec<Write> = writes
            .into_iter()
            .filter_map(|(key, change)| match (change.object, change.before) {
                (Some(object), expected) => Some(Write::Put { object, expected }),
                (None, Some(expected)) => Some(Write::Delete { key, expected, tenant: change.tenant }),
                // Made and removed within the step.
                (None, None) => None,
            })
            .collect();
        let appends = std::mem::take(&mut self.appends);
        let retention = std::mem::take(&mut self.retention);
        if writes.is_empty() && events.is_empty() && appends.is_empty() && retention.is_empty() {
            return None;
        }
        self.revision = self.revision.next();
        Some(Commit { revision: self.revision, writes, events, appends, retention, ..Commit::default() })
    }

    pub fn revision_of(&self, key: &ObjectKey) -> Option<Revision> {
        fn of<K: Ord, T>(table: &Table<K, T>, key: Option<K>) -> Option<Revision> {
            table.get(&key?).map(|row| row.revision)
        }
        let id = key.id.as_str();
        match key.kind {
            "tenant" => of(&self.tenants, id.parse().ok()),
            "api-token" => of(&self.api_tokens, id.parse().ok()),
            "join-token" => of(&self.join_tokens, id.parse().ok()),
            "host" => of(&self.hosts, id.parse().ok()),
            "image" => of(&self.images, id.parse().ok()),
            "vm" => of(&self.vms, id.parse().ok()),
            "migration" => of(&self.migrations, id.parse().ok()),
            "plan" => of(&self.plans, id.parse().ok()),
            "policy" => of(&self.policy, Some(())),
            "idempotency" => of(&self.idempotency, Some(id.to_owned())),
            "network" => of(&self.networks, id.parse().ok()),
            "security-group" => {
                let key = id.split_once('/').and_then(|(tenant, id)| tenant.parse().ok().zip(id.parse().ok()));
                of(&self.security_groups, key)
            }
            "port" => of(&self.ports, id.parse().ok()),
            "placement-rule" => of(&self.rules, id.parse().ok()),
            _ => None,
        }
    }

    /// The next free plan number. Retention keeps the newest, so numbers are never used twice.
    pub fn next_plan(&self) -> PlanId {
        self.plans.last_key_value().map_or(PlanId(1), |(id, _)| id.next())
    }

    pub fn next_migration(&self) -> MigrationId {
        self.migrations.last_key_value().map_or(MigrationId(1), |(id, _)| id.next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Owner, Stream, Topic};
    use drover_model::Millis;
    use drover_model::intent::Role;

    fn tenant(id: &str) -> Tenant {
        Tenant { id: id.parse().unwrap(), created_at: TimeMs(1) }
    }

    #[test]
    fn one_step_makes_one_transaction_that_expects_what_was_before() {
        let mut tables = Tables::default();
        tables.put(tenant("a"));
        let commit = tables.take_commit().unwrap();
        assert_eq!(commit.revision, Revision(1));
        assert_eq!(commit.writes, [Write::Put { object: Object::Tenant(tenant("a")), expected: None }]);

        let mut changed = tenant("a");
        changed.created_at = TimeMs(2);
        tables.put(changed.clone());
        changed.created_at = TimeMs(3);
        tables.put(changed.clone());
        let commit = tables.take_commit().unwrap();
        assert_eq!(commit.writes, [Write::Put { object: Object::Tenant(changed), expected: Some(Revision(1)) }]);
        assert_eq!(tables.take_commit(), None);
    }

    #[test]
    fn an_object_made_and_removed_within_a_step_leaves_no_trace() {
        let mut tables = Tables::default();
        tables.put(tenant("a"));
        tables.remove::<Tenant>(&"a".parse().unwrap());
        assert_eq!(tables.take_commit(), None);
        tables.put(tenant("b"));
        tables.take_commit();
        tables.remove::<Tenant>(&"b".parse().unwrap());
        let commit = tables.take_commit().unwrap();
        let key = ObjectKey { kind: "tenant", id: "b".to_owned() };
        let tenant = Some("b".parse().unwrap());
        assert_eq!(commit.writes, [Write::Delete { key, expected: Revision(1), tenant }]);
    }

    #[test]
    fn records_and_events_of_a_step_are_in_its_transaction_and_in_no_other() {
        let mut tables = Tables::default();
        let stream = Stream { topic: Topic::Audit, owner: Owner::Cluster };
        let record = Append { stream: stream.clone(), key: "a".to_owned(), body: "{}".to_owned(), at: TimeMs(5) };
        tables.appends.push(record.clone());
        let commit = tables.take_commit().unwrap();
        assert_eq!((commit.revision, commit.appends), (Revision(1), vec![record]));
        let retention = Retention { stream, keep_for: Some(Millis(7)) };
        tables.retention.push(retention.clone());
        assert_eq!(tables.take_commit().unwrap().retention, [retention]);

        let actor = EventActor { name: "ops".to_owned(), role: Role::Operator };
        tables.actor = Some(actor.clone());
        tables.event(TimeMs(6), Severity::Info, "cluster", None, "test", "asked for");
        tables.actor = None;
        tables.event(TimeMs(6), Severity::Info, "cluster", None, "test", "by itself");
        let actors: Vec<_> = tables.take_commit().unwrap().events.into_iter().map(|event| event.actor).collect();
        assert_eq!(actors, [Some(actor), None]);
        assert_eq!(tables.take_commit(), None);
    }
}
