// Package certs provides the service's own certificates: from files that another program renews, or from a CA by ACME.
package certs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// maxPEM limits how much of a certificate or key file is read: chains have some kilobytes, and a path may be mistyped.
const maxPEM = 1 << 20

// authenticated are the cipher suites of TLS 1.2 that encrypt and authenticate in one step (AEAD, RFC 9325 section 4.2). All suites of
// TLS 1.3 do.
var authenticated = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

// KeyPair is a certificate with its key, from two files that another program renews. Open it with OpenKeyPair.
type KeyPair struct {
	log     *slog.Logger
	current atomic.Pointer[tls.Certificate]

	mu                sync.Mutex
	certFile, keyFile string
	tried, seen       [sha256.Size]byte // hashes of the files' contents
}

// OpenKeyPair reads the files. They must exist and match.
func OpenKeyPair(certFile, keyFile string, log *slog.Logger) (*KeyPair, error) {
	p := &KeyPair{log: log}
	use, err := p.Prepare(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	use()
	return p, nil
}

// Prepare reads files to serve instead of the current ones, which may be the same files. use starts to serve them, even if they are the
// same. An error changes nothing.
func (p *KeyPair) Prepare(certFile, keyFile string) (use func(), err error) {
	cert, key, err := readPair(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	pair, err := parsePair(certFile, keyFile, cert, key)
	if err != nil {
		return nil, err
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.certFile, p.keyFile = certFile, keyFile
		p.tried = fingerprint(cert, key, nil)
		p.seen = p.tried
		p.serve(pair)
	}, nil
}

// TLS returns a configuration that serves the current pair for each connection.
func (p *KeyPair) TLS() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		CipherSuites:   authenticated,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return p.current.Load(), nil },
	}
}

// Expiry returns when the current certificate expires, by its first name.
func (p *KeyPair) Expiry() map[string]time.Time {
	leaf := p.current.Load().Leaf
	name := leaf.Subject.CommonName
	if len(leaf.DNSNames) > 0 {
		name = leaf.DNSNames[0]
	}
	return map[string]time.Time{name: leaf.NotAfter}
}

// Watch reloads changed files until ctx ends, and checks them at each interval. It follows links at each check, so that it notices a
// Kubernetes volume, which swaps a link to a directory. Existing connections continue.
func (p *KeyPair) Watch(ctx context.Context, every time.Duration) {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			p.look()
		}
	}
}

// look reloads changed files once two checks in a row see the same content, because the first may come between the writes of the two
// files.
func (p *KeyPair) look() {
	p.mu.Lock()
	defer p.mu.Unlock()
	cert, key, err := readPair(p.certFile, p.keyFile)
	now := fingerprint(cert, key, err)
	settled := now == p.seen
	p.seen = now
	if !settled || now == p.tried {
		return
	}
	p.tried = now
	var pair *tls.Certificate
	if err == nil {
		pair, err = parsePair(p.certFile, p.keyFile, cert, key)
	}
	if err == nil {
		p.serve(pair)
	} else {
		p.log.Error("the changed certificate cannot be used and the previous one stays in use: provide a certificate and a key that match", "cause", err.Error())
	}
}

func readPair(certFile, keyFile string) (cert, key []byte, err error) {
	if cert, err = readPEM(certFile); err != nil {
		return nil, nil, err
	}
	key, err = readPEM(keyFile)
	return cert, key, err
}

func parsePair(certFile, keyFile string, cert, key []byte) (*tls.Certificate, error) {
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("%s with %s: %w", certFile, keyFile, err)
	}
	return &pair, nil
}

func readPEM(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxPEM))
}

func fingerprint(cert, key []byte, err error) [sha256.Size]byte {
	return sha256.Sum256(fmt.Appendf(nil, "%d:%s%s%v", len(cert), cert, key, err))
}

// serve starts to serve the pair.
func (p *KeyPair) serve(pair *tls.Certificate) {
	before := p.current.Swap(pair)
	if before != nil && slices.EqualFunc(before.Certificate, pair.Certificate, bytes.Equal) {
		return
	}
	about := []any{"names", pair.Leaf.DNSNames, "not_after", pair.Leaf.NotAfter.UTC().Format(time.RFC3339)}
	if time.Now().After(pair.Leaf.NotAfter) {
		p.log.Error("the certificate has expired and clients refuse it: renew it; the service reads the new files automatically", about...)
		return
	}
	p.log.Info("serving a certificate", about...)
}
