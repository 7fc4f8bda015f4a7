package server

import (
	"log/slog"
	"net/http"
	"sync"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/proxy"
	"ollama-api-service/internal/sched"
)

// keptTrails is how many requests that are over are kept in memory to be explained: some 3 MB.
const keptTrails = 10_000

// trail is how one request came to its server: what is not in its row. It is nil for requests that ask for no slot; all its methods
// take that.
type trail struct {
	id, key, model, endpoint string
	weight                   float64
	class                    api.Class
	asked                    time.Time

	mu      sync.Mutex
	waiting time.Time // since when it waits; zero: it does not
	waited  time.Duration
	ahead   int
	tries   []try
	first   [mostTries]try // room for them
	over    bool
	outcome api.Outcome // "" where it was refused before it had a server
	code    api.Code
	status  int
	slot    time.Duration
	gpu     time.Duration
}

// try is one server that a request was brought to.
type try struct {
	backend string
	why     sched.Reason
	waited  time.Duration
	loading time.Duration
	since   time.Time // when it had the slot
	failed  string    // why it went on to another
}

// trails are those of the requests that wait or run, and of the last ones that are over.
type trails struct {
	mu    sync.Mutex
	known map[string]*trail
	over  []*trail // a ring
	next  int
}

func (ts *trails) begin(x *exchange, model string) *trail {
	now := time.Now()
	t := &trail{
		id: x.id, key: x.key.Preview, model: model, endpoint: x.route.template, weight: x.key.Weight, class: x.key.Class,
		asked: now, waiting: now,
	}
	t.tries = t.first[:0]
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.known == nil {
		ts.known = make(map[string]*trail)
	}
	ts.known[t.id] = t
	return t
}

// end keeps t among those that are over, in the place of the one that has been there for the longest time.
func (ts *trails) end(t *trail) {
	if t == nil {
		return
	}
	t.mu.Lock()
	t.stop(time.Now())
	t.over = true
	t.mu.Unlock()
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if len(ts.over) < keptTrails {
		ts.over = append(ts.over, t)
		return
	}
	delete(ts.known, ts.over[ts.next].id)
	ts.over[ts.next] = t
	ts.next = (ts.next + 1) % keptTrails
}

func (ts *trails) find(id string) *trail {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return ts.known[id]
}

// stop ends the wait that goes on, if one does.
func (t *trail) stop(now time.Time) {
	if !t.waiting.IsZero() {
		t.waited += now.Sub(t.waiting)
		t.waiting = time.Time{}
	}
}

// granted notes a slot. Where there is none, who is told why ends the request.
func (t *trail) granted(l *sched.Lease, err error) {
	if t == nil || err != nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting = time.Time{}
	t.waited += l.Waited
	if len(t.tries) == 0 {
		t.ahead = l.Ahead
	}
	t.tries = append(t.tries, try{backend: l.Backend.Name, why: l.Why, waited: l.Waited, loading: l.Loading, since: time.Now().Add(-l.Loading)})
}

// moved notes that its server failed, and that it waits for another.
func (t *trail) moved(resp *proxy.Response, failed error) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting = time.Now()
	last := &t.tries[len(t.tries)-1]
	switch {
	case failed != nil:
		last.failed = string(api.AsError(failed).Code)
	case resp.Status == http.StatusServiceUnavailable:
		last.failed = "busy"
	}
}

// refused notes why it came to no server.
func (t *trail) refused(code api.Code) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stop(time.Now())
	if t.outcome == "" {
		t.code = code
	}
}

// booked notes what it came to.
func (t *trail) booked(r *api.Record) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stop(time.Now())
	t.outcome, t.code, t.status, t.slot, t.gpu = r.Outcome, r.ErrorCode, r.Status, r.Slot, max(r.GPU, 0)
}

// attrs are its log fields.
func (t *trail) attrs() []slog.Attr {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	why := sched.Reason("")
	if n := len(t.tries); n > 0 {
		why = t.tries[n-1].why
	}
	return []slog.Attr{slog.Float64("queue_wait_ms", milliseconds(t.waited)), slog.String("why", string(why)), slog.Int("tries", len(t.tries))}
}
