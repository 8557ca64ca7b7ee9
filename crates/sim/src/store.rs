//! The store in memory, with the contract that every store keeps ([`crate::contract`]): all or nothing, compare-and-swap
//! per object, the revision exactly one higher, only the holder of the lease writes. Everything is kept as JSON text,
//! so that what would be lost on a disk is lost here.

use drover_control::EVENTS_MAX;
use drover_control::interface::{
    Commit, Object, ObjectKey, PatternWrites, PersistedState, Stored, StoredPattern, Write,
};
use drover_control::journal::{Append, Changed, Changes, EventRange, Position, Record, RecordRange, Stream};
use drover_model::event::Event;
use drover_model::v1::ChangeOp;
use drover_model::{Millis, Revision, TimeMs, VmId};
use std::collections::{BTreeMap, VecDeque};

/// How long a holder of the lease that says nothing keeps it.
pub const LEASE_TERM: Millis = Millis::secs(15);
/// Old entries deleted at once, of each sort.
const DELETED_AT_ONCE_MAX: usize = 500;
/// Revisions of which the change log is kept.
const CHANGES_MAX: u64 = 200;

/// Why a commit did not (or perhaps did not) happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    #[error("the disk is full")]
    Full,
    /// The write reached the disk and its confirmation did not.
    #[error("the disk did not confirm the write")]
    Unconfirmed,
    /// Not a fault but a defect of whoever made the commit.
    #[error("the commit breaks the store's contract: {what}")]
    Contract { breach: Breach, what: String },
}

/// What a commit expected and did not find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breach {
    Revision,
    Object,
    Record,
    Lease,
    Json,
}

/// What the next commit runs into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFault {
    Full,
    Unconfirmed,
}

/// Of one holder of the lease; every write carries it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(pub u64);

#[derive(Debug, Default)]
struct Lease {
    epoch: Epoch,
    expires_at: TimeMs,
}

#[derive(Debug, Default)]
pub struct Store {
    revision: Revision,
    objects: BTreeMap<ObjectKey, (Revision, String)>,
    events: VecDeque<String>,
    patterns: BTreeMap<VmId, String>,
    records: BTreeMap<Position, Append>,
    last_position: Position,
    retention: BTreeMap<Stream, Option<Millis>>,
    changes: VecDeque<Changed>,
    /// Up to here, changes were deleted.
    compacted: Revision,
    lease: Lease,
    fault: Option<DiskFault>,
}

impl Store {
    pub fn revision(&self) -> Revision {
        self.revision
    }

    pub fn break_next(&mut self, fault: DiskFault) {
        self.fault = Some(fault);
    }

    pub fn heal(&mut self) {
        self.fault = None;
    }

    /// A server takes the lease: at once when the holder is gone, otherwise once it has expired. `Err`: how long yet.
    pub fn take_lease(&mut self, now: TimeMs, holder_lives: bool) -> Result<Epoch, Millis> {
        let left = self.lease.expires_at.since(now);
        if holder_lives && left > Millis(0) {
            return Err(left);
        }
        self.lease = Lease { epoch: Epoch(self.lease.epoch.0 + 1), expires_at: now.plus(LEASE_TERM) };
        Ok(self.lease.epoch)
    }

    pub fn release(&mut self, epoch: Epoch) -> Result<(), CommitError> {
        self.hold(epoch)?;
        self.lease = Lease { epoch: Epoch(epoch.0 + 1), expires_at: TimeMs(0) };
        Ok(())
    }

    fn hold(&self, epoch: Epoch) -> Result<(), CommitError> {
        if self.lease.epoch == epoch {
            return Ok(());
        }
        let what = format!("the lease of epoch {} was taken over in epoch {}", epoch.0, self.lease.epoch.0);
        Err(CommitError::Contract { breach: Breach::Lease, what })
    }

    pub fn commit(&mut self, epoch: Epoch, now: TimeMs, commit: &Commit) -> Result<(), CommitError> {
        match self.fault.take() {
            Some(DiskFault::Full) => return Err(CommitError::Full),
            Some(DiskFault::Unconfirmed) => {
                self.write(epoch, now, commit)?;
                return Err(CommitError::Unconfirmed);
            }
            None => {}
        }
        self.write(epoch, now, commit)
    }

