package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"

	"github.com/coreos/go-systemd/v22/activation"

	"ollama-api-service/internal/config"
	"ollama-api-service/internal/disk"
)

// givenListeners are the sockets that systemd holds for the service (sd_listen_fds(3)). They
// outlive the service, so that a restart refuses no connection. HOST and PORT of cfg become those of the first.
func givenListeners(cfg *config.Config) ([]net.Listener, error) {
	given, err := activation.Listeners()
	if err != nil || len(given) == 0 {
		return nil, err
	}
	for _, l := range given {
		if l == nil {
			return nil, usagef("systemd has handed over a socket that does not listen: write ListenStream= in the socket unit, without Accept=yes")
		}
	}
	for i := len(given) - 1; i >= 0; i-- { // the first one last, for it is what cfg names from then on
		if err := cfg.ListenAt(given[i].Addr()); err != nil {
			return nil, err
		}
	}
	return given, nil
}

// listen opens what clients connect to: an address, or a Unix socket.
func listen(cfg *config.Config) (net.Listener, error) {
	if path := cfg.Socket(); path != "" {
		l, err := disk.ListenSocket(path)
		switch {
		case errors.Is(err, disk.ErrSocketInUse):
			return nil, usagef("%w", late{error: fmt.Errorf("cannot listen on the Unix socket %s: %w: stop it, or name another path in HOST", path, err)})
		case errors.Is(err, fs.ErrNotExist):
			return nil, usagef("%w", late{error: fmt.Errorf("cannot listen on the Unix socket %s: its directory is not there: make it (RuntimeDirectory= in a unit), or name another path in HOST", path)})
		case err != nil:
			return nil, usagef("cannot listen on the Unix socket %s: %w; name a path in a directory that the user this runs as may write to", path, err)
		}
		return l, nil
	}
	l, err := net.Listen("tcp", cfg.Address())
	if err != nil {
		return nil, listenError(cfg, err)
	}
	return l, nil
}

// listenURL is what the log calls it.
func listenURL(cfg *config.Config, l net.Listener) string {
	if l.Addr().Network() == "unix" {
		return "unix:" + l.Addr().String() + string(cfg.BasePath)
	}
	return cfg.Scheme() + "://" + l.Addr().String() + string(cfg.BasePath)
}
