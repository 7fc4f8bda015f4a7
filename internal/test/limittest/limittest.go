// Package limittest defines the meaning of limits by test cases for every implementation.
package limittest

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/limit"
)

// Place is the reservation of a request.
type Place interface {
	Hold(prompt, output int64) (int64, error)
	Passes(output int64, gpu time.Duration) *api.Error
	Settle(limit.Used)
	Cancel()
	Done()
}

// Limiter is the implementation under test.
type Limiter struct {
	Reserve     func(*api.Key) (Place, error)
	Restore     func(key string, minute time.Time, n int64)
	RestoreUsed func(key string, minute time.Time, u limit.Used)
}

// clock is a clock that tests set.
type clock struct{ nanos atomic.Int64 }

func (c *clock) now() time.Time          { return time.Unix(0, c.nanos.Load()).UTC() }
func (c *clock) advance(d time.Duration) { c.nanos.Add(int64(d)) }

// bench is a limiter with its clock, and one key.
type bench struct {
	fatalf func(string, ...any)
	l      Limiter
	c      *clock
	key    *api.Key
}

func (b *bench) reserve() Place {
	p, err := b.l.Reserve(b.key)
	if err != nil {
		b.fatalf("Reserve: %v", err)
	}
	return p
}

// hold reserves a place and tokens, and checks that want are granted for the answer.
func (b *bench) hold(prompt, output, want int64) Place {
	p := b.reserve()
	if got, err := p.Hold(prompt, output); err != nil || got != want {
		b.fatalf("Hold(%d, %d): %d, %v, want %d", prompt, output, got, err, want)
	}
	return p
}

func (b *bench) refused(err error, code api.Code, wait time.Duration) {
	var e *api.Error
	if !errors.As(err, &e) || e.Code != code || e.RetryAfter != wait || e.Message == "" {
		b.fatalf("%v, want %s with %v", err, code, wait)
	}
}

// none checks that no token is left, and when one will be.
func (b *bench) none(code api.Code, wait time.Duration) {
	p := b.reserve()
	defer p.Cancel()
	_, err := p.Hold(0, 0)
	b.refused(err, code, wait)
}

// used runs a request from beginning to end.
func (b *bench) used(tokens int64, gpu time.Duration) {
	p := b.reserve()
	p.Settle(limit.Used{Tokens: tokens, GPU: gpu})
	p.Done()
}

func number(n int64) *int64 { return &n }

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// Run tests a limiter. make returns an empty one that uses now as its clock.
func Run(t *testing.T, make func(now func() time.Time) Limiter) {
	begin := func(fatalf func(string, ...any), change func(*api.Key)) *bench {
		c := &clock{}
		c.nanos.Store(noon.UnixNano())
		k := &api.Key{Preview: "oas_test"}
		change(k)
		return &bench{fatalf, make(c.now), c, k}
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) { c.test(begin(t.Fatalf, c.key)) })
	}
	t.Run("never over in any hour", func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) { neverOver(t, begin) })
	})
}

func perHour(n int64) func(*api.Key) { return func(k *api.Key) { k.TokensPerHour = &n } }
func perDay(n int64) func(*api.Key)  { return func(k *api.Key) { k.TokensPerDay = &n } }
func gpuDay(n int64) func(*api.Key)  { return func(k *api.Key) { k.GPUPerDay = &n } }

// atOnce runs 500 calls concurrently and counts those that return true.
func atOnce(one func() bool) (passed int64) {
	var n atomic.Int64
	var all sync.WaitGroup
	for range 500 {
		all.Go(func() {
			if one() {
				n.Add(1)
			}
		})
	}
	all.Wait()
	return n.Load()
}

