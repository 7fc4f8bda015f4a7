-- +goose Up
-- How an added server is reached: PEM texts, a header, the name of a setting, or 'none'. '' means the setting.
ALTER TABLE backends ADD COLUMN ca TEXT NOT NULL DEFAULT '';
ALTER TABLE backends ADD COLUMN client_cert TEXT NOT NULL DEFAULT '';
ALTER TABLE backends ADD COLUMN client_key TEXT NOT NULL DEFAULT '';
ALTER TABLE backends ADD COLUMN auth_header TEXT NOT NULL DEFAULT '';
