package certs_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/certs"
)

// signed returns a self-signed certificate that is valid until then, and its key.
func signed(t *testing.T, serial int64, until time.Time) (certPEM, keyPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	about := &x509.Certificate{SerialNumber: big.NewInt(serial), NotBefore: until.Add(-time.Hour), NotAfter: until, DNSNames: []string{"gateway.example.net"}}
	der, err := x509.CreateCertificate(rand.Reader, about, about, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
}

// A renewal in two steps is never an error, and a broken one is logged once and not at each check.
func TestKeyPairFollowsItsFiles(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	write := func(path string, text []byte) {
		t.Helper()
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	logs := &bytes.Buffer{}
	in := time.Now().Add(time.Hour)
	cert, key := signed(t, 1, in)
	write(certFile, cert)
	write(keyFile, key)
	p, err := certs.OpenKeyPair(certFile, keyFile, slog.New(slog.NewTextHandler(logs, nil)))
	if err != nil {
		t.Fatal(err)
	}
	want := func(when string, serial int64, lines int) {
		t.Helper()
		served, err := p.TLS().GetCertificate(&tls.ClientHelloInfo{})
		if err != nil || served.Leaf.SerialNumber.Int64() != serial {
			t.Errorf("%s: serial %v is served, want %d", when, served.Leaf.SerialNumber, serial)
		}
		if got := strings.Count(logs.String(), "\n"); got != lines {
			t.Errorf("%s: %d log lines, want %d:\n%s", when, got, lines, logs)
		}
	}
	want("at the start", 1, 1)
	p.Look()
	p.Look()
	want("unchanged", 1, 1)

	cert, key = signed(t, 2, in)
	write(certFile, cert)
	p.Look()
	write(keyFile, key)
	p.Look()
	want("just written", 1, 1)
	p.Look()
	want("settled", 2, 2)
	if ends := p.Expiry(); len(ends) != 1 || ends["gateway.example.net"].Unix() != in.Unix() {
		t.Errorf("it expires at %v, want %v", ends, in)
	}

	write(keyFile, []byte("no key"))
	for range 5 {
		p.Look()
	}
	want("broken", 2, 3)
	if err := os.Remove(keyFile); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		p.Look()
	}
	want("gone", 2, 4)

	cert, key = signed(t, 3, time.Now().Add(-time.Minute))
	write(certFile, cert)
	write(keyFile, key)
	p.Look()
	p.Look()
	want("expired", 3, 5)
	for _, s := range []string{"level=INFO", "level=ERROR", "has expired", "no such file", "gateway.example.net"} {
		if !strings.Contains(logs.String(), s) {
			t.Errorf("the log does not contain %q:\n%s", s, logs)
		}
	}
	if strings.Contains(logs.String(), "PRIVATE") {
		t.Error("the log contains a key")
	}
}

// For TLS 1.2, only suites that encrypt and authenticate in one step are offered.
func TestTLSOffersOnlyAuthenticatedSuites(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	cert, key := signed(t, 1, time.Now().Add(time.Hour))
	if err := errors.Join(os.WriteFile(certFile, cert, 0o600), os.WriteFile(keyFile, key, 0o600)); err != nil {
		t.Fatal(err)
	}
	pair, err := certs.OpenKeyPair(certFile, keyFile, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, suite := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		if suite.SupportedVersions[0] == tls.VersionTLS13 {
			continue
		}
		offered := false
		for _, id := range pair.TLS().CipherSuites {
			offered = offered || id == suite.ID
		}
		if aead := strings.Contains(suite.Name, "ECDHE") && (strings.Contains(suite.Name, "GCM") || strings.Contains(suite.Name, "CHACHA20")); offered != aead {
			t.Errorf("%s is offered: %v, want %v", suite.Name, offered, aead)
		}
	}
}
