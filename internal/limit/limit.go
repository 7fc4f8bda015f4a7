// Package limit enforces the limits of keys: requests in any 60 minutes, tokens in any 60 minutes and 24 hours, GPU time in any 24 hours,
// and concurrent requests.
package limit

import (
	"hash/maphash"
	"sync"
	"time"

	"ollama-api-service/internal/api"
)

// How far back admissions, and tokens and GPU time, count. A window is released in steps, up to one step late.
const (
	RequestWindow = hourBuckets * time.Minute
	UsageWindow   = dayBuckets * quarter * time.Minute
)

// MaxReset is the largest Reset, and the largest RetryAfter for requests: a request at the start of this minute is released last.
const MaxReset = RequestWindow

const (
	shards = 64
	// sweepEvery limits how often a shard looks for entries to drop, so that a flood of new keys costs linear time.
	sweepEvery = 1 // minutes
)

// Memory keeps the counters of one process. They belong to Key.Preview. The limits are read from the key each time, so that a change
// applies immediately. Everything is counted, even for a key without a limit: a limit set later applies to the last hour or day, as it
// does after a restart.
//
// Do not use it with several replicas: each would admit the whole limit.
type Memory struct {
	now    func() time.Time
	start  time.Time
	offset time.Duration // of start within its minute
	first  int64         // start's minute since 1970
	seed   maphash.Seed
	shard  [shards]shard
}

type shard struct {
	mu      sync.RWMutex
	entries map[string]*entry
	swept   int64 // minute
}

// entry is one key's counters.
type entry struct {
	mu       sync.Mutex
	dropped  bool // no longer in the map: look it up again
	inFlight int64
	requests window
	// spent is nil for a key without usage of tokens or GPU time.
	spent *spent
	// The amounts that running requests may still use or have used. None of it is in spent yet.
	heldTokens int64
	heldGPU    time.Duration
}

// State is what a key has left of its requests or tokens.
type State struct {
	Limit     int64         // requests in any 60 minutes, or tokens; -1 means no limit
	Remaining int64         // -1 without a limit
	Reset     time.Duration // whole seconds until one more is admitted, 0 if it is admitted now; MaxReset for a blocked key
}

// Reservation is the place of one request, and what it holds of its key's tokens and GPU time. Cancel or Done must be called. It must not
// be used concurrently.
type Reservation struct {
	from   *Memory
	key    *api.Key
	entry  *entry
	minute int64
	state  State
	over   bool

	// What entry holds for this request.
	tokens int64
	gpu    time.Duration
	prompt int64 // the part of tokens that is not output
	used   Used
	booked bool // used is in entry.spent
}

// Used is what a request has used of its key's limits.
type Used struct {
	Tokens int64
	GPU    time.Duration
}

// NewMemory returns empty counters. Only the differences between values of now matter after this call, so a change of the wall clock
// neither frees nor blocks a key. With the clock of package clock, windows also end while the machine is suspended.
func NewMemory(now func() time.Time) *Memory {
	m := &Memory{now: now, start: now(), seed: maphash.MakeSeed()}
	m.first = minuteOf(m.start)
	m.offset = time.Duration(m.start.UnixNano() - m.first*int64(time.Minute))
	for i := range m.shard {
		m.shard[i].entries = make(map[string]*entry)
	}
	return m
}

// Restore counts n requests that were admitted in the given minute, as recorded before a restart. It ignores minutes that no longer
// count, and minutes in the future, which a wrong clock has recorded. If future minutes counted now, a machine that boots with its clock
// behind would refuse every key for an hour.
func (m *Memory) Restore(key string, minute time.Time, n int64) {
	now, at := m.clock(), minuteOf(minute)
	if n <= 0 || at > now.minute || now.minute-at >= hourBuckets {
		return
	}
	e := m.lock(key, now)
	defer e.mu.Unlock()
	e.requests.advance(now.minute)
	e.requests.add(at, n)
}

// RestoreUsed counts the usage of requests that ended in the given minute, like Restore.
func (m *Memory) RestoreUsed(key string, minute time.Time, u Used) {
	now, at := m.clock(), minuteOf(minute)
	if at > now.minute || now.minute-at >= dayBuckets*quarter {
		return
	}
	e := m.lock(key, now)
	defer e.mu.Unlock()
	e.spend(now.minute, at, u)
}

