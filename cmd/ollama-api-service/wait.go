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

	"ollama-api-service/internal/config"
	"ollama-api-service/internal/disk"
	"ollama-api-service/internal/store"
	"ollama-api-service/internal/usage"
)

const (
	firstPause = 250 * time.Millisecond
	mostPause  = 10 * time.Second
	// renewal is how long files that do not belong together are looked at again: whoever renews them writes one after the other.
	renewal = 10 * time.Second
)

// patience waits at start for what may come by itself, all in all for START_WAIT.
type patience struct {
	left     time.Duration
	log      *slog.Logger
	progress func(what string) // called before each pause, if it is not nil: a supervisor bounds the time of a start
}

// late is a failure that may pass by itself although no error number says so: of a file that another program has yet to write.
type late struct {
	error
	within time.Duration // the longest wait that makes sense; 0 is as long as START_WAIT
}

func (l late) Unwrap() error { return l.error }

// passing reports whether a failure may pass without a change of the settings. Those end the program with exit 1, so that a
// supervisor tries again. All others are exit 2 or 3.
func passing(err error) bool {
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

// networkCause says what keeps a listener from its address, where that may pass.
func networkCause(err error) (hint string, ok bool) {
	var name *net.DNSError
	switch {
	case inUse(err):
		return "another process holds the port: stop it, or choose another PORT", true
	case errors.Is(err, syscall.EADDRNOTAVAIL) || noAddress(err):
		return "this machine has no such address now: bring the network interface up that has it, or set HOST to an address that `ip address` shows", true
	case errors.As(err, &name):
		return "the name of HOST does not resolve: look at /etc/hosts and the name server, or set HOST to an address", true
	case errors.Is(err, syscall.ENOBUFS):
		return "the system has no memory for sockets left: end what uses it", true
	}
	return "", false
}

// listenError is a failure to listen, with its cause and what to do.
func listenError(cfg *config.Config, err error) error {
	hint, ok := networkCause(err)
	if fault, full := disk.Cause(err); full && !ok {
		hint, ok = fault.Hint, true
	}
	if !ok && errors.Is(err, fs.ErrPermission) {
		hint = "ports below 1024 need a right that this process does not have: choose a PORT above, or give it CAP_NET_BIND_SERVICE (AmbientCapabilities= in a unit)"
	} else if !ok {
		hint = "choose another HOST or PORT"
	}
	return usagef("cannot listen on %s: %s (%w)", cfg.Address(), hint, err)
}

// until calls try until it succeeds, until its failure is one that waiting cannot fix, until ctx ends or START_WAIT is over. It returns
// the last failure.
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
		p.log.Warn("the start waits", "for", what, "cause", sentence(err), "next_try_in", pause.Round(time.Millisecond).String(), "at_most", left.Round(time.Second).String())
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

// patienceFor is how long a failure may be waited out.
func (p *patience) patienceFor(err error) time.Duration {
	var l late
	switch {
	case errors.As(err, &l) && l.within > 0:
		return min(p.left, l.within)
	case passing(err):
		return p.left
	}
	return 0
}

// await is until for a try with a result.
func await[T any](ctx context.Context, p *patience, what string, try func() (T, error)) (result T, err error) {
	err = p.until(ctx, what, func() (err error) {
		result, err = try()
		return err
	})
	return result, err
}

// settingsInTime is settings that waits for files that are not there yet: the settings file that was named, and those of secrets.
func (p *program) settingsInTime(ctx context.Context, demo bool) (*config.Config, error) {
	cfg, err := p.serveSettings(demo)
	if !errors.Is(err, fs.ErrNotExist) && !passing(err) {
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

// checkModes ends the start where everybody can read what is secret, and logs what deserves a look.
func checkModes(cfg *config.Config, log *slog.Logger) error {
	warnings, err := config.Private(append(store.Files(databasePath(cfg)), config.SecretPath(cfg.DataDir))...)
	for _, w := range append(warnings, config.OpenDirectory(cfg.DataDir)) {
		if w != "" {
			log.Warn(w)
		}
	}
	return err
}

// holdData takes DATA_DIR for this process, and makes it if it is not there. It comes before the database: while another process
// serves, that one's schema must not be changed.
func holdData(dir string) (*usage.Journal, error) {
	if err := missingDisk(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		err = fmt.Errorf("DATA_DIR %s cannot be made: name a directory that the user this runs as may write to: %w", dir, withHint(err))
		if _, above := os.Stat(filepath.Dir(dir)); errors.Is(err, fs.ErrPermission) && errors.Is(above, fs.ErrNotExist) {
			return nil, databasef("%w", late{error: fmt.Errorf("%w; not even %s is there, as if a disk were not mounted", err, filepath.Dir(dir))})
		}
		return nil, databasef("%w", err)
	}
	held, err := usage.Hold(dir)
	if err != nil {
		return nil, databasef("%w", withHint(err))
	}
	return held, nil
}

// missingDisk is an error where DATA_DIR is on a disk that is not mounted yet. A database that is made there now would be an empty one
// on another disk.
func missingDisk(dir string) error {
	if target, err := os.Readlink(dir); err == nil {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			return databasef("%w", late{error: fmt.Errorf("DATA_DIR %s is a link to %s, which is not there: mount its disk, make that directory, or correct the link", dir, target)})
		}
	}
	if _, err := os.Stat(filepath.Join(dir, databaseName)); err == nil {
		return nil
	}
	if at := disk.Unmounted(dir); at != "" {
		return databasef("%w", late{error: fmt.Errorf("DATA_DIR %s has no database, and the disk that /etc/fstab has for %s is not mounted: mount it, or take it out of /etc/fstab if DATA_DIR shall be on the disk below", dir, at)})
	}
	return nil
}

// withHint adds what to do about a fault of the disk.
func withHint(err error) error {
	if fault, ok := disk.Cause(err); ok && !errors.Is(err, disk.ErrLocked) {
		return fmt.Errorf("%w: %s", err, fault.Hint)
	}
	return err
}
