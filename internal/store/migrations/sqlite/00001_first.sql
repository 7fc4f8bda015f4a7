-- +goose Up
-- Instants are integer milliseconds of UTC, booleans are 0 or 1, lists are JSON text. NULL means "none" or "not given", never 0.

CREATE TABLE meta (
    name  TEXT NOT NULL PRIMARY KEY,
    value BLOB NOT NULL
) STRICT;

CREATE TABLE keys (
    preview        TEXT    NOT NULL PRIMARY KEY,
    name           TEXT    NOT NULL,
    role           TEXT    NOT NULL,
    mac            BLOB    NOT NULL,
    previous_mac   BLOB,
    previous_until INTEGER,
    rate_limit     INTEGER,
    max_concurrent INTEGER,
    models         TEXT,
    allow_cloud    INTEGER NOT NULL,
    expires_at     INTEGER,
    allowed_ips    TEXT,
    note           TEXT    NOT NULL,
    created_at     INTEGER NOT NULL,
    revoked_at     INTEGER
) STRICT;

CREATE TABLE audit (
    id        INTEGER NOT NULL PRIMARY KEY,
    at        INTEGER NOT NULL,
    actor     TEXT    NOT NULL,
    action    TEXT    NOT NULL,
    target    TEXT    NOT NULL,
    from_addr TEXT    NOT NULL,
    detail    TEXT    NOT NULL
) STRICT;

CREATE TABLE requests (
    id                    TEXT    NOT NULL PRIMARY KEY,
    client_request_id     TEXT    NOT NULL,
    at                    INTEGER NOT NULL,
    key                   TEXT    NOT NULL,
    model                 TEXT    NOT NULL,
    alias                 TEXT    NOT NULL,
    endpoint              TEXT    NOT NULL,
    class                 TEXT    NOT NULL,
    backend               TEXT    NOT NULL,
    outcome               TEXT    NOT NULL,
    status                INTEGER NOT NULL,
    error_code            TEXT    NOT NULL,
    streamed              INTEGER NOT NULL,
    prompt_tokens         INTEGER NOT NULL,
    completion_tokens     INTEGER NOT NULL,
    estimated             INTEGER NOT NULL,
    ttfb_ms               REAL,
    total_ms              REAL    NOT NULL,
    slot_ms               REAL    NOT NULL,
    ollama_total_ns       INTEGER,
    ollama_load_ns        INTEGER,
    ollama_prompt_eval_ns INTEGER,
    ollama_eval_ns        INTEGER,
    bytes_in              INTEGER NOT NULL,
    bytes_out             INTEGER NOT NULL,
    client_addr           TEXT    NOT NULL
) STRICT;

CREATE INDEX requests_key_at ON requests (key, at);
CREATE INDEX requests_at ON requests (at);

CREATE TABLE tallies (
    minute INTEGER NOT NULL,
    who    TEXT    NOT NULL,
    what   TEXT    NOT NULL,
    count  INTEGER NOT NULL,
    PRIMARY KEY (minute, who, what)
) STRICT, WITHOUT ROWID;

-- The rollups are kept longer than the rows that they count.

CREATE TABLE usage_total (
    key               TEXT    NOT NULL,
    model             TEXT    NOT NULL,
    endpoint          TEXT    NOT NULL,
    outcome           TEXT    NOT NULL,
    count             INTEGER NOT NULL,
    total_ms          REAL    NOT NULL,
    prompt_tokens     INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    estimated         INTEGER NOT NULL,
    slot_ms           REAL    NOT NULL,
    last_at           INTEGER NOT NULL,
    PRIMARY KEY (key, model, endpoint, outcome)
) STRICT, WITHOUT ROWID;

CREATE TABLE usage_minute (
    key    TEXT    NOT NULL,
    minute INTEGER NOT NULL,
    count  INTEGER NOT NULL,
    PRIMARY KEY (key, minute)
) STRICT, WITHOUT ROWID;

CREATE INDEX usage_minute_minute ON usage_minute (minute);

-- Whole hours between the partial hours at the ends of a day: a thousand busy keys fill 1.4 million minutes a day, but 24,000 hours.
CREATE TABLE usage_hour (
    key   TEXT    NOT NULL,
    hour  INTEGER NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (key, hour)
) STRICT, WITHOUT ROWID;

CREATE INDEX usage_hour_hour ON usage_hour (hour);

-- Logarithmic buckets of the response time; key '*' counts all keys.
CREATE TABLE usage_latency (
    key    TEXT    NOT NULL,
    bucket INTEGER NOT NULL,
    count  INTEGER NOT NULL,
    PRIMARY KEY (key, bucket)
) STRICT, WITHOUT ROWID;
