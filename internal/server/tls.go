package server

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync/atomic"
	"time"
)

// maxPEM bounds what is read of a file of a certificate or key: chains have some kilobytes, and a path may be mistyped.
const maxPEM = 1 << 20

// KeyPair is a certificate with its key, from two files that others renew. OpenKeyPair makes one.
type KeyPair struct {
	certFile, keyFile string
	log               *slog.Logger
	current           atomic.Pointer[tls.Certificate]

	// Of the files' content, for Watch alone.
	tried, seen [sha256.Size]byte
}

// OpenKeyPair reads the files. They must be there, and belong together.
func OpenKeyPair(certFile, keyFile string, log *slog.Logger) (*KeyPair, error) {
	p := &KeyPair{certFile: certFile, keyFile: keyFile, log: log}
	cert, key, err := p.read()
	if err != nil {
		return nil, err
	}
	p.tried = fingerprint(cert, key, nil)
	p.seen = p.tried
	return p, p.use(cert, key)
}

// TLS is the configuration that serves the pair as it is at the time of each connection.
func (p *KeyPair) TLS() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return p.current.Load(), nil },
	}
}

// Expiry is when the certificate that is served ends, by its first name.
func (p *KeyPair) Expiry() map[string]time.Time {
	leaf := p.current.Load().Leaf
	name := leaf.Subject.CommonName
	if len(leaf.DNSNames) > 0 {
		name = leaf.DNSNames[0]
	}
	return map[string]time.Time{name: leaf.NotAfter}
}

// Watch takes up new files until ctx ends; it looks at them that often. Links are followed at each look, so that a volume of
// Kubernetes, which swaps a link to a directory, is seen. Connections that are there already go on.
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

// look takes up what has changed, as soon as two looks see the same: the first may come between the writing of the two files.
func (p *KeyPair) look() {
	cert, key, err := p.read()
	now := fingerprint(cert, key, err)
	settled := now == p.seen
	p.seen = now
	if !settled || now == p.tried {
		return
	}
	p.tried = now
	if err == nil {
		err = p.use(cert, key)
	}
	if err != nil {
		p.log.Error("the certificate has changed but cannot be used, and the one before is served on: put a certificate and a key in place that belong together", "cause", err.Error())
	}
}

func (p *KeyPair) read() (cert, key []byte, err error) {
	if cert, err = readPEM(p.certFile); err != nil {
		return nil, nil, err
	}
	key, err = readPEM(p.keyFile)
	return cert, key, err
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

// use serves the pair from now on.
func (p *KeyPair) use(cert, key []byte) error {
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("%s with %s: %w", p.certFile, p.keyFile, err)
	}
	p.current.Store(&pair)
	about := []any{"names", pair.Leaf.DNSNames, "not_after", pair.Leaf.NotAfter.UTC().Format(time.RFC3339)}
	if time.Now().After(pair.Leaf.NotAfter) {
		p.log.Error("the certificate has expired, so clients refuse it: renew it; the new files are taken up by themselves", about...)
		return nil
	}
	p.log.Info("serving a certificate", about...)
	return nil
}
