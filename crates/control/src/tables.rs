//! The intent in memory, row for row as in the store, and the transaction that one step makes of its changes.
//!
//! `Control` is the store's only writer, so the rows here are the truth as soon as the step's
//! [`Commit`] is durable. Every change goes through [`Tables::put`] and [`Tables::remove`], which keep the
//! revision each object had before the step (the store checks it again), what the object was before, and the indexes.
//!
//! The maps are persistent: a clone shares everything with its original until one of them changes, so a snapshot for readers
//! costs next to nothing.

use crate::interface::{Commit, Stored, Write};
use crate::journal::{Append, Retention};
use crate::kinds::{Entity, Object, Rows};
use crate::shared::SharedMap;
use crate::time::WallOffset;
use drover_model::event::{Event, EventActor, Severity};
use drover_model::kind::{Kind, ObjectKey, Owner};
use drover_model::{EventSeq, MigrationId, PlanId, Revision, TenantName, TimeMs};
use immutable_chunkmap::map::MapM;
use immutable_chunkmap::set::SetS;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Events kept in memory for the API; the store keeps at least as many.
pub const EVENTS_MAX: usize = 10_000;

#[derive(Debug, Clone, PartialEq)]
pub struct Row<T> {
    pub revision: Revision,
    pub value: T,
}

/// All objects of one kind, in the order of their keys, with the indexes by name and by what they refer to.
#[derive(Debug, Clone)]
pub struct Table<T: Kind> {
    rows: SharedMap<T::Key, Row<T>>,
    by_name: MapM<String, SetS<T::Key>>,
    by_reference: MapM<ObjectKey, SetS<T::Key>>,
}

impl<T: Kind> Default for Table<T> {
    fn default() -> Self {
        Self { rows: SharedMap::default(), by_name: MapM::new(), by_reference: MapM::new() }
    }
}

impl<T: Kind> Table<T> {
    pub fn get(&self, key: &T::Key) -> Option<&T> {
        self.rows.get(key).map(|row| &row.value)
    }

    pub fn row(&self, key: &T::Key) -> Option<&Row<T>> {
        self.rows.get(key)
    }

    pub fn contains_key(&self, key: &T::Key) -> bool {
        self.rows.contains_key(key)
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &T::Key> {
        self.rows.keys()
    }

    pub fn rows(&self) -> impl DoubleEndedIterator<Item = &Row<T>> {
        self.rows.values()
    }

    pub fn values(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.rows().map(|row| &row.value)
    }

    /// Those whose keys come after this one, in order.
    pub fn rows_after<'a>(&'a self, key: &T::Key) -> impl DoubleEndedIterator<Item = &'a Row<T>> {
        self.rows.after(key)
    }

    /// Those whose keys come before this one, in order.
    pub fn rows_before<'a>(&'a self, key: &T::Key) -> impl DoubleEndedIterator<Item = &'a Row<T>> {
        self.rows.before(key)
    }

    /// Those that people call this, whoever owns them.
    pub fn named<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a T> + use<'a, T> {
        self.all_of(self.by_name.get(name))
    }

    /// The one that its owner calls this.
    pub fn of_owner(&self, owner: Owner<'_>, name: &str) -> Option<&T> {
        self.named(name).find(|value| value.owner() == owner)
    }

    /// Those that refer to this object.
    pub fn referring_to<'a>(&'a self, target: &ObjectKey) -> impl Iterator<Item = &'a T> + use<'a, T> {
        self.all_of(self.by_reference.get(target))
    }

    pub fn count_referring_to(&self, target: &ObjectKey) -> usize {
        self.by_reference.get(target).map_or(0, SetS::len)
    }

    fn all_of<'a>(&'a self, keys: Option<&'a SetS<T::Key>>) -> impl Iterator<Item = &'a T> {
        keys.into_iter().flatten().filter_map(|key| self.get(key))
    }

    /// As the store gave it back.
    pub(crate) fn load(&mut self, row: Row<T>) {
        self.put(row);
    }

    fn put(&mut self, row: Row<T>) -> Option<Arc<Row<T>>> {
        let key = row.value.key();
        let (name, references) = (row.value.name(), row.value.references());
        let before = self.rows.insert(key.clone(), row);
        match &before {
            Some(before) if before.value.name() == name && before.value.references() == references => {}
            Some(before) => {
                self.forget(&before.value);
                self.index(key, name, references);
            }
            None => self.index(key, name, references),
        }
        before
    }

    fn remove(&mut self, key: &T::Key) -> Option<Arc<Row<T>>> {
        let before = self.rows.remove(key)?;
        self.forget(&before.value);
        Some(before)
    }

    fn index(&mut self, key: T::Key, name: String, references: Vec<ObjectKey>) {
        self.by_name.get_or_default_cow(name).insert_cow(key.clone());
        for target in references {
            self.by_reference.get_or_default_cow(target).insert_cow(key.clone());
        }
    }

    fn forget(&mut self, value: &T) {
        fn from<I: Ord + Clone + std::fmt::Debug, K: Ord + Clone + std::fmt::Debug>(
            index: &mut MapM<I, SetS<K>>,
            at: &I,
            key: &K,
        ) {
            if let Some(keys) = index.get_mut_cow(at) {
                keys.remove_cow(key);
                if keys.len() == 0 {
                    index.remove_cow(at);
                }
            }
        }
        let key = value.key();
        from(&mut self.by_name, &value.name(), &key);
        for target in value.references() {
            from(&mut self.by_reference, &target, &key);
        }
    }
}

