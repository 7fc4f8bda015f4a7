package limit

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ollama-api-service/internal/api"
	"pgregory.net/rapid"
)

// clock is a clock that tests set. No test sleeps.
type clock struct{ nanos atomic.Int64 }

func newClock(t time.Time) *clock {
	c := &clock{}
	c.nanos.Store(t.UnixNano())
	return c
}

func (c *clock) now() time.Time          { return time.Unix(0, c.nanos.Load()).UTC() }
func (c *clock) advance(d time.Duration) { c.nanos.Add(int64(d)) }

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func key(limit int64) *api.Key { return &api.Key{Preview: "oas_test", RateLimit: &limit} }

func mustReserve(t testing.TB, m *Memory, k *api.Key) *Reservation {
	t.Helper()
	r, err := m.Reserve(k)
	if err != nil {
		t.Fatalf("Reserve: %v", err)
	}
	return r
}

func mustRefuse(t testing.TB, m *Memory, k *api.Key, code api.Code) *api.Error {
	t.Helper()
	r, err := m.Reserve(k)
	if r != nil {
		t.Fatalf("Reserve admitted, want %s", code)
	}
	var e *api.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Fatalf("Reserve: %v, want %s", err, code)
	}
	return e
}

func TestExactlyTheLimitPassesConcurrently(t *testing.T) {
	m := NewMemory(newClock(noon).now)
	k := key(100)
	var admitted, limited atomic.Int64
	var all sync.WaitGroup
	for range 500 {
		all.Go(func() {
			r, err := m.Reserve(k)
			if err != nil {
				if api.AsError(err).Code == api.CodeRateLimited {
					limited.Add(1)
				}
				return
			}
			admitted.Add(1)
			r.Done()
		})
	}
	all.Wait()
	if admitted.Load() != 100 || limited.Load() != 400 {
		t.Errorf("%d admitted, %d limited, want 100 and 400", admitted.Load(), limited.Load())
	}
}

func TestMaxConcurrent(t *testing.T) {
	m := NewMemory(newClock(noon).now)
	k, most := key(1000), int64(2)
	k.MaxConcurrent = &most
	a, b := mustReserve(t, m, k), mustReserve(t, m, k)
	e := mustRefuse(t, m, k, api.CodeConcurrency)
	if e.RetryAfter != time.Second || e.NoRetry {
		t.Errorf("RetryAfter %v, NoRetry %v, want 1s, false", e.RetryAfter, e.NoRetry)
	}
	if left := m.State(k).Remaining; left != 998 {
		t.Errorf("%d remaining, want 998, because a refusal does not count", left)
	}
	a.Done()
	a.Done() // no effect
	a.Cancel()
	mustReserve(t, m, k)
	mustRefuse(t, m, k, api.CodeConcurrency)
	b.Cancel()
	b.Cancel()
	mustReserve(t, m, k)
	mustRefuse(t, m, k, api.CodeConcurrency)
	if left := m.State(k).Remaining; left != 997 {
		t.Errorf("%d remaining, want 997, because one of four was cancelled", left)
	}
}

func TestBlockedKey(t *testing.T) {
	m := NewMemory(newClock(noon).now)
	e := mustRefuse(t, m, key(0), api.CodeForbidden)
	if e.Message != "this key is blocked: its rate_limit is 0" {
		t.Errorf("message %q, want %q", e.Message, "this key is blocked: its rate_limit is 0")
	}
	if s := m.State(key(0)); s != (State{Limit: 0, Remaining: 0, Reset: MaxReset}) {
		t.Errorf("state %+v", s)
	}
}

func TestKeyWithoutLimitIsCountedAllTheSame(t *testing.T) {
	m := NewMemory(newClock(noon).now)
	k := &api.Key{Preview: "oas_test"}
	for range 7 {
		r := mustReserve(t, m, k)
		if r.State() != (State{Limit: -1, Remaining: -1}) {
			t.Fatalf("state %+v", r.State())
		}
		r.Done()
	}
	if s := m.State(key(10)); s.Remaining != 3 {
		t.Errorf("%d remaining of 10 once a limit is set, want 3", s.Remaining)
	}
}

