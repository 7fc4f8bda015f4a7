package auth

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

const (
	throttleWindow = time.Minute
	mostThrottled  = 100_000 // addresses counted in one window; further ones are not throttled
)

// Throttle counts invalid key texts by address. It is only used after a text was found invalid, so a request with only a valid key is
// never refused: guessing gains little and appears in the log, while other clients behind the same address are served. A text counts once
// in a window, because an agent may send a mistyped key ten times for one prompt, which is not guessing.
//
// Windows are fixed, so an address can send twice its number across the boundary of two windows. Do not use it for limits that must be
// exact.
type Throttle struct {
	most int
	now  func() time.Time

	mu     sync.Mutex
	window time.Time
	seed   maphash.Seed // of this window, so that clients cannot choose texts that collide
	failed map[netip.Prefix]map[uint64]struct{}
}

// NewThrottle lets an address send most invalid texts a minute. 0 means no limit.
func NewThrottle(most int, now func() time.Time) *Throttle {
	return &Throttle{most: most, now: now}
}

// Failed counts an invalid text from addr. If the address has sent too many others, it returns how long it must wait.
func (t *Throttle) Failed(addr netip.Addr, text string) (wait time.Duration, over bool) {
	if t.most <= 0 {
		return 0, false
	}
	now := t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if now.Sub(t.window) >= throttleWindow || now.Before(t.window) {
		t.window, t.failed, t.seed = now, make(map[netip.Prefix]map[uint64]struct{}), maphash.MakeSeed()
	}
	network := Neighbourhood(addr)
	texts := t.failed[network]
	sum := maphash.String(t.seed, text)
	if _, again := texts[sum]; again {
		return 0, false
	}
	if len(texts) >= t.most {
		return t.window.Add(throttleWindow).Sub(now), true
	}
	if texts == nil {
		if len(t.failed) >= mostThrottled {
			return 0, false
		}
		texts = make(map[uint64]struct{}, 1)
		t.failed[network] = texts
	}
	texts[sum] = struct{}{}
	return 0, false
}

// Spent reports whether a failure with this text would not count: the text is empty or already counted, or the address is over its limit.
// It counts nothing itself. It is false for a nil Throttle and without a limit.
func (t *Throttle) Spent(addr netip.Addr, text string) bool {
	if t == nil || t.most <= 0 {
		return false
	}
	if text == "" {
		return true
	}
	now := t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if now.Sub(t.window) >= throttleWindow || now.Before(t.window) {
		return false
	}
	texts := t.failed[Neighbourhood(addr)]
	_, counted := texts[maphash.String(t.seed, text)]
	return counted || len(texts) >= t.most
}

// Neighbourhood is the address range of one client: one IPv4 address, or a /64 of IPv6. Clients without an address, such as the peers of
// a Unix socket, share the zero prefix.
func Neighbourhood(a netip.Addr) netip.Prefix {
	bits := 64
	if a.Is4() {
		bits = 32
	}
	p, err := a.WithZone("").Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