    fn write(&mut self, epoch: Epoch, now: TimeMs, commit: &Commit) -> Result<(), CommitError> {
        let broken = |breach, what: String| Err(CommitError::Contract { breach, what });
        self.hold(epoch)?;
        if commit.revision != self.revision.next() {
            return broken(Breach::Revision, format!("revision {} follows {}", commit.revision, self.revision));
        }
        for write in &commit.writes {
            let (key, expected) = match write {
                Write::Put { object, expected } => (object.key(), *expected),
                Write::Delete { key, expected, tenant: _ } => (key.clone(), Some(*expected)),
            };
            let found = self.objects.get(&key).map(|(revision, _)| *revision);
            if found != expected {
                let what = format!("{} {} is at {found:?}, expected {expected:?}", key.kind, key.id);
                return broken(Breach::Object, what);
            }
        }
        let mut appended: Vec<&Append> = Vec::new();
        for record in &commit.appends {
            let same = |known: &&Append| known.stream == record.stream && known.key == record.key;
            let known = appended.iter().copied().find(same).or_else(|| self.records.values().find(same));
            match known {
                Some(known) if known.body == record.body => {}
                Some(_) => {
                    let what = format!("{} has another record under {:?}", record.stream, record.key);
                    return broken(Breach::Record, what);
                }
                None => appended.push(record),
            }
        }
        let mut texts = Vec::new();
        for write in &commit.writes {
            let Write::Put { object, .. } = write else { continue };
            match written(object) {
                Ok(text) => texts.push(text),
                Err(what) => return broken(Breach::Json, what),
            }
        }
        let mut events = Vec::new();
        for event in &commit.events {
            match serde_json::to_string(event) {
                Ok(text) => events.push(text),
                Err(error) => return broken(Breach::Json, format!("event {} can't be written: {error}", event.seq)),
            }
        }
        // From here on nothing fails.
        let mut texts = texts.into_iter();
        let mut changes = Vec::new();
        for write in &commit.writes {
            let (key, op, tenant) = match write {
                Write::Put { object, .. } => {
                    self.objects.insert(object.key(), (commit.revision, texts.next().unwrap_or_default()));
                    (object.key(), ChangeOp::Put, object.tenant().cloned())
                }
                Write::Delete { key, tenant, .. } => {
                    self.objects.remove(key);
                    (key.clone(), ChangeOp::Delete, tenant.clone())
                }
            };
            changes.push(Changed { revision: commit.revision, kind: key.kind.into_owned(), id: key.id, op, tenant });
        }
        changes.sort_by(|a, b| (&a.kind, &a.id).cmp(&(&b.kind, &b.id)));
        self.changes.extend(changes);
        self.events.extend(events);
        while self.events.len() > EVENTS_MAX {
            self.events.pop_front();
        }
        for record in appended {
            self.last_position = Position(self.last_position.0 + 1);
            self.records.insert(self.last_position, record.clone());
        }
        self.retention.extend(commit.retention.iter().map(|said| (said.stream.clone(), said.keep_for)));
        self.write_patterns(&commit.patterns);
        self.revision = commit.revision;
        self.lease.expires_at = now.plus(LEASE_TERM);
        Ok(())
    }

    fn write_patterns(&mut self, patterns: &PatternWrites) {
        self.patterns.extend(patterns.kept.iter().map(|pattern| (pattern.vm.clone(), pattern.json.clone())));
        self.patterns.retain(|vm, _| !patterns.forgotten.contains(vm));
    }

    /// Never fails by a fault of the disk: it is part of no commit, and lost it is learned anew.
    pub fn keep(&mut self, epoch: Epoch, patterns: &PatternWrites) -> Result<(), CommitError> {
        self.hold(epoch)?;
        self.write_patterns(patterns);
        Ok(())
    }

