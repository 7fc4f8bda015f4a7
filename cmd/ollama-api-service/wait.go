package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"ollama-api-service/internal/books"
	"ollama-api-service/internal/config"
	"ollama-api-service/internal/disk"
	"ollama-api-service/internal/store"
)

const (
	firstPause = 250 * time.Millisecond
	mostPause  = 10 * time.Second
	// renewal is how long a certificate and a key that do not match are read again: the program that renews them writes one after the
	// other.
	renewal = 10 * time.Second
)

// patience waits during the start for conditions that may resolve without help. All waits together take at most START_WAIT.
type patience struct {
	left     time.Duration
	log      *slog.Logger
	progress func(what string) // called before each pause unless nil: a supervisor limits the time of a start
}

// late is a failure that may pass without help although no error number says so, such as a file that another program has yet to write.
type late struct {
	error
	within time.Duration // the longest useful wait; 0 means START_WAIT
}

func (l late) Unwrap() error { return l.error }

// transient reports whether a failure may pass without a change of the settings. The program then exits with 1, so that a supervisor
// tries again. All other failures exit with 2 or 3.
func transient(err error) bool {
	var l late
	if errors.As(err, &l) {
		return l.within == 0
	}
	if _, ok := disk.Cause(err); ok {
		return true
	}
	_, ok := networkCause(err)
	return ok
}

// networkCause explains why a listener cannot use its address, if that may pass.
func networkCause(err error) (hint string, ok bool) {
	var name *net.DNSError
	switch {
	case inUse(err):
		return "another process uses the port: stop it, or choose another PORT", true
	case errors.Is(err, syscall.EADDRNOTAVAIL) || noAddress(err):
		return "this machine does not have the address now: bring up its network interface, or set HOST to an address that `ip address` shows", true
	case errors.As(err, &name):
		return "the name in HOST does not resolve: check /etc/hosts and the name server, or set HOST to an address", true
	case errors.Is(err, syscall.ENOBUFS):
		return "the system has no memory left for sockets: stop programs that use many", true
	}
	return "", false
}

// listenError is a failure to listen, with its cause and the remedy.
func listenError(cfg *config.Config, err error) error {
	hint, ok := networkCause(err)
	if fault, full := disk.Cause(err); full && !ok {
		hint, ok = fault.Hint, true
	}
	if !ok && errors.Is(err, fs.ErrPermission) {
		hint = "ports below 1024 need a capability that this process does not have: choose a PORT from 1024, or grant CAP_NET_BIND_SERVICE (AmbientCapabilities= in a unit)"
	} else if !ok {
		hint = "choose another HOST or PORT"
	}
	return usagef("cannot listen on %s: %s (%w)", cfg.Address(), hint, err)
}

// until calls try until it succeeds, fails in a way that waiting cannot fix, ctx ends or START_WAIT ends. It returns the last failure.
func (p *patience) until(ctx context.Context, what string, try func() error) error {
	begun, waited := time.Now(), false
	for pause := firstPause; ; pause = min(2*pause, mostPause) {
		err := try()
		spent := time.Since(begun)
		if err == nil {
			if waited {
				p.left -= spent
				p.log.Info("the start continues", "with", what, "waited", spent.Round(time.Millisecond).String())
			}
			return nil
		}
		left := p.patienceFor(err) - spent
		if left <= 0 || ctx.Err() != nil {
			if waited {
				p.left -= spent
				err = fmt.Errorf("%w; waited %s for it", err, spent.Round(time.Second))
			}
			return err
		}
		waited = true
		pause = min(pause, left)
		p.log.Warn("the start waits", "for", what, "cause", sentence(err),
			"next_try_in", pause.Round(time.Millisecond).String(), "at_most", left.Round(time.Second).String())
		if p.progress != nil {
			p.progress(what)
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}

// patienceFor is how long to wait for a failure to pass.
func (p *patience) patienceFor(err error) time.Duration {
	var l late
	switch {
	case errors.As(err, &l) && l.within > 0:
		return min(p.left, l.within)
	case transient(err):
		return p.left
	}
	return 0
}

// await is until for a function with a result.
func await[T any](ctx context.Context, p *patience, what string, try func() (T, error)) (result T, err error) {
	err = p.until(ctx, what, func() (err error) {
		result, err = try()
		return err
	})
	return result, err
}

// settingsInTime is serveSettings, but waits for files that do not exist yet: a settings file named with --env-file, and files with
// secrets.
func (p *program) settingsInTime(ctx context.Context, demo bool) (*config.Config, error) {
	cfg, err := p.serveSettings(demo)
	if !errors.Is(err, fs.ErrNotExist) && !transient(err) {
		return cfg, err
	}
	log, lines := newLogger(&config.Config{}, p.stdout)
	defer lines.close()
	wait := &patience{left: config.StartWait(p.envFile, p.environ), log: log}
	return await(ctx, wait, "the settings", func() (*config.Config, error) {
		cfg, err := p.serveSettings(demo)
		if errors.Is(err, fs.ErrNotExist) {
			err = late{error: err}
		}
		return cfg, err
	})
}

// checkModes returns an error if every user can read a secret file, and logs warnings about less serious modes.
func checkModes(cfg *config.Config, log *slog.Logger) error {
	warnings, err := config.Private(append(store.Files(databasePath(cfg)), config.SecretPath(cfg.DataDir))...)
	for _, w := range append(warnings, config.OpenDirectory(cfg.DataDir)) {
		if w != "" {
			log.Warn(w)
		}
	}
	return err
}

// holdData creates DATA_DIR if it does not exist and locks it for this process. It runs before the database is opened: while another
// process serves, the schema must not change.
func holdData(dir string) (*books.Journal, error) {
	if err := missingDisk(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		err = fmt.Errorf("DATA_DIR %s cannot be created: name a directory that the user of the service may write to: %w", dir, withHint(err))
		if _, above := os.Stat(filepath.Dir(dir)); errors.Is(err, fs.ErrPermission) && errors.Is(above, fs.ErrNotExist) {
			return nil, databasef("%w", late{error: fmt.Errorf("%w; %s does not exist either, so a disk may not be mounted", err, filepath.Dir(dir))})
		}
		return nil, databasef("%w", err)
	}
	held, err := books.Hold(dir)
	if err != nil {
		return nil, databasef("%w", withHint(err))
	}
	return held, nil
}

// missingDisk returns an error if DATA_DIR is on a disk that is not mounted yet. A database created there now would be an empty one on
// another disk.
func missingDisk(dir string) error {
	if target, err := os.Readlink(dir); err == nil {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			return databasef("%w", late{error: fmt.Errorf("DATA_DIR %s is a link to %s, which does not exist: mount its disk, create the directory, or correct the link", dir, target)})
		}
	}
	if _, err := os.Stat(filepath.Join(dir, databaseName)); err == nil {
		return nil
	}
	if at := disk.Unmounted(dir); at != "" {
		return databasef("%w", late{error: fmt.Errorf("DATA_DIR %s has no database, and the disk for %s in /etc/fstab is not mounted: mount it, or remove it from /etc/fstab if DATA_DIR belongs on the underlying disk", dir, at)})
	}
	return nil
}

// withHint adds the remedy for a disk fault.
func withHint(err error) error {
	if fault, ok := disk.Cause(err); ok && !errors.Is(err, disk.ErrLocked) {
		return fmt.Errorf("%w: %s", err, fault.Hint)
	}
	return err
}
