-- +goose Up
-- A key's share of busy servers, and its priority.

ALTER TABLE keys ADD COLUMN weight REAL NOT NULL DEFAULT 1.0;
ALTER TABLE keys ADD COLUMN class TEXT NOT NULL DEFAULT 'interactive';
