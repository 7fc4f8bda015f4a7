package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"ollama-api-service/internal/test/ollamatest"
)

// acmeServer is Let's Encrypt's own test server, with a DNS in which every name leads to this machine.
type acmeServer struct {
	directory string
	root      string // file of the CA certificate of its own HTTPS
	config    string
	dns       string
	roots     string // URL of the root of the certificates that it issues
	client    *http.Client
	out       *transcript
	cmd       *exec.Cmd
	ended     chan struct{}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// buildACME builds the test server's programs, once, next to the service. Their source comes from the Go module proxy.
var buildACME = sync.OnceValue(func() error {
	from := "github.com/letsencrypt/pebble/v2/cmd/"
	build := exec.Command("go", "build", "-C", "acme", "-o", filepath.Dir(binary)+"/", from+"pebble", from+"pebble-challtestsrv")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
})

// newACMEServer prepares a server that validates names at port and whose certificates are valid for the given seconds. It does not start
// it.
func newACMEServer(t *testing.T, port string, seconds int) *acmeServer {
	t.Helper()
	if err := buildACME(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	a := newAuthority(t)
	cert, key, _, _ := a.sign(t, &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	own, management := "127.0.0.1:"+freePort(t), "127.0.0.1:"+freePort(t)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.pem)
	s := &acmeServer{
		directory: "https://" + own + "/dir", root: filepath.Join(dir, "root.pem"), config: filepath.Join(dir, "pebble.json"), dns: "127.0.0.1:" + freePort(t),
		roots: "https://" + management + "/roots/0", client: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}, Timeout: patience},
	}
	config, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": own, "managementListenAddress": management, "certificate": filepath.Join(dir, "own.pem"), "privateKey": filepath.Join(dir, "own.key"),
		"tlsPort": json.Number(port), "httpPort": 1, "retryAfter": map[string]int{"authz": 1, "order": 1},
		"profiles": map[string]any{"default": map[string]any{"description": "of the tests", "validityPeriod": seconds}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{s.root: a.pem, s.config: config, filepath.Join(dir, "own.pem"): cert, filepath.Join(dir, "own.key"): key} {
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	launch(t, filepath.Join(filepath.Dir(binary), "pebble-challtestsrv"), "-dnsserver", s.dns, "-defaultIPv6", "", "-http01", "", "-https01", "", "-doh", "", "-tlsalpn01", "", "-management", "127.0.0.1:0")
	return s
}

// launch starts a program, which is killed when the test ends.
func launch(t *testing.T, program string, args ...string) (*exec.Cmd, *transcript, chan struct{}) {
	t.Helper()
	out, ended := newTranscript(), make(chan struct{})
	cmd := exec.Command(program, args...)
	cmd.Env = []string{"PEBBLE_VA_NOSLEEP=1"}
	cmd.Stdout, cmd.Stderr = out, out
	dieWithTests(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("%s said\n%s", filepath.Base(program), tail(out.String()))
		}
	})
	return cmd, out, ended
}