// Reserve checks the limits and reserves a place in one step. A refusal counts nothing. It returns CodeForbidden for a key whose limit is
// 0, CodeRateLimited if its limit is used up, and CodeConcurrency if max_concurrent requests are running. Reserve tokens with Hold.
func (m *Memory) Reserve(k *api.Key) (*Reservation, error) {
	if k.RateLimit != nil && *k.RateLimit <= 0 {
		return nil, api.Errorf(api.CodeForbidden, "this key is blocked: its rate_limit is 0")
	}
	now := m.clock()
	e := m.lock(k.Preview, now)
	defer e.mu.Unlock()
	e.requests.advance(now.minute)
	if s := e.state(k, now); s.Reset > 0 {
		return nil, &api.Error{Code: api.CodeRateLimited, Message: "Rate limit exceeded", RetryAfter: s.Reset, NoRetry: true}
	}
	if k.MaxConcurrent != nil && e.inFlight >= *k.MaxConcurrent {
		refused := api.Errorf(api.CodeConcurrency,
			"this key is running as many requests as its max_concurrent of %d allows; wait until one has finished", *k.MaxConcurrent)
		refused.RetryAfter = time.Second
		return nil, refused
	}
	minute := e.requests.last
	e.requests.add(minute, 1)
	e.inFlight++
	return &Reservation{from: m, key: k, entry: e, minute: minute, state: e.state(k, now)}, nil
}

// State returns what the key has left of its requests now.
func (m *Memory) State(k *api.Key) State {
	now := m.clock()
	e := m.find(k.Preview)
	if e == nil {
		e = newEntry(now)
	}
	// An entry that was dropped meanwhile is empty or becomes empty here, which is correct too.
	e.mu.Lock()
	defer e.mu.Unlock()
	e.requests.advance(now.minute)
	return e.state(k, now)
}

// State returns what the key had left when the place was reserved, including this request.
func (r *Reservation) State() State { return r.state }

// Cancel undoes the reservation of a request that never went upstream: it is no longer counted, and its place and everything that it
// holds are free. After Cancel or Done it does nothing.
func (r *Reservation) Cancel() { r.end(true) }

// Done frees the place and what was held but not used. The request stays counted. After Cancel or Done it does nothing.
func (r *Reservation) Done() { r.end(false) }

func (r *Reservation) end(undo bool) {
	if r.over {
		return
	}
	r.over = true
	e := r.entry
	e.mu.Lock()
	defer e.mu.Unlock()
	e.inFlight--
	if undo {
		r.holdLocked(0, 0)
		e.requests.take(r.minute, 1)
		return
	}
	r.settleLocked()
}

// state returns what is left of the requests. The caller holds the lock and has advanced the window.
func (e *entry) state(k *api.Key, now instant) State {
	if k.RateLimit == nil {
		return State{Limit: -1, Remaining: -1}
	}
	limit := max(*k.RateLimit, 0)
	s := State{Limit: limit, Remaining: max(limit-e.requests.used, 0)}
	if s.Remaining > 0 {
		return s
	}
	s.Reset = MaxReset
	if limit > 0 {
		s.Reset = e.requests.until(limit-1, now)
	}
	return s
}

func (m *Memory) find(key string) *entry {
	s := &m.shard[m.index(key)]
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.entries[key]
}

// lock finds or creates the key's entry and returns it locked.
func (m *Memory) lock(key string, now instant) *entry {
	for {
		e := m.find(key)
		if e == nil {
			e = m.shard[m.index(key)].add(key, now)
		}
		e.mu.Lock()
		if !e.dropped {
			return e
		}
		e.mu.Unlock()
	}
}

// add creates an entry. It first drops old ones, because the map grows only here.
func (s *shard) add(key string, now instant) *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[key]; e != nil {
		return e
	}
	if now.minute-s.swept >= sweepEvery {
		s.swept = now.minute
		for old, e := range s.entries {
			e.mu.Lock()
			if e.idle(now) {
				e.dropped = true
				delete(s.entries, old)
			}
			e.mu.Unlock()
		}
	}
	e := newEntry(now)
	s.entries[key] = e
	return e
}

func newEntry(now instant) *entry {
	return &entry{requests: newWindow(1, hourBuckets, now.minute)}
}

// idle reports whether nothing in the entry counts any more.
func (e *entry) idle(now instant) bool {
	return e.inFlight == 0 && now.minute-e.requests.last >= hourBuckets && (e.spent == nil || e.spent.over(now.minute))
}

func (m *Memory) index(key string) uint64 { return maphash.String(m.seed, key) % shards }

// instant is a minute since 1970, and the time within it.
type instant struct {
	minute int64
	into   time.Duration
}

func (m *Memory) clock() instant {
	d := max(m.now().Sub(m.start)+m.offset, 0)
	return instant{m.first + int64(d/time.Minute), d % time.Minute}
}

// minuteOf returns whole minutes since 1970 on the wall clock.
func minuteOf(t time.Time) int64 { return t.Unix() / 60 }
