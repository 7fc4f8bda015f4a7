-- +goose Up
-- Ollama servers that admins added. A server of OLLAMA_BASE_URL has a row only for its drain state, with an empty url.

CREATE TABLE backends (
    name     TEXT    NOT NULL PRIMARY KEY,
    url      TEXT    NOT NULL,
    slots    INTEGER NOT NULL,
    total    INTEGER NOT NULL,
    weight   REAL    NOT NULL,
    draining INTEGER NOT NULL,
    added_at INTEGER NOT NULL
) STRICT;
