-- +goose Up
-- queue_ms: how long a request waited for a slot; loading_ms: how long its model was loaded because of it. NULL: not measured.
ALTER TABLE requests ADD COLUMN queue_ms REAL;
ALTER TABLE requests ADD COLUMN loading_ms REAL;

ALTER TABLE usage_period ADD COLUMN queue_ms REAL NOT NULL DEFAULT 0.0;
ALTER TABLE usage_sum ADD COLUMN queue_ms REAL NOT NULL DEFAULT 0.0;