func TestRefusalSaysWhenToComeBack(t *testing.T) {
	c := newClock(noon.Add(20*time.Second + 300*time.Millisecond))
	m := NewMemory(c.now)
	k := key(2)
	mustReserve(t, m, k)
	c.advance(3 * time.Minute)
	if s := mustReserve(t, m, k).State(); s.Limit != 2 || s.Remaining != 0 {
		t.Errorf("state %+v, want 0 of 2 remaining", s)
	}
	e := mustRefuse(t, m, k, api.CodeRateLimited)
	if e.Message != "Rate limit exceeded" || !e.NoRetry {
		t.Errorf("%q, NoRetry %v", e.Message, e.NoRetry)
	}
	// The first went in minute 12:00 and is released at 13:01:00; now is 12:03:20.3.
	if want := 57*time.Minute + 40*time.Second; e.RetryAfter != want {
		t.Errorf("RetryAfter %v, want %v", e.RetryAfter, want)
	}
	c.advance(e.RetryAfter - time.Second)
	mustRefuse(t, m, k, api.CodeRateLimited)
	c.advance(time.Second)
	mustReserve(t, m, k)
	mustRefuse(t, m, k, api.CodeRateLimited)
}

func TestResetIsAtMost61Minutes(t *testing.T) {
	m := NewMemory(newClock(noon).now)
	k := key(1)
	if s := m.State(k); s != (State{Limit: 1, Remaining: 1}) {
		t.Errorf("state of an unused key %+v", s)
	}
	mustReserve(t, m, k)
	if e := mustRefuse(t, m, k, api.CodeRateLimited); e.RetryAfter != 3660*time.Second {
		t.Errorf("RetryAfter %v, want 3660s", e.RetryAfter)
	}
}

func TestCancelGivesBackIntoItsOwnMinute(t *testing.T) {
	c := newClock(noon)
	m := NewMemory(c.now)
	k := key(2)
	first := mustReserve(t, m, k)
	c.advance(30 * time.Minute)
	mustReserve(t, m, k)
	mustRefuse(t, m, k, api.CodeRateLimited)
	first.Cancel()
	mustReserve(t, m, k)
	// Both requests that count were at 12:30. At 13:05 they still count.
	c.advance(35 * time.Minute)
	mustRefuse(t, m, k, api.CodeRateLimited)
	c.advance(26 * time.Minute)
	if s := m.State(k); s.Remaining != 2 {
		t.Errorf("%d remaining, want 2", s.Remaining)
	}
}

func TestCancelAfterTheWindowTakesNothing(t *testing.T) {
	c := newClock(noon)
	m := NewMemory(c.now)
	k := key(5)
	old := mustReserve(t, m, k)
	c.advance(61 * time.Minute) // the same bucket in the ring
	mustReserve(t, m, k)
	old.Cancel()
	if s := m.State(k); s.Remaining != 4 {
		t.Errorf("%d remaining, want 4", s.Remaining)
	}
}

func TestLoweredLimitAppliesAtOnce(t *testing.T) {
	c := newClock(noon)
	m := NewMemory(c.now)
	for i := range 10 { // one each minute, 12:00 to 12:09
		if i > 0 {
			c.advance(time.Minute)
		}
		mustReserve(t, m, key(100))
	}
	lowered := key(3)
	s := m.State(lowered)
	// 10 used of 3: the eighth of them, of 12:07, must be released, which is at 13:08:00.
	if want := (State{Limit: 3, Remaining: 0, Reset: 59 * time.Minute}); s != want {
		t.Errorf("state %+v, want %+v", s, want)
	}
	c.advance(s.Reset - time.Second)
	mustRefuse(t, m, lowered, api.CodeRateLimited)
	c.advance(time.Second)
	mustReserve(t, m, lowered)
	mustReserve(t, m, key(4))
}

func TestRestore(t *testing.T) {
	c := newClock(noon)
	m := NewMemory(c.now)
	k := key(10)
	m.Restore(k.Preview, noon.Add(-61*time.Minute), 100) // too old
	m.Restore(k.Preview, noon.Add(-60*time.Minute), 4)   // still counts, for this minute
	m.Restore(k.Preview, noon.Add(-10*time.Minute), 3)
	m.Restore(k.Preview, noon.Add(5*time.Minute), 2) // recorded by a wrong clock
	if s := m.State(k); s.Remaining != 3 {
		t.Errorf("%d remaining, want 3", s.Remaining)
	}
	c.advance(time.Minute)
	if s := m.State(k); s.Remaining != 7 {
		t.Errorf("%d remaining a minute later, want 7", s.Remaining)
	}
	c.advance(50 * time.Minute)
	if s := m.State(k); s.Remaining != 10 {
		t.Errorf("%d remaining at 12:51, want 10", s.Remaining)
	}
}

func TestClockThatGoesBackFreesNothing(t *testing.T) {
	c := newClock(noon)
	m := NewMemory(c.now)
	k := key(1)
	c.advance(10 * time.Minute)
	mustReserve(t, m, k)
	c.advance(-5 * time.Hour)
	if e := mustRefuse(t, m, k, api.CodeRateLimited); e.RetryAfter > MaxReset {
		t.Errorf("RetryAfter %v, want at most %v", e.RetryAfter, MaxReset)
	}
}

