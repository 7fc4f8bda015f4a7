-- +goose Up
-- A shape is a combination of model, endpoint, backend and outcome. There are some hundreds of them, so one small index finds the
-- requests of any model, endpoint, backend or outcome in order of time.

CREATE TABLE shapes (
    id       INTEGER NOT NULL PRIMARY KEY,
    model    TEXT    NOT NULL,
    endpoint TEXT    NOT NULL,
    backend  TEXT    NOT NULL,
    outcome  TEXT    NOT NULL,
    UNIQUE (model, endpoint, backend, outcome)
) STRICT;

INSERT INTO shapes (model, endpoint, backend, outcome)
SELECT DISTINCT model, endpoint, backend, outcome FROM requests;

ALTER TABLE requests ADD COLUMN shape INTEGER;

UPDATE requests SET shape = (SELECT id FROM shapes s WHERE s.model = requests.model AND s.endpoint = requests.endpoint
    AND s.backend = requests.backend AND s.outcome = requests.outcome);

CREATE INDEX requests_shape_at ON requests (shape, at);
