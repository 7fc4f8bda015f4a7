package server_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/dial"
	"ollama-api-service/internal/server"
	"ollama-api-service/internal/store"
	"ollama-api-service/internal/test/ollamatest"
)

// authority is a private CA.
type authority struct {
	t    *testing.T
	pem  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t}
	about := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "private CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.pem, _ = a.sign(about)
	return a
}

// sign signs a certificate. The first one is the CA's own.
func (a *authority) sign(about *x509.Certificate) (cert, private string) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	parent, by := a.cert, a.key
	if parent == nil {
		parent, by = about, key
	}
	der, err := x509.CreateCertificate(rand.Reader, about, parent, key.Public(), by)
	if err != nil {
		a.t.Fatal(err)
	}
	if a.cert == nil {
		a.key = key
		if a.cert, err = x509.ParseCertificate(der); err != nil {
			a.t.Fatal(err)
		}
	}
	text, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: text}))
}

func (a *authority) leaf(serial int64) (cert, private string) {
	return a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
}

// guarded starts an Ollama with HTTPS and a certificate of ca. It requires the header X-Token: canary-token and, if clients is not nil, a
// client certificate of clients.
func guarded(t *testing.T, ca, clients *authority) (srv *httptest.Server, served func() int) {
	t.Helper()
	inner := ollamatest.Start(t)
	pair, err := tls.X509KeyPair(texts(ca.leaf(2)))
	if err != nil {
		t.Fatal(err)
	}
	srv = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Token") != "canary-token" {
			http.Error(w, "who are you?", http.StatusForbidden)
			return
		}
		forward(t, w, r, inner.URL)
	}))
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	if clients != nil {
		srv.TLS.ClientCAs = x509.NewCertPool()
		srv.TLS.ClientCAs.AddCert(clients.cert)
		srv.TLS.ClientAuth = tls.RequireAndVerifyClientCert
	}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv, func() int { return len(inner.RequestsTo("POST", "/api/chat")) }
}

func texts(cert, key string) (a, b []byte) { return []byte(cert), []byte(key) }

