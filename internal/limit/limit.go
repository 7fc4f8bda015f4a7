// Package limit holds each key to its requests in any 60 minutes and to its requests at one time.
package limit

import (
	"hash/maphash"
	"sync"
	"time"

	"ollama-api-service/internal/api"
)

// MaxReset is the longest that Reset and RetryAfter can be: the request of this minute's first instant goes last.
const MaxReset = (window + 1) * time.Minute

const (
	// window is the length of the promise, in minutes.
	window = 60
	// buckets is one more than the window: any 60 minutes touch at most 61 whole minutes, so holding 61 of them to the
	// limit holds each rolling hour to it. The price is that a request is released up to a minute late.
	buckets = window + 1
	shards  = 64
	// sweepEvery bounds how often a shard looks for entries to drop, so that a flood of new keys stays linear.
	sweepEvery = 1 // minutes
)

// Memory keeps the counters of one process. They belong to Key.Preview; the limits are read from the key each time, so
// that a changed key obeys its new ones at once. Every counted request is counted, also for a key without a limit: a limit
// set later looks back over the last hour, as the books do after a restart.
//
// It is not for several replicas: each would admit the whole limit.
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

// entry is one key's counters. Minutes count from 1970; count[m % buckets] is that of minute m, for the 61 minutes up to last.
type entry struct {
	mu       sync.Mutex
	dropped  bool // no longer in the map: look again
	last     int64
	used     int64 // sum of count
	inFlight int64
	count    [buckets]int64
}

// State is what a key has left.
type State struct {
	Limit     int64         // requests in any 60 minutes; -1 is no limit
	Remaining int64         // -1 where there is no limit
	Reset     time.Duration // whole seconds until one more would be admitted, 0 when it would be now; MaxReset for a blocked key
}

// Reservation is one request's place. One of Cancel and Done must be called.
type Reservation struct {
	entry  *entry
	minute int64
	state  State
	over   bool // guarded by entry.mu
}

// NewMemory starts with empty counters. Only the distance between answers of now counts after this call, so a step of the
// wall clock neither frees nor blocks a key.
func NewMemory(now func() time.Time) *Memory {
	m := &Memory{now: now, start: now(), seed: maphash.MakeSeed()}
	m.first = minuteOf(m.start)
	m.offset = time.Duration(m.start.UnixNano() - m.first*int64(time.Minute))
	for i := range m.shard {
		m.shard[i].entries = make(map[string]*entry)
	}
	return m
}

// Restore counts n requests that were admitted in the given minute, as the books tell at start. Minutes that are over do
// nothing; one in the future (the clock was set back) counts as this minute.
func (m *Memory) Restore(key string, minute time.Time, n int64) {
	now, _ := m.clock()
	at := min(minuteOf(minute), now)
	if n <= 0 || now-at >= buckets {
		return
	}
	e := m.lock(key, now)
	defer e.mu.Unlock()
	e.advance(now)
	if e.last-at < buckets {
		e.count[at%buckets] += n
		e.used += n
	}
}

// Reserve asks and takes in one step. A refusal costs nothing. It returns a CodeForbidden error for a key whose limit is 0,
// CodeRateLimited when its limit is used up, and CodeConcurrency when it has max_concurrent requests under way.
func (m *Memory) Reserve(k *api.Key) (*Reservation, error) {
	if k.RateLimit != nil && *k.RateLimit <= 0 {
		return nil, api.Errorf(api.CodeForbidden, "this key is blocked: its rate_limit is 0")
	}
	now, into := m.clock()
	e := m.lock(k.Preview, now)
	defer e.mu.Unlock()
	e.advance(now)
	if s := e.state(k, now, into); s.Reset > 0 {
		return nil, &api.Error{Code: api.CodeRateLimited, Message: "Rate limit exceeded", RetryAfter: s.Reset, NoRetry: true}
	}
	if k.MaxConcurrent != nil && e.inFlight >= *k.MaxConcurrent {
		refused := api.Errorf(api.CodeConcurrency,
			"this key has as many requests under way as its max_concurrent of %d allows; wait until one has ended", *k.MaxConcurrent)
		refused.RetryAfter = time.Second
		return nil, refused
	}
	e.count[e.last%buckets]++
	e.used++
	e.inFlight++
	return &Reservation{entry: e, minute: e.last, state: e.state(k, now, into)}, nil
}

