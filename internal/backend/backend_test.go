package backend

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"ollama-api-service/internal/ollamatest"
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

// answering is a backend whose server answers with the handler.
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
		t.Errorf("before the first probe: %+v", s)
	}
	before := time.Now()
	for range 3 {
		s := b.Probe(t.Context())
		if !s.Healthy || s.Version == "" || s.Reason != "" || s.Checked.Before(before) || s != b.State() {
			t.Errorf("got %+v", s)
		}
	}
	r := srv.WaitRequest(3)
	if r.Method != "GET" || r.RequestURI != "/api/version" || r.Header.Get("X-Upstream") != "secret" {
		t.Errorf("asked %s %s with %v", r.Method, r.RequestURI, r.Header)
	}
	if n := srv.Connections(); n != 1 {
		t.Errorf("%d connections for three probes", n)
	}
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
		"no version":       {text(`{"status":"ok"}`), "names no version"},
		"odd version":      {text(`{"version":"<script>"}`), "names no version"},
		"version of text":  {text(`{"version":"latest"}`), "names no version"},
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
			if s.Healthy || !strings.Contains(s.Reason, c.reason) || s != b.State() {
				t.Errorf("got %+v", s)
			}
			if s.Version != "0.6.5" {
				t.Error("the version seen last was forgotten")
			}
		})
	}
	if elsewhere.Connections() != 0 {
		t.Error("a redirect was followed")
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
			t.Errorf("%q: %+v", version, s)
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
			t.Errorf("after %v: %+v", took, s)
		}
	})
}

// A probe that the end of the service breaks off says nothing about the server.
func TestProbeBrokenOff(t *testing.T) {
	asked, release := make(chan struct{}), make(chan struct{})
	b := answering(t, func(http.ResponseWriter, *http.Request) { close(asked); <-release })
	defer close(release)
	known := State{Healthy: true, Version: "0.6.5"}
	b.state.Store(&known)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	if s := b.Probe(ctx); s != known || b.State() != known {
		t.Errorf("got %+v, want what was known", s)
	}
}

// clocked is a backend whose server is a function, on the clock of synctest.
func clocked(t *testing.T, healthy *atomic.Bool, probes *[]time.Time) *Backend {
	b := backendAt(t, "http://ollama.test", "", "")
	b.client.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
		*probes = append(*probes, time.Now())
		if !healthy.Load() {
			return nil, errors.New("connection refused")
		}
		return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(`{"version":"0.6.5"}`)), Request: r}, nil
	})
	return b
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestWatchTellsOfChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var healthy atomic.Bool
		var probes []time.Time
		b := clocked(t, &healthy, &probes)
		var changes []bool
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		start := time.Now()
		go func() {
			defer close(ended)
			b.Watch(ctx, func(s State) {
				if s != b.State() {
					t.Error("the state told is not the state known")
				}
				changes = append(changes, s.Healthy)
			})
		}()
		for _, up := range []bool{false, true, true, false, true} {
			healthy.Store(up)
			time.Sleep(3 * probeEvery)
			synctest.Wait()
			if b.State().Healthy != up {
				t.Errorf("15 s after a change: %+v", b.State())
			}
		}
		cancel()
		<-ended
		if len(changes) != 3 || !changes[0] || changes[1] || !changes[2] {
			t.Errorf("told of %v, want up, down, up", changes)
		}
		last := start
		for i, at := range probes {
			if gap := at.Sub(last); gap < probeEvery || gap >= probeEvery+probeEvery/5 {
				t.Errorf("probe %d came %v after the one before", i, gap)
			}
			last = at
		}
		n := len(probes)
		time.Sleep(time.Minute)
		if len(probes) != n {
			t.Error("it probes after its end")
		}
	})
}

// What requests found in between is not lost, and mended by the next probe, of which nobody need be told.
func TestUnreachable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var healthy atomic.Bool
		healthy.Store(true)
		var probes []time.Time
		b := clocked(t, &healthy, &probes)
		b.Probe(t.Context())
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			b.Watch(ctx, func(s State) { t.Errorf("told of a change that no probe saw: %+v", s) })
		}()
		synctest.Wait()
		b.Unreachable("a request could not be brought to it")
		if s := b.State(); s.Healthy || s.Version != "0.6.5" || s.Reason != "a request could not be brought to it" {
			t.Errorf("got %+v", s)
		}
		time.Sleep(2 * probeEvery)
		synctest.Wait()
		if s := b.State(); !s.Healthy || s.Reason != "" {
			t.Errorf("after a probe: %+v", s)
		}
		cancel()
		<-ended
	})
}

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
			t.Errorf("%q older than %s: %v", c.version, c.than, got)
		}
	}
}