func TestIdleKeysAreForgotten(t *testing.T) {
	c := newClock(noon)
	m := NewMemory(c.now)
	busy := &api.Key{Preview: "busy"}
	held := mustReserve(t, m, busy)
	for i := range 10_000 {
		mustReserve(t, m, &api.Key{Preview: fmt.Sprint("old", i)}).Done()
	}
	forgotten := mustReserve(t, m, &api.Key{Preview: "old0"}).entry
	forgotten.inFlight = 0
	c.advance(2 * time.Hour)
	for i := range 2_000 {
		mustReserve(t, m, &api.Key{Preview: fmt.Sprint("new", i)}).Done()
	}
	n, found := 0, false
	if !forgotten.dropped {
		t.Error("a Reserve that found the entry before it was dropped would count nothing")
	}
	for i := range m.shard {
		n += len(m.shard[i].entries)
		found = found || m.shard[i].entries["busy"] != nil
	}
	if n > 2_001 || !found {
		t.Errorf("%d keys stored, want at most 2001; the busy one is stored: %v", n, found)
	}
	held.Done()
}

// TestSweepLosesNoCount reserves while other keys make the map drop idle entries.
func TestSweepLosesNoCount(t *testing.T) {
	c := newClock(noon)
	m := NewMemory(c.now)
	k := key(1 << 40)
	for round := range 20 {
		mustReserve(t, m, k).Done()
		c.advance(61 * time.Minute)
		var all sync.WaitGroup
		for worker := range 4 {
			all.Go(func() {
				for i := range 200 {
					if worker%2 == 0 {
						mustReserve(t, m, k).Done()
					} else {
						mustReserve(t, m, &api.Key{Preview: fmt.Sprint(round, worker, i)}).Done()
					}
				}
			})
		}
		all.Wait()
		if s := m.State(k); s.Limit-s.Remaining != 400 {
			t.Fatalf("round %d: %d counted, want 400", round, s.Limit-s.Remaining)
		}
	}
}

// TestNeverOverInAnyHour runs a random trace and checks it: in every 60 minutes at most the limit is admitted, a request is refused only
// if the last 61 minutes are full, and Retry-After is exact to the second.
func TestNeverOverInAnyHour(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newClock(noon.Add(time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "start"))))
		m := NewMemory(c.now)
		limit := rapid.Int64Range(1, 6).Draw(t, "limit")
		k := key(limit)
		type place struct {
			at time.Time
			r  *Reservation
		}
		var admitted []place
		for range rapid.IntRange(1, 150).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0:
				if n := len(admitted); n > 0 {
					i := rapid.IntRange(0, n-1).Draw(t, "cancel")
					admitted[i].r.Cancel()
					admitted = append(admitted[:i:i], admitted[i+1:]...)
				}
			case 1, 2, 3:
				c.advance(time.Duration(rapid.Int64Range(0, int64(25*time.Minute)).Draw(t, "wait")))
			default:
				r, err := m.Reserve(k)
				if err == nil {
					admitted = append(admitted, place{c.now(), r})
					break
				}
				recent := int64(0)
				for _, p := range admitted {
					if c.now().Sub(p.at) < 61*time.Minute {
						recent++
					}
				}
				if recent < limit {
					t.Fatalf("refused with %d of %d in the last 61 minutes, want at least %v", recent, limit, limit)
				}
				wait := api.AsError(err).RetryAfter
				if wait <= 0 || wait > MaxReset || wait%time.Second != 0 {
					t.Fatalf("RetryAfter %v, want more than 0, at most %v, 0", wait, MaxReset)
				}
				c.advance(wait - time.Second)
				if _, err := m.Reserve(k); err == nil {
					t.Fatalf("admitted one second before the end of Retry-After, want an error")
				}
				c.advance(time.Second)
				r, err = m.Reserve(k)
				if err != nil {
					t.Fatalf("refused after Retry-After: %v", err)
				}
				admitted = append(admitted, place{c.now(), r})
			}
		}
		for i := range admitted {
			if j := i + int(limit); j < len(admitted) && admitted[j].at.Sub(admitted[i].at) < time.Hour {
				t.Fatalf("%d admitted from %v to %v, limit %d", limit+1, admitted[i].at, admitted[j].at, limit)
			}
		}
	})
}

func BenchmarkReserveDone(b *testing.B) {
	m := NewMemory(time.Now)
	k := key(1 << 60)
	b.ReportAllocs()
	for b.Loop() {
		r, err := m.Reserve(k)
		if err != nil {
			b.Fatal(err)
		}
		r.Done()
	}
}
