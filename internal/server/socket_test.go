package server_test

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/auth"
	"ollama-api-service/internal/disk"
	"ollama-api-service/internal/server"
)

// overSocket returns a bed that listens on a Unix socket.
func overSocket(t *testing.T, change func(*server.Options)) *bed {
	t.Helper()
	dir, err := os.MkdirTemp("", "s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "http.sock")
	b := start(t, setup{change: change, listen: func(tcp net.Listener) net.Listener {
		tcp.Close()
		l, err := disk.ListenSocket(path)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}})
	b.url = "http://localhost"
	b.client.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	return b
}

// The peers of a Unix socket do not count as programs on this machine, because a proxy may forward any client's request.
func TestPeersOfASocketAreUnknown(t *testing.T) {
	b := overSocket(t, func(o *server.Options) {
		o.MetricsOpen = true
		o.Throttle = auth.NewThrottle(3, time.Now)
		o.Live.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
		o.PerAddress = 1
	})
	local, _ := b.key(`{"name":"local","role":"user","allowed_ips":["127.0.0.1","::1","203.0.113.0/24"]}`)
	free := b.user()
	status := func(path, key, forwarded string, want int) {
		t.Helper()
		req := b.request("GET", path, key, "")
		if forwarded != "" {
			req.Header.Set("X-Forwarded-For", forwarded)
		}
		if r := b.send(req); r.status != want {
			t.Errorf("%s for %q: %d, want %d: %s", path, forwarded, r.status, want, r.body)
		}
	}
	status("/metrics", "", "", 401)
	status("/api/tags", "demo-user-key-67890", "", 401)
	status("/api/tags", local, "", 403)
	status("/api/tags", local, "203.0.113.7", 403)
	status("/api/tags", local, "127.0.0.1", 403)
	status("/api/tags", free, "", 200)
	for _, guess := range []string{"one", "two"} {
		status("/api/tags", guess, "", 401)
	}
	status("/api/tags", "three", "", 429)
	status("/api/tags", "four", "203.0.113.9", 429)
	status("/api/tags", free, "", 200)
	if log := b.logs.String(); !strings.Contains(log, `"client":"unknown"`) || strings.Contains(log, "invalid IP") {
		t.Errorf("the log does not call the client unknown: %.600s, want %s in it, no %q", log, `"client":"unknown"`, "invalid IP")
	}
}

func TestATrustedSocket(t *testing.T) {
	b := overSocket(t, func(o *server.Options) { o.Live.TrustedProxies = []netip.Prefix{api.SocketPeers} })
	key, _ := b.key(`{"name":"office","role":"user","allowed_ips":["203.0.113.0/24"]}`)
	for forwarded, want := range map[string]int{"203.0.113.7": 200, "203.0.113.7:4711": 200, "203.0.113.7, 198.51.100.1": 403, "unknown": 403, "": 403} {
		req := b.request("GET", "/api/tags", key, "")
		if forwarded != "" {
			req.Header.Set("X-Forwarded-For", forwarded)
		}
		if r := b.send(req); r.status != want {
			t.Errorf("for %q: %d, want %d", forwarded, r.status, want)
		}
	}
	if log := b.logs.String(); strings.Count(log, `"entry":`) != 1 || !strings.Contains(log, `"entry":"unknown"`) {
		t.Error("want exactly one log line: for the request whose header has no address")
	}
}
