package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ollama-api-service/internal/test/ollamatest"
)

// clocked is a server that is a function, on the clock of synctest.
type clocked struct {
	*Backend
	mu     sync.Mutex
	down   bool
	probes []time.Time
}

func newClocked(t *testing.T, name string) *clocked {
	c := &clocked{Backend: backendAt(t, "http://"+name, "", "")}
	c.Name = name
	c.client.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if r.URL.Path == "/api/version" {
			c.probes = append(c.probes, time.Now())
		}
		if c.down {
			return nil, errors.New("connection refused")
		}
		body := map[string]string{"/api/version": `{"version":"0.6.5"}`, "/api/tags": `{"models":[]}`, "/api/ps": `{"models":[]}`}[r.URL.Path]
		return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
	})
	return c
}

func (c *clocked) set(down bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = down
}

// probed returns the times of the probes since the last call.
func (c *clocked) probed() []time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := c.probes
	c.probes = nil
	return list
}

// diary collects the health changes that a watch reports.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) tell(b *Backend, s State) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, fmt.Sprint(b.Name, " ", s.Healthy))
}

func (d *diary) read() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := strings.Join(d.lines, ", ")
	d.lines = nil
	return all
}

// watched returns a fleet that is watched until the returned function is called.
func watched(t *testing.T, list ...*clocked) (*Fleet, *diary, func()) {
	f := NewFleet()
	for _, c := range list {
		f.Add(c.Backend)
	}
	f.ProbeAll(t.Context())
	for _, c := range list {
		c.probed()
	}
	d := &diary{}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); f.Watch(ctx, d.tell) }()
	synctest.Wait()
	return f, d, func() { cancel(); <-ended }
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, later := newClocked(t, "a"), newClocked(t, "b"), newClocked(t, "later")
		f, d, stop := watched(t, a, b)
		if f.Healthy() != 2 {
			t.Fatalf("got %d healthy servers, want 2", f.Healthy())
		}
		last := time.Now()
		time.Sleep(time.Minute)
		for _, at := range a.probed() {
			if gap := at.Sub(last); gap < probeEvery || gap >= probeEvery+probeEvery/5 {
				t.Errorf("got a probe %v after the previous one, want at least %v, less than %v", gap, probeEvery, probeEvery+probeEvery/5)
			}
			last = at
		}
		a.set(true)
		time.Sleep(2 * probeEvery)
		if changes := d.read(); changes != "a false" || f.Healthy() != 1 {
			t.Errorf("got %q with %d healthy servers, want %q, 1", changes, f.Healthy(), "a false")
		}
		a.probed()
		time.Sleep(10 * time.Second)
		if n := len(a.probed()); n < 8 || n > 10 {
			t.Errorf("got %d probes in 10 s of an unhealthy server, want at least 8, at most 10", n)
		}
		a.set(false)
		time.Sleep(2 * retryEvery)
		if changes := d.read(); changes != "a true" || f.Healthy() != 2 {
			t.Errorf("got %q with %d healthy servers, want %q, 2", changes, f.Healthy(), "a true")
		}

		// An added server is watched, a removed one is not.
		f.Add(later.Backend)
		f.Remove(b.Backend)
		b.probed()
		time.Sleep(2 * probeEvery)
		if len(b.probed()) != 0 || len(later.probed()) == 0 || d.read() != "later true" {
			t.Error("a removed server is probed, or an added one is not")
		}
		stop()
		a.probed()
		f.Add(b.Backend)
		time.Sleep(time.Minute)
		if len(a.probed()) != 0 || len(b.probed()) != 0 {
			t.Error("the watch probes after its end")
		}
	})
}

