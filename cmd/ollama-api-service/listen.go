package main

import (
	"net"

	"github.com/coreos/go-systemd/v22/activation"

	"ollama-api-service/internal/config"
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
