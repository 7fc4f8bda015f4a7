package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"ollama-api-service/internal/auth"
	"ollama-api-service/internal/backend"
	"ollama-api-service/internal/books"
	"ollama-api-service/internal/config"
	"ollama-api-service/internal/disk"
	"ollama-api-service/internal/store"
)

// The results of a check.
const (
	resultOK      = "ok"
	resultWarning = "warning"
	resultFailed  = "failed" // the service would not start
)

// endsSoon is how long before its end a certificate gets a warning.
const endsSoon = 14 * 24 * time.Hour

// finding is one line of the output of serve --check.
type finding struct {
	Check  string `json:"check"`
	Result string `json:"result"`
	Detail string `json:"detail"`
}

// examination checks what a start needs, in the order of a start. It changes nothing.
type examination struct {
	cfg      *config.Config
	findings []finding
	first    error // the error that a start would return
}

func (e *examination) add(check, result, format string, args ...any) {
	e.findings = append(e.findings, finding{check, result, fmt.Sprintf(format, args...)})
}

func (e *examination) fail(check string, err error) {
	if e.first == nil {
		e.first = err
	}
	e.add(check, resultFailed, "%s", sentence(err))
}

// check prints the findings. Its error has the exit code that a start would have.
func (p *program) check(ctx context.Context, demo, asJSON bool) error {
	var e examination
	cfg, err := p.serveSettings(demo)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = late{error: err} // as a start treats it
		}
		e.fail("settings", err)
	} else {
		e.cfg = cfg
		e.add("settings", resultOK, "%s", "the settings are valid")
		for _, w := range cfg.Warnings {
			e.add("settings", resultWarning, "%s", w)
		}
		e.certificate()
		e.directory()
		seen := e.database(ctx)
		e.address(ctx, e.running())
		e.servers(ctx, seen)
	}
	if err := e.print(p.stdout, asJSON); err != nil || e.first == nil {
		return err
	}
	return &exitError{exitOf(e.first), errors.New("the service would not start: see the lines marked failed")}
}

func (e *examination) print(w io.Writer, asJSON bool) error {
	if asJSON {
		code := exitOK
		if e.first != nil {
			code = exitOf(e.first)
		}
		return printJSON(w, struct {
			Exit     int       `json:"exit"`
			Findings []finding `json:"findings"`
		}{code, e.findings})
	}
	rows := [][]string{{"CHECK", "RESULT", "DETAIL"}}
	for _, f := range e.findings {
		rows = append(rows, []string{f.Check, f.Result, f.Detail})
	}
	return table(w, nil, rows)
}

func (e *examination) certificate() {
	if e.cfg.Scheme() == "http" {
		return
	}
	secure, err := newEncryption(e.cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		e.fail("certificate", err)
		return
	}
	if len(e.cfg.ACMEDomain) > 0 {
		e.add("certificate", resultOK, "%s", "from ACME, stored in "+filepath.Join(e.cfg.DataDir, "acme"))
		return
	}
	for name, ends := range secure.expiry() {
		day := ends.UTC().Format(time.DateOnly)
		switch left := time.Until(ends); {
		case left < 0:
			e.add("certificate", resultWarning, "%s: it expired on %s and clients refuse it: renew it", name, day)
		case left < endsSoon:
			e.add("certificate", resultWarning, "%s: it expires on %s: renew it", name, day)
		default:
			e.add("certificate", resultOK, "%s: it expires on %s", name, day)
		}
	}
}

// directory checks DATA_DIR, or its nearest parent that exists.
func (e *examination) directory() {
	dir, absent := e.cfg.DataDir, false
	info, err := os.Stat(dir)
	for errors.Is(err, fs.ErrNotExist) && dir != filepath.Dir(dir) {
		dir, absent = filepath.Dir(dir), true
		info, err = os.Stat(dir)
	}
	switch {
	case err != nil:
	case !info.IsDir():
		err = errors.New("it is not a directory")
	default:
		err = disk.Writable(dir)
	}
	missing := missingDisk(e.cfg.DataDir)
	modes := checkModes(e.cfg, slog.New(slog.DiscardHandler))
	switch {
	case err != nil:
		e.fail("data directory", databasef("DATA_DIR %s cannot be used, because of %s: make it a directory that the user of the service may write to (%w)",
			e.cfg.DataDir, dir, err))
	case missing != nil:
		e.fail("data directory", missing)
	case modes != nil:
		e.fail("data directory", modes)
	case absent:
		e.add("data directory", resultOK, "%s does not exist yet: the first start creates it", e.cfg.DataDir)
	default:
		e.add("data directory", resultOK, "%s", e.cfg.DataDir)
	}
}