var cases = map[string]struct {
	key  func(*api.Key)
	test func(*bench)
}{
	"exactly the limit of requests passes concurrently": {func(k *api.Key) { k.RateLimit = number(100) }, func(b *bench) {
		if n := atOnce(func() bool { _, err := b.l.Reserve(b.key); return err == nil }); n != 100 {
			b.fatalf("%d passed, want 100", n)
		}
		_, err := b.l.Reserve(b.key)
		b.refused(err, api.CodeRateLimited, 61*time.Minute)
	}},
	"exactly the limit of tokens is held concurrently": {perDay(1000), func(b *bench) {
		if n := atOnce(func() bool { got, err := b.reserve().Hold(4, 6); return err == nil && got == 6 }); n != 100 {
			b.fatalf("%d requests hold ten tokens each, want 100", n)
		}
		b.none(api.CodeTokenLimit, time.Second) // held by running requests
	}},
	"no more than max_concurrent": {func(k *api.Key) { k.MaxConcurrent = number(2) }, func(b *bench) {
		first, second := b.reserve(), b.reserve()
		_, err := b.l.Reserve(b.key)
		b.refused(err, api.CodeConcurrency, time.Second)
		first.Done()
		first.Done()
		b.reserve()
		second.Cancel()
		b.reserve()
		_, err = b.l.Reserve(b.key)
		b.refused(err, api.CodeConcurrency, time.Second)
	}},
	"a limit of 0 blocks": {perHour(0), func(b *bench) {
		_, err := b.reserve().Hold(0, 0)
		b.refused(err, api.CodeForbidden, 0)
	}},
	"without a limit everything is granted": {func(*api.Key) {}, func(b *bench) {
		p := b.hold(1<<40, -1, -1)
		if e := p.Passes(1<<50, 1<<60); e != nil {
			b.fatalf("%v", e)
		}
	}},
	"a larger request is reduced to what is left, not refused": {perHour(100), func(b *bench) {
		b.hold(10, 50, 50)
		b.hold(10, 50, 30)
		b.none(api.CodeTokenLimit, time.Second)
	}},
	"all that is left":         {perHour(100), func(b *bench) { b.hold(10, -1, 90) }},
	"the lowest limit applies": {func(k *api.Key) { k.TokensPerHour, k.TokensPerDay = number(100), number(70) }, func(b *bench) { b.hold(10, 90, 60) }},
	"an answer needs at least one token": {perHour(100), func(b *bench) {
		b.hold(99, 5, 1).Cancel()
		p := b.reserve()
		_, err := p.Hold(100, 5)
		b.refused(err, api.CodeTokenLimit, 61*time.Minute)      // more than the limit
		if got, err := p.Hold(100, 0); err != nil || got != 0 { // without an answer
			b.fatalf("%d, %v", got, err)
		}
	}},
	"the end corrects the held amount": {perHour(100), func(b *bench) {
		p := b.hold(10, 90, 90)
		p.Settle(limit.Used{Tokens: 25})
		p.Settle(limit.Used{Tokens: 99}) // no effect
		b.hold(5, 90, 70).Cancel()
		p.Done()
		b.hold(5, 90, 70).Cancel()
	}},
	"usage above the held amount counts too": {perHour(100), func(b *bench) {
		p := b.hold(10, 20, 20)
		p.Settle(limit.Used{Tokens: 140})
		p.Done()
		b.none(api.CodeTokenLimit, 61*time.Minute)
	}},
	"cancel returns everything": {func(k *api.Key) { k.RateLimit, k.TokensPerDay, k.MaxConcurrent = number(1), number(50), number(1) }, func(b *bench) {
		for range 3 {
			p := b.hold(10, 40, 40)
			p.Cancel()
			p.Cancel()
			p.Done()
		}
		b.hold(10, 40, 40)
	}},
	"done without settling keeps nothing": {perDay(50), func(b *bench) {
		b.hold(10, 40, 40).Done() // a panic before anything was settled
		b.hold(10, 40, 40)
	}},
	"an answer may use what it holds and what is left besides": {perHour(100), func(b *bench) {
		p := b.hold(10, 20, 20)
		for n := int64(1); n <= 90; n++ {
			if e := p.Passes(n, 0); e != nil {
				b.fatalf("piece %d: %v", n, e)
			}
		}
		b.refused(p.Passes(91, 0), api.CodeTokenLimit, time.Second)
		b.none(api.CodeTokenLimit, time.Second)
		p.Settle(limit.Used{Tokens: 100})
		b.none(api.CodeTokenLimit, 61*time.Minute)
	}},
	"an answer cannot use what another request holds": {perHour(100), func(b *bench) {
		p, other := b.hold(10, 20, 20), b.hold(10, 50, 50)
		if e := p.Passes(30, 0); e != nil {
			b.fatalf("%v", e)
		}
		b.refused(p.Passes(31, 0), api.CodeTokenLimit, time.Second)
		if e := other.Passes(50, 0); e != nil {
			b.fatalf("%v", e)
		}
		other.Settle(limit.Used{Tokens: 15})
		if e := p.Passes(75, 0); e != nil {
			b.fatalf("with the returned tokens: %v", e)
		}
		b.refused(p.Passes(76, 0), api.CodeTokenLimit, time.Second)
	}},
	"running requests share the time": {gpuDay(10), func(b *bench) {
		first, second := b.hold(1, 5, 5), b.hold(1, 5, 5)
		for s := range time.Duration(5) {
			if e := errors.Join(asError(first.Passes(1, s*time.Second)), asError(second.Passes(1, s*time.Second))); e != nil {
				b.fatalf("after %d s: %v", s, e)
			}
		}
		first.Settle(limit.Used{GPU: 6 * time.Second})
		b.refused(second.Passes(2, 4*time.Second), api.CodeGPULimit, time.Second)
		second.Settle(limit.Used{GPU: 4 * time.Second})
		b.none(api.CodeGPULimit, 24*time.Hour+15*time.Minute)
	}},
	"a token counts for an hour and the rest of its minute": {perHour(100), func(b *bench) {
		b.c.advance(30*time.Second + time.Millisecond)
		b.used(100, 0)
		b.none(api.CodeTokenLimit, 60*time.Minute+30*time.Second)
		b.c.advance(60*time.Minute + 29*time.Second)
		b.none(api.CodeTokenLimit, time.Second)
		b.c.advance(time.Second)
		b.hold(10, 90, 90)
	}},
	"a token counts for a day and the rest of its quarter of an hour": {perDay(100), func(b *bench) {
		b.c.advance(5 * time.Minute)
		b.used(60, 0)
		b.c.advance(12 * time.Hour)
		b.used(40, 0)
		b.none(api.CodeTokenLimit, 12*time.Hour+10*time.Minute)
		b.c.advance(12*time.Hour + 10*time.Minute)
		b.hold(10, 90, 50)
	}},
	"a longer prompt waits for more tokens": {perHour(100), func(b *bench) {
		for range 4 {
			b.used(25, 0)
			b.c.advance(time.Minute)
		}
		_, err := b.reserve().Hold(49, 1)
		b.refused(err, api.CodeTokenLimit, 58*time.Minute) // the second of the four must be released
	}},
	"restored usage counts": {func(k *api.Key) {
		k.RateLimit, k.TokensPerHour, k.TokensPerDay, k.GPUPerDay = number(5), number(100), number(1000), number(60)
	}, func(b *bench) {
		b.l.Restore(b.key.Preview, noon.Add(-61*time.Minute), 5) // too old
		b.l.Restore(b.key.Preview, noon.Add(-10*time.Minute), 3)
		b.l.RestoreUsed(b.key.Preview, noon.Add(-25*time.Hour), limit.Used{Tokens: 5000}) // too old
		b.l.RestoreUsed(b.key.Preview, noon.Add(-2*time.Hour), limit.Used{Tokens: 900, GPU: 30 * time.Second})
		p := b.hold(10, 90, 90)
		b.refused(p.Passes(1, 30*time.Second), api.CodeGPULimit, time.Second)
		b.reserve()
		_, err := b.l.Reserve(b.key)
		b.refused(err, api.CodeRateLimited, 51*time.Minute)
	}},
	"restored usage in the future does not count": {func(k *api.Key) {
		k.RateLimit, k.TokensPerHour, k.TokensPerDay, k.GPUPerDay = number(5), number(100), number(1000), number(60)
	}, func(b *bench) {
		for _, ahead := range []time.Duration{time.Minute, time.Hour, 24 * time.Hour, 6 * 365 * 24 * time.Hour} {
			b.l.Restore(b.key.Preview, noon.Add(ahead), 5)
			b.l.RestoreUsed(b.key.Preview, noon.Add(ahead), limit.Used{Tokens: 1000, GPU: time.Minute})
		}
		b.hold(10, 90, 90).Cancel()
		b.l.Restore(b.key.Preview, noon, 5) // the current minute
		_, err := b.l.Reserve(b.key)
		b.refused(err, api.CodeRateLimited, 61*time.Minute)
	}},
	"setting the clock back frees nothing": {func(k *api.Key) { k.TokensPerHour, k.RateLimit = number(100), number(2) }, func(b *bench) {
		b.used(100, 0)
		b.c.advance(-time.Hour)
		p := b.reserve()
		if _, err := p.Hold(0, 0); err == nil {
			b.fatalf("tokens were freed")
		}
		if _, err := b.l.Reserve(b.key); err == nil {
			b.fatalf("requests were freed")
		}
	}},
	"a clock that jumps by an hour gains at most one window": {func(k *api.Key) { k.TokensPerHour, k.TokensPerDay = number(100), number(250) }, func(b *bench) {
		var got int64
		for _, jump := range []time.Duration{0, time.Hour + time.Minute, -time.Hour, time.Hour, -time.Hour, time.Hour} {
			b.c.advance(jump)
			p := b.reserve()
			if n, err := p.Hold(0, 100); err == nil {
				got += n
				p.Settle(limit.Used{Tokens: n})
			}
			p.Done()
		}
		if got != 200 {
			b.fatalf("%d tokens, want 200 for two windows of 100", got)
		}
	}},
	"a limit that is set later counts earlier usage": {func(*api.Key) {}, func(b *bench) {
		b.used(80, 30*time.Second)
		b.key.TokensPerHour, b.key.GPUPerDay = number(100), number(30)
		b.none(api.CodeGPULimit, 24*time.Hour+15*time.Minute)
		b.key.GPUPerDay = nil
		b.hold(0, 90, 20)
	}},
	"keys are independent": {perHour(10), func(b *bench) {
		b.used(10, 0)
		b.none(api.CodeTokenLimit, 61*time.Minute)
		b.key = &api.Key{Preview: "oas_other", TokensPerHour: number(10)}
		b.hold(1, 9, 9)
	}},
}