    /// Renews the lease, and deletes old changes and records: a batch at a time.
    pub fn maintain(&mut self, epoch: Epoch, now: TimeMs) -> Result<(), CommitError> {
        self.hold(epoch)?;
        self.lease.expires_at = now.plus(LEASE_TERM);
        let floor = Revision(self.revision.0.saturating_sub(CHANGES_MAX));
        let old = self.changes.iter().take_while(|change| change.revision <= floor).take(DELETED_AT_ONCE_MAX);
        if let Some(upto) = old.last().map(|change| change.revision) {
            self.changes.retain(|change| change.revision > upto);
            self.compacted = upto;
        }
        let too_old = |record: &Append| {
            let keep_for = self.retention.get(&record.stream).copied().flatten();
            keep_for.is_some_and(|span| now.since(record.at) > span)
        };
        let old: Vec<Position> = self.records.iter().filter(|(_, record)| too_old(record)).map(|(at, _)| *at).collect();
        for position in old.into_iter().take(DELETED_AT_ONCE_MAX) {
            self.records.remove(&position);
        }
        Ok(())
    }

    pub fn load(&self) -> Result<PersistedState, serde_json::Error> {
        let objects = self
            .objects
            .values()
            .map(|(revision, text)| Ok(Stored { revision: *revision, object: serde_json::from_str(text)? }))
            .collect::<Result<_, serde_json::Error>>()?;
        let events = self.read_events()?;
        let kept = |(vm, json): (&VmId, &String)| StoredPattern { vm: vm.clone(), json: json.clone() };
        let patterns = self.patterns.iter().map(kept).collect();
        Ok(PersistedState { objects, events, revision: self.revision, patterns })
    }

    fn read_events(&self) -> Result<Vec<Event>, serde_json::Error> {
        self.events.iter().map(|text| serde_json::from_str(text)).collect()
    }

    pub fn events(&self, range: &EventRange) -> Result<Vec<Event>, serde_json::Error> {
        let mut events = self.read_events()?;
        events.retain(|event| {
            range.after.is_none_or(|after| event.seq > after)
                && range.before.is_none_or(|before| event.seq < before)
                && range.since.is_none_or(|since| event.at >= since)
                && event.severity >= range.severity
                && range.tenant.as_ref().is_none_or(|tenant| event.tenant.as_ref() == Some(tenant))
                && range.object.as_ref().is_none_or(|object| event.object == *object)
        });
        if range.after.is_some() {
            events.truncate(range.limit);
        } else {
            events.drain(..events.len().saturating_sub(range.limit));
        }
        Ok(events)
    }

    pub fn changes(&self, after: Revision, limit: usize) -> Changes {
        if after < self.compacted || after > self.revision {
            return Changes::ListAnew { newest: self.revision };
        }
        let mut changes: Vec<Changed> = Vec::new();
        let mut seen = self.revision;
        for change in self.changes.iter().filter(|change| change.revision > after) {
            let new_revision = changes.last().is_some_and(|last| last.revision < change.revision);
            if new_revision {
                let whole = self.changes.iter().filter(|other| other.revision == change.revision).count();
                if changes.len() + whole > limit {
                    seen = Revision(change.revision.0 - 1);
                    break;
                }
            }
            changes.push(change.clone());
        }
        Changes::Read { changes, seen, more: seen < self.revision }
    }

    pub fn records(&self, stream: &Stream, range: &RecordRange) -> Vec<Record> {
        let record = |(position, record): (&Position, &Append)| Record {
            position: *position,
            key: record.key.clone(),
            body: record.body.clone(),
            at: record.at,
        };
        self.records
            .range(Position(range.after.0 + 1)..)
            .filter(|(_, record)| record.stream == *stream)
            .filter(|(_, record)| range.between.is_none_or(|(from, to)| (from..to).contains(&record.at)))
            .take(range.limit)
            .map(record)
            .collect()
    }
}

