// Package backend knows which Ollama servers stand behind the gateway and how they are.
package backend

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const (
	probeEvery   = 5 * time.Second
	probeTimeout = 3 * time.Second
	maxVersion   = 4 << 10 // bytes of an answer of /api/version that are read
)

// Backend is one Ollama server. Its zero value is not usable: call New.
type Backend struct {
	Name   string
	URL    *url.URL
	Slots  int     // requests at one time per model; 0: found by watching
	Total  int     // requests at one time of all models; 0: no bound beside Slots
	Weight float64 // how much faster it is than one of weight 1; 0 is 1

	header, value string // of OLLAMA_AUTH_HEADER
	client        *http.Client
	state         atomic.Pointer[State]
}

// State is what the last probes and requests said. One is never changed: another takes its place.
type State struct {
	Healthy  bool
	Draining bool   // it gets no request that is new
	Version  string // last one seen, numeric and dotted; "" before the first answer
	Checked  time.Time
	Reason   string // why it is not healthy, for admins
	// Installed and Loaded are its models by canonical name; nil where it has not said.
	Installed map[string]Installed
	Loaded    map[string]Loaded
}

// Installed is a model of /api/tags.
type Installed struct {
	Digest string
	Embeds bool // it makes embeddings alone
}

// Loaded is a model of /api/ps.
type Loaded struct {
	VRAM    int64 // bytes
	Expires time.Time
}

// New is a backend that has not been probed yet. header and value are an upstream credential, or empty.
func New(name string, base *url.URL, slots int, header, value string) *Backend {
	b := &Backend{Name: name, URL: base, Slots: slots, header: header, value: value}
	b.client = &http.Client{
		// No environment proxies and no redirects: a probe must not be sent elsewhere.
		Transport:     &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       probeTimeout,
	}
	b.state.Store(&State{Reason: "not probed yet"})
	return b
}

// State is what is known now.
func (b *Backend) State() State { return *b.state.Load() }

var numericVersion = regexp.MustCompile(`^[0-9]+(\.[0-9]+)+(-[0-9A-Za-z.]+)?$`)

// Probe asks the server for its version and stores what it finds; what it knew stays when ctx ends first.
func (b *Backend) Probe(ctx context.Context) State {
	now := State{Checked: time.Now(), Version: b.State().Version}
	version, err := b.version(ctx)
	if err != nil {
		now.Reason = err.Error()
	} else {
		now.Healthy, now.Version = true, version
	}
	if ctx.Err() != nil {
		return b.State() // broken off by us: it says nothing about the server
	}
	b.state.Store(&now)
	return now
}

func (b *Backend) version(ctx context.Context) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.URL.JoinPath("/api/version").String(), nil)
	if err != nil {
		return "", err
	}
	if b.header != "" {
		req.Header.Set(b.header, b.value)
	}
	resp, err := b.client.Do(req)
	if err != nil {
		return "", fmt.Errorf("no answer: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("/api/version answers %d", resp.StatusCode)
	}
	var body struct{ Version string }
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxVersion)).Decode(&body); err != nil {
		return "", fmt.Errorf("/api/version is not Ollama's: %w", err)
	}
	if !numericVersion.MatchString(body.Version) {
		return "", fmt.Errorf("/api/version names no version")
	}
	return body.Version, nil
}

// Watch probes until ctx ends, and calls changed after each probe that found another health than the one before.
func (b *Backend) Watch(ctx context.Context, changed func(State)) {
	before := b.State().Healthy
	for {
		// Jitter keeps many gateways from probing in step.
		wait := probeEvery + time.Duration(rand.Int64N(int64(probeEvery/5)))
		select {
		case <-ctx.Done():
			b.client.CloseIdleConnections()
			return
		case <-time.After(wait):
		}
		s := b.Probe(ctx)
		if ctx.Err() == nil && s.Healthy != before {
			before = s.Healthy
			changed(s)
		}
	}
}

// Unreachable notes that a request could not be brought to the server; the next probe may find it again.
func (b *Backend) Unreachable(reason string) {
	s := b.State()
	s.Healthy, s.Reason = false, reason
	b.state.Store(&s)
}

// Older says whether the server is of a version before the one named, like 0.14.0. One that is not known, or that names no
// release (a build of one's own is 0.0.0), is not.
func (s State) Older(than string) bool {
	have, want := release(s.Version), release(than)
	return have != [3]int{} && slices.Compare(have[:], want[:]) < 0
}

// release is the three numbers of a version; what follows a hyphen is a candidate for it, and has what it will have.
func release(version string) (r [3]int) {
	version, _, _ = strings.Cut(version, "-")
	for i, part := range strings.SplitN(version, ".", len(r)) {
		n, err := strconv.Atoi(part)
		if err != nil {
			return [3]int{}
		}
		r[i] = n
	}
	return r
}
