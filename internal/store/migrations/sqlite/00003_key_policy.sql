-- +goose Up
-- What requests of the key may set, an object by field as JSON; NULL is nothing of its own.

ALTER TABLE keys ADD COLUMN policy TEXT;