// Three failures in a row take a server out, and a probe that is requested at once brings it back.
func TestFailuresEject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newClocked(t, "a"), newClocked(t, "b")
		f, d, stop := watched(t, a, b)
		defer stop()
		changes := 0
		f.OnChange(func() { changes++ })
		time.Sleep(2 * time.Second) // the last probe is longer ago than the pause between retries
		for range 5 {
			f.Failed(a.Backend, false)
			f.Failed(a.Backend, true)
			a.Answered() // not in a row
		}
		synctest.Wait()
		if !a.State().Healthy || changes != 0 {
			t.Fatalf("after failures that were not in a row: got %+v, want a healthy server", a.State())
		}
		a.set(true)
		for range 3 {
			f.Failed(a.Backend, false)
		}
		if s := a.State(); s.Healthy || s.Version != "0.6.5" || s.Reason == "" || f.Healthy() != 1 || changes == 0 {
			t.Errorf("after three failures in a row: got %+v, want an unhealthy server", s)
		}
		if changes := d.read(); changes != "a false" {
			t.Errorf("got %q, want %q", changes, "a false")
		}
		a.set(false)
		began := time.Now()
		a.probed()
		for f.Healthy() < 2 {
			time.Sleep(10 * time.Millisecond)
			synctest.Wait()
		}
		if took := time.Since(began); took > 2*retryEvery {
			t.Errorf("the server was healthy again after %v, want at most %v", took, 2*retryEvery)
		}
		if changes := d.read(); changes != "a true" {
			t.Errorf("got %q, want %q", changes, "a true")
		}
		// Failing requests do not cause an unlimited number of probes.
		a.probed()
		for range 1000 {
			f.Failed(a.Backend, false)
			time.Sleep(10 * time.Millisecond)
		}
		if n := len(a.probed()); n > 11 {
			t.Errorf("got %d probes in 10 s of failures, want at most 11", n)
		}
	})
}

// Broken answers do not take the last healthy server out. A refused connection does.
func TestTheLastServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newClocked(t, "a")
		f, _, stop := watched(t, a)
		defer stop()
		for range 10 {
			f.Failed(a.Backend, false)
		}
		if f.Healthy() != 1 {
			t.Error("broken answers took the last server out")
		}
		f.Failed(a.Backend, true)
		if f.Healthy() != 0 {
			t.Error("the server is still in, though it refuses connections")
		}
		time.Sleep(2 * retryEvery)
		if f.Healthy() != 1 {
			t.Error("no probe made the server healthy again")
		}
	})
}

func TestFind(t *testing.T) {
	one, two := ollamatest.Start(t), ollamatest.Start(t)
	one.Models("tiny:latest", "other:latest")
	two.Models("tiny:latest", "also:latest")
	f := NewFleet(backendAt(t, one.URL, "", ""), backendAt(t, two.URL, "", ""))
	f.All()[1].Name = "two"
	f.ProbeAll(t.Context())
	asked := len(two.RequestsTo("GET", "/api/tags"))
	two.Models("tiny:latest", "brought:latest")
	if f.Find(t.Context(), "unknown:latest") || !f.Find(t.Context(), "tiny:latest") || !f.Find(t.Context(), "brought:latest") {
		t.Error("Find reports a model that is missing, or misses one that is there")
	}
	for range 100 {
		f.Find(t.Context(), "unknown:latest")
	}
	if n := len(two.RequestsTo("GET", "/api/tags")) - asked; n != 1 {
		t.Errorf("got %d reads of the lists, want 1", n)
	}
	if list := f.Serving("brought:latest"); len(list) != 1 || list[0].Name != "two" || len(f.Serving("tiny:latest")) != 2 || f.Has("unknown:latest") {
		t.Errorf("got %d servers for the new model and %d for tiny, want 1 and 2", len(list), len(f.Serving("tiny:latest")))
	}
	f.Drain(f.Named("two"), true)
	if len(f.Serving("brought:latest")) != 0 || !slices.Equal(f.Holding("brought:latest"), []*Backend{f.Named("two")}) {
		t.Error("a drained server gets requests, or is not asked about its model (Holding)")
	}
}

// One name with two digests: the gateway serves the one that most servers have.
func TestMajority(t *testing.T) {
	var list []*Backend
	for i, digest := range []string{"old", "new", "new"} {
		b := backendAt(t, "http://ollama.test", "", "")
		b.Name = fmt.Sprint("gpu", i)
		b.Set(State{Healthy: true, Installed: map[string]Installed{"m:latest": {Digest: digest}}})
		list = append(list, b)
	}
	f := NewFleet(list...)
	if !slices.Equal(f.Serving("m:latest"), list[1:]) || !slices.Equal(f.Divergent("m:latest"), list[:1]) || !slices.Equal(f.DivergentNames(), []string{"m:latest"}) {
		t.Errorf("got %d servers for the model and the divergent names %v, want the majority of servers", len(f.Serving("m:latest")), f.DivergentNames())
	}
}
