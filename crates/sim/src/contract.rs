//! What every store keeps to, as tests that run against each of them: the simulator's and SQLite.
//!
//! A [`Subject`] is one database and the servers that are started on it. Each clause begins with an empty one.

use drover_control::interface::{Commit, Object, ObjectKey, PatternWrites, PersistedState, StoredPattern, Write};
use drover_control::journal::{
    Append, Changed, Changes, EventRange, Owner, Position, Record, RecordRange, Retention, Stream, Topic,
};
use drover_model::event::{Event, EventActor, Severity};
use drover_model::intent::{Role, Tenant};
use drover_model::v1::ChangeOp;
use drover_model::{EventSeq, Millis, Revision, TimeMs, VmId};
use std::collections::{BTreeMap, BTreeSet};

/// A server that was started, in the order of starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerId(pub usize);

/// What a store answers instead of doing what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    Revision,
    Object,
    Record,
    LeaseHeld,
    LeaseLost,
}

/// Revisions of which a subject keeps the change log.
pub const CHANGES_KEPT: u64 = 200;

pub trait Subject {
    /// A server is started: it takes the lease.
    fn open(&mut self) -> Result<ServerId, Refused>;
    /// Its process ends without a word.
    fn kill(&mut self, server: ServerId);
    /// It says nothing for as long as a lease lasts.
    fn hang(&mut self, server: ServerId);
    fn release(&mut self, server: ServerId) -> Result<(), Refused>;
    fn commit(&mut self, server: ServerId, commit: &Commit) -> Result<(), Refused>;
    fn keep(&mut self, server: ServerId, patterns: &PatternWrites) -> Result<(), Refused>;
    /// Once, whether or not it is due.
    fn maintain(&mut self, server: ServerId, now: TimeMs) -> Result<(), Refused>;
    fn load(&mut self, server: ServerId) -> PersistedState;
    fn events(&mut self, server: ServerId, range: &EventRange) -> Vec<Event>;
    fn changes(&mut self, server: ServerId, after: Revision, limit: usize) -> Changes;
    fn records(&mut self, server: ServerId, stream: &Stream, range: &RecordRange) -> Vec<Record>;
}

pub type Clause = fn(&mut dyn Subject);

pub const CLAUSES: [(&str, Clause); 10] = [
    ("what was committed is there after a kill", what_was_committed_is_there_after_a_kill),
    ("a conflict anywhere changes nothing", a_conflict_anywhere_changes_nothing),
    ("the revision moves by one or not", the_revision_moves_by_one_or_not),
    ("a record is written once", a_record_is_written_once),
    ("records are read by position and time", records_are_read_by_position_and_time),
    ("old records go in batches", old_records_go_in_batches),
    ("the change log replays to the objects", the_change_log_replays_to_the_objects),
    ("who lags too far behind lists anew", who_lags_too_far_behind_lists_anew),
    ("one server writes at a time", one_server_writes_at_a_time),
    ("events are found by what they are", events_are_found_by_what_they_are),
];

fn tenant(id: &str, at: u64) -> Object {
    let (labels, quota, provider_networks) = Default::default();
    let (id, name) = (format!("tn-{id}").parse().unwrap(), id.parse().unwrap());
    Object::Tenant(Tenant { id, name, created_at: TimeMs(at), labels, quota, provider_networks })
}

fn put(id: &str, at: u64, expected: Option<u64>) -> Write {
    Write::Put { object: tenant(id, at), expected: expected.map(Revision) }
}

fn delete(id: &str, expected: u64) -> Write {
    let key = ObjectKey { kind: "tenant".into(), id: id.to_owned() };
    Write::Delete { key, expected: Revision(expected), tenant: Some(id.parse().unwrap()) }
}

fn commit(revision: u64, writes: Vec<Write>) -> Commit {
    Commit { revision: Revision(revision), writes, ..Commit::default() }
}

