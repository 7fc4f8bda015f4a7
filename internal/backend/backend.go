// Package backend knows which Ollama servers stand behind the gateway and how they are: what probes say of them, and what the
// requests that they are given come to.
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
	maxVersion   = 4 << 10  // bytes of an answer of /api/version that are read
	maxList      = 16 << 20 // and of the lists: an entry has about 500 bytes
	maxRest      = 64 << 10 // read behind an answer, so that its connection can be used again
)

// Agent is the User-Agent of what the gateway asks for itself.
const Agent = "ollama-api-service"

// Backend is one Ollama server. Its zero value is not usable: call New.
type Backend struct {
	Name string
	URL  *url.URL

	Target *dial.Target // how it is reached

	bounds   atomic.Pointer[Bounds]
	reach    atomic.Pointer[api.Reach]
	client   *http.Client
	changing sync.Mutex // one change of state at a time
	state    atomic.Pointer[State]
	failures atomic.Int32  // of requests, in a row
	wake     chan struct{} // asks for a probe before its time
}

// Bounds are what a server may be given. An admin may change them while it serves.
type Bounds struct {
	Slots  int     // requests at one time per model; 0: found by watching
	Total  int     // requests at one time of all models; 0: no bound besides Slots
	Weight float64 // how much faster it is than one of weight 1; 0 is 1
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
	usual     map[string]usualContext // by the name of a model
}

// New is a backend that has not been probed yet. header and value are an upstream credential, or empty.
func New(name string, base *url.URL, slots int, header, value string) *Backend {
	return at(name, dial.To(base, dial.Access{Header: header, Value: value}), slots)
}

func at(name string, target *dial.Target, slots int) *Backend {
	b := &Backend{Name: name, URL: target.URL, Target: target, wake: make(chan struct{}, 1)}
	b.bounds.Store(&Bounds{Slots: slots})
	b.client = &http.Client{
		// No environment proxies and no redirects: a probe must not be sent elsewhere.
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

// Of is the backend that an admin or the settings describe. settings are what it is reached with where it says nothing else.
func Of(a api.Backend, settings dial.Means) *Backend {
	b := at(a.Name, dial.To(a.URL, dial.Access{}), a.Slots)
	b.Use(a.Reach, settings)
	b.bounds.Store(&Bounds{a.Slots, a.Total, a.Weight})
	b.change(func(s *State) { s.Draining = a.Draining })
	return b
}

// Use reaches the server with other means from now on.
func (b *Backend) Use(r api.Reach, settings dial.Means) {
	b.reach.Store(&r)
	b.Target.Use(Means(r, settings).Access())
	b.client.CloseIdleConnections()
}

// Reach is what the server itself is said to be reached with.
func (b *Backend) Reach() (r api.Reach) {
	if p := b.reach.Load(); p != nil {
		r = *p
	}
	return r
}

// Bounds are those of now.
func (b *Backend) Bounds() Bounds { return *b.bounds.Load() }

// State is what is known now.
func (b *Backend) State() State { return *b.state.Load() }

// change replaces the state by what f makes of it.
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

// Probe asks the server for its version and its models and stores what it finds; what it knew stays when ctx ends first. The
// answer about the version alone decides whether it is healthy.
func (b *Backend) Probe(ctx context.Context) State {
	version, err := b.version(ctx)
	var found lists
	if err == nil {
		found = b.lists(ctx)
	}
	if ctx.Err() != nil {
		return b.State() // broken off by us: it says nothing about the server
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
		return "", errors.New("/api/version names no version")
	}
	return body.Version, nil
}

// errSilent tells a server that did not answer from one that answered what makes no sense.
var errSilent = errors.New("no answer")

// read gets a JSON answer of at most so many bytes.
func (b *Backend) read(ctx context.Context, path string, most int64, into any) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	return b.ask(ctx, http.MethodGet, path, nil, most, into)
}

// ask sends a question and reads its JSON answer of at most so many bytes, until ctx ends.
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
		b.client.CloseIdleConnections() // the others lead to where this one did
		return fmt.Errorf("%w: %w", errSilent, dial.Explain(err))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %d", path, resp.StatusCode)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, most)).Decode(into); err != nil {
		return fmt.Errorf("%s is not Ollama's: %w", path, err)
	}
	_, _ = io.CopyN(io.Discard, resp.Body, maxRest) // what fails here costs a connection and nothing else
	return nil
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
