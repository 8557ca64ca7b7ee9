//! The store in memory, with the contract of [`Commit`]: all or nothing, compare-and-swap per object, the
//! revision exactly one higher. Everything is kept as JSON text, so that what would be lost on a disk is lost here.

use drover_control::EVENTS_MAX;
use drover_control::interface::{Commit, Object, ObjectKey, PersistedState, Stored, StoredPattern, Write};
use drover_model::{Revision, VmId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Why a commit did not (or perhaps did not) happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    #[error("the disk is full")]
    Full,
    /// The write reached the disk and its confirmation did not.
    #[error("the disk did not confirm the write")]
    Unconfirmed,
    /// Not a fault but a defect of whoever made the commit.
    #[error("the commit breaks the store's contract: {0}")]
    Contract(String),
}

/// What the next commit runs into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFault {
    Full,
    Unconfirmed,
}

#[derive(Debug, Default)]
pub struct Store {
    revision: Revision,
    objects: BTreeMap<ObjectKey, (Revision, String)>,
    events: VecDeque<String>,
    patterns: BTreeMap<VmId, String>,
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

    pub fn commit(&mut self, commit: &Commit) -> Result<(), CommitError> {
        match self.fault.take() {
            Some(DiskFault::Full) => return Err(CommitError::Full),
            Some(DiskFault::Unconfirmed) => {
                self.write(commit)?;
                return Err(CommitError::Unconfirmed);
            }
            None => {}
        }
        self.write(commit)
    }

    fn write(&mut self, commit: &Commit) -> Result<(), CommitError> {
        let broken = |what: String| Err(CommitError::Contract(what));
        if commit.revision != self.revision.next() {
            return broken(format!("revision {} follows {}", commit.revision, self.revision));
        }
        for write in &commit.writes {
            let (key, expected) = match write {
                Write::Put { object, expected } => (object.key(), *expected),
                Write::Delete { key, expected } => (key.clone(), Some(*expected)),
            };
            let found = self.objects.get(&key).map(|(revision, _)| *revision);
            if found != expected {
                return broken(format!("{} {} is at {found:?}, expected {expected:?}", key.kind, key.id));
            }
        }
        for write in &commit.writes {
            match write {
                Write::Put { object, .. } => {
                    let text = match serde_json::to_string(object) {
                        Ok(text) => text,
                        Err(error) => return broken(format!("{:?} can't be written: {error}", object.key())),
                    };
                    match serde_json::from_str::<Object>(&text) {
                        Ok(read) if read == *object => {}
                        Ok(_) => return broken(format!("{:?} reads back as another value", object.key())),
                        Err(error) => return broken(format!("{:?} can't be read back: {error}", object.key())),
                    }
                    self.objects.insert(object.key(), (commit.revision, text));
                }
                Write::Delete { key, .. } => {
                    self.objects.remove(key);
                }
            }
        }
        for event in &commit.events {
            match serde_json::to_string(event) {
                Ok(text) => self.events.push_back(text),
                Err(error) => return broken(format!("event {} can't be written: {error}", event.seq)),
            }
        }
        while self.events.len() > EVENTS_MAX {
            self.events.pop_front();
        }
        self.revision = commit.revision;
        Ok(())
    }

    /// Never fails by a fault: it is part of no commit, and lost it is learned anew.
    pub fn keep(&mut self, kept: Vec<StoredPattern>, forgotten: &BTreeSet<VmId>) {
        self.patterns.extend(kept.into_iter().map(|pattern| (pattern.vm, pattern.json)));
        self.patterns.retain(|vm, _| !forgotten.contains(vm));
    }

    pub fn load(&self) -> Result<PersistedState, serde_json::Error> {
        let objects = self
            .objects
            .values()
            .map(|(revision, text)| Ok(Stored { revision: *revision, object: serde_json::from_str(text)? }))
            .collect::<Result<_, serde_json::Error>>()?;
        let events =
            self.events.iter().map(|text| serde_json::from_str(text)).collect::<Result<_, serde_json::Error>>()?;
        let kept = |(vm, json): (&VmId, &String)| StoredPattern { vm: vm.clone(), json: json.clone() };
        let patterns = self.patterns.iter().map(kept).collect();
        Ok(PersistedState { objects, events, revision: self.revision, patterns })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_model::TimeMs;
    use drover_model::intent::Tenant;

    fn put(revision: u64, name: &str, expected: Option<u64>) -> Commit {
        let (id, name) = (format!("tn-{name}").parse().unwrap(), name.parse().unwrap());
        let (created_at, labels, quota) = (TimeMs(revision), Default::default(), Default::default());
        let object =
            Object::Tenant(Tenant { id, name, created_at, labels, quota, provider_networks: Default::default() });
        let writes = vec![Write::Put { object, expected: expected.map(Revision) }];
        Commit { revision: Revision(revision), writes, events: Vec::new() }
    }

    #[test]
    fn a_commit_that_expects_something_else_changes_nothing() {
        let mut store = Store::default();
        store.commit(&put(1, "a", None)).unwrap();
        for wrong in [put(2, "a", None), put(3, "b", None), put(2, "b", Some(1)), put(2, "a", Some(2))] {
            assert!(matches!(store.commit(&wrong), Err(CommitError::Contract(_))), "{wrong:?}");
        }
        assert_eq!(store.revision(), Revision(1));
        store.commit(&put(2, "a", Some(1))).unwrap();
        assert_eq!(store.load().unwrap().objects.len(), 1);
    }

    #[test]
    fn a_full_disk_loses_the_commit_and_an_unconfirmed_one_keeps_it() {
        let mut store = Store::default();
        store.break_next(DiskFault::Full);
        assert_eq!(store.commit(&put(1, "a", None)), Err(CommitError::Full));
        assert_eq!(store.revision(), Revision(0));
        store.break_next(DiskFault::Unconfirmed);
        assert_eq!(store.commit(&put(1, "a", None)), Err(CommitError::Unconfirmed));
        assert_eq!(store.revision(), Revision(1));
    }
}
