package e2e

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/test/ollamatest"
)

// authority signs certificates for the tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	a.pem, _, a.cert, a.key = a.sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "an authority of the tests"}, IsCA: true, BasicConstraintsValid: true})
	return a
}

// sign returns a certificate and its key. Without an authority, the certificate is self-signed.
func (a *authority) sign(t *testing.T, about *x509.Certificate) (certPEM, keyPEM []byte, cert *x509.Certificate, key *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	about.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	about.NotBefore, about.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, by := a.cert, a.key
	if parent == nil {
		parent, by = about, key
	}
	der, err := x509.CreateCertificate(rand.Reader, about, parent, key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	if cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), cert, key
}

// pair is a certificate for localhost and its key, in files as Kubernetes mounts them: links through a link to a directory.
type pair struct{ dir, cert, key string }

func newPair(t *testing.T) *pair {
	dir := t.TempDir()
	p := &pair{dir: dir, cert: filepath.Join(dir, "tls.crt"), key: filepath.Join(dir, "tls.key")}
	for _, name := range []string{"tls.crt", "tls.key"} {
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// put replaces the directory atomically.
func (p *pair) put(t *testing.T, certPEM, keyPEM []byte) {
	t.Helper()
	version, err := os.MkdirTemp(p.dir, "..version")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"tls.crt": certPEM, "tls.key": keyPEM} {
		if err := os.WriteFile(filepath.Join(version, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Base(version), filepath.Join(p.dir, "..tmp")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(p.dir, "..tmp"), filepath.Join(p.dir, "..data")); err != nil {
		t.Fatal(err)
	}
}

// renew writes a new pair and returns its serial number.
func (p *pair) renew(t *testing.T, a *authority) *big.Int {
	t.Helper()
	certPEM, keyPEM, cert, _ := a.sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"}})
	p.put(t, certPEM, keyPEM)
	return cert.SerialNumber
}

// client returns a client that trusts only the authority and uses HTTP/2 if the server offers it.
func (a *authority) client(t *testing.T) *http.Client {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.pem)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "localhost"}, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: time.Minute}
}

// get checks that the service answers 200 over HTTP/2 with the certificate that has this serial number.
func get(t *testing.T, c *http.Client, url string, serial *big.Int) {
	t.Helper()
	res, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusOK || res.ProtoMajor != 2 || res.TLS.Version < tls.VersionTLS12 {
		t.Errorf("%s answers %s by %s", url, res.Status, res.Proto)
	}
	if got := res.TLS.PeerCertificates[0].SerialNumber; got.Cmp(serial) != 0 {
		t.Errorf("the certificate is %v, want %v", got, serial)
	}
}

