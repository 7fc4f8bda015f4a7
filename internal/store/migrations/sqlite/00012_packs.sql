-- +goose Up
-- Usage is read from packs, which have the numbers of many requests by columns, and from sums of whole hours and days in the same form.
-- Both are written once, after the rows. pack.go has their form.

-- The keys of packs and sums, as numbers.
CREATE TABLE names (
    id   INTEGER NOT NULL PRIMARY KEY,
    name TEXT    NOT NULL UNIQUE
) STRICT;

INSERT INTO names (name)
SELECT key FROM usage_sum WHERE kind = 1 AND width = 0;

-- The requests of one hour that were admitted in it. n is the greatest rowid among them.
CREATE TABLE packs (
    hour  INTEGER NOT NULL,
    n     INTEGER NOT NULL,
    count INTEGER NOT NULL,
    find  BLOB    NOT NULL,
    rest  BLOB    NOT NULL,
    PRIMARY KEY (hour, n)
) STRICT;

CREATE INDEX packs_n ON packs (n);

-- The sums of a kind in one period, for 64 keys in each part.
CREATE TABLE sums (
    kind  INTEGER NOT NULL,
    width INTEGER NOT NULL,
    start INTEGER NOT NULL,
    part  INTEGER NOT NULL,
    cells BLOB    NOT NULL,
    PRIMARY KEY (kind, width, start, part)
) STRICT;

-- folded: rows up to this rowid are in packs. forever: packs up to this n are in the totals of all time. closed: the hours before it have
-- sums. old_rows: rows up to this rowid, and old: those from this time on, are in the tables of earlier versions and not in packs yet.
INSERT INTO kept
SELECT 'folded', COALESCE(MAX(rowid), 0) FROM requests
UNION ALL SELECT 'forever', COALESCE(MAX(rowid), 0) FROM requests
UNION ALL SELECT 'old_rows', COALESCE(MAX(rowid), 0) FROM requests
UNION ALL SELECT 'old', COALESCE((SELECT MIN(start) FROM usage_sum WHERE kind = 16 AND width = 86400000), -1)
UNION ALL SELECT 'closed', COALESCE((SELECT MAX(at) - MAX(at) % 3600000 FROM requests), 0);
