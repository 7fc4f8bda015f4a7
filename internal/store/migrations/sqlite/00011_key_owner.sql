-- +goose Up
-- Whose key it is, in words of the admin.
ALTER TABLE keys ADD COLUMN owner TEXT NOT NULL DEFAULT '';
