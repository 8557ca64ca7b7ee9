-- Who made the request that an event tells of; NULL: drover itself.
ALTER TABLE events ADD COLUMN actor TEXT;
ALTER TABLE events ADD COLUMN actor_role TEXT;
CREATE INDEX events_by_object ON events (object, seq);
CREATE INDEX events_by_tenant ON events (tenant, seq);

-- Positions grow and are never used twice, also after the newest record was deleted: hence AUTOINCREMENT.
CREATE TABLE records (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    stream   TEXT NOT NULL,
    key      TEXT NOT NULL,
    at       INTEGER NOT NULL,
    body     TEXT NOT NULL,
    UNIQUE (stream, key)
) STRICT;
CREATE INDEX records_by_position ON records (stream, position);
CREATE INDEX records_by_time ON records (stream, at);
-- keep_ms NULL: for good, as for a stream that has no row here.
CREATE TABLE streams (
    stream  TEXT PRIMARY KEY,
    keep_ms INTEGER
) STRICT, WITHOUT ROWID;

-- Every change of an object, in order. meta.compacted: up to this revision, entries may have been deleted.
CREATE TABLE changes (
    revision INTEGER NOT NULL,
    kind     TEXT NOT NULL,
    id       TEXT NOT NULL,
    op       TEXT NOT NULL,
    tenant   TEXT,
    PRIMARY KEY (revision, kind, id)
) STRICT, WITHOUT ROWID;
ALTER TABLE meta ADD COLUMN compacted INTEGER NOT NULL DEFAULT 0;
UPDATE meta SET compacted = revision;

-- Who may write. The epoch grows with every holder; times are the database's, in ms since 1970-01-01 UTC.
CREATE TABLE leases (
    name       TEXT PRIMARY KEY,
    holder     TEXT NOT NULL,
    epoch      INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Versions of drover before this migration kept their schema's number here. One of them that is started on this
-- file reads a number it does not know, and refuses the file instead of damaging it.
CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL) STRICT;
DELETE FROM schema_version;
INSERT INTO schema_version VALUES (3);