fn event(seq: u64) -> Event {
    Event {
        seq: EventSeq(seq),
        at: TimeMs(1_000 + seq),
        severity: [Severity::Info, Severity::Warning, Severity::Escalation][seq as usize % 3],
        object: if seq.is_multiple_of(5) { "host/h1" } else { "cluster" }.to_owned(),
        tenant: seq.is_multiple_of(2).then(|| "acme".parse().unwrap()),
        kind: "test".to_owned(),
        text: format!("event {seq} with 'quotes', \"more\" and ünïcode"),
        actor: match seq % 3 {
            0 => None,
            1 => Some(EventActor { name: "ops".to_owned(), role: Role::Operator }),
            _ => Some(EventActor { name: "a".to_owned(), role: Role::Tenant { tenant: "acme".parse().unwrap() } }),
        },
    }
}

fn usage() -> Stream {
    Stream { topic: Topic::Usage, owner: Owner::Tenant("acme".parse().unwrap()) }
}

fn audit() -> Stream {
    Stream { topic: Topic::Audit, owner: Owner::Cluster }
}

fn record(stream: &Stream, key: &str, body: &str, at: u64) -> Append {
    Append { stream: stream.clone(), key: key.to_owned(), body: body.to_owned(), at: TimeMs(at) }
}

const ALL: RecordRange = RecordRange { after: Position(0), between: None, limit: usize::MAX };

/// All that can be read, to see that a refused commit changed nothing.
fn everything(subject: &mut dyn Subject, server: ServerId) -> (PersistedState, Changes, Vec<Record>, Vec<Record>) {
    let loaded = subject.load(server);
    let changes = subject.changes(server, Revision(0), usize::MAX - 1);
    (loaded, changes, subject.records(server, &usage(), &ALL), subject.records(server, &audit(), &ALL))
}

fn full_commit(revision: u64, writes: Vec<Write>) -> Commit {
    let vm: VmId = "vm-abcdefghijkl".parse().unwrap();
    let json = format!("[{revision}]");
    Commit {
        revision: Revision(revision),
        writes,
        events: vec![event(revision * 2 - 1), event(revision * 2)],
        appends: vec![record(&usage(), &format!("k{revision}"), "{}", revision)],
        retention: vec![Retention { stream: usage(), keep_for: Some(Millis(1_000_000)) }],
        patterns: PatternWrites { kept: vec![StoredPattern { vm, json }], forgotten: BTreeSet::new() },
    }
}

fn what_was_committed_is_there_after_a_kill(subject: &mut dyn Subject) {
    let server = subject.open().unwrap();
    assert_eq!(subject.load(server), PersistedState::default());
    subject.commit(server, &full_commit(1, vec![put("a", 1, None), put("b", 1, None)])).unwrap();
    subject.commit(server, &full_commit(2, vec![put("a", 2, Some(1)), delete("b", 1)])).unwrap();
    let before = everything(subject, server);
    subject.kill(server);
    let server = subject.open().unwrap();
    let after = everything(subject, server);
    assert_eq!(after, before);
    let (loaded, _, usage, _) = after;
    assert_eq!(loaded.revision, Revision(2));
    assert_eq!(loaded.objects.len(), 1);
    assert_eq!((loaded.objects[0].revision, &loaded.objects[0].object), (Revision(2), &tenant("a", 2)));
    assert_eq!(loaded.events, (1..=4).map(event).collect::<Vec<_>>());
    assert_eq!(loaded.patterns[0].json, "[2]");
    assert_eq!(usage.len(), 2);
    // Patterns have a way of their own, in no revision.
    let vm: VmId = "vm-bbbbbbbbbbbb".parse().unwrap();
    let forgotten = [loaded.patterns[0].vm.clone(), vm.clone()].into();
    let kept = vec![StoredPattern { vm: "vm-cccccccccccc".parse().unwrap(), json: "[]".to_owned() }];
    subject.keep(server, &PatternWrites { kept: kept.clone(), forgotten }).unwrap();
    let loaded = subject.load(server);
    assert_eq!((loaded.revision, loaded.patterns), (Revision(2), kept));
}

