package backend

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"ollama-api-service/internal/test/ollamatest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func backendAt(t *testing.T, base, header, value string) *Backend {
	t.Helper()
	at, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	b := New("gpu", at, 1, header, value)
	t.Cleanup(b.client.CloseIdleConnections)
	return b
}

// answering returns a backend whose server answers with the handler.
func answering(t *testing.T, h http.HandlerFunc) *Backend {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return backendAt(t, srv.URL, "", "")
}

func TestProbe(t *testing.T) {
	srv := ollamatest.Start(t)
	b := backendAt(t, srv.URL, "X-Upstream", "secret")
	if s := b.State(); s.Healthy || s.Version != "" || s.Reason == "" || !s.Checked.IsZero() {
		t.Errorf("before the first probe: got %+v, want an unhealthy state with a reason", s)
	}
	before := time.Now()
	for range 3 {
		s := b.Probe(t.Context())
		if !s.Healthy || s.Version == "" || s.Reason != "" || s.Checked.Before(before) || !reflect.DeepEqual(s, b.State()) {
			t.Errorf("got %+v", s)
		}
		if m := s.Installed["tiny:latest"]; m.Digest == "" || m.Embeds || len(s.Installed) != 1 || s.Loaded == nil {
			t.Errorf("got the models %+v and %+v, want tiny:latest with a digest, and a list of loaded models", s.Installed, s.Loaded)
		}
	}
	for i, path := range []string{"/api/version", "/api/tags", "/api/ps"} {
		r := srv.WaitRequest(7 + i)
		if r.Method != "GET" || r.RequestURI != path || r.Header.Get("X-Upstream") != "secret" || r.Header.Get("User-Agent") != Agent {
			t.Errorf("got the request %s %s with %v, want %q, %v, %q, %v", r.Method, r.RequestURI, r.Header, "GET", path, "secret", Agent)
		}
	}
	if n := srv.Connections(); n != 1 {
		t.Errorf("got %d connections for three probes, want 1", n)
	}
}

// A server's lists of models, and lists that are missing or make no sense.
func TestLists(t *testing.T) {
	srv := ollamatest.Start(t)
	b := backendAt(t, srv.URL, "", "")
	body := func(path, text string) { srv.Script("GET", path, ollamatest.Answer{Body: text}) }
	body("/api/tags", `{"models":[
		{"name":"Library/Tiny","model":"Library/Tiny","digest":"d1","details":{"family":"llama","families":["llama"]}},
		{"name":"embed","digest":"d2","details":{"family":"nomic-bert","families":null}},
		{"name":"new","model":"new:1b","digest":"d3","details":{"family":"bert"},"capabilities":["completion","embedding"]},
		{"name":"newembed","digest":"d4","details":{"family":"gemma"},"capabilities":["embedding"]},
		{"name":"::","digest":"d5"}]}`)
	body("/api/ps", `{"models":[{"name":"tiny:latest","model":"tiny:latest","size_vram":123,"expires_at":"2026-11-24T09:34:58+01:00"}]}`)
	s := b.Probe(t.Context())
	want := map[string]Installed{"tiny:latest": {"d1", false}, "embed:latest": {"d2", true}, "new:1b": {"d3", false}, "newembed:latest": {"d4", true}}
	if !maps.Equal(s.Installed, want) {
		t.Errorf("got the installed models %+v, want %+v", s.Installed, want)
	}
	if m := s.Loaded["tiny:latest"]; m.VRAM != 123 || m.Expires.Unix() != time.Date(2026, 11, 24, 8, 34, 58, 0, time.UTC).Unix() || len(s.Loaded) != 1 {
		t.Errorf("got the loaded models %+v, want tiny:latest with 123 bytes and its expiry", s.Loaded)
	}
	for _, nonsense := range []ollamatest.Answer{{Status: 404, Body: "404 page not found"}, {Body: "<html>"}, {Body: `{"models":{}}`}} {
		srv.Script("GET", "/api/tags", nonsense)
		srv.Script("GET", "/api/ps", nonsense)
		if s := b.Probe(t.Context()); !s.Healthy || s.Installed != nil || s.Loaded != nil {
			t.Errorf("after %+v: got %+v, want a healthy server with unknown models", nonsense, s)
		}
	}
	body("/api/tags", `{"models":null}`)
	if s := b.Probe(t.Context()); s.Installed == nil || len(s.Installed) != 0 {
		t.Errorf("a server without models: got %+v, want an empty list", s.Installed)
	}
}

// A server that is too busy to list its models keeps the lists that it gave before.
func TestListsThatDoNotComeInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := backendAt(t, "http://ollama.test", "", "")
		known := map[string]Installed{"tiny:latest": {Digest: "d"}}
		b.Set(State{Installed: known, Loaded: map[string]Loaded{}})
		b.client.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
			if r.URL.Path != "/api/version" {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(`{"version":"0.6.5"}`)), Request: r}, nil
		})
		start := time.Now()
		if s := b.Probe(t.Context()); !s.Healthy || !maps.Equal(s.Installed, known) || s.Loaded == nil {
			t.Errorf("got %+v", s)
		}
		if took := time.Since(start); took != probeTimeout {
			t.Errorf("the probe took %v, want %v", took, probeTimeout)
		}
	})
}

