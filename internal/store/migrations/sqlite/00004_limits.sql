-- +goose Up
-- GPU time of requests, and limits of GPU time and of tokens. NULL means no limit; a NULL gpu_ms was not measured.

ALTER TABLE keys ADD COLUMN tokens_per_hour INTEGER;
ALTER TABLE keys ADD COLUMN tokens_per_day INTEGER;
ALTER TABLE keys ADD COLUMN gpu_seconds_per_day INTEGER;
ALTER TABLE keys ADD COLUMN max_tokens_per_request INTEGER;
ALTER TABLE keys ADD COLUMN strict INTEGER NOT NULL DEFAULT 0;

-- gpu_ms: the request's part of the backend's time. reserved_*: the possible usage of a request whose end was not recorded; NULL for others.
ALTER TABLE requests ADD COLUMN gpu_ms REAL;
ALTER TABLE requests ADD COLUMN reserved_tokens INTEGER;
ALTER TABLE requests ADD COLUMN reserved_gpu_ms REAL;

ALTER TABLE usage_total ADD COLUMN gpu_ms REAL NOT NULL DEFAULT 0.0;
ALTER TABLE usage_period ADD COLUMN gpu_ms REAL NOT NULL DEFAULT 0.0;
