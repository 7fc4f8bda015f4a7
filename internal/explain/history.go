package explain

import (
	"log/slog"
	"sync"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/sched"
)

// MaxTries is the number of servers that one request can be sent to. With more, a request that crashes its server could crash all of
// them.
const MaxTries = 2

// kept is the number of ended requests that stay in memory for explanations: about 3 MB.
const kept = 10_000

// History records how one request got to its server: what its row in the books does not have. It is nil for requests that need no
// slot, and its methods accept nil.
type History struct {
	id, key, model, endpoint string
	weight                   float64
	class                    api.Class
	asked                    time.Time

	mu      sync.Mutex
	waiting time.Time // since when it waits; zero if it does not wait
	waited  time.Duration
	ahead   int
	tries   []attempt
	first   [MaxTries]attempt // room for them
	ended   bool
	outcome api.Outcome // "" where it was refused before it had a server
	code    api.Code
	status  int
	slot    time.Duration
	gpu     time.Duration
	charged time.Duration // before the division by the weight
}

// attempt is one server that a request was sent to.
type attempt struct {
	backend string
	why     sched.Reason
	waited  time.Duration
	loading time.Duration
	since   time.Time // when it got the slot
	failed  string    // why it was sent to another server
}

// Recent has the histories of the requests that wait or run, and of the latest ended ones. The zero value is empty.
type Recent struct {
	mu    sync.Mutex
	known map[string]*History
	ended []*History // a ring
	next  int
}

// Begin starts the history of a request that asks for a slot now. id is the request's, endpoint its route template.
func (r *Recent) Begin(id string, key *api.Key, model, endpoint string) *History {
	now := time.Now()
	t := &History{
		id: id, key: key.Preview, model: model, endpoint: endpoint, weight: key.Weight, class: key.Class,
		asked: now, waiting: now,
	}
	t.tries = t.first[:0]
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known == nil {
		r.known = make(map[string]*History)
	}
	r.known[t.id] = t
	return t
}

// End moves t to the histories of ended requests, and drops the oldest of them.
func (r *Recent) End(t *History) {
	if t == nil {
		return
	}
	t.mu.Lock()
	t.stop(time.Now())
	t.ended = true
	t.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.ended) < kept {
		r.ended = append(r.ended, t)
		return
	}
	delete(r.known, r.ended[r.next].id)
	r.ended[r.next] = t
	r.next = (r.next + 1) % kept
}

// Find returns the history of a request, or nil.
func (r *Recent) Find(id string) *History {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.known[id]
}

// stop ends the current wait, if there is one.
func (t *History) stop(now time.Time) {
	if !t.waiting.IsZero() {
		t.waited += now.Sub(t.waiting)
		t.waiting = time.Time{}
	}
}

// Granted notes a slot. On an error, which ends the request, it does nothing.
func (t *History) Granted(l *sched.Lease, err error) {
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
	t.tries = append(t.tries, attempt{
		backend: l.Backend.Name, why: l.Why, waited: l.Waited, loading: l.Loading, since: time.Now().Add(-l.Loading),
	})
}

// Moved notes that the server failed, and that the request waits for another one. failure is the reason, or "" if the server
// answered.
func (t *History) Moved(failure string) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting = time.Now()
	t.tries[len(t.tries)-1].failed = failure
}

// Refused notes why the request got no server.
func (t *History) Refused(code api.Code) {
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

// Booked notes how the request ended, what it used, and what its payer was charged for it in the order of payers.
func (t *History) Booked(r *api.Record, charged time.Duration) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stop(time.Now())
	found := r.Loading // a load that no attempt has was found when the request ended
	for _, one := range t.tries {
		found -= one.loading
	}
	if len(t.tries) > 0 && found > 0 {
		t.tries[len(t.tries)-1].loading += found
	}
	t.outcome, t.code, t.status = r.Outcome, r.ErrorCode, r.Status
	t.slot, t.gpu, t.charged = r.Slot, max(r.GPU, 0), charged
}

// AppendAttrs appends the fields for the request's log line.
func (t *History) AppendAttrs(attrs []slog.Attr) []slog.Attr {
	if t == nil {
		return attrs
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	why := sched.Reason("")
	if n := len(t.tries); n > 0 {
		why = t.tries[n-1].why
	}
	return append(attrs,
		slog.Float64("queue_wait_ms", api.Milliseconds(t.waited)), slog.String("why", string(why)), slog.Int("tries", len(t.tries)))
}
