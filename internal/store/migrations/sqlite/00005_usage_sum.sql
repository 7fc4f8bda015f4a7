-- +goose Up
-- usage_period contains each combination of names, about as many as there are requests, so a query about one name must not read
-- them all. usage_sum contains sums over the other names. kind is the set of names that rows are grouped by (1 key, 2 model,
-- 4 endpoint, 8 backend, 16 outcome, and sums of these); the other names are ''. The key is the last column, so that the keys of one
-- model or one outcome are stored together.

CREATE TABLE usage_sum (
    kind              INTEGER NOT NULL,
    width             INTEGER NOT NULL,
    start             INTEGER NOT NULL,
    model             TEXT    NOT NULL,
    endpoint          TEXT    NOT NULL,
    backend           TEXT    NOT NULL,
    outcome           TEXT    NOT NULL,
    key               TEXT    NOT NULL,
    count             INTEGER NOT NULL,
    timed             INTEGER NOT NULL,
    total_ms          REAL    NOT NULL,
    first_bytes       INTEGER NOT NULL,
    ttfb_ms           REAL    NOT NULL,
    prompt_tokens     INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    estimated         INTEGER NOT NULL,
    slot_ms           REAL    NOT NULL,
    bytes_in          INTEGER NOT NULL,
    bytes_out         INTEGER NOT NULL,
    last_at           INTEGER NOT NULL,
    gpu_ms            REAL    NOT NULL,
    PRIMARY KEY (kind, width, start, model, endpoint, backend, outcome, key)
) STRICT, WITHOUT ROWID;

-- Hours and days of everything except the key, from the combinations.
INSERT INTO usage_sum
SELECT 30, width, start, model, endpoint, backend, outcome, '', SUM(count), SUM(timed), SUM(total_ms), SUM(first_bytes), SUM(ttfb_ms),
    SUM(prompt_tokens), SUM(completion_tokens), SUM(estimated), SUM(slot_ms), SUM(bytes_in), SUM(bytes_out), MAX(last_at), SUM(gpu_ms)
FROM usage_period
GROUP BY width, start, model, endpoint, backend, outcome;

-- Only the key by hour and day, and the key with one other name by day.
INSERT INTO usage_sum
SELECT k.kind, width, start, IIF(k.kind & 2, model, ''), IIF(k.kind & 4, endpoint, ''), IIF(k.kind & 8, backend, ''), IIF(k.kind & 16, outcome, ''),
    key, SUM(count), SUM(timed), SUM(total_ms), SUM(first_bytes), SUM(ttfb_ms),
    SUM(prompt_tokens), SUM(completion_tokens), SUM(estimated), SUM(slot_ms), SUM(bytes_in), SUM(bytes_out), MAX(last_at), SUM(gpu_ms)
FROM (SELECT 1 AS kind UNION ALL SELECT 3 UNION ALL SELECT 5 UNION ALL SELECT 9 UNION ALL SELECT 17) AS k CROSS JOIN usage_period
WHERE k.kind = 1 OR width = 86400000
GROUP BY k.kind, width, start, 4, 5, 6, 7, key;

-- Each other name by hour and day.
INSERT INTO usage_sum
SELECT k.kind, u.width, u.start, IIF(k.kind & 2, u.model, ''), IIF(k.kind & 4, u.endpoint, ''), IIF(k.kind & 8, u.backend, ''), IIF(k.kind & 16, u.outcome, ''),
    '', SUM(count), SUM(timed), SUM(total_ms), SUM(first_bytes), SUM(ttfb_ms),
    SUM(prompt_tokens), SUM(completion_tokens), SUM(estimated), SUM(slot_ms), SUM(bytes_in), SUM(bytes_out), MAX(last_at), SUM(gpu_ms)
FROM (SELECT 2 AS kind UNION ALL SELECT 4 UNION ALL SELECT 8 UNION ALL SELECT 16) AS k CROSS JOIN usage_sum u
WHERE u.kind = 30
GROUP BY k.kind, u.width, u.start, 4, 5, 6, 7;

-- Blocks of sixteen days, from the days.
INSERT INTO usage_sum
SELECT kind, 1382400000, start - start % 1382400000, model, endpoint, backend, outcome, key, SUM(count), SUM(timed), SUM(total_ms),
    SUM(first_bytes), SUM(ttfb_ms), SUM(prompt_tokens), SUM(completion_tokens), SUM(estimated), SUM(slot_ms), SUM(bytes_in), SUM(bytes_out), MAX(last_at), SUM(gpu_ms)
FROM usage_sum
WHERE width = 86400000
GROUP BY kind, 3, model, endpoint, backend, outcome, key;

-- All-time sums, which are stored forever: width 0.
INSERT INTO usage_sum
SELECT kind, 0, 0, model, endpoint, backend, outcome, key, SUM(count), SUM(timed), SUM(total_ms),
    SUM(first_bytes), SUM(ttfb_ms), SUM(prompt_tokens), SUM(completion_tokens), SUM(estimated), SUM(slot_ms), SUM(bytes_in), SUM(bytes_out), MAX(last_at), SUM(gpu_ms)
FROM usage_sum
WHERE kind IN (1, 3, 5, 17) AND width = 1382400000
GROUP BY kind, model, endpoint, backend, outcome, key;

-- Minutes of the last two days and quarters of hours, of the key and of everything except the key, from the rows.
INSERT INTO usage_sum
SELECT k.kind, w.width, at - at % w.width, IIF(k.kind & 2, model, ''), IIF(k.kind & 4, endpoint, ''), IIF(k.kind & 8, backend, ''),
    IIF(k.kind & 16, outcome, ''), IIF(k.kind & 1, key, ''), COUNT(*), COUNT(CASE WHEN total_ms > 0 THEN 1 END), SUM(total_ms), COUNT(ttfb_ms),
    COALESCE(SUM(ttfb_ms), 0.0), SUM(prompt_tokens), SUM(completion_tokens), SUM(estimated), SUM(slot_ms), SUM(bytes_in), SUM(bytes_out), MAX(at),
    COALESCE(SUM(gpu_ms), 0.0)
FROM (SELECT 1 AS kind UNION ALL SELECT 30) AS k
    CROSS JOIN (SELECT 60000 AS width, (SELECT MAX(at) FROM requests) - 172800000 AS since UNION ALL SELECT 900000, 0) AS w
    CROSS JOIN requests
WHERE at >= since - since % 3600000
GROUP BY k.kind, w.width, 3, 4, 5, 6, 7, 8;

-- The times from which on there are rows, minutes and so on: earlier data was deleted, or is being deleted.
CREATE TABLE kept (
    what  TEXT    NOT NULL PRIMARY KEY,
    since INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO kept VALUES ('rows', 0), ('rollups', 0),
    ('minutes', (SELECT COALESCE(MAX(at) - 172800000 - (MAX(at) - 172800000) % 3600000, 0) FROM requests));

-- usage_sum now contains the data of these tables.
DROP TABLE usage_total;
DROP TABLE usage_minute;
DROP TABLE usage_hour;
