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

// givenListeners returns the sockets that systemd holds for the service (sd_listen_fds(3)). They outlive the service, so that a restart
// refuses no connection. It sets HOST and PORT of cfg to the address of the first socket.
func givenListeners(cfg *config.Config) ([]net.Listener, error) {
	given, err := activation.Listeners()
	if err != nil || len(given) == 0 {
		return nil, err
	}
	for _, l := range given {
		if l == nil {
			return nil, usagef("systemd passed a socket that is not listening: write ListenStream= in the socket unit, without Accept=yes")
		}
	}
	for i := len(given) - 1; i >= 0; i-- { // the first one last, because cfg keeps the last address
		if err := cfg.ListenAt(given[i].Addr()); err != nil {
			return nil, err
		}
	}
	return given, nil
}

// listen opens the address or the Unix socket that clients connect to.
func listen(cfg *config.Config) (net.Listener, error) {
	if path := cfg.Socket(); path != "" {
		l, err := disk.ListenSocket(path)
		switch {
		case errors.Is(err, disk.ErrSocketInUse):
			return nil, usagef("%w", late{error: fmt.Errorf("cannot listen on the Unix socket %s: %w: stop it, or name another path in HOST", path, err)})
		case errors.Is(err, fs.ErrNotExist):
			return nil, usagef("%w", late{error: fmt.Errorf("cannot listen on the Unix socket %s: its directory does not exist: create it (RuntimeDirectory= in a unit), or name another path in HOST", path)})
		case err != nil:
			return nil, usagef("cannot listen on the Unix socket %s: %w; name a path in a directory that the user of the service may write to", path, err)
		}
		return l, nil
	}
	l, err := net.Listen("tcp", cfg.Address())
	if err != nil {
		return nil, listenError(cfg, err)
	}
	return l, nil
}

// listenURL is the address in the log.
func listenURL(cfg *config.Config, l net.Listener) string {
	if l.Addr().Network() == "unix" {
		return "unix:" + l.Addr().String() + string(cfg.BasePath)
	}
	return cfg.Scheme() + "://" + l.Addr().String() + string(cfg.BasePath)
}