// database checks the database and the secret of its keys. It returns nil if there is no database.
func (e *examination) database(ctx context.Context) *store.Sight {
	path := databasePath(e.cfg)
	seen, err := store.Look(ctx, path, time.Now())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.add("database", resultOK, "%s does not exist yet: the first start creates it", path)
		seen = nil
	case err != nil:
		e.fail("database", databasef("%w", err))
		return nil
	case seen.Schema < seen.Newest:
		e.add("database", resultWarning, "%s has schema %d: the start upgrades it to %d, which an older program cannot use: make a backup first",
			path, seen.Schema, seen.Newest)
	default:
		e.add("database", resultOK, "%s, schema %d", path, seen.Schema)
	}
	e.secret(seen)
	switch {
	case e.cfg.AdminAPIKey != "" || seen != nil && seen.Admin:
		e.add("admin key", resultOK, "%s", "an admin key exists")
	case seen == nil || seen.Schema == seen.Newest:
		e.add("admin key", resultWarning, "%s", "no admin key exists: the start creates one and prints it once")
	}
	return seen
}

func (e *examination) secret(seen *store.Sight) {
	var check []byte
	if seen != nil {
		check = seen.SecretCheck
	}
	text, err := config.Secret(e.cfg.DataDir, string(e.cfg.SecretKey), false)
	if _, absent := os.Stat(config.SecretPath(e.cfg.DataDir)); err != nil && check == nil && errors.Is(absent, fs.ErrNotExist) {
		e.add("secret", resultOK, "%s", "there is no secret yet: the first start creates one in DATA_DIR")
		return
	}
	if err != nil {
		e.fail("secret", err)
		return
	}
	if check != nil {
		if ok, _ := auth.NewSecret(text, string(e.cfg.SecretKeyPrevious)).Check(check); !ok {
			e.fail("secret", wrongSecret(e.cfg))
			return
		}
	}
	e.add("secret", resultOK, "%s", "it matches the database, or there are no keys yet")
}

// running reports whether a service runs on DATA_DIR.
func (e *examination) running() bool {
	held, err := books.Held(e.cfg.DataDir)
	switch {
	case err != nil:
		e.fail("running service", databasef("the lock of the journal in %s cannot be read: %w", e.cfg.DataDir, err))
	case held:
		e.add("running service", resultWarning, "%s", "a service is running on this DATA_DIR: stop it before you start another")
	default:
		e.add("running service", resultOK, "%s", "no service is running on this DATA_DIR")
	}
	return held
}

// address checks that the service can listen on HOST and PORT. A service that runs on the same DATA_DIR may hold the address.
func (e *examination) address(ctx context.Context, running bool) {
	if path := e.cfg.Socket(); path != "" {
		if err := disk.Writable(filepath.Dir(path)); err != nil {
			e.fail("address", usagef("cannot listen on the Unix socket %s: name a path in a directory that the user of the service may write to (%w)", path, err))
			return
		}
		e.add("address", resultOK, "a socket can be created at %s", path)
		return
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", e.cfg.Address())
	switch {
	case err == nil:
		l.Close()
		e.add("address", resultOK, "%s is free", e.cfg.Address())
	case running && e.cfg.Port != 0 && askHealth(ctx, e.cfg) == nil:
		e.add("address", resultOK, "%s is used by the running service", e.cfg.Address())
	default:
		e.fail("address", listenError(e.cfg, err))
	}
}

// servers probes each Ollama server once. The service also starts without them.
func (e *examination) servers(ctx context.Context, seen *store.Sight) {
	fleet := backend.NewFleet()
	means, err := newMeans(e.cfg, slog.New(slog.DiscardHandler)) // a missing file shows up in the server's own reason
	if err != nil {
		e.fail("servers", err)
		return
	}
	for _, b := range e.cfg.Ollama {
		fleet.Add(backend.Of(b, means))
	}
	if seen != nil {
		for _, b := range seen.Backends {
			if b.URL != nil && fleet.Named(b.Name) == nil {
				fleet.Add(backend.Of(b, means))
			}
		}
	}
	fleet.ProbeAll(ctx)
	for _, b := range fleet.All() {
		s, name := b.State(), "server "+b.Name
		switch {
		case !s.Healthy:
			e.add(name, resultWarning, "%s does not answer: %s", b.URL, s.Reason)
		case len(s.Vulnerabilities()) > 0:
			e.add(name, resultWarning, "%s has version %s with known vulnerabilities (%v): upgrade it", b.URL, s.Version, s.Vulnerabilities())
		default:
			e.add(name, resultOK, "%s has version %s and %d models", b.URL, s.Version, len(s.Installed))
		}
	}
}
