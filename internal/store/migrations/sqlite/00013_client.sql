-- +goose Up
-- The calling program of a request, which is unknown for earlier ones. A table's key cannot be changed, but this one is small.

CREATE TABLE new_shapes (
    id       INTEGER NOT NULL PRIMARY KEY,
    model    TEXT    NOT NULL,
    endpoint TEXT    NOT NULL,
    backend  TEXT    NOT NULL,
    outcome  TEXT    NOT NULL,
    client   TEXT    NOT NULL,
    UNIQUE (model, endpoint, backend, outcome, client)
) STRICT;

INSERT INTO new_shapes SELECT id, model, endpoint, backend, outcome, '' FROM shapes;

DROP TABLE shapes;

ALTER TABLE new_shapes RENAME TO shapes;
