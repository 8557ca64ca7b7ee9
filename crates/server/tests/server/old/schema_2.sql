
-- What version 2 added.
CREATE TABLE patterns (
    vm   TEXT PRIMARY KEY,
    json TEXT NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO patterns VALUES ('vm-abcdefghijkl', '{}');
UPDATE schema_version SET version = 2;
