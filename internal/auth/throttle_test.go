package auth

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"ollama-api-service/internal/api"
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

// A thousand guesses from an address that is over its bound read nothing of the database, nor does one wrong key a thousand times; keys
// of others behind that address are served, on their first request and after each change.
func TestGuessesReadNothing(t *testing.T) {
	b := newBed(t)
	b.SpareStore(NewThrottle(10, b.now))
	good, _ := b.key(api.Key{Name: "good", Role: api.RoleUser})
	other, _ := b.key(api.Key{Name: "other", Role: api.RoleUser})
	guess := func(n int) (last string) {
		for range n {
			last, _, _ = Mint(rand.Reader)
			if _, err := b.Identify(t.Context(), last, home, false); api.AsError(err).Code != api.CodeUnauthorized {
				t.Fatalf("a guess: got %v, want %s", err, api.CodeUnauthorized)
			}
			b.throttle.Failed(home, last)
		}
		return last
	}
	serves := func(what, text string, want api.Code) {
		t.Helper()
		_, err := b.Identify(t.Context(), text, home, false)
		if got := api.AsError(err); err == nil && want != "" || err != nil && got.Code != want {
			t.Errorf("%s: got %v, want %q", what, err, want)
		}
	}
	wrong := guess(10)
	serves("a good key behind the same address", good, "")
	fresh, _ := b.key(api.Key{})
	b.Forget() // as after every change
	serves("a key that was made meanwhile", fresh, "")
	moved := b.over(NewSecret("the next secret of this test, long enough", "the secret of this test, long enough"))
	moved.SpareStore(b.throttle)
	if _, err := moved.Identify(t.Context(), good, home, false); err != nil {
		t.Errorf("a key under SECRET_KEY_PREVIOUS: got %v, want it to be served", err)
	}
	b.Forget() // of its MAC, which is another now
	serves("no key", wrong, api.CodeUnauthorized)
	// From here on the database has no answers: each read of it is an error of another code.
	if err := b.store.Close(); err != nil {
		t.Fatal(err)
	}
	guess(1000)
	for range 1000 {
		serves("one wrong key again and again", wrong, api.CodeUnauthorized)
	}
	serves("a key whose secret is known and whose fields are not", other, api.CodeUnavailable)
	b.pass(throttleWindow)
	serves("a guess in the next window", wrong, api.CodeUnavailable)
}
