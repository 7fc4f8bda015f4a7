package limit

import (
	"fmt"
	"time"

	"ollama-api-service/internal/api"
)

// spent is the usage of a key in the last hour and day: tokens, and nanoseconds of GPU time.
type spent struct{ hourTokens, dayTokens, dayGPU window }

func newSpent(minute int64) *spent {
	return &spent{newWindow(1, hourBuckets, minute), newWindow(quarter, dayBuckets, minute), newWindow(quarter, dayBuckets, minute)}
}

func (s *spent) advance(minute int64) {
	s.hourTokens.advance(minute)
	s.dayTokens.advance(minute)
	s.dayGPU.advance(minute)
}

func (s *spent) over(minute int64) bool { return s.dayTokens.over(minute) }

// spend counts the usage of a request that ended in the minute at.
func (e *entry) spend(now, at int64, u Used) {
	if u.Tokens <= 0 && u.GPU <= 0 {
		return
	}
	if e.spent == nil {
		e.spent = newSpent(now)
	}
	e.spent.advance(now)
	e.spent.hourTokens.add(at, max(u.Tokens, 0))
	e.spent.dayTokens.add(at, max(u.Tokens, 0))
	e.spent.dayGPU.add(at, int64(max(u.GPU, 0)))
}

// Budget is the state of one of a key's limits of tokens or GPU time. GPU time is in seconds.
type Budget struct {
	Limit     string        // name of the key's field
	Allowed   float64       // within the limit's time span
	Used      float64       // by finished requests
	Held      float64       // by running requests
	Remaining float64       // part of Allowed; never negative
	Reset     time.Duration // whole seconds until more is free; 0 if something is free, or if only running requests hold the rest
}

// budget computes the state of one limit.
type budget struct {
	field, span, unit string
	allowed, held     int64
	scale             int64 // internal units in one displayed unit
	window            *window
}

// budgets returns the key's limits of tokens and of GPU time. The caller holds the lock.
func (e *entry) budgets(k *api.Key, now instant) (tokens, gpu []budget) {
	s := e.spent
	if s == nil {
		s = newSpent(now.minute)
	}
	s.advance(now.minute)
	if k.TokensPerHour != nil {
		tokens = append(tokens, budget{"tokens_per_hour", "60 minutes", "tokens", *k.TokensPerHour, e.heldTokens, 1, &s.hourTokens})
	}
	if k.TokensPerDay != nil {
		tokens = append(tokens, budget{"tokens_per_day", "24 hours", "tokens", *k.TokensPerDay, e.heldTokens, 1, &s.dayTokens})
	}
	if k.GPUPerDay != nil {
		allowed := *k.GPUPerDay * int64(time.Second)
		gpu = append(gpu, budget{
			"gpu_seconds_per_day", "24 hours", "seconds of the GPU", allowed, int64(e.heldGPU), int64(time.Second), &s.dayGPU,
		})
	}
	return tokens, gpu
}

// left may be negative if a limit was lowered, or a request used more than it held.
func (b *budget) left() int64 { return b.allowed - b.window.used - b.held }

// Budgets returns the state of the key's limits of tokens and GPU time.
func (m *Memory) Budgets(k *api.Key) []Budget {
	if !k.Metered() {
		return nil
	}
	now := m.clock()
	e := m.lock(k.Preview, now)
	defer e.mu.Unlock()
	tokens, gpu := e.budgets(k, now)
	var list []Budget
	for _, b := range append(tokens, gpu...) {
		units := func(n int64) float64 { return float64(n) / float64(b.scale) }
		state := Budget{
			Limit: b.field, Allowed: units(b.allowed),
			Used: units(b.window.used), Held: units(b.held), Remaining: units(max(b.left(), 0)),
		}
		if state.Remaining == 0 && b.window.used >= b.allowed {
			state.Reset = b.wait(1, now)
		}
		list = append(list, state)
	}
	return list
}

// Tokens returns the state of the token limit with the fewest tokens left. Limit is -1 for a key without token limits.
func (m *Memory) Tokens(k *api.Key) State {
	nearest := State{Limit: -1, Remaining: -1}
	if k.TokensPerHour == nil && k.TokensPerDay == nil {
		return nearest
	}
	now := m.clock()
	e := m.lock(k.Preview, now)
	defer e.mu.Unlock()
	tokens, _ := e.budgets(k, now)
	for _, b := range tokens {
		left := max(b.left(), 0)
		if nearest.Limit >= 0 && left >= nearest.Remaining {
			continue
		}
		nearest = State{Limit: b.allowed, Remaining: left}
		if b.window.used >= b.allowed {
			nearest.Reset = b.wait(1, now)
		}
	}
	return nearest
}