func asError(e *api.Error) error {
	if e == nil {
		return nil
	}
	return e
}

// neverOver runs a random trace of requests that use at most what they hold. The usage in any 60 minutes stays within the limit, and each
// RetryAfter is exact to the second.
func neverOver(t *rapid.T, begin func(func(string, ...any), func(*api.Key)) *bench) {
	most := rapid.Int64Range(5, 60).Draw(t, "limit")
	b := begin(t.Fatalf, perHour(most))
	b.c.advance(time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "start")))
	type event struct {
		at time.Time
		n  int64
	}
	var spent []event
	type request struct {
		Place
		held int64
	}
	var open []request
	for range rapid.IntRange(1, 80).Draw(t, "steps") {
		switch rapid.IntRange(0, 5).Draw(t, "what") {
		case 0, 1:
			b.c.advance(time.Duration(rapid.Int64Range(0, int64(20*time.Minute)).Draw(t, "wait")))
		case 2:
			if len(open) == 0 {
				break
			}
			r := open[0]
			open = open[1:]
			n := rapid.Int64Range(0, r.held).Draw(t, "used")
			r.Settle(limit.Used{Tokens: n})
			r.Done()
			spent = append(spent, event{b.c.now(), n})
		default:
			prompt := rapid.Int64Range(0, 4).Draw(t, "prompt")
			p := b.reserve()
			got, err := p.Hold(prompt, rapid.Int64Range(1, 20).Draw(t, "output"))
			if err == nil {
				open = append(open, request{p, prompt + got})
				break
			}
			wait := api.AsError(err).RetryAfter
			if len(open) > 0 {
				p.Cancel()
				break
			}
			b.c.advance(wait - time.Second)
			if _, err := p.Hold(prompt, 1); err == nil {
				t.Fatalf("granted one second before the end of %v", wait)
			}
			b.c.advance(time.Second)
			if _, err := p.Hold(prompt, 1); err != nil {
				t.Fatalf("refused after %v: %v", wait, err)
			}
			p.Cancel()
		}
	}
	for i := range spent {
		var sum int64
		for _, e := range spent[i:] {
			if e.at.Sub(spent[i].at) < time.Hour {
				sum += e.n
			}
		}
		if sum > most {
			t.Fatalf("%d tokens in the hour from %[3]v, limit %[2]d", sum, most, spent[i].at)
		}
	}
}
