package server_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/auth"
	"ollama-api-service/internal/server"
)

// A thousand requests with bad keys from one address have ten log lines, up to the bound, and then one a second, which count them all, and a key of another client behind
// that address is served.
func TestBadKeysFillNoLog(t *testing.T) {
	b := start(t, setup{change: func(o *server.Options) { o.Throttle = auth.NewThrottle(10, time.Now) }})
	key := b.user()
	const requests = 1000
	began := time.Now()
	for i := range requests {
		secret, _ := b.mint()
		want := http.StatusUnauthorized
		if i >= 10 {
			want = http.StatusTooManyRequests
		}
		if r := b.do("GET", "/api/tags", secret, ""); r.status != want {
			t.Fatalf("bad key %d: got %d, want %d: %s", i+1, r.status, want, r.body)
		}
	}
	took := time.Since(began)
	if r := b.do("GET", "/api/tags", key, ""); r.status != http.StatusOK {
		t.Errorf("a good key behind the same address: got %d %s, want 200", r.status, r.body)
	}
	b.stop()
	lines, counted := 0, 0
	for line := range strings.Lines(b.logs.String()) {
		var l struct {
			Msg     string
			LeftOut int `json:"left_out"`
			Client  string
		}
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatal(err)
		}
		if l.Msg != "authentication failed" {
			continue
		}
		lines++
		counted += l.LeftOut
		if l.Client != "127.0.0.1" {
			t.Errorf("a line without its client: %s, want %q", line, "127.0.0.1")
		}
		if l.LeftOut == 0 || strings.Contains(line, `"request_id"`) {
			counted++ // the line itself is of a request
		}
	}
	if most := 10 + int(took.Seconds()) + 2; lines > most || counted != requests {
		t.Errorf("%d lines in %s that count %d requests, want at most %d lines of %d requests", lines, took, counted, most, requests)
	}
}
