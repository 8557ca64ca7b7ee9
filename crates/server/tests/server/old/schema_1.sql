-- As drover left it before its schema was sqlx's migrations: version 1.
CREATE TABLE schema_version (version INTEGER NOT NULL) STRICT;
INSERT INTO schema_version VALUES (1);
CREATE TABLE objects (
    kind TEXT NOT NULL,
    id   TEXT NOT NULL,
    rev  INTEGER NOT NULL,
    json TEXT NOT NULL,
    PRIMARY KEY (kind, id)
) STRICT, WITHOUT ROWID;
CREATE TABLE events (
    seq      INTEGER PRIMARY KEY,
    at       INTEGER NOT NULL,
    severity TEXT NOT NULL,
    object   TEXT NOT NULL,
    tenant   TEXT,
    kind     TEXT NOT NULL,
    text     TEXT NOT NULL
) STRICT;
CREATE TABLE meta (revision INTEGER NOT NULL) STRICT;
INSERT INTO meta VALUES (7);
INSERT INTO objects VALUES ('tenant', 'acme', 5, '{"kind":"tenant","value":{"id":"acme","created_at":1}}');
INSERT INTO events VALUES (1, 1000, 'info', 'tenant/acme', 'acme', 'tenant-created', 'acme was created');
INSERT INTO events VALUES (2, 2000, 'warning', 'cluster', NULL, 'test', 'something else');
