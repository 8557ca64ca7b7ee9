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
INSERT INTO meta VALUES (0);
