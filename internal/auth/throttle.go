package auth

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

const (
	throttleWindow = time.Minute
	mostThrottled  = 100_000 // addresses counted in one window; more are answered like everybody
)

// Throttle counts by address the texts that are no keys. It is asked only after a text was found bad, so a request that carries only
// a good key is never refused: guessing costs little and shows in the log, and a neighbour behind the same address is served. A text
// counts once in a window: an agent tries a mistyped key ten times for one prompt, and that is no guessing.
//
// Windows are fixed: across the edge of two of them an address has twice its number. Not for limits that must hold exactly.
type Throttle struct {
	most int
	now  func() time.Time

	mu     sync.Mutex
	window time.Time
	seed   maphash.Seed // of this window: no client can choose texts that count as one
	failed map[netip.Prefix]map[uint64]struct{}
}

// NewThrottle lets an address fail with most texts a minute; 0 is without bound.
func NewThrottle(most int, now func() time.Time) *Throttle {
	return &Throttle{most: most, now: now}
}

// Failed counts a text from addr that is no key. Where the address has sent too many others, it returns how long it should wait.
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

// Spent reports whether another failure with this text would count nothing: it is counted already, or the address is over its bound. No
// text at all counts nothing either. Spent counts nothing itself. Of a nil Throttle, and without a bound, it is false.
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

// Neighbourhood is what one client has of addresses: one of IPv4, a /64 of IPv6. It is the zero prefix for what has no address, such as the
// peers of a Unix socket, which count as one.
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