func forward(t *testing.T, w http.ResponseWriter, r *http.Request, to string) {
	req, err := http.NewRequestWithContext(r.Context(), r.Method, to+r.URL.Path, r.Body)
	if err != nil {
		t.Error(err)
		return
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer resp.Body.Close()
	w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
	w.WriteHeader(resp.StatusCode)
	io.Copy(w, resp.Body)
}

// A server with a certificate of a private CA requires a client certificate and a header. The test adds it with PEM texts and with names of
// settings, and changes it while it serves. No secret may appear in an answer, the audit table or the log.
func TestServersOfAPrivateCA(t *testing.T) {
	ca := newAuthority(t)
	dir := t.TempDir()
	file := func(name, text string) dial.Text {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return dial.Text{File: path, Name: map[string]string{"ca.pem": api.SettingCA, "client.pem": api.SettingClientCert, "client.key": api.SettingClientKey}[name]}
	}
	cert, key := ca.leaf(3)
	means := dial.Means{CA: file("ca.pem", ca.pem), Cert: file("client.pem", cert), Key: file("client.key", key), Header: "X-Token", Value: "canary-token"}
	one, servedOne := guarded(t, ca, ca)
	two, servedTwo := guarded(t, ca, ca)
	b := start(t, setup{change: func(o *server.Options) { o.Means, o.Static = means, map[string]bool{"gpu1": true} }})
	b.fleet.Drain(b.backend, true)
	const list = "/api/admin/backends"
	body := func(fields map[string]any) string {
		text, err := json.Marshal(fields)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	var seen strings.Builder // everything that an admin can read
	do := func(want int, method, path string, fields map[string]any) map[string]any {
		t.Helper()
		r := b.do(method, path, adminSecret, body(fields))
		seen.WriteString(r.body)
		if r.status != want {
			t.Fatalf("%s %s: %d %s, want %v", method, path, r.status, r.body, want)
		}
		return r.json(t)
	}
	chat := func(through string) {
		t.Helper()
		if r := b.do("POST", "/api/chat", adminSecret, chatTiny); r.status != 200 || r.header.Get("X-Backend") != through {
			t.Errorf("%d of %q, want %s: %s", r.status, r.header.Get("X-Backend"), through, r.body)
		}
	}
	reach := func(of map[string]any, ca, cert, key, header string) {
		t.Helper()
		want := map[string]any{"ca": ca, "client_cert": cert, "client_key": key, "auth_header": header}
		if got := fmt.Sprint(of["reach"]); got != fmt.Sprint(want) {
			t.Errorf("got the access %v, want %v", got, want)
		}
	}

	// With the settings' own values, and with the names of settings.
	v := do(200, "POST", list, map[string]any{"name": "two", "url": two.URL, "ca": "OLLAMA_CA", "client_cert": "OLLAMA_CLIENT_CERT", "client_key": "OLLAMA_CLIENT_KEY"})
	reach(v, "OLLAMA_CA", "OLLAMA_CLIENT_CERT", "OLLAMA_CLIENT_KEY", "OLLAMA_AUTH_HEADER")
	chat("two")
	// Without any setting: the reason names the setting, then whatever else is missing.
	v = do(200, "POST", list, map[string]any{"name": "one", "url": one.URL, "ca": "none", "client_cert": "none", "client_key": "none", "auth_header": "none"})
	if reason := fmt.Sprint(v["reason"]); v["healthy"] != false || !strings.Contains(reason, "OLLAMA_CA") || !strings.Contains(reason, "unknown authority") {
		t.Errorf("a server that is not trusted: %v, want false, %q in it, %q in it", v, "OLLAMA_CA", "unknown authority")
	}
	v = do(200, "PATCH", list+"/one", map[string]any{"ca": ca.pem})
	if reason := fmt.Sprint(v["reason"]); v["healthy"] != false || !strings.Contains(reason, "OLLAMA_CLIENT_CERT") {
		t.Errorf("a server that asks for a client certificate: %v, want false, %q in it", v, "OLLAMA_CLIENT_CERT")
	}
	v = do(200, "PATCH", list+"/one", map[string]any{"client_cert": cert, "client_key": key})
	if reason := fmt.Sprint(v["reason"]); v["healthy"] != false || !strings.Contains(reason, "403") {
		t.Errorf("a server that asks for a header: %v, want false, %q in it", v, "403")
	}
	v = do(200, "PATCH", list+"/one", map[string]any{"auth_header": "X-Token: canary-token"})
	if reach(v, "set", "set", "set", "set"); v["healthy"] != true {
		t.Errorf("with everything that it requires: %v, want true", v)
	}
	do(200, "PATCH", list+"/two", map[string]any{"drain": true})
	chat("one")
	// A change applies to the next request, not only to the next new connection.
	do(200, "PATCH", list+"/one", map[string]any{"auth_header": "X-Token: another-canary"})
	if r := b.do("POST", "/api/chat", adminSecret, chatTiny); r.status == 200 {
		t.Errorf("a request with the header before the change was served by %s, want not 200", r.header.Get("X-Backend"))
	}
	v = do(200, "PATCH", list+"/one", map[string]any{"ca": "", "client_cert": "", "client_key": "", "auth_header": ""})
	reach(v, "OLLAMA_CA", "OLLAMA_CLIENT_CERT", "OLLAMA_CLIENT_KEY", "OLLAMA_AUTH_HEADER")
	chat("one")
	if servedOne() != 2 || servedTwo() != 1 {
		t.Errorf("the two servers got %d and %d requests, want 2, 1", servedOne(), servedTwo())
	}

	// Invalid values are refused, and no file path is read.
	otherCert, otherKey := ca.leaf(4)
	for _, c := range []struct {
		fields map[string]any
		says   string
	}{
		{map[string]any{"ca": means.CA.File}, "a path is not accepted"},
		{map[string]any{"ca": "OLLAMA_CLIENT_CERT"}, "ca must be"},
		{map[string]any{"ca": key}, "ca must be"},
		{map[string]any{"client_cert": means.Cert.File, "client_key": means.Key.File}, "a path is not accepted"},
		{map[string]any{"client_cert": cert}, "belong together"},
		{map[string]any{"client_key": key}, "belong together"},
		{map[string]any{"client_cert": cert, "client_key": otherKey}, "its own key"},
		{map[string]any{"auth_header": "Host: elsewhere"}, "auth_header must not be"},
		{map[string]any{"auth_header": "X-Token: a\r\nHost: b"}, "auth_header must be"},
		{map[string]any{"auth_header": "canary-token"}, "auth_header must be"},
	} {
		r := b.do("PATCH", list+"/one", adminSecret, body(c.fields))
		seen.WriteString(r.body)
		if r.status != 400 || !strings.Contains(r.body, c.says) {
			t.Errorf("%v: %d %s, want 400, %v in it", c.fields, r.status, r.body, c.says)
		}
	}
	plain := ollamatest.Start(t)
	if r := b.do("POST", list, adminSecret, body(map[string]any{"name": "plain", "url": plain.URL, "ca": ca.pem})); r.status != 400 || !strings.Contains(r.body, "https") {
		t.Errorf("a CA for plain HTTP: %d %s, want 400, %q in it", r.status, r.body, "https")
	}
	if r := b.do("PATCH", list+"/gpu1", adminSecret, body(map[string]any{"auth_header": "X-Token: a"})); r.status != 409 {
		t.Errorf("a change of a server of the settings: %d %s, want 409", r.status, r.body)
	}

	// The values are stored.
	do(200, "PATCH", list+"/one", map[string]any{"client_cert": otherCert, "client_key": otherKey, "auth_header": "X-Token: canary-token"})
	kept, err := b.store.Backends(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range kept {
		if want := (api.Reach{ClientCert: otherCert, ClientKey: otherKey, AuthHeader: "X-Token: canary-token"}); k.Name == "one" && k.Reach != want {
			t.Errorf("got the stored access %#v", k.Reach)
		}
		fmt.Fprintf(&seen, "%v %+v %#v", k, k.Reach, k)
	}
	do(200, "GET", list, map[string]any{})
	do(200, "GET", "/health", map[string]any{})
	rows, _, err := b.store.Audit(t.Context(), store.AuditQuery{Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	audited := ""
	for _, row := range rows {
		audited += string(row.Detail)
	}
	if !strings.Contains(audited, `"auth_header":{"from":"none","to":"set"}`) {
		t.Errorf("the audit table does not have the change: %s, want %s in it", audited, `"auth_header":{"from":"none","to":"set"}`)
	}
	secret := func(text string) string { return strings.Split(text, "\n")[1] } // the first line of the content of a PEM block
	all, err := json.Marshal(seen.String() + audited + b.logs.String())
	if err != nil {
		t.Fatal(err)
	}
	for _, canary := range []string{"canary", secret(key), secret(otherKey)} {
		if strings.Contains(string(all), canary) {
			t.Errorf("the secret %q was shown, want no %v", canary, canary)
		}
	}
}

// A renewed CA file takes effect without a restart. If the new file is invalid, the previous one stays in use, with one line in the log.
func TestARenewedCA(t *testing.T) {
	before, after := newAuthority(t), newAuthority(t)
	path := filepath.Join(t.TempDir(), "ca.pem")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(before.pem)
	first, _ := guarded(t, before, nil)
	second, _ := guarded(t, after, nil)
	b := start(t, setup{change: func(o *server.Options) {
		o.Means = dial.Means{CA: dial.Text{File: path, Name: api.SettingCA}, Header: "X-Token", Value: "canary-token", Log: o.Log}
	}})
	for name, address := range map[string]string{"first": first.URL, "second": second.URL} {
		if r := b.do("POST", "/api/admin/backends", adminSecret, fmt.Sprintf(`{"name":%q,"url":%q}`, name, address)); r.status != 200 {
			t.Fatalf("got %d %s, want 200", r.status, r.body)
		}
	}
	healthy := func(when string, one, two bool) {
		t.Helper()
		// A change of the file does not end existing connections.
		first.CloseClientConnections()
		second.CloseClientConnections()
		b.fleet.ProbeAll(t.Context())
		for name, want := range map[string]bool{"first": one, "second": two} {
			if s := b.fleet.Named(name).State(); s.Healthy != want {
				t.Errorf("%s: %s is healthy: %v, want %v: %s", when, name, s.Healthy, want, s.Reason)
			}
		}
	}
	healthy("before", true, false)
	write("nonsense")
	healthy("nonsense", true, false)
	write(after.pem)
	healthy("after", false, true)
	if n := strings.Count(b.logs.String(), "cannot be used and the previous ones stay in use"); n == 0 || n > 2 { // each of two servers may say so
		t.Errorf("got %d lines about the invalid file, want 1 or 2", n)
	}
}