func TestProbeFindsAnUnhealthyServer(t *testing.T) {
	elsewhere := ollamatest.Start(t)
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		reason string
	}{
		"error status": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, "answers 503"},
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL+"/api/version", http.StatusFound)
		}, "answers 302"},
		"not JSON":         {text("Ollama is running"), "not Ollama's"},
		"no version":       {text(`{"status":"ok"}`), "no valid version"},
		"odd version":      {text(`{"version":"<script>"}`), "no valid version"},
		"version of text":  {text(`{"version":"latest"}`), "no valid version"},
		"version a number": {text(`{"version":1.2}`), "not Ollama's"},
		"endless":          {text(`{"version":"` + strings.Repeat("1.", maxVersion) + `1"}`), "not Ollama's"},
		"broken off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, `{"version"`)
		}, "not Ollama's"},
		"gone": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "no answer"},
	} {
		t.Run(name, func(t *testing.T) {
			b := answering(t, c.answer)
			b.state.Store(&State{Healthy: true, Version: "0.6.5"})
			s := b.Probe(t.Context())
			if s.Healthy || !strings.Contains(s.Reason, c.reason) || !reflect.DeepEqual(s, b.State()) {
				t.Errorf("got %+v", s)
			}
			if s.Version != "0.6.5" {
				t.Errorf("got %q, want the version that was seen last, 0.6.5", s.Version)
			}
		})
	}
	if elsewhere.Connections() != 0 {
		t.Error("the probe followed a redirect")
	}
}

func TestVersions(t *testing.T) {
	for version, good := range map[string]bool{
		"0.24.0": true, "0.33.0-rc2": true, "0.0.0": true, "1.2": true,
		"": false, "1": false, "v1.2.3": false, "1.2.3 ": false, "1..2": false, "1.2\n": false,
	} {
		b := answering(t, func(w http.ResponseWriter, _ *http.Request) {
			json.NewEncoder(w).Encode(map[string]string{"version": version})
		})
		if s := b.Probe(t.Context()); s.Healthy != good {
			t.Errorf("%q: got %+v, want healthy %v", version, s, good)
		}
	}
}

func text(s string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, s) }
}

func TestProbeIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := backendAt(t, "http://ollama.test", "", "")
		b.client.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		})
		start := time.Now()
		s := b.Probe(t.Context())
		if took := time.Since(start); s.Healthy || !strings.Contains(s.Reason, "no answer") || took != probeTimeout {
			t.Errorf("after %v: got %+v, want no answer after %v", took, s, probeTimeout)
		}
	})
}

// A probe that the end of the service cancels says nothing about the server.
func TestProbeBrokenOff(t *testing.T) {
	asked, release := make(chan struct{}), make(chan struct{})
	b := answering(t, func(http.ResponseWriter, *http.Request) { close(asked); <-release })
	defer close(release)
	known := State{Healthy: true, Version: "0.6.5"}
	b.state.Store(&known)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	if s := b.Probe(ctx); !reflect.DeepEqual(s, known) || !reflect.DeepEqual(b.State(), known) {
		t.Errorf("got %+v, want the state before", s)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestOlder(t *testing.T) {
	for _, c := range []struct {
		version, than string
		older         bool
	}{
		{"0.6.5", "0.13.3", true},
		{"0.13.2", "0.13.3", true},
		{"0.13.3", "0.13.3", false},
		{"0.13.4", "0.13.3", false},
		{"0.14.0-rc1", "0.14.0", false},
		{"0.24.0", "0.14.0", false},
		{"1.0", "0.14.0", false},
		{"0.9", "0.14.0", true},
		{"", "0.14.0", false},
		{"0.0.0", "0.14.0", false},
	} {
		if got := (State{Version: c.version}).Older(c.than); got != c.older {
			t.Errorf("State{Version: %q}.Older(%q) = %v, want %v", c.version, c.than, got, c.older)
		}
	}
}

func TestVulnerabilities(t *testing.T) {
	for version, n := range map[string]int{"": 0, "0.0.0": 0, "0.1.20": len(vulnerabilities), "0.1.47": 2, "0.6.5": 2, "0.14.3": 1, "0.17.1": 0, "0.24.0": 0} {
		if got := (State{Version: version}).Vulnerabilities(); len(got) != n {
			t.Errorf("%q: got %q, want %d vulnerabilities", version, got, n)
		}
	}
	if got := (State{Version: "0.17.0"}).Vulnerabilities(); len(got) != 1 || got[0] != "CVE-2026-7482: a malformed model reads its memory (fixed in 0.17.1)" {
		t.Errorf("%q, want 1 of them, %q", got, "CVE-2026-7482: a malformed model reads its memory (fixed in 0.17.1)")
	}
}
