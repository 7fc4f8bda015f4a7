package server_test

import (
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/server"
)

// from sends a request as a client behind a trusted proxy, and returns the log lines of the request.
func (b *bed) from(client, method, path, key, body string) string {
	b.t.Helper()
	before := len(b.logs.String())
	req, err := http.NewRequestWithContext(b.t.Context(), method, b.url+path, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	req.Header.Set("X-Forwarded-For", client)
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	res, err := b.client.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	res.Body.Close()
	b.lastLine(before)
	return b.logs.String()[before:]
}

// lastLine waits for the log line of a request, which is written after the answer.
func (b *bed) lastLine(before int) {
	b.t.Helper()
	comes(b.t, func() bool { return strings.Contains(b.logs.String()[before:], `"route"`) })
}

func TestLogOfProbes(t *testing.T) {
	b := start(t, setup{})
	for _, path := range []string{"/health", "/healthz", "/readyz", "/metrics"} {
		if line := b.from("", "GET", path, adminSecret, ""); !strings.Contains(line, `"level":"DEBUG","msg":"request"`) {
			t.Errorf("%s: %s, want a line at debug", path, line)
		}
	}
	if line := b.from("", "HEAD", "/healthz", "", ""); !strings.Contains(line, `"level":"DEBUG"`) {
		t.Errorf("HEAD /healthz: %s, want a line at debug", line)
	}
	for path, level := range map[string]string{"/api/tags": "INFO", "/": "INFO", "/nothing": "INFO"} {
		if line := b.from("", "GET", path, adminSecret, ""); !strings.Contains(line, `"level":"`+level+`"`) {
			t.Errorf("%s: %s, want %s", path, line, level)
		}
	}
	// Failures have a higher level.
	if line := b.from("", "GET", "/metrics", "oas_wrong", ""); !strings.Contains(line, `"level":"WARN"`) {
		t.Errorf("/metrics without a good key: %s, want a warning", line)
	}
	b.ollama.Close()
	b.fleet.ProbeAll(t.Context())
	if line := b.from("", "GET", "/readyz", "", ""); !strings.Contains(line, `"level":"ERROR"`) {
		t.Errorf("/readyz without Ollama: %s, want an error", line)
	}
}

func TestLogOfAddresses(t *testing.T) {
	for _, c := range []struct {
		detail       api.AddressDetail
		client, want string
	}{
		{"", "203.0.113.77", "203.0.113.77"},
		{api.AddressFull, "2001:db8:1:2::77", "2001:db8:1:2::77"},
		{api.AddressPrefix, "203.0.113.77", "203.0.113.0/24"},
		{api.AddressPrefix, "2001:db8:1:2::77", "2001:db8:1::/48"},
		{api.AddressPrefix, "::ffff:203.0.113.77", "203.0.113.0/24"},
		{api.AddressNone, "203.0.113.77", ""},
		{api.AddressNone, "2001:db8:1:2::77", ""},
	} {
		b := start(t, setup{change: func(o *server.Options) {
			o.LogAddress, o.Live.TrustedProxies = c.detail, []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		}})
		lines := b.from(c.client, "POST", "/api/chat", adminSecret, `{"model":"tiny","messages":[{"role":"user","content":"x"}]}`) +
			b.from(c.client, "POST", "/api/keys", adminSecret, `{"name":"x","role":"user"}`) +
			b.from(c.client, "GET", "/api/tags", "oas_wrong", "")
		whole := netip.MustParseAddr(c.client).Unmap().String()
		if c.want != whole && strings.Contains(lines, whole) {
			t.Errorf("%q of %s: the log shows the address:\n%s", c.detail, c.client, lines)
		}
		// Three lines for requests, and one for the new key.
		if n := strings.Count(lines, c.want); c.want != "" && n != 4 {
			t.Errorf("%q of %s: %d times %s in the log, want 4:\n%s", c.detail, c.client, n, c.want, lines)
		}
		if c.want == "" && strings.Contains(lines, `"client"`) {
			t.Errorf("%q: the log contains a client's address:\n%s", c.detail, lines)
		}
		// The books have the whole address.
		if err := b.books.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if rows := b.do("GET", "/api/admin/requests", adminSecret, "").body; !strings.Contains(rows, whole) {
			t.Errorf("%q: want the address %s in the books, got %s", c.detail, whole, rows)
		}
	}
}

// net/http's messages about broken connections contain addresses. Without the setting, the debug log would show them in full.
func TestLogOfBrokenConnections(t *testing.T) {
	for detail, want := range map[api.AddressDetail]string{api.AddressFull: "127.0.0.1:", api.AddressPrefix: "127.0.0.0/24:", api.AddressNone: "(client):"} {
		b := start(t, setup{http2: true, change: func(o *server.Options) { o.LogAddress = detail }})
		res, err := http.Get("http" + strings.TrimPrefix(b.url, "https")) // plain HTTP to a port of TLS
		if err == nil {
			res.Body.Close()
		}
		comes(t, func() bool { return strings.Contains(b.logs.String(), "TLS handshake error") })
		for line := range strings.Lines(b.logs.String()) {
			if strings.Contains(line, "TLS handshake error") && !strings.Contains(line, "from "+want) {
				t.Errorf("%q: %s, want %s", detail, line, want)
			}
		}
		http.DefaultClient.CloseIdleConnections()
	}
}

// comes waits until a condition holds.
func comes(t testing.TB, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !so(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("the condition did not hold within ten seconds")
		}
	}
}