fn a_conflict_anywhere_changes_nothing(subject: &mut dyn Subject) {
    let server = subject.open().unwrap();
    subject.commit(server, &commit(1, vec![put("a", 1, None), put("b", 1, None)])).unwrap();
    let before = everything(subject, server);
    for (what, writes) in [
        ("put at an old revision", vec![put("c", 9, None), put("a", 9, Some(0))]),
        ("put of what must not exist", vec![put("c", 9, None), put("a", 9, None)]),
        ("put of what must exist", vec![delete("a", 1), put("c", 9, Some(1))]),
        ("delete at an old revision", vec![put("a", 9, Some(1)), delete("b", 0)]),
        ("delete of what is not there", vec![put("a", 9, Some(1)), delete("c", 1)]),
    ] {
        assert_eq!(subject.commit(server, &full_commit(2, writes)), Err(Refused::Object), "{what}");
        assert_eq!(everything(subject, server), before, "{what}");
    }
    subject.commit(server, &commit(2, vec![put("a", 2, Some(1))])).unwrap();
}

fn the_revision_moves_by_one_or_not(subject: &mut dyn Subject) {
    let server = subject.open().unwrap();
    for wrong in [0, 2, 7] {
        let refused = subject.commit(server, &commit(wrong, vec![put("a", 1, None)]));
        assert_eq!(refused, Err(Refused::Revision), "{wrong}");
    }
    subject.commit(server, &commit(1, vec![put("a", 1, None)])).unwrap();
    assert_eq!(subject.commit(server, &commit(1, vec![put("b", 1, None)])), Err(Refused::Revision));
    assert_eq!(subject.load(server).objects.len(), 1);
}

fn a_record_is_written_once(subject: &mut dyn Subject) {
    let server = subject.open().unwrap();
    let with = |revision, appends| Commit { revision: Revision(revision), appends, ..Commit::default() };
    let (one, two) = (record(&usage(), "one", "1", 10), record(&usage(), "two", "2", 20));
    subject.commit(server, &with(1, vec![one.clone()])).unwrap();
    let first = subject.records(server, &usage(), &ALL);
    // Emitted again, even at another time, it changes nothing; what comes with it is written.
    subject.commit(server, &with(2, vec![Append { at: TimeMs(99), ..one.clone() }, two.clone(), two])).unwrap();
    let both = subject.records(server, &usage(), &ALL);
    assert_eq!((both.len(), &both[0], both[0].at), (2, &first[0], TimeMs(10)));
    // With another body it is a conflict, and nothing of the commit is done.
    let before = everything(subject, server);
    let other = record(&usage(), "one", "another", 10);
    let mut conflict = full_commit(3, vec![put("a", 1, None)]);
    conflict.appends.push(other.clone());
    assert_eq!(subject.commit(server, &conflict), Err(Refused::Record));
    let twice = vec![record(&usage(), "new", "1", 1), record(&usage(), "new", "2", 1)];
    assert_eq!(subject.commit(server, &with(3, twice)), Err(Refused::Record));
    assert_eq!(everything(subject, server), before);
    // The same key in another stream is another record.
    subject.commit(server, &with(3, vec![Append { stream: audit(), ..other }])).unwrap();
    assert_eq!(subject.records(server, &audit(), &ALL)[0].body, "another");
    assert_eq!(subject.records(server, &usage(), &ALL), both);
}