// run starts the server and returns the root of the certificates that it issues.
func (s *acmeServer) run(t *testing.T) *x509.CertPool {
	t.Helper()
	s.cmd, s.out, s.ended = launch(t, filepath.Join(filepath.Dir(binary), "pebble"), "-config", s.config, "-dnsserver", s.dns, "-strict")
	roots := x509.NewCertPool()
	poll(t, "root of the ACME server", func() bool {
		res, err := s.client.Get(s.roots)
		if err != nil {
			return false
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		return err == nil && roots.AppendCertsFromPEM(text)
	})
	return roots
}

func (s *acmeServer) stop() {
	s.cmd.Process.Kill()
	<-s.ended
}

// clientOf returns a client that connects to address, whatever host the URL has.
func clientOf(t *testing.T, address string, roots *x509.CertPool) *http.Client {
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, address)
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

// serialOf returns the serial number of the certificate for a name, and checks that the answer uses HTTP/2.
func serialOf(t *testing.T, s *service, name string, roots *x509.CertPool) *big.Int {
	t.Helper()
	res, err := clientOf(t, strings.TrimPrefix(s.URL, "https://"), roots).Get("https://" + name + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK || res.ProtoMajor != 2 {
		t.Errorf("%s answers %s by %s", name, res.Status, res.Proto)
	}
	return res.TLS.PeerCertificates[0].SerialNumber
}

// Without a CA the service runs and logs what is wrong. With a CA it gets certificates and stores them.
func TestACME(t *testing.T) {
	port := freePort(t)
	ca := newACMEServer(t, port, 7_776_000)
	settings := []string{
		"PORT=" + port, "ACME_DOMAIN=gateway.example.test,Other.example.test", "ACME_EMAIL=admin@example.test", "ACME_CA=" + ca.directory, "ACME_CA_ROOT=" + ca.root,
		"LOG_LEVEL=debug",
	}
	fake := ollamatest.Start(t)
	s := start(t, t.TempDir(), fake.URL, nil, settings...)
	admin := s.Admin
	s.logged(t, `("level":"ERROR","msg":"no certificate could be obtained.*port 443.*"name":"gateway.example.test","cause":".*connection refused)`)
	if out, errs, exit := run(t, s.cmd.Env, "healthcheck"); exit != 0 {
		t.Errorf("healthcheck without a certificate: exit %d: %s%s", exit, out, errs)
	}
	if _, err := clientOf(t, "127.0.0.1:"+port, nil).Get("https://gateway.example.test/"); err == nil || !strings.Contains(err.Error(), "tls: ") {
		t.Errorf("without a certificate, a client got %v", err)
	}
	s.stop(t)

	roots := ca.run(t)
	s = s.again(t, fake.URL, settings...)
	names := []string{"gateway.example.test", "other.example.test"}
	serials := map[string]*big.Int{}
	for _, name := range names {
		s.logged(t, `("msg":"got a certificate","name":"`+regexp.QuoteMeta(name)+`","renewal":false)`)
		served(t, s, name)
		serials[name] = serialOf(t, s, name, roots)
	}
	if serials[names[0]].Cmp(serials[names[1]]) == 0 {
		t.Error("both names have the same certificate, want two")
	}
	noError(t, s)
	if text := s.stdout.String(); strings.Contains(text, "PRIVATE KEY") || strings.Contains(text, "key_auth") {
		t.Error("the log contains secrets of the ACME account or its challenges")
	}
	private(t, filepath.Join(s.Data, "acme"))
	asked, err := http.NewRequestWithContext(t.Context(), "GET", "https://gateway.example.test/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	asked.Header.Set("Authorization", "Bearer "+admin)
	res, err := clientOf(t, "127.0.0.1:"+port, roots).Do(asked)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	for _, name := range names {
		if err != nil || !strings.Contains(string(text), `ollama_api_tls_certificate_expiry_timestamp_seconds{name="`+name+`"} 1.`) {
			t.Errorf("%v: /metrics does not say when the certificate of %s ends", err, name)
		}
	}
	s.stop(t)

	ca.stop() // from here on, no CA can be reached
	s = s.again(t, fake.URL, settings...)
	before, _, _ := strings.Cut(s.stdout.String(), `"msg":"listening"`)
	if strings.Count(before, `"msg":"serving a stored certificate"`) != len(names) {
		t.Errorf("want all stored certificates loaded before the first connection, got:\n%s", before)
	}
	for name, serial := range serials {
		if got := serialOf(t, s, name, roots); got.Cmp(serial) != 0 {
			t.Errorf("%s: after a restart the certificate is %v, want the stored %v", name, got, serial)
		}
	}
	noError(t, s)
	if out, errs, exit := run(t, s.cmd.Env, "healthcheck"); exit != 0 {
		t.Errorf("healthcheck: exit %d: %s%s", exit, out, errs)
	}
}

// The next start renews an old stored certificate. The running service then uses the new one.
func TestACMERenewal(t *testing.T) {
	port := freePort(t)
	ca := newACMEServer(t, port, 4)
	ca.run(t)
	const name = "gateway.example.test"
	settings := []string{"PORT=" + port, "ACME_DOMAIN=" + name, "ACME_CA=" + ca.directory, "ACME_CA_ROOT=" + ca.root}
	fake := ollamatest.Start(t)
	s := start(t, t.TempDir(), fake.URL, nil, settings...)
	s.logged(t, `("msg":"got a certificate","name":"`+name+`","renewal":false)`)
	first := served(t, s, name)
	s.stop(t)
	poll(t, "end of the certificate", func() bool { return time.Now().After(first.NotAfter) })

	s = s.again(t, fake.URL, settings...)
	s.logged(t, `("msg":"got a certificate","name":"`+name+`","renewal":true)`)
	poll(t, "new certificate", func() bool { return served(t, s, name).SerialNumber.Cmp(first.SerialNumber) != 0 })
}

// served waits for a certificate for a name, valid or not, and returns it. The service uses a certificate shortly after it logs it.
func served(t *testing.T, s *service, name string) (cert *x509.Certificate) {
	t.Helper()
	poll(t, "certificate for "+name, func() bool {
		c, err := tls.Dial("tcp", strings.TrimPrefix(s.URL, "https://"), &tls.Config{ServerName: name, InsecureSkipVerify: true})
		if err != nil {
			return false
		}
		defer c.Close()
		cert = c.ConnectionState().PeerCertificates[0]
		return true
	})
	return cert
}

func noError(t *testing.T, s *service) {
	t.Helper()
	if text := s.stdout.String(); strings.Contains(text, `"level":"ERROR"`) {
		t.Errorf("an error in the log:\n%s", tail(text))
	}
}

// private checks that dir has files and that only their owner can read them.
func private(t *testing.T, dir string) {
	t.Helper()
	keys := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a lock file
		}
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		if strings.HasSuffix(path, ".key") {
			keys++
		}
		return err
	})
	if err != nil || keys == 0 {
		t.Errorf("%d keys in %s, %v", keys, dir, err)
	}
}
