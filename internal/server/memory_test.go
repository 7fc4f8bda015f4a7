package server_test

import (
	"bytes"
	"compress/gzip"
	"net/http"
	"strings"
	"sync"
	"testing"

	"ollama-api-service/internal/ollamatest"
	"ollama-api-service/internal/server"
)

// Large bodies of all requests together have a bound: who comes when it is reached is told to come again, small ones pass, and
// when the large ones are done all is free again.
func TestBodiesInMemoryAreBounded(t *testing.T) {
	const large = 900 << 10
	b := start(t, setup{slots: 8, change: func(o *server.Options) { o.BodyMemory = 3 << 20 }})
	key := b.user()
	gate := make(chan struct{})
	b.ollama.Handle("POST", "/api/chat", func(*ollamatest.Request) ollamatest.Answer { return ollamatest.Answer{HeaderGate: gate} })
	body := func(n int) string {
		return `{"model":"tiny","stream":false,"messages":[{"role":"user","content":"` + strings.Repeat("x", n) + `"}]}`
	}
	var all sync.WaitGroup
	held := 0
	for ; ; held++ {
		probe := b.do("POST", "/v1/messages/count_tokens", key, body(large))
		if probe.status == http.StatusServiceUnavailable {
			if probe.header.Get("Retry-After") == "" || !strings.Contains(probe.body, "MAX_BODY_MEMORY") {
				t.Errorf("%v %s", probe.header, probe.body)
			}
			break
		}
		if probe.status != 200 || held > 5 {
			t.Fatalf("%d large bodies are held, and one more is answered %d", held, probe.status)
		}
		all.Go(func() {
			if r := b.do("POST", "/api/chat", key, body(large)); r.status != 200 {
				t.Errorf("%d %s", r.status, r.body)
			}
		})
		b.ollama.WaitRequestTo(held+1, "POST", "/api/chat")
	}
	if held == 0 {
		t.Error("not even one large body is taken")
	}
	if r := b.do("POST", "/v1/messages/count_tokens", key, body(10)); r.status != 200 {
		t.Errorf("a small body: %d %s", r.status, r.body)
	}
	close(gate)
	all.Wait()
	if r := b.do("POST", "/v1/messages/count_tokens", key, body(large)); r.status != 200 {
		t.Errorf("when all is free again: %d %s", r.status, r.body)
	}

	// What a few KiB are decoded to counts too.
	var coded bytes.Buffer
	z := gzip.NewWriter(&coded)
	z.Write([]byte(body(large)))
	z.Close()
	small := start(t, setup{change: func(o *server.Options) { o.BodyMemory = 512 << 10 }})
	req := small.request("POST", "/v1/messages/count_tokens", small.user(), coded.String())
	req.Header.Set("Content-Encoding", "gzip")
	if r := small.send(req); r.status != http.StatusServiceUnavailable {
		t.Errorf("%d bytes that are %d: %d %s", coded.Len(), large, r.status, r.body)
	}
}
