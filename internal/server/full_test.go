package server_test

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/books"
)

// While the journal is full, every counted request is refused before it waits for a slot or reaches Ollama, and says when to try again.
// Everything else works.
func TestNothingIsServedWithoutARow(t *testing.T) {
	b := start(t, setup{books: books.Options{MaxBytes: 64 << 10, MoveEvery: time.Hour}})
	user := b.user()
	strict, _ := b.key(`{"name":"strict","role":"user","strict":true}`)
	rows := 0
	for ; b.books.Room() == nil && rows < 1000; rows++ {
		r := api.Record{Admission: api.Admission{ID: fmt.Sprint(rows), At: time.Now(), Key: "oas_8rT2kLmN0q"}, Outcome: api.OutcomeOK}
		if b.books.Admit(&r.Admission, false) == nil {
			if err := b.books.End(&r); err != nil {
				t.Fatal(err)
			}
		}
	}
	b.ollama.Forget()
	for _, key := range []string{user, strict, adminSecret} {
		for _, path := range []string{"/api/chat", "/api/generate", "/v1/chat/completions", "/v1/messages"} {
			r := b.do("POST", path, key, `{"model":"tiny","prompt":"Hi","max_tokens":5,"messages":[{"role":"user","content":"Hi"}]}`)
			wait, err := strconv.Atoi(r.header.Get("Retry-After"))
			if r.status != 503 || err != nil || wait < 1 {
				t.Errorf("%s: got %d with Retry-After %q, want 503 with seconds: %s", path, r.status, r.header.Get("Retry-After"), r.body)
			}
		}
	}
	if r := b.do("POST", "/api/copy", adminSecret, `{"source":"tiny","destination":"other"}`); r.status != 503 {
		t.Errorf("a change of models: got %d %s, want 503", r.status, r.body)
	}
	for _, r := range b.ollama.Forget() {
		if r.Method == "POST" && r.Path != "/api/show" {
			t.Errorf("Ollama got %s %s", r.Method, r.Path)
		}
	}
	if r := b.do("GET", "/api/tags", user, ""); r.status != 200 {
		t.Errorf("a list of models: got %d %s, want 200", r.status, r.body)
	}
	if h := b.do("GET", "/health", adminSecret, "").json(t); h["status"] != "degraded" || h["journal"].(map[string]any)["full_since"] == nil {
		t.Errorf("health is %v, want degraded with full_since", h)
	}
	if err := b.books.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "room in the journal", 10*time.Second, func() bool { return b.books.Room() == nil })
	if r := b.do("POST", "/api/chat", user, `{"model":"tiny","messages":[{"role":"user","content":"Hi"}],"stream":false}`); r.status != 200 {
		t.Errorf("afterwards: got %d %s, want 200", r.status, r.body)
	}
	if d := b.books.Depth(); d.Lost != 0 {
		t.Errorf("got %d rows lost, want 0", d.Lost)
	}
}
