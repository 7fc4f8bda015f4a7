package books

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"ollama-api-service/internal/api"
)

func TestTalliesAreCountedByMinute(t *testing.T) {
	var l ledger
	now := noon.Add(59 * time.Second)
	o := still
	o.Now = func() time.Time { return now }
	b := openLedger(t, t.TempDir(), &l, &logBuffer{}, o)
	b.Refuse("oas_a", api.CodeRateLimited)
	b.Tally("oas_a", "rate_limited")
	b.Tally("oas_a", "metadata")
	now = now.Add(time.Second)
	b.Refuse("oas_a", api.CodeRateLimited)

	l.setFail(errDown)
	if err := b.Flush(t.Context()); !errors.Is(err, errDown) {
		t.Fatalf("Flush: %v", err)
	}
	b.Refuse("oas_a", api.CodeRateLimited)
	l.setFail(nil)
	mustFlush(t, b)
	mustFlush(t, b)
	for want, n := range map[api.Tally]int64{
		{Minute: noon, Who: "oas_a", What: "rate_limited"}:                  2,
		{Minute: noon, Who: "oas_a", What: "metadata"}:                      1,
		{Minute: noon.Add(time.Minute), Who: "oas_a", What: "rate_limited"}: 2,
	} {
		if l.tallies[want] != n {
			t.Errorf("%v counted %d, want %d", want, l.tallies[want], n)
		}
	}
}

func TestTalliesAreBounded(t *testing.T) {
	var c tallies
	for minute := range int64(12) {
		for i := range mostWho + 500 {
			c.add(minute, fmt.Sprint("192.0.2.", i), "unauthorized", 1)
		}
		c.add(minute, "192.0.2.1", "forbidden", 1)
	}
	var counted, entries int64
	others := make(map[int64]int64)
	for _, t := range c.take() {
		counted += t.Count
		entries++
		if t.Who == othersName {
			others[minuteOf(t.Minute)] += t.Count
		}
	}
	if want := int64(12 * (mostWho + 501)); counted != want {
		t.Errorf("%d counted, want all %d", counted, want)
	}
	if entries > mostWaits+100 {
		t.Errorf("%d entries are waiting", entries)
	}
	if others[0] != 500 || others[11] != mostWho+501 {
		t.Errorf("others %v, want 500 in the first minute and all in the last", others)
	}
	if rest := c.take(); len(rest) != 0 {
		t.Errorf("taken twice: %d", len(rest))
	}
}
