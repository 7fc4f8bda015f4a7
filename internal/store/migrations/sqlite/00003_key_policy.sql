-- +goose Up
-- What requests of the key may set, as a JSON object by field; NULL means no policy for this key.

ALTER TABLE keys ADD COLUMN policy TEXT;
