package main

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	"ollama-api-service/internal/auth"
	"ollama-api-service/internal/config"
	"ollama-api-service/internal/store"
)

const databaseName = "ollama-api-service.db"

// databasePath is the SQLite file in DATA_DIR.
func databasePath(cfg *config.Config) string {
	return filepath.Join(cfg.DataDir, databaseName)
}

// openDatabase opens an existing database. Only serve creates one.
func openDatabase(ctx context.Context, cfg *config.Config) (*store.Store, error) {
	path := databasePath(cfg)
	st, err := store.Open(ctx, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, usagef("there is no database %s: set DATA_DIR to the directory that the service uses, or run `%s serve` once to create it", path, programName)
	}
	if err != nil {
		return nil, databasef("%w", err)
	}
	return st, nil
}

// database opens the database that the settings name.
func (p *program) database(ctx context.Context) (*store.Store, error) {
	cfg, err := p.settings()
	if err != nil {
		return nil, err
	}
	return openDatabase(ctx, cfg)
}

// openKeys opens the database and the secret that its keys are hashed with, and checks that they match. A key created under another
// secret would never work.
func openKeys(ctx context.Context, cfg *config.Config) (_ *store.Store, _ auth.Secret, err error) {
	st, err := openDatabase(ctx, cfg)
	if err != nil {
		return nil, auth.Secret{}, err
	}
	defer func() {
		if err != nil {
			st.Close()
		}
	}()
	text, err := config.Secret(cfg.DataDir, string(cfg.SecretKey), false)
	if err != nil {
		return nil, auth.Secret{}, err
	}
	secret := auth.NewSecret(text, string(cfg.SecretKeyPrevious))
	check, err := st.SecretCheck(ctx)
	if err != nil {
		return nil, auth.Secret{}, databasef("the database %s cannot be read: %w", databasePath(cfg), err)
	}
	if check == nil {
		return nil, auth.Secret{}, databasef("the database %s has no secret yet: run `%s serve` once", databasePath(cfg), programName)
	}
	if ok, _ := secret.Check(check); !ok {
		return nil, auth.Secret{}, wrongSecret(cfg)
	}
	return st, secret, nil
}

// wrongSecret is exit 3: with this SECRET_KEY, no key in the database would work.
func wrongSecret(cfg *config.Config) error {
	return databasef("SECRET_KEY is not the one that the keys in %s were hashed with: set that one (it is in %s if SECRET_KEY was never set), or set it as SECRET_KEY_PREVIOUS in addition to a new SECRET_KEY",
		databasePath(cfg), config.SecretPath(cfg.DataDir))
}
