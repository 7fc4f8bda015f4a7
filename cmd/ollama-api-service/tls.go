package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"ollama-api-service/internal/certs"
	"ollama-api-service/internal/config"
	"ollama-api-service/internal/disk"
)

const certificatePoll = 2 * time.Second

// encryption is a TLS configuration and the functions that keep its certificate current.
type encryption struct {
	config *tls.Config                                    // nil means plain HTTP
	follow func(ctx context.Context, addr net.Addr) error // returns at once; runs until ctx ends
	// prepare reads the certificate files again and returns a function that starts to serve them. It is nil without such files.
	prepare func(cert, key string) (use func(), err error)
	expiry  func() map[string]time.Time // the expiry of each name's certificate; nil means plain HTTP
}

func newEncryption(cfg *config.Config, log *slog.Logger) (encryption, error) {
	switch {
	case len(cfg.ACMEDomain) > 0:
		return acmeEncryption(cfg, log)
	case cfg.TLSCert == "":
		return encryption{follow: func(context.Context, net.Addr) error { return nil }}, nil
	}
	pair, err := certs.OpenKeyPair(cfg.TLSCert, cfg.TLSKey, log)
	if err != nil {
		return encryption{}, unreadable(unusableCertificate(err))
	}
	follow := func(ctx context.Context, _ net.Addr) error {
		go pair.Watch(ctx, certificatePoll)
		return nil
	}
	return encryption{config: pair.TLS(), follow: follow, prepare: pair.Prepare, expiry: pair.Expiry}, nil
}

func unusableCertificate(err error) error {
	return usagef("TLS_CERT and TLS_KEY cannot be used: name a certificate and its own key, both PEM files that the user of the service may read (%w)", err)
}

// unreadable is a failure to use files that another program writes. A missing file may be on a disk that is mounted later. A file that
// cannot be used is read again for a moment, because it may just be written.
func unreadable(err error) error {
	if _, fault := disk.Cause(err); fault || errors.Is(err, fs.ErrNotExist) {
		return late{error: err}
	}
	return late{error: err, within: renewal}
}

func acmeEncryption(cfg *config.Config, log *slog.Logger) (encryption, error) {
	o := certs.Options{Domains: cfg.ACMEDomain, Email: string(cfg.ACMEEmail), CA: string(cfg.ACMECA), Dir: filepath.Join(cfg.DataDir, "acme")}
	if cfg.ACMECARoot != "" {
		text, err := os.ReadFile(cfg.ACMECARoot)
		if o.Roots = x509.NewCertPool(); err == nil && !o.Roots.AppendCertsFromPEM(text) {
			err = errors.New("it contains no certificate")
		}
		if err != nil {
			return encryption{}, unreadable(usagef("ACME_CA_ROOT cannot be used: name a PEM file with the certificate of the CA that the user of the service may read (%w)", err))
		}
	}
	acme, err := certs.NewACME(o, log)
	if err != nil {
		return encryption{}, usagef("ACME_DOMAIN cannot be used: %w", err)
	}
	return encryption{config: acme.TLS(), follow: acme.Manage, expiry: acme.Expiry}, nil
}