// State is what the key has left now.
func (m *Memory) State(k *api.Key) State {
	now, into := m.clock()
	s := &m.shard[m.index(k.Preview)]
	s.mu.RLock()
	e := s.entries[k.Preview]
	s.mu.RUnlock()
	if e == nil {
		return new(entry).state(k, now, into)
	}
	// An entry that was dropped meanwhile is empty or empties here, which is the right answer too.
	e.mu.Lock()
	defer e.mu.Unlock()
	e.advance(now)
	return e.state(k, now, into)
}

// State is what the key had left when the place was taken, this request included.
func (r *Reservation) State() State { return r.state }

// Cancel undoes the reservation of a request that never went upstream: it leaves the minute it was counted in, and the
// place is free. After Cancel or Done it does nothing.
func (r *Reservation) Cancel() { r.end(true) }

// Done frees the place; the request stays counted. After Cancel or Done it does nothing.
func (r *Reservation) Done() { r.end(false) }

func (r *Reservation) end(undo bool) {
	e := r.entry
	e.mu.Lock()
	defer e.mu.Unlock()
	if r.over {
		return
	}
	r.over = true
	e.inFlight--
	if undo && e.last-r.minute < buckets {
		e.count[r.minute%buckets]--
		e.used--
	}
}

// advance empties the buckets of minutes that no longer count. Time that goes backwards does not move it.
func (e *entry) advance(now int64) {
	if now-e.last >= buckets {
		e.last, e.used, e.count = now, 0, [buckets]int64{}
		return
	}
	for e.last < now {
		e.last++
		e.used -= e.count[e.last%buckets]
		e.count[e.last%buckets] = 0
	}
}

// state tells what is left at `into` the minute now. The caller holds the lock and has advanced the entry.
func (e *entry) state(k *api.Key, now int64, into time.Duration) State {
	if k.RateLimit == nil {
		return State{Limit: -1, Remaining: -1}
	}
	limit := max(*k.RateLimit, 0)
	s := State{Limit: limit, Remaining: max(limit-e.used, 0)}
	if s.Remaining > 0 {
		return s
	}
	s.Reset = MaxReset
	// More than one bucket must go when the limit was lowered below what is used.
	used := e.used
	for m := e.last - window; m <= e.last && limit > 0; m++ {
		if used -= e.count[m%buckets]; used < limit {
			wait := time.Duration(m+buckets-now)*time.Minute - into
			s.Reset = min((wait + time.Second - 1).Truncate(time.Second), MaxReset)
			break
		}
	}
	return s
}

// lock finds or makes the key's entry and returns it locked.
func (m *Memory) lock(key string, now int64) *entry {
	s := &m.shard[m.index(key)]
	for {
		s.mu.RLock()
		e := s.entries[key]
		s.mu.RUnlock()
		if e == nil {
			e = s.add(key, now)
		}
		e.mu.Lock()
		if !e.dropped {
			return e
		}
		e.mu.Unlock()
	}
}

// add makes an entry, and first drops old ones: only here does the map grow.
func (s *shard) add(key string, now int64) *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[key]; e != nil {
		return e
	}
	if now-s.swept >= sweepEvery {
		s.swept = now
		for old, e := range s.entries {
			e.mu.Lock()
			if e.inFlight == 0 && now-e.last >= buckets {
				e.dropped = true
				delete(s.entries, old)
			}
			e.mu.Unlock()
		}
	}
	e := &entry{last: now}
	s.entries[key] = e
	return e
}

func (m *Memory) index(key string) uint64 { return maphash.String(m.seed, key) % shards }

// clock is the minute, and how far into it.
func (m *Memory) clock() (minute int64, into time.Duration) {
	d := max(m.now().Sub(m.start)+m.offset, 0)
	return m.first + int64(d/time.Minute), d % time.Minute
}

// minuteOf counts whole minutes since 1970 on the wall clock.
func minuteOf(t time.Time) int64 { return t.Unix() / 60 }
