-- +goose Up
-- Ollama servers that an admin has added. One that OLLAMA_BASE_URL names has a row for its drain alone, with an empty url.

CREATE TABLE backends (
    name     TEXT    NOT NULL PRIMARY KEY,
    url      TEXT    NOT NULL,
    slots    INTEGER NOT NULL,
    total    INTEGER NOT NULL,
    weight   REAL    NOT NULL,
    draining INTEGER NOT NULL,
    added_at INTEGER NOT NULL
) STRICT;
