package server_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"ollama-api-service/internal/dialect"
	"ollama-api-service/internal/server"
	"ollama-api-service/internal/test/ollamatest"
)

// reloading makes a fake load its model as Ollama does: again for each other num_ctx, counted, and without one as the context says that is
// its usual one.
type reloading struct {
	mu    sync.Mutex
	loads int
	with  int64  // the context of what is loaded; 0: nothing is
	size  string // of it, as /api/ps has it
	says  bool   // /api/ps says the context, as from 0.10 on
}

func reload(s *ollamatest.Server, usual int64, says bool) *reloading {
	m := &reloading{says: says, size: `"size":10,"size_vram":10`}
	s.Handle("GET", "/api/ps", func(*ollamatest.Request) ollamatest.Answer {
		m.mu.Lock()
		defer m.mu.Unlock()
		entry := `{"name":"tiny:latest","model":"tiny:latest",` + m.size
		if m.says {
			entry += fmt.Sprintf(`,"context_length":%d`, m.with)
		}
		if m.with == 0 {
			return ollamatest.Answer{Body: `{"models":[]}`}
		}
		return ollamatest.Answer{Body: `{"models":[` + entry + `}]}`}
	})
	for _, path := range []string{"/api/generate", "/v1/chat/completions"} {
		s.Handle("POST", path, func(r *ollamatest.Request) ollamatest.Answer {
			var ask struct {
				Prompt  string
				Options struct {
					NumCtx int64 `json:"num_ctx"`
				}
			}
			_ = json.Unmarshal(r.Body, &ask)
			m.mu.Lock()
			defer m.mu.Unlock()
			wants := usual
			if ask.Options.NumCtx > 0 {
				wants = ask.Options.NumCtx
			}
			if wants != m.with {
				m.loads++
				m.with = wants
			}
			if ask.Prompt == "" && r.Path == "/api/generate" {
				return ollamatest.Answer{Body: `{"model":"x","done":true,"done_reason":"load"}`}
			}
			return ollamatest.Answer{Tokens: 2}
		})
	}
	return m
}

func (m *reloading) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.loads
}

func (m *reloading) set(size string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.size = size
}

// One key that sends another num_ctx each time, none above what the model has without it, loads nothing again; what would change an answer
// is still obeyed.
func TestANumCtxThatTheModelHasLoadsNothing(t *testing.T) {
	ask := func(context any, prompt string) string {
		return fmt.Sprintf(`{"model":"tiny","prompt":%q,"stream":false,"options":{"num_ctx":%v}}`, prompt, context)
	}
	const plain = `{"model":"tiny","prompt":"x","stream":false}`
	standard := func(o *server.Options) { o.Live.Standard = dialect.Standard(32768, 0, 0) }
	for name, says := range map[string]bool{"the server says its context": true, "the Modelfile says it": false} {
		t.Run(name, func(t *testing.T) {
			b := start(t, setup{change: standard})
			const usual = 512 // also of the recorded /api/show
			m := reload(b.ollama, usual, says)
			if says {
				b.ollama.Script("POST", "/api/show", ollamatest.Answer{Body: `{"parameters":""}`})
			}
			b.models([]string{"tiny:latest"})
			victim, attacker := b.user(), b.user()
			send := func(key, body, policy string) {
				t.Helper()
				r := b.do("POST", "/api/generate", key, body)
				if r.status != 200 || r.header.Get("X-Policy") != policy {
					t.Errorf("%.80s: got %d and X-Policy %q, want 200 and %q", body, r.status, r.header.Get("X-Policy"), policy)
				}
			}
			send(victim, plain, "")
			if r := b.do("POST", "/v1/chat/completions", victim, chatTiny); r.status != 200 {
				t.Errorf("%d %s, want 200", r.status, r.body)
			}
			first := m.count()
			for i := range 20 {
				send(attacker, ask(256+i, "x"), "num_ctx dropped")
				send(victim, plain, "")
			}
			send(attacker, ask("512.0", "x"), "num_ctx dropped")
			send(adminSecret, ask(512, "x"), "") // an admin's passes, and is the same load
			if got := m.count() - first; got != 0 || first != 1 {
				t.Errorf("%d loads, and then %d while one key alternated num_ctx; want 1 and 0", first, got)
			}
			// A prompt that Ollama would cut, more context than there is, and a model that is partly on the card.
			send(attacker, ask(100, strings.Repeat("word ", 200)), "")
			send(attacker, ask(1024, "x"), "")
			send(victim, plain, "")
			m.set(`"size":10,"size_vram":6`)
			b.fleet.ProbeAll(t.Context())
			send(attacker, ask(256, "x"), "")
			if got := m.count() - first; got != 4 {
				t.Errorf("%d loads for three requests that need other contexts and one between them, want 4", got)
			}
		})
	}
}

// Before it is known what a model has without a num_ctx, and again after a restart of its server, a num_ctx is obeyed.
func TestANumCtxIsObeyedUntilTheUsualOneIsKnown(t *testing.T) {
	b := start(t, setup{change: func(o *server.Options) { o.Live.Standard = dialect.Standard(32768, 0, 0) }})
	m := reload(b.ollama, 4096, true)
	b.ollama.Script("POST", "/api/show", ollamatest.Answer{Body: `{"parameters":""}`})
	b.models([]string{"tiny:latest"})
	user := b.user()
	send := func(body, policy string) {
		t.Helper()
		if r := b.do("POST", "/api/generate", user, body); r.status != 200 || r.header.Get("X-Policy") != policy {
			t.Errorf("%s: got %d and X-Policy %q, want 200 and %q", body, r.status, r.header.Get("X-Policy"), policy)
		}
	}
	const plain, less = `{"model":"tiny","prompt":"x","stream":false}`, `{"model":"tiny","prompt":"x","stream":false,"options":{"num_ctx":2048}}`
	for _, after := range []string{"a start", "a restart"} {
		send(less, "")
		send(plain, "")
		send(less, "num_ctx dropped")
		if got := m.count(); got != 2 {
			t.Errorf("after %s: %d loads, want 2", after, got)
		}
		m.mu.Lock()
		m.with, m.loads = 0, 0
		m.mu.Unlock()
		b.fleet.ProbeAll(t.Context())
	}
}
