-- +goose Up
-- The usage of each hour and each day (UTC), by all dimensions. width is the length of the period in milliseconds, start its
-- beginning. total_ms is the sum over timed requests only, ttfb_ms the sum over requests with a first byte.
-- With the time first, new rows are stored together at the end of the table, and a query reads only its time span.

CREATE TABLE usage_period (
    width             INTEGER NOT NULL,
    start             INTEGER NOT NULL,
    key               TEXT    NOT NULL,
    model             TEXT    NOT NULL,
    endpoint          TEXT    NOT NULL,
    backend           TEXT    NOT NULL,
    outcome           TEXT    NOT NULL,
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
    PRIMARY KEY (width, start, key, model, endpoint, backend, outcome)
) STRICT, WITHOUT ROWID;

INSERT INTO usage_period
SELECT 3600000, at - at % 3600000, key, model, endpoint, backend, outcome, COUNT(*),
    COUNT(CASE WHEN total_ms > 0 THEN 1 END), SUM(total_ms), COUNT(ttfb_ms), COALESCE(SUM(ttfb_ms), 0.0),
    SUM(prompt_tokens), SUM(completion_tokens), SUM(estimated), SUM(slot_ms), SUM(bytes_in), SUM(bytes_out), MAX(at)
FROM requests
GROUP BY 2, 3, 4, 5, 6, 7;

INSERT INTO usage_period
SELECT 86400000, start - start % 86400000, key, model, endpoint, backend, outcome, SUM(count),
    SUM(timed), SUM(total_ms), SUM(first_bytes), SUM(ttfb_ms),
    SUM(prompt_tokens), SUM(completion_tokens), SUM(estimated), SUM(slot_ms), SUM(bytes_in), SUM(bytes_out), MAX(last_at)
FROM usage_period
WHERE width = 3600000
GROUP BY 2, 3, 4, 5, 6, 7;
