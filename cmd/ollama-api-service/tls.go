package main

import (
	"context"
	"crypto/tls"
	"log/slog"
	"time"

	"ollama-api-service/internal/config"
	"ollama-api-service/internal/server"
)

const certificatePoll = 2 * time.Second

// encryption is the TLS that is spoken, nil where none is. Its certificate is kept fresh until ctx ends.
func encryption(ctx context.Context, cfg *config.Config, log *slog.Logger) (*tls.Config, error) {
	if cfg.TLSCert == "" {
		return nil, nil
	}
	pair, err := server.OpenKeyPair(cfg.TLSCert, cfg.TLSKey, log)
	if err != nil {
		return nil, usagef("TLS_CERT and TLS_KEY cannot be used: name a certificate and its own key, both PEM files that the user this runs as may read (%w)", err)
	}
	go pair.Watch(ctx, certificatePoll)
	return pair.TLS(), nil
}
