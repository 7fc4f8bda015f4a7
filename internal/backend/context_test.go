package backend

import (
	"fmt"
	"testing"

	"ollama-api-service/internal/test/ollamatest"
)

// The gateway knows a model's context without num_ctx if every server that may serve it has loaded it so. The smallest counts. The
// gateway forgets it after each event that may change it.
func TestTheUsualContext(t *testing.T) {
	one, two := ollamatest.Start(t), ollamatest.Start(t)
	f := NewFleet(backendAt(t, one.URL, "", ""), backendAt(t, two.URL, "", ""))
	f.All()[1].Name = "two"
	list := func(s *ollamatest.Server, digest string) {
		s.Script("GET", "/api/tags", ollamatest.Answer{Body: `{"models":[{"model":"m:latest","digest":"` + digest + `"}]}`})
	}
	says := func(s *ollamatest.Server, context, vram int) {
		s.Script("GET", "/api/ps", ollamatest.Answer{Body: fmt.Sprintf(`{"models":[{"model":"m:latest","size":10,"size_vram":%d,"context_length":%d}]}`, vram, context)})
	}
	loaded := func(i int) {
		f.Reread(t.Context(), f.All()[i])
		f.All()[i].LoadedPlainly("m:latest")
	}
	want := func(when string, want int64, wantSplit bool) {
		t.Helper()
		if got, split := f.Context("m:latest"); got != want || split != wantSplit {
			t.Errorf("%s: got %d, split %v, want %d, %v", when, got, split, want, wantSplit)
		}
	}
	known := func() {
		t.Helper()
		list(one, "d")
		list(two, "d")
		says(one, 32768, 10)
		says(two, 4096, 0)
		one.Script("GET", "/api/version")
		f.ProbeAll(t.Context())
		loaded(0)
		loaded(1)
		want("both have loaded it", 4096, false)
	}
	list(one, "d")
	list(two, "d")
	says(one, 32768, 10)
	says(two, 4096, 10)
	f.ProbeAll(t.Context())
	want("others have loaded it", 0, false)
	loaded(0)
	want("one has loaded it", 0, false)
	known()
	says(one, 32768, 9)
	f.ProbeAll(t.Context())
	want("it is partly on a card", 4096, true)
	for when, happen := range map[string]func(){
		"another digest":         func() { list(one, "e"); list(two, "e") },
		"nothing in memory":      func() { one.Script("GET", "/api/ps", ollamatest.Answer{Body: `{"models":[]}`}) },
		"another version":        func() { one.Script("GET", "/api/version", ollamatest.Answer{Body: `{"version":"9.9.9"}`}) },
		"a server before 0.10.0": func() { says(one, 0, 10); f.All()[0].change(func(s *State) { s.usual = nil }) },
	} {
		known()
		happen()
		f.ProbeAll(t.Context())
		if when == "a server before 0.10.0" {
			loaded(0)
		}
		want(when, 0, false)
	}
	known()
	one.Script("GET", "/api/version", ollamatest.Answer{Status: 500})
	f.ProbeAll(t.Context())
	known() // the server is healthy again, and its context is known again
	for range 3 {
		f.Failed(f.All()[0], true)
	}
	f.ProbeAll(t.Context())
	want("it has failed", 0, false)
}
