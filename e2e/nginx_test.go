package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"ollama-api-service/internal/test/ollamatest"
)

// With the configuration in docs/deployment.md, nginx forwards each word before the next one comes, and sends the client's address.
func TestTheDocumentedProxyDoesNotBuffer(t *testing.T) {
	guide, err := os.ReadFile("../docs/deployment.md")
	if err != nil {
		t.Fatal(err)
	}
	location := regexp.MustCompile(`(?ms)^    location / \{.*?^    \}`).FindString(string(guide))
	if !strings.Contains(location, "http://127.0.0.1:8000;") {
		t.Fatalf("no location in the guide: %q", location)
	}
	fake := ollamatest.Start(t)
	gate := make(chan struct{}, 1)
	gate <- struct{}{} // for one word; the other words wait
	fake.Script("POST", "/api/chat", ollamatest.Answer{Tokens: 3, Gate: gate})
	s := start(t, t.TempDir(), fake.URL, nil, "TRUSTED_PROXIES=127.0.0.1")
	key := s.makeKey(t, `,"allowed_ips":["127.0.0.2"]`).Secret
	proxy := nginx(t, strings.Replace(location, "http://127.0.0.1:8000", s.URL, 1))

	// The key works only from 127.0.0.2, so the proxy must have sent the client's address.
	from := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	there := &http.Client{Transport: &http.Transport{DialContext: from.DialContext}}
	defer there.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "POST", proxy+"/api/chat", strings.NewReader(`{`+ask+`}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	res, err := there.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	in := bufio.NewReader(res.Body)
	line, err := in.ReadString('\n')
	if err != nil || res.StatusCode != http.StatusOK || !strings.Contains(line, ollamatest.Word(0)) {
		t.Fatalf("%s, %q, %v", res.Status, line, err)
	}
	close(gate)
	if call(t, "POST", proxy+"/api/chat", key, `{`+ask+`}`).Status != http.StatusForbidden {
		t.Error("from another address the key works too")
	}
}

// nginx runs nginx with a location on a free port.
func nginx(t *testing.T, location string) (url string) {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	listener, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	defer listener.Close()
	config := fmt.Sprintf(`daemon off;
worker_processes 1;
pid %[1]s/pid;
error_log stderr;
events {}
http {
	client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
	server {
		listen %[2]s;
%[3]s
	}
}
`, dir, address, location)
	path := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("nginx", "-p", dir, "-c", path)
	// The test passes the socket to nginx, as nginx does to itself at an upgrade, so that no other program gets the port.
	cmd.ExtraFiles = []*os.File{listener}
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "NGINX=3;"}
	said := newTranscript()
	cmd.Stderr = said
	dieWithTests(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := terminate(cmd); err != nil || t.Failed() {
			t.Logf("nginx: %v\n%s", err, said)
		}
	})
	return "http://" + address
}
