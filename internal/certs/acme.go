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

// Options are the names that certificates are requested for, and the CA. All but Domains and Dir may be empty.
type Options struct {
	Domains []string
	Email   string
	CA      string         // URL of its directory; "" is Let's Encrypt
	Roots   *x509.CertPool // what the CA's own HTTPS is trusted by; nil is what the system trusts
	Dir     string         // certificates, keys and the account are kept there
}

// ACME gets certificates from a CA, by answering on the service's own port (RFC 8737), and renews them. NewACME makes one.
type ACME struct {
	domains []string
	magic   *certmagic.Config
	issuer  *certmagic.ACMEIssuer
	cache   *certmagic.Cache
	own     tls.Certificate
	log     *slog.Logger
}

// NewACME asks nobody yet: Manage does.
func NewACME(o Options, log *slog.Logger) (*ACME, error) {
	if o.CA == "" {
		for _, name := range o.Domains {
			if !strings.Contains(name, ".") || !certmagic.SubjectQualifiesForPublicCert(name) {
				return nil, fmt.Errorf("there is no certificate for %s from Let's Encrypt: name a domain that is in the public DNS, or the CA of your network as ACME_CA", name)
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
		OnEvent:           a.event,
		OCSP:              certmagic.OCSPConfig{DisableStapling: true},                       // Let's Encrypt has none any more, and to ask would hold up the start
		ShouldEmitFunc:    func(event string) bool { return event != "tls_get_certificate" }, // one for each handshake
	})
	a.issuer = certmagic.NewACMEIssuer(a.magic, certmagic.ACMEIssuer{
		CA: o.CA, Email: o.Email, TrustedRoots: o.Roots, Agreed: true, DisableHTTPChallenge: true, DisableDistributedSolvers: true, Logger: lines,
		HTTPProxy: func(*http.Request) (*url.URL, error) { return nil, nil }, // none of the environment's
	})
	a.magic.Issuers = []certmagic.Issuer{a.issuer}
	return a, nil
}

// TLS is the configuration that serves the certificates, and the CA's trials.
func (a *ACME) TLS() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		CipherSuites:   authenticated,
		NextProtos:     []string{"h2", "http/1.1", "acme-tls/1"},
		GetCertificate: a.certificate,
	}
}

// certificate is the one for the name that the client wants. To who wants none - a health check, by address - there is one
// of our own as long as there is no other, for the service is well without.
func (a *ACME) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	cert, err := a.magic.GetCertificate(hello)
	if err != nil && hello.ServerName == "" {
		return &a.own, nil
	}
	return cert, err
}

// Expiry is when the certificate of each name ends; names that have none yet are left out.
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

// Manage gets what is missing and renews what grows old until ctx ends, beside the caller. The service must listen at addr
// already: certmagic would take the port for the CA's trials otherwise.
func (a *ACME) Manage(ctx context.Context, addr net.Addr) error {
	at, ok := addr.(*net.TCPAddr)
	if !ok {
		return errors.New("ACME needs a TCP port")
	}
	a.issuer.ListenHost, a.issuer.AltTLSALPNPort = at.IP.String(), at.Port
	a.log.Info("certificates by ACME: port 443 of each name must lead to the port here", "names", a.domains, "ca", a.issuer.CA, "port", at.Port)
	context.AfterFunc(ctx, a.cache.Stop)
	var wanted []string
	for _, name := range a.domains {
		// What is stored is there before the first connection. What is good is looked after from then on; the rest is begun anew.
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

// event tells the operator how it went. certmagic's own lines have the details.
func (a *ACME) event(ctx context.Context, event string, data map[string]any) error {
	name, _ := data["identifier"].(string)
	renewal, _ := data["renewal"].(bool)
	if event == "cert_obtained" {
		a.log.Info("got a certificate", "name", name, "renewal", renewal)
	}
	if event != "cert_failed" || ctx.Err() != nil { // or the service is stopping
		return nil
	}
	err, _ := data["error"].(error)
	text := "no certificate could be got, and clients of this name are refused until there is one: " + acmeMend
	if renewal {
		text = "the certificate could not be renewed, and is served until it expires: " + acmeMend
	}
	a.log.Error(text, "name", name, "cause", strings.Join(strings.Fields(fmt.Sprint(err)), " "))
	return nil
}

const acmeMend = "see that the name leads to this machine, that port 443 of it reaches this service, and that this service reaches the CA; it is tried again by itself"

// ownCertificate is signed by itself, is for no name, and lives as long as the process.
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
