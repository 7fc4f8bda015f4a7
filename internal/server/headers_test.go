package server_test

import (
	"testing"
	"time"

	"ollama-api-service/internal/server"
	"ollama-api-service/internal/test/ollamatest"
)

// Only the key of the request may read an answer. So no proxy may store it, and no browser may guess its type.
func TestAnswersAreNotStored(t *testing.T) {
	b := start(t, setup{})
	user := b.user()
	b.ollama.Script("POST", "/v1/chat/completions", ollamatest.Answer{Tokens: 2})
	for _, r := range []reply{
		b.do("GET", "/", "", ""), b.do("GET", "/healthz", "", ""), b.do("GET", "/nowhere", user, ""), b.do("GET", "/api/tags", "", ""), b.do("GET", "/api/tags", user, ""),
		b.do("POST", "/api/chat", user, chatTiny), b.do("POST", "/v1/chat/completions", user, `{"model":"tiny","messages":[],"stream":true}`),
		b.do("GET", "/api/stats", user, ""), b.do("POST", "/api/keys", adminSecret, `{"name":"x","role":"user"}`), b.do("GET", "/openapi.json", "", ""),
	} {
		stored := r.header.Get("Cache-Control")
		if asset := r.header.Get("Etag") != ""; !asset && stored != "no-store" || r.header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%d %.60s: Cache-Control %q and X-Content-Type-Options %q, want no-store and nosniff", r.status, r.body, stored, r.header.Get("X-Content-Type-Options"))
		}
		if r.header.Get("Strict-Transport-Security") != "" {
			t.Error("got Strict-Transport-Security over plain HTTP, want none")
		}
	}
}

func TestHSTS(t *testing.T) {
	for age, want := range map[time.Duration]string{0: "", 24 * time.Hour: "max-age=86400"} {
		b := start(t, setup{http2: true, change: func(o *server.Options) { o.HSTS = age }})
		if got := b.do("GET", "/healthz", "", "").header.Get("Strict-Transport-Security"); got != want {
			t.Errorf("with HSTS=%v: got %q, want %q", age, got, want)
		}
	}
}