fn records_are_read_by_position_and_time(subject: &mut dyn Subject) {
    let server = subject.open().unwrap();
    for n in 1..=10 {
        // Times are not in the order of positions.
        let at = if n % 2 == 0 { 1_000 - n } else { n };
        let appends =
            vec![record(&usage(), &format!("{n}"), &n.to_string(), at), record(&audit(), &format!("{n}"), "other", at)];
        subject.commit(server, &Commit { revision: Revision(n), appends, ..Commit::default() }).unwrap();
    }
    let mut read = |range: RecordRange| -> Vec<(Position, u64)> {
        let records = subject.records(server, &usage(), &range);
        records.iter().map(|record| (record.position, record.body.parse().unwrap())).collect()
    };
    let numbers = |read: &[(Position, u64)]| read.iter().map(|(_, n)| *n).collect::<Vec<_>>();
    let all = read(ALL);
    assert_eq!(numbers(&all), (1..=10).collect::<Vec<_>>());
    assert!(all.is_sorted_by(|a, b| a.0 < b.0), "{all:?}");
    // In pages, without a gap and without a repetition.
    let (mut paged, mut after) = (Vec::new(), Position(0));
    loop {
        let page = read(RecordRange { after, between: None, limit: 3 });
        let Some((last, _)) = page.last() else { break };
        after = *last;
        paged.extend(page);
    }
    assert_eq!(paged, all);
    let between = Some((TimeMs(3), TimeMs(9)));
    assert_eq!(numbers(&read(RecordRange { between, ..ALL })), [3, 5, 7]);
    assert_eq!(numbers(&read(RecordRange { between, limit: 2, ..ALL })), [3, 5]);
    assert_eq!(numbers(&read(RecordRange { between, after: all[2].0, limit: 9 })), [5, 7]);
}

fn old_records_go_in_batches(subject: &mut dyn Subject) {
    const RECORDS: u64 = 1_200;
    let server = subject.open().unwrap();
    let appends = (1..=RECORDS).map(|n| record(&usage(), &n.to_string(), "{}", n)).collect();
    subject.commit(server, &Commit { revision: Revision(1), appends, ..Commit::default() }).unwrap();
    let forever = vec![record(&audit(), "1", "{}", 1)];
    let keep = |keep_for| vec![Retention { stream: usage(), keep_for }];
    // Kept for good unless something else was said.
    let next = Commit { revision: Revision(2), appends: forever, retention: keep(None), ..Commit::default() };
    subject.commit(server, &next).unwrap();
    subject.maintain(server, TimeMs(RECORDS)).unwrap();
    assert_eq!(subject.records(server, &usage(), &ALL).len() as u64, RECORDS);
    let retention = keep(Some(Millis(100)));
    subject.commit(server, &Commit { revision: Revision(3), retention, ..Commit::default() }).unwrap();
    subject.maintain(server, TimeMs(RECORDS)).unwrap();
    let left = subject.records(server, &usage(), &ALL).len() as u64;
    assert!((RECORDS / 2..RECORDS).contains(&left), "{left}: a batch, and not all at once");
    for _ in 0..3 {
        subject.maintain(server, TimeMs(RECORDS)).unwrap();
    }
    let left = subject.records(server, &usage(), &ALL);
    assert_eq!((left.len(), left[0].at), (101, TimeMs(RECORDS - 100)));
    assert_eq!(subject.records(server, &audit(), &ALL).len(), 1);
    // Places are not used again.
    let newest = left.last().unwrap().position;
    subject.maintain(server, TimeMs(RECORDS * 2)).unwrap();
    assert_eq!(subject.records(server, &usage(), &ALL), []);
    let appends = vec![record(&usage(), "new", "{}", RECORDS * 2)];
    subject.commit(server, &Commit { revision: Revision(4), appends, ..Commit::default() }).unwrap();
    assert!(subject.records(server, &usage(), &ALL)[0].position > newest);
}

/// Reads all changes after `after` in pages; gives the sizes of the pages, too.
fn read_changes(
    subject: &mut dyn Subject,
    server: ServerId,
    mut after: Revision,
    limit: usize,
) -> (Vec<Changed>, Vec<usize>) {
    let (mut all, mut sizes) = (Vec::new(), Vec::new());
    loop {
        let Changes::Read { changes, seen, more } = subject.changes(server, after, limit) else {
            panic!("changes after {after} are gone")
        };
        assert!(changes.iter().all(|change| change.revision > after && change.revision <= seen));
        assert!(seen > after || !more, "no headway at {after}");
        sizes.push(changes.len());
        all.extend(changes);
        after = seen;
        if !more {
            assert_eq!(seen, subject.load(server).revision);
            return (all, sizes);
        }
    }
}