#[derive(Debug, Clone, Default)]
pub struct Tables {
    /// Of the last commit; the step under way makes the next one.
    pub revision: Revision,
    rows: Rows,
    pub events: VecDeque<Event>,
    /// What events are dated with.
    pub wall_offset: WallOffset,
    /// Records that the step under way adds to the store's streams.
    pub appends: Vec<Append>,
    /// How long streams keep their records, where the step under way says so.
    pub retention: Vec<Retention>,
    /// Whose request is being handled: every event made meanwhile says so.
    pub actor: Option<EventActor>,
    next_event: EventSeq,
    changes: Changes,
}

impl std::ops::Deref for Tables {
    type Target = Rows;
    fn deref(&self) -> &Rows {
        &self.rows
    }
}

/// What the step under way has changed so far.
#[derive(Debug, Clone, Default)]
struct Changes {
    writes: BTreeMap<ObjectKey, Touched>,
    events: Vec<Event>,
}

#[derive(Debug, Clone)]
struct Touched {
    /// The revision before the step; `None` if the object is new in it.
    expected: Option<Revision>,
    before: Option<Object>,
    /// `None`: removed.
    after: Option<Object>,
}

/// What the step under way has done to one object.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// `None`: it was made in this step.
    pub before: Option<&'a Object>,
    /// `None`: it was removed.
    pub after: Option<&'a Object>,
}

impl Tables {
    pub fn load(stored: Vec<Stored>, events: Vec<Event>, revision: Revision) -> Self {
        let mut tables = Self { revision, ..Self::default() };
        for Stored { revision, object } in stored {
            tables.rows.insert(revision, object);
        }
        tables.next_event = events.last().map_or(EventSeq(1), |event| event.seq.next());
        tables.events = events.into();
        tables
    }

    pub fn get<T: Entity>(&self, key: &T::Key) -> Option<&T> {
        T::table(self).get(key)
    }

    pub fn all<T: Entity>(&self) -> impl DoubleEndedIterator<Item = &T> {
        T::table(self).values()
    }

    pub fn put<T: Entity>(&mut self, value: T) {
        let row = Row { revision: self.revision.next(), value: value.clone() };
        let before = T::table_mut(&mut self.rows).put(row);
        let object = value.wrap();
        let touched = self.changes.writes.entry(object.key()).or_insert_with(|| Touched {
            expected: before.as_ref().map(|row| row.revision),
            before: before.map(|row| row.value.clone().wrap()),
            after: None,
        });
        touched.after = Some(object);
    }

    /// Changes an object in place and notes it for the commit. Nothing happens if it is not there.
    pub fn change<T: Entity>(&mut self, key: &T::Key, change: impl FnOnce(&mut T)) {
        if let Some(mut value) = self.get::<T>(key).cloned() {
            change(&mut value);
            self.put(value);
        }
    }

    pub fn remove<T: Entity>(&mut self, key: &T::Key) {
        if let Some(row) = T::table_mut(&mut self.rows).remove(key) {
            let touched = self.changes.writes.entry(row.value.object_key()).or_insert_with(|| Touched {
                expected: Some(row.revision),
                before: Some(row.value.clone().wrap()),
                after: None,
            });
            touched.after = None;
        }
    }

    /// Notes what happened; durable with the step's other changes. `at` is by the cluster clock, the event is dated by the
    /// wall clock.
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
            at: self.wall_offset.to_wall(at),
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

    /// What the step under way has changed so far, in the order of kinds and keys.
    pub fn changes(&self) -> impl Iterator<Item = Change<'_>> {
        let touched = self.changes.writes.values();
        touched.map(|touched| Change { before: touched.before.as_ref(), after: touched.after.as_ref() })
    }

    /// Ends the step: everything it changed, as one transaction; `None` if it changed nothing.
    pub fn take_commit(&mut self) -> Option<Commit> {
        let Changes { writes, events } = std::mem::take(&mut self.changes);
        let writes: Vec<Write> = writes
            .into_iter()
            .filter_map(|(key, touched)| match (touched.after, touched.expected) {
                (Some(object), expected) => Some(Write::Put { object, expected }),
                (None, Some(expected)) => {
                    let tenant = touched.before.as_ref().and_then(|object| object.tenant().cloned());
                    Some(Write::Delete { key, expected, tenant })
                }
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

    /// The next free plan number. Retention keeps the newest, so numbers are never used twice.
    pub fn next_plan(&self) -> PlanId {
        self.plans.keys().next_back().map_or(PlanId(1), |id| id.next())
    }

    pub fn next_migration(&self) -> MigrationId {
        self.migrations.keys().next_back().map_or(MigrationId(1), |id| id.next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Owner, Stream, Topic};
    use drover_model::Millis;
    use drover_model::intent::Role;
    use drover_model::intent::Tenant;

    fn tenant(name: &str) -> Tenant {
        let (id, name) = (format!("tn-{name}").parse().unwrap(), name.parse().unwrap());
        Tenant {
            id,
            name,
            created_at: TimeMs(1),
            labels: Default::default(),
            quota: Default::default(),
            provider_networks: Default::default(),
        }
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
        let key = ObjectKey { kind: "tenant".into(), id: "b".to_owned() };
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