// A certificate is renewed while a stream runs. An invalid certificate is not used, and the log reports that.
func TestTLSCertificateIsFollowed(t *testing.T) {
	a, files := newAuthority(t), newPair(t)
	serial := files.renew(t, a)
	fake := ollamatest.Start(t)
	gate := make(chan struct{}, 1)
	fake.Script("POST", "/api/chat", ollamatest.Answer{Tokens: 2, Gate: gate})
	s := start(t, t.TempDir(), fake.URL, nil, "TLS_CERT="+files.cert, "TLS_KEY="+files.key)
	if !strings.Contains(s.stdout.String(), `"url":"https://127.0.0.1:`) {
		t.Error("the address in the log at start is not https")
	}
	if out, errs, exit := run(t, append(s.cmd.Env, "PORT="+s.URL[strings.LastIndex(s.URL, ":")+1:]), "healthcheck"); exit != 0 || !strings.Contains(out, "https://") {
		t.Errorf("healthcheck: exit %d: %s%s", exit, out, errs)
	}
	get(t, a.client(t), s.URL+"/healthz", serial)

	streaming := a.client(t)
	req, err := http.NewRequestWithContext(t.Context(), "POST", s.URL+"/api/chat", strings.NewReader(`{`+ask+`}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.Admin)
	gate <- struct{}{}
	res, err := streaming.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	in := bufio.NewReader(res.Body)
	if line, err := in.ReadString('\n'); err != nil || !strings.Contains(line, ollamatest.Word(0)) {
		t.Fatalf("first line %q, %v", line, err)
	}

	serial = files.renew(t, a)
	s.logged(t, `"msg":"(serving a certificate)".*\n(?:.*\n)*.*"msg":"serving a certificate"`)
	get(t, a.client(t), s.URL+"/healthz", serial)

	_, strange, _, _ := a.sign(t, &x509.Certificate{DNSNames: []string{"localhost"}})
	good, err := os.ReadFile(files.cert)
	if err != nil {
		t.Fatal(err)
	}
	files.put(t, good, strange)
	s.logged(t, `("msg":"the changed certificate cannot be used.*private key does not match)`)
	get(t, a.client(t), s.URL+"/healthz", serial)

	close(gate)
	rest, err := io.ReadAll(in)
	if err != nil || !strings.Contains(string(rest), `"done":true`) {
		t.Errorf("the stream that began before the renewal ended with %q, %v", rest, err)
	}
}

// logged waits for a line in the log.
func (s *service) logged(t *testing.T, pattern string) {
	t.Helper()
	if _, err := s.stdout.find(regexp.MustCompile(pattern), s.ended); err != nil {
		t.Fatal(err)
	}
}

// Invalid TLS settings are reported at once with exit 2, before an admin key is created or a file is written.
func TestTLSSettingsThatCannotBeObeyed(t *testing.T) {
	dir := t.TempDir()
	a := newAuthority(t)
	file := func(name string, text []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	certPEM, keyPEM, _, _ := a.sign(t, &x509.Certificate{DNSNames: []string{"localhost"}})
	_, otherPEM, _, _ := a.sign(t, &x509.Certificate{DNSNames: []string{"localhost"}})
	cert, key, other, nothing := file("cert", certPEM), file("key", keyPEM), file("other", otherPEM), file("nothing", []byte("hello\n"))
	const later = "no such file" // the file may be on a disk that is mounted later, so the exit code is 1
	for _, c := range []struct {
		words []string
		env   []string
	}{
		{[]string{"TLS_KEY is missing"}, []string{"TLS_CERT=" + cert}},
		{[]string{"TLS_CERT is missing"}, []string{"TLS_KEY=" + key}},
		{[]string{"TLS_CERT", "TLS_KEY", later, dir + "/absent"}, []string{"TLS_CERT=" + dir + "/absent", "TLS_KEY=" + key}},
		{[]string{"TLS_CERT", "TLS_KEY", "does not match"}, []string{"TLS_CERT=" + cert, "TLS_KEY=" + other}},
		{[]string{"TLS_CERT", "TLS_KEY", "PEM"}, []string{"TLS_CERT=" + nothing, "TLS_KEY=" + key}},
		{[]string{"TLS_CERT", "is a directory"}, []string{"TLS_CERT=" + dir, "TLS_KEY=" + key}},
		{[]string{"ACME_DOMAIN", "TLS_CERT"}, []string{"TLS_CERT=" + cert, "TLS_KEY=" + key, "ACME_DOMAIN=gateway.example.test"}},
		{[]string{"ACME_DOMAIN", "Let's Encrypt", "gateway.internal"}, []string{"ACME_DOMAIN=gateway.internal"}},
		{[]string{"ACME_DOMAIN", "Let's Encrypt", "gateway"}, []string{"ACME_DOMAIN=gateway"}},
		{[]string{"ACME_CA_ROOT", later}, []string{"ACME_DOMAIN=gateway.lan", "ACME_CA=https://127.0.0.1/dir", "ACME_CA_ROOT=" + dir + "/absent"}},
		{[]string{"ACME_CA_ROOT", "it contains no certificate"}, []string{"ACME_DOMAIN=gateway.lan", "ACME_CA=https://127.0.0.1/dir", "ACME_CA_ROOT=" + key}},
	} {
		data := t.TempDir()
		_, errs, exit := run(t, environment(data, "http://127.0.0.1:1", append(c.env, "START_WAIT=0s")...), "serve")
		want := 2
		if slices.Contains(c.words, later) {
			want = 1
		}
		if exit != want || strings.Count(errs, "\n") != 1 {
			t.Errorf("%q: exit %d, want %d: %s", c.env, exit, want, errs)
		}
		for _, w := range c.words {
			if !strings.Contains(errs, w) {
				t.Errorf("%q: want %q in %s", c.env, w, errs)
			}
		}
		if made := files(t, data); len(made) > 0 {
			t.Errorf("%q: got %d new files, want none", c.env, len(made))
		}
	}
}

// The service uses HTTP/2 only with TLS. Without TLS, an HTTP/2 frame is not a request, and an upgrade is ignored.
func TestNoHTTP2InTheClear(t *testing.T) {
	s := serve(t)
	s.wire.nonsense.Store(true)
	for _, head := range []string{
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
		"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
	} {
		c, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write([]byte(head)); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(c).ReadString('\n')
		if err != nil || !strings.HasPrefix(line, "HTTP/1.1 ") || strings.HasPrefix(line, "HTTP/1.1 101") {
			t.Errorf("%.20q: got %q, %v", head, line, err)
		}
	}
}