fn the_change_log_replays_to_the_objects(subject: &mut dyn Subject) {
    let server = subject.open().unwrap();
    let mut revisions: BTreeMap<String, u64> = BTreeMap::new();
    for revision in 1..=60_u64 {
        // Each commit puts or deletes some of seven objects; some commits change none.
        let mut writes = Vec::new();
        for n in 0..7_u64 {
            let (id, draw) = (format!("t{n}"), (revision * 31 + n * 17) % 5);
            match (draw, revisions.get(&id).copied()) {
                (0, known) => {
                    writes.push(put(&id, revision, known));
                    revisions.insert(id, revision);
                }
                (1, Some(known)) if n % 2 == 0 => {
                    writes.push(delete(&id, known));
                    revisions.remove(&id);
                }
                (_, _) => {}
            }
        }
        let events = vec![event(revision)];
        subject.commit(server, &Commit { revision: Revision(revision), writes, events, ..Commit::default() }).unwrap();
    }
    let (all, _) = read_changes(subject, server, Revision(0), 10_000);
    assert!(all.is_sorted_by(|a, b| (a.revision, &a.kind, &a.id) < (b.revision, &b.kind, &b.id)), "{all:?}");
    let mut replayed = BTreeMap::new();
    for change in &all {
        assert_eq!((change.kind.as_str(), change.tenant.as_ref().unwrap().as_str()), ("tenant", change.id.as_str()));
        match change.op {
            ChangeOp::Put => drop(replayed.insert(change.id.clone(), change.revision)),
            ChangeOp::Delete => assert!(replayed.remove(&change.id).is_some(), "{change:?}"),
        }
    }
    let loaded = subject.load(server).objects;
    assert_eq!(replayed, loaded.iter().map(|stored| (stored.object.key().id, stored.revision)).collect());
    assert!(all.iter().any(|change| change.op == ChangeOp::Delete));
    for limit in [1, 2, 3, 5] {
        let (paged, sizes) = read_changes(subject, server, Revision(0), limit);
        assert_eq!(paged, all, "in pages of {limit}");
        // A page is larger than asked for only when a single revision is.
        let largest = all.chunk_by(|a, b| a.revision == b.revision).map(<[Changed]>::len).max().unwrap();
        assert!(sizes.iter().all(|size| *size <= limit.max(largest)), "{sizes:?}");
        // Nor is it smaller than what fits.
        assert!(sizes.windows(2).all(|pair| pair[0] + largest > limit), "{sizes:?}");
    }
    let (rest, _) = read_changes(subject, server, Revision(30), 4);
    assert_eq!(rest, all.iter().filter(|change| change.revision > Revision(30)).cloned().collect::<Vec<_>>());
}

fn who_lags_too_far_behind_lists_anew(subject: &mut dyn Subject) {
    let server = subject.open().unwrap();
    let last = CHANGES_KEPT + 700;
    for revision in 1..=last {
        let expected = revision.checked_sub(1).filter(|before| *before > 0);
        subject.commit(server, &commit(revision, vec![put("a", revision, expected)])).unwrap();
    }
    let newest = Revision(last);
    // What is to come can't be known, either: the store was put back to an older state.
    assert_eq!(subject.changes(server, Revision(last + 1), 10), Changes::ListAnew { newest });
    assert!(matches!(subject.changes(server, Revision(0), 10), Changes::Read { .. }), "nothing was deleted yet");
    subject.maintain(server, TimeMs(1)).unwrap();
    assert_eq!(subject.changes(server, Revision(0), 10), Changes::ListAnew { newest });
    assert!(matches!(subject.changes(server, Revision(650), 10), Changes::Read { .. }), "a batch, and not all at once");
    for _ in 0..3 {
        subject.maintain(server, TimeMs(1)).unwrap();
    }
    assert_eq!(subject.changes(server, Revision(699), 10), Changes::ListAnew { newest });
    let (kept, _) = read_changes(subject, server, Revision(700), 500);
    assert_eq!(kept.len() as u64, CHANGES_KEPT);
    subject.kill(server);
    let server = subject.open().unwrap();
    assert_eq!(subject.changes(server, Revision(699), 10), Changes::ListAnew { newest });
}

