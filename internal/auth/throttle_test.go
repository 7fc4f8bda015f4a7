package auth

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

func TestThrottle(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	th := NewThrottle(3, func() time.Time { return now })
	one, neighbour, other := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::ffff:2"), netip.MustParseAddr("192.0.2.1")
	for i, from := range []netip.Addr{one, neighbour, one} {
		for range 10 { // a retrying client sends the same text repeatedly
			if _, over := th.Failed(from, fmt.Sprint("text ", i)); over {
				t.Errorf("text %d is over the limit of 3", i+1)
			}
		}
	}
	now = now.Add(20 * time.Second)
	if wait, over := th.Failed(neighbour, "text 3"); !over || wait != 40*time.Second {
		t.Errorf("the fourth text: over %v, wait %v; want true, 40s", over, wait)
	}
	if _, over := th.Failed(one, "text 1"); over {
		t.Error("a text that was counted below the limit is over it")
	}
	if _, over := th.Failed(other, "text 3"); over {
		t.Error("another address is throttled")
	}
	now = now.Add(40 * time.Second)
	if _, over := th.Failed(one, "text 3"); over {
		t.Error("it is still throttled a minute later")
	}
	now = now.Add(-time.Hour) // a clock that was set back must not throttle for an hour
	if _, over := th.Failed(one, "text 4"); over {
		t.Error("throttled after the clock was set back")
	}
	for i := range mostThrottled + 10 {
		th.Failed(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), "a")
	}
	if len(th.failed) > mostThrottled {
		t.Errorf("%d addresses are stored, want at most %d", len(th.failed), mostThrottled)
	}
	for i := range 100 {
		th.Failed(one, fmt.Sprint("other ", i))
	}
	if n := len(th.failed[Neighbourhood(one)]); n > 3 {
		t.Errorf("%d texts of one address are stored, want at most 3", n)
	}
	if _, over := NewThrottle(0, time.Now).Failed(one, "a"); over {
		t.Error("0 is a limit")
	}
}