/// As JSON that was read back.
fn written(object: &Object) -> Result<String, String> {
    let key = object.key();
    let text = serde_json::to_string(object).map_err(|error| format!("{key:?} can't be written: {error}"))?;
    match serde_json::from_str::<Object>(&text) {
        Ok(read) if read == *object => Ok(text),
        Ok(_) => Err(format!("{key:?} reads back as another value")),
        Err(error) => Err(format!("{key:?} can't be read back: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{self, CHANGES_KEPT, Refused, ServerId, Subject};
    use drover_model::intent::Tenant;

    #[derive(Default)]
    struct InMemory {
        store: Store,
        now: TimeMs,
        /// The epoch of each server, and whether its process is there.
        servers: Vec<(Epoch, bool)>,
    }

    fn refused(error: CommitError) -> Refused {
        match error {
            CommitError::Contract { breach: Breach::Revision, .. } => Refused::Revision,
            CommitError::Contract { breach: Breach::Object, .. } => Refused::Object,
            CommitError::Contract { breach: Breach::Record, .. } => Refused::Record,
            CommitError::Contract { breach: Breach::Lease, .. } => Refused::LeaseLost,
            CommitError::Contract { breach: Breach::Json, .. } | CommitError::Full | CommitError::Unconfirmed => {
                panic!("{error}")
            }
        }
    }

    impl Subject for InMemory {
        fn open(&mut self) -> Result<ServerId, Refused> {
            let holder_lives = self.servers.iter().any(|(epoch, lives)| *lives && *epoch == self.store.lease.epoch);
            let epoch = self.store.take_lease(self.now, holder_lives).map_err(|_left| Refused::LeaseHeld)?;
            self.servers.push((epoch, true));
            Ok(ServerId(self.servers.len() - 1))
        }

        fn kill(&mut self, server: ServerId) {
            self.servers[server.0].1 = false;
        }

        fn hang(&mut self, _server: ServerId) {
            self.now = self.now.plus(LEASE_TERM);
        }

        fn release(&mut self, server: ServerId) -> Result<(), Refused> {
            self.store.release(self.servers[server.0].0).map_err(refused)
        }

        fn commit(&mut self, server: ServerId, commit: &Commit) -> Result<(), Refused> {
            self.store.commit(self.servers[server.0].0, self.now, commit).map_err(refused)
        }

        fn keep(&mut self, server: ServerId, patterns: &PatternWrites) -> Result<(), Refused> {
            self.store.keep(self.servers[server.0].0, patterns).map_err(refused)
        }

        fn maintain(&mut self, server: ServerId, now: TimeMs) -> Result<(), Refused> {
            // The simulator has one clock: the database's never goes back.
            self.now = self.now.max(now);
            self.store.maintain(self.servers[server.0].0, self.now).map_err(refused)
        }

        fn load(&mut self, _server: ServerId) -> PersistedState {
            self.store.load().unwrap()
        }

        fn events(&mut self, _server: ServerId, range: &EventRange) -> Vec<Event> {
            self.store.events(range).unwrap()
        }

        fn changes(&mut self, _server: ServerId, after: Revision, limit: usize) -> Changes {
            self.store.changes(after, limit)
        }

        fn records(&mut self, _server: ServerId, stream: &Stream, range: &RecordRange) -> Vec<Record> {
            self.store.records(stream, range)
        }
    }

    #[test]
    fn the_store_in_memory_keeps_the_contract_of_all_stores() {
        assert_eq!(CHANGES_KEPT, CHANGES_MAX);
        for (name, clause) in contract::CLAUSES {
            println!("{name}");
            clause(&mut InMemory::default());
        }
    }

    #[test]
    fn a_full_disk_loses_the_commit_and_an_unconfirmed_one_keeps_it() {
        let object = Object::Tenant(Tenant {
            id: "tn-a".parse().unwrap(),
            name: "a".parse().unwrap(),
            created_at: TimeMs(1),
            labels: Default::default(),
            quota: Default::default(),
            provider_networks: Default::default(),
        });
        let writes = vec![Write::Put { object, expected: None }];
        let commit = Commit { revision: Revision(1), writes, ..Commit::default() };
        let mut store = Store::default();
        let epoch = store.take_lease(TimeMs(0), false).unwrap();
        store.break_next(DiskFault::Full);
        assert_eq!(store.commit(epoch, TimeMs(0), &commit), Err(CommitError::Full));
        assert_eq!(store.revision(), Revision(0));
        store.break_next(DiskFault::Unconfirmed);
        assert_eq!(store.commit(epoch, TimeMs(0), &commit), Err(CommitError::Unconfirmed));
        assert_eq!(store.revision(), Revision(1));
    }
}
