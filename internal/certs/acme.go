package certs

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
)

// Options are the names that certificates are requested for, and the CA. All fields except Domains and Dir may be empty.
type Options struct {
	Domains []string
	Email   string
	CA      string         // URL of its directory; "" means Let's Encrypt
	Roots   *x509.CertPool // trusted for HTTPS to the CA; nil means the system's roots
	Dir     string         // for certificates, keys and the account
}

// ACME gets certificates from a CA and renews them. It answers the CA's challenges on the service's own port (RFC 8737). Create it with
// NewACME.
type ACME struct {
	domains []string
	magic   *certmagic.Config
	issuer  *certmagic.ACMEIssuer
	cache   *certmagic.Cache
	own     tls.Certificate
	log     *slog.Logger
}

// NewACME does not contact the CA yet. Manage does.
func NewACME(o Options, log *slog.Logger) (*ACME, error) {
	if o.CA == "" {
		for _, name := range o.Domains {
			if !strings.Contains(name, ".") || !certmagic.SubjectQualifiesForPublicCert(name) {
				return nil, fmt.Errorf("Let's Encrypt issues no certificate for %s: use a name in the public DNS, or set ACME_CA to the CA of your network", name)
			}
		}
		o.CA = certmagic.LetsEncryptProductionCA
	}
	own, err := ownCertificate()
	if err != nil {
		return nil, err
	}
	a := &ACME{domains: o.Domains, own: own, log: log}
	lines := zap.New(acmeLog{log: log})
	a.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return a.magic, nil },
		Logger:           lines,
	})
	a.magic = certmagic.New(a.cache, certmagic.Config{
		Storage:           &certmagic.FileStorage{Path: o.Dir},
		DefaultServerName: o.Domains[0],
		Logger:            lines,
		// Let's Encrypt no longer offers OCSP, and requests would delay the start.
		OCSP:           certmagic.OCSPConfig{DisableStapling: true},
		OnEvent:        a.event,
		ShouldEmitFunc: func(event string) bool { return event != "tls_get_certificate" }, // emitted for each handshake
	})
	a.issuer = certmagic.NewACMEIssuer(a.magic, certmagic.ACMEIssuer{
		CA: o.CA, Email: o.Email, TrustedRoots: o.Roots, Agreed: true, DisableHTTPChallenge: true, DisableDistributedSolvers: true, Logger: lines,
		HTTPProxy: func(*http.Request) (*url.URL, error) { return nil, nil }, // no proxy from the environment
	})
	a.magic.Issuers = []certmagic.Issuer{a.issuer}
	return a, nil
}

// TLS returns the configuration that serves the certificates and the CA's challenges.
func (a *ACME) TLS() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		CipherSuites:   authenticated,
		NextProtos:     []string{"h2", "http/1.1", "acme-tls/1"},
		GetCertificate: a.certificate,
	}
}

// certificate returns the certificate for the requested name. A client that names none, such as a health check by address, gets a
// self-signed one if there is no other, because the service is healthy without it.
func (a *ACME) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	cert, err := a.magic.GetCertificate(hello)
	if err != nil && hello.ServerName == "" {
		return &a.own, nil
	}
	return cert, err
}

// Expiry returns when the certificate of each name expires. Names without a certificate are left out.
func (a *ACME) Expiry() map[string]time.Time {
	ends := make(map[string]time.Time)
	for _, name := range a.domains {
		for _, c := range a.cache.AllMatchingCertificates(name) {
			if c.Leaf != nil && c.Leaf.NotAfter.After(ends[name]) {
				ends[name] = c.Leaf.NotAfter
			}
		}
	}
	return ends
}

// Manage gets missing certificates and renews old ones in the background until ctx ends. The service must already listen on addr, because
// otherwise certmagic would use the port for the CA's challenges.
func (a *ACME) Manage(ctx context.Context, addr net.Addr) error {
	at, ok := addr.(*net.TCPAddr)
	if !ok {
		return errors.New("ACME needs a TCP port")
	}
	a.issuer.ListenHost, a.issuer.AltTLSALPNPort = at.IP.String(), at.Port
	a.log.Info("managing certificates by ACME: port 443 of each name must lead to this port", "names", a.domains, "ca", a.issuer.CA, "port", at.Port)
	context.AfterFunc(ctx, a.cache.Stop)
	var wanted []string
	for _, name := range a.domains {
		// Load stored certificates before the first connection. certmagic then maintains the good ones; the others are requested again.
		cert, err := a.magic.CacheManagedCertificate(ctx, name)
		if err == nil && !cert.NeedsRenewal(a.magic) {
			a.log.Info("serving a stored certificate", "name", name, "not_after", cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
			continue
		}
		a.cache.RemoveManaged([]certmagic.SubjectIssuer{{Subject: name, IssuerKey: a.issuer.IssuerKey()}})
		wanted = append(wanted, name)
	}
	return a.magic.ManageAsync(ctx, wanted)
}

// event logs the result for the operator. certmagic's own lines have the details.
func (a *ACME) event(ctx context.Context, event string, data map[string]any) error {
	name, _ := data["identifier"].(string)
	renewal, _ := data["renewal"].(bool)
	if event == "cert_obtained" {
		a.log.Info("got a certificate", "name", name, "renewal", renewal)
	}
	if event != "cert_failed" || ctx.Err() != nil { // it is not about a failure, or the service is stopping
		return nil
	}
	err, _ := data["error"].(error)
	text := "no certificate could be obtained, so connections with this name fail: " + acmeHint
	if renewal {
		text = "the certificate could not be renewed and is used until it expires: " + acmeHint
	}
	a.log.Error(text, "name", name, "cause", strings.Join(strings.Fields(fmt.Sprint(err)), " "))
	return nil
}

const acmeHint = "check that the name leads to this machine, that its port 443 reaches this service, and that this service can reach the CA; the next attempt is automatic"

// ownCertificate returns a self-signed certificate without a name, which lasts as long as the process.
func ownCertificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	about := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "ollama-api-service, before it has a certificate"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, about, about, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