fn one_server_writes_at_a_time(subject: &mut dyn Subject) {
    let first = subject.open().unwrap();
    subject.commit(first, &commit(1, vec![put("a", 1, None)])).unwrap();
    assert_eq!(subject.open(), Err(Refused::LeaseHeld));
    subject.commit(first, &commit(2, vec![put("a", 2, Some(1))])).unwrap();
    // One that hangs loses it; what it sends later is refused, whatever it is.
    subject.hang(first);
    let second = subject.open().unwrap();
    let before = everything(subject, second);
    assert_eq!(subject.commit(first, &commit(3, vec![put("b", 3, None)])), Err(Refused::LeaseLost));
    assert_eq!(subject.keep(first, &PatternWrites::default()), Err(Refused::LeaseLost));
    assert_eq!(subject.maintain(first, TimeMs(9)), Err(Refused::LeaseLost));
    assert_eq!(subject.release(first), Err(Refused::LeaseLost));
    assert_eq!(everything(subject, second), before);
    subject.commit(second, &commit(3, vec![put("a", 3, Some(2))])).unwrap();
    // Renewed by a commit, and by maintenance.
    subject.hang(second);
    subject.maintain(second, TimeMs(9)).unwrap();
    assert_eq!(subject.open(), Err(Refused::LeaseHeld));
    subject.hang(second);
    subject.commit(second, &commit(4, vec![put("a", 4, Some(3))])).unwrap();
    assert_eq!(subject.open(), Err(Refused::LeaseHeld));
    // Released, it is free at once; and so it is after a kill.
    subject.release(second).unwrap();
    let third = subject.open().unwrap();
    assert_eq!(subject.commit(second, &commit(5, Vec::new())), Err(Refused::LeaseLost));
    subject.kill(third);
    let fourth = subject.open().unwrap();
    subject.commit(fourth, &commit(5, Vec::new())).unwrap();
}

fn events_are_found_by_what_they_are(subject: &mut dyn Subject) {
    let server = subject.open().unwrap();
    let events = (1..=60).map(event).collect();
    subject.commit(server, &Commit { revision: Revision(1), events, ..Commit::default() }).unwrap();
    let mut read = |range: EventRange| -> Vec<u64> {
        let events = subject.events(server, &range);
        assert!(events.iter().all(|read| *read == event(read.seq.0)));
        events.iter().map(|event| event.seq.0).collect()
    };
    let all = EventRange::newest(1_000);
    assert_eq!(read(all.clone()), (1..=60).collect::<Vec<_>>());
    assert_eq!(read(EventRange::newest(3)), [58, 59, 60]);
    assert_eq!(read(EventRange::after(EventSeq(10), 3)), [11, 12, 13]);
    let before = Some(EventSeq(10));
    assert_eq!(read(EventRange { before, ..EventRange::newest(3) }), [7, 8, 9]);
    assert_eq!(read(EventRange { before, ..EventRange::after(EventSeq(8), 3) }), [9]);
    assert_eq!(read(EventRange { since: Some(TimeMs(1_058)), ..all.clone() }), [58, 59, 60]);
    assert_eq!(read(EventRange { severity: Severity::Escalation, ..EventRange::newest(2) }), [56, 59]);
    assert_eq!(read(EventRange { severity: Severity::Warning, ..EventRange::newest(3) }), [56, 58, 59]);
    assert_eq!(read(EventRange { object: Some("host/h1".to_owned()), ..EventRange::newest(2) }), [55, 60]);
    let tenant = Some("acme".parse().unwrap());
    assert_eq!(read(EventRange { tenant: tenant.clone(), ..EventRange::newest(2) }), [58, 60]);
    let object = Some("host/h1".to_owned());
    assert_eq!(read(EventRange { tenant, object, severity: Severity::Warning, ..all }), [10, 20, 40, 50]);
}