// Hold reserves tokens for the request: prompt, and up to output for its answer (negative: as many as are left). It first returns what
// the request held before. It returns the number granted for the answer, which may be less than output, but is at least one if output is
// not 0. If not even that is left, or no GPU time, it returns CodeTokenLimit or CodeGPULimit, and for a limit of 0 CodeForbidden. For a
// key without such limits it does nothing.
//
// Hold(0, 0) checks whether anything is left.
func (r *Reservation) Hold(prompt, output int64) (granted int64, err error) {
	if !r.key.Metered() {
		return output, nil
	}
	now, e := r.from.clock(), r.entry
	e.mu.Lock()
	defer e.mu.Unlock()
	r.holdLocked(0, r.gpu)
	need := prompt
	if output != 0 || prompt == 0 {
		need++
	}
	tokens, gpu := e.budgets(r.key, now)
	for _, b := range append(tokens, gpu...) {
		if b.allowed == 0 {
			return 0, api.Errorf(api.CodeForbidden, "this key is blocked: its %s is 0", b.field)
		}
	}
	for _, b := range gpu {
		if b.left() < 1 {
			return 0, b.refusal(api.CodeGPULimit, 1, now)
		}
	}
	granted = output
	for _, b := range tokens {
		left := b.left()
		if left < need {
			return 0, b.refusal(api.CodeTokenLimit, need, now)
		}
		if granted < 0 || granted > left-prompt {
			granted = left - prompt
		}
	}
	r.prompt = prompt
	r.holdLocked(prompt+max(granted, 0), r.gpu)
	return granted, nil
}

// Passes returns nil if one more piece of the answer may pass, with output tokens and this much GPU time in total. Otherwise it returns
// CodeTokenLimit or CodeGPULimit: what the request holds and what its key has left are used up. For a key without such limits it returns
// nil.
func (r *Reservation) Passes(output int64, gpu time.Duration) *api.Error {
	if !r.key.Metered() {
		return nil
	}
	now, e := r.from.clock(), r.entry
	e.mu.Lock()
	defer e.mu.Unlock()
	r.holdLocked(r.tokens, gpu)
	used := r.prompt + output
	tokens, times := e.budgets(r.key, now)
	for _, b := range times {
		if b.left() <= 0 {
			return b.refusal(api.CodeGPULimit, 1, now)
		}
	}
	for _, b := range tokens {
		if used > r.tokens+b.left() {
			return b.refusal(api.CodeTokenLimit, 1, now)
		}
	}
	r.holdLocked(max(r.tokens, used), gpu)
	return nil
}

// Settle replaces what the request held by what it really used. Only the first call has an effect. A key without limits is settled by
// Done, so that its requests take no further lock.
func (r *Reservation) Settle(u Used) {
	if r.booked || r.over {
		return
	}
	r.used = u
	if !r.key.Metered() {
		return
	}
	r.entry.mu.Lock()
	defer r.entry.mu.Unlock()
	r.settleLocked()
}

func (r *Reservation) settleLocked() {
	if r.booked {
		return
	}
	r.booked = true
	r.holdLocked(0, 0)
	if r.used != (Used{}) {
		now := r.from.clock().minute
		r.entry.spend(now, now, r.used)
	}
}

// holdLocked changes what the request holds. The caller holds the entry's lock.
func (r *Reservation) holdLocked(tokens int64, gpu time.Duration) {
	r.entry.heldTokens += tokens - r.tokens
	r.entry.heldGPU += gpu - r.gpu
	r.tokens, r.gpu = tokens, gpu
}

// wait returns how long it takes until need is free.
func (b *budget) wait(need int64, now instant) time.Duration {
	if need > b.allowed {
		return b.window.longest()
	}
	return b.window.until(b.allowed-need, now)
}

// refusal describes which limit is used up, by how much, and when it is free again.
func (b *budget) refusal(code api.Code, need int64, now instant) *api.Error {
	if need > b.allowed {
		e := api.Errorf(code, "this request needs about %d %s, and the key's %s allows %d in any %s: shorten the prompt, or ask an administrator for more",
			need, b.unit, b.field, b.allowed, b.span)
		e.RetryAfter, e.NoRetry = b.window.longest(), true
		return e
	}
	text := fmt.Sprintf("this key has used %d of the %d %s that its %s allows in any %s", b.window.used/b.scale, b.allowed/b.scale, b.unit, b.field, b.span)
	if need > 1 {
		text += fmt.Sprintf(", and this request needs about %d", need)
	}
	if b.window.used <= b.allowed-need { // only held amounts are missing, which may be free at any moment
		e := api.Errorf(code, "%s; running requests hold the rest: try again when one has finished", text)
		e.RetryAfter = time.Second
		return e
	}
	wait := b.wait(need, now)
	e := api.Errorf(code, "%s: try again in %s, or ask an administrator for more", text, wait)
	e.RetryAfter, e.NoRetry = wait, true
	return e
}
