// Package backend knows the Ollama servers behind the gateway and their state: what probes report, and how the requests to them end.
package backend

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/dial"
)

const (
	probeTimeout = 3 * time.Second
	maxVersion   = 4 << 10  // bytes read of an answer of /api/version
	maxList      = 16 << 20 // bytes read of the lists: an entry has about 500
	maxRest      = 64 << 10 // bytes read behind an answer, so that its connection can be used again
)

// Agent is the User-Agent of the gateway's own requests.
const Agent = "ollama-api-service"

// Backend is one Ollama server. Its zero value is not usable: call New.
type Backend struct {
	Name string
	URL  *url.URL

	Target *dial.Target // how to reach the server

	bounds   atomic.Pointer[Bounds]
	reach    atomic.Pointer[api.Reach]
	client   *http.Client
	changing sync.Mutex // one change of state at a time
	state    atomic.Pointer[State]
	failures atomic.Int32  // failed requests in a row
	wake     chan struct{} // requests an early probe
}

// Bounds limit what a server gets. An admin may change them while it serves.
type Bounds struct {
	Slots  int     // requests at one time per model; 0: found by measuring
	Total  int     // requests at one time for all models; 0: no bound besides Slots
	Weight float64 // its speed compared with a server of weight 1; 0 means 1
}

// State is what the last probes and requests reported. A State never changes: a new one replaces it.
type State struct {
	Healthy  bool
	Draining bool   // it gets no new requests
	Version  string // last one seen, numeric and dotted; "" before the first answer
	Checked  time.Time
	Reason   string // why it is not healthy, for admins
	// Installed and Loaded are its models by canonical name; nil if it has not reported them.
	Installed map[string]Installed
	Loaded    map[string]Loaded
	usual     map[string]usualContext // by the name of the model
}

// New returns a backend that has not been probed yet. header and value are an upstream credential, or empty.
func New(name string, base *url.URL, slots int, header, value string) *Backend {
	return at(name, dial.To(base, dial.Access{Header: header, Value: value}), slots)
}

func at(name string, target *dial.Target, slots int) *Backend {
	b := &Backend{Name: name, URL: target.URL, Target: target, wake: make(chan struct{}, 1)}
	b.bounds.Store(&Bounds{Slots: slots})
	b.client = &http.Client{
		// No environment proxies and no redirects: a probe must not reach another server.
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return target.Socket(ctx) },
			DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				c, _, err := target.Conn(ctx)
				return c, err
			},
			DisableCompression: true, MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	target.OnMove(func(func(netip.Addr) bool) { b.client.CloseIdleConnections() })
	b.state.Store(&State{Reason: "not probed yet"})
	return b
}

// Of returns the backend that an admin or the settings describe. settings apply where a does not say how to reach it.
func Of(a api.Backend, settings dial.Means) *Backend {
	b := at(a.Name, dial.To(a.URL, dial.Access{}), a.Slots)
	b.Use(a.Reach, settings)
	b.bounds.Store(&Bounds{a.Slots, a.Total, a.Weight})
	b.change(func(s *State) { s.Draining = a.Draining })
	return b
}

// Use changes how the gateway reaches the server.
func (b *Backend) Use(r api.Reach, settings dial.Means) {
	b.reach.Store(&r)
	b.Target.Use(Means(r, settings).Access())
	b.client.CloseIdleConnections()
}

// Reach returns what the server's own entry says about how to reach it.
func (b *Backend) Reach() (r api.Reach) {
	if p := b.reach.Load(); p != nil {
		r = *p
	}
	return r
}

// Bounds returns the current bounds.
func (b *Backend) Bounds() Bounds { return *b.bounds.Load() }

// State returns the current state.
func (b *Backend) State() State { return *b.state.Load() }

// change replaces the state with a copy that f has changed.
func (b *Backend) change(f func(*State)) (before, after State) {
	b.changing.Lock()
	defer b.changing.Unlock()
	before = b.State()
	after = before
	f(&after)
	b.state.Store(&after)
	return before, after
}

var numericVersion = regexp.MustCompile(`^[0-9]+(\.[0-9]+)+(-[0-9A-Za-z.]+)?$`)

// Probe asks the server for its version and its models and stores what it finds. If ctx ends first, the state stays as it was. Only
// the answer about the version decides whether the server is healthy.
func (b *Backend) Probe(ctx context.Context) State {
	version, err := b.version(ctx)
	var found lists
	if err == nil {
		found = b.lists(ctx)
	}
	if ctx.Err() != nil {
		return b.State() // the gateway cancelled the probe, so it says nothing about the server
	}
	_, now := b.change(func(s *State) {
		s.Checked, s.Healthy, s.Reason = time.Now(), err == nil, ""
		if err != nil {
			s.Reason, s.usual = err.Error(), nil
			return
		}
		if s.Version != version {
			s.usual = nil
		}
		b.failures.Store(0)
		s.Version = version
		found.into(s)
	})
	return now
}

func (b *Backend) version(ctx context.Context) (string, error) {
	var body struct{ Version string }
	if err := b.read(ctx, "/api/version", maxVersion, &body); err != nil {
		return "", err
	}
	if !numericVersion.MatchString(body.Version) {
		return "", errors.New("the answer of /api/version has no valid version")
	}
	return body.Version, nil
}

// errSilent tells a server that did not answer from a server whose answer makes no sense.
var errSilent = errors.New("no answer")

// read gets a JSON answer of at most `most` bytes.
func (b *Backend) read(ctx context.Context, path string, most int64, into any) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	return b.ask(ctx, http.MethodGet, path, nil, most, into)
}

// ask sends a request and reads its JSON answer of at most `most` bytes, until ctx ends.
func (b *Backend) ask(ctx context.Context, method, path string, body []byte, most int64, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, b.URL.JoinPath(path).String(), bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", Agent)
	if a := b.Target.Access(); a.Header != "" {
		req.Header.Set(a.Header, a.Value)
	}
	resp, err := b.client.Do(req)
	if err != nil {
		b.client.CloseIdleConnections() // the idle connections lead to the same place
		return fmt.Errorf("%w: %w", errSilent, dial.Explain(err))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %d", path, resp.StatusCode)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, most)).Decode(into); err != nil {
		return fmt.Errorf("the answer of %s is not Ollama's: %w", path, err)
	}
	_, _ = io.CopyN(io.Discard, resp.Body, maxRest) // a failure here only costs a connection
	return nil
}

// Older reports whether the server's version is before the given one, such as 0.14.0. It returns false for an unknown version, and
// for one that is no release (a local build has 0.0.0).
func (s State) Older(than string) bool {
	have, want := release(s.Version), release(than)
	return have != [3]int{} && slices.Compare(have[:], want[:]) < 0
}

// release returns the three numbers of a version. It ignores what follows a hyphen: a release candidate has the features of its
// release.
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
