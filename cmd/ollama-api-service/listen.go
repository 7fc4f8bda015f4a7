package main

import (
	"net"

	"ollama-api-service/internal/config"
	"ollama-api-service/internal/disk"
)

// listen opens what clients connect to: an address, or a Unix socket.
func listen(cfg *config.Config) (net.Listener, error) {
	if path := cfg.Socket(); path != "" {
		l, err := disk.ListenSocket(path)
		if err != nil {
			return nil, usagef("cannot listen on the Unix socket %s: %w; name a path in a directory that the user this runs as may write to", path, err)
		}
		return l, nil
	}
	l, err := net.Listen("tcp", cfg.Address())
	if err != nil {
		return nil, usagef("cannot listen on %s: %w; stop what uses it, or choose another HOST or PORT", cfg.Address(), err)
	}
	return l, nil
}

// listenURL is what the log calls it.
func listenURL(cfg *config.Config, l net.Listener) string {
	if cfg.Socket() != "" {
		return "unix:" + l.Addr().String() + string(cfg.BasePath)
	}
	return cfg.Scheme() + "://" + l.Addr().String() + string(cfg.BasePath)
}
