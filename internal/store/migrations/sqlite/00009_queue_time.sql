-- +goose Up
-- queue_ms: for how long a request waited for its turn; loading_ms: for how long its model was loaded because of it. NULL: not measured.
ALTER TABLE requests ADD COLUMN queue_ms REAL;
ALTER TABLE requests ADD COLUMN loading_ms REAL;

ALTER TABLE usage_period ADD COLUMN queue_ms REAL NOT NULL DEFAULT 0.0;
ALTER TABLE usage_sum ADD COLUMN queue_ms REAL NOT NULL DEFAULT 0.0;
