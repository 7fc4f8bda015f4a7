package store

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ollama-api-service/internal/api"
)

// A sequence of checks, one an hour: the wall clock, the newest row, and whether deletion is allowed.
func TestRetentionWaitsForTheClock(t *testing.T) {
	const half = 15 * days
	type step struct {
		hours  int           // checks, an hour apart
		set    time.Duration // the wall clock is changed by this first
		off    time.Duration // the service is off for this first
		newest time.Duration // age of the newest row; negative means in the future
		waits  bool          // after the last check
	}
	for name, steps := range map[string][]step{
		"nothing happens":                                    {{hours: 48}},
		"the clock is set forward by hours":                  {{hours: 3}, {hours: 1, set: 20 * time.Hour}},
		"by more than a day":                                 {{hours: 3}, {hours: 1, set: 2 * days, waits: true}, {hours: 7 * 24, waits: false}},
		"it waits almost seven days":                         {{hours: 3}, {hours: 7*24 - 1, set: 365 * days, waits: true}, {hours: 1}, {hours: 30}},
		"and back":                                           {{hours: 3}, {hours: 24, set: 365 * days, waits: true}, {hours: 1, set: -365 * days}},
		"it is set again after the wait":                     {{hours: 3}, {hours: 200, set: 365 * days}, {hours: 1, set: 365 * days, waits: true}, {hours: 7 * 24}},
		"the service was off for days":                       {{hours: 3}, {hours: 1, off: 3 * days, waits: true}, {hours: 7 * 24}},
		"it was off for hours":                               {{hours: 3}, {hours: 1, off: 10 * time.Hour}},
		"a wait continues after a start":                     {{hours: 3}, {hours: 100, set: 9 * days, waits: true}, {hours: 67, off: time.Minute, waits: true}, {hours: 3}},
		"the clock is set back":                              {{hours: 3}, {hours: 1, set: -2 * days, waits: true}, {hours: 1, set: 2 * days}},
		"the newest row is old":                              {{hours: 1, newest: 16 * days, waits: true}, {hours: 7 * 24, newest: 20 * days}, {hours: 48, newest: 25 * days}},
		"the newest row is half as old as allowed":           {{hours: 1, newest: half}},
		"a new row arrives":                                  {{hours: 5, newest: 16 * days, waits: true}, {hours: 1}, {hours: 1, newest: 16 * days, waits: true}},
		"rows of a clock that was ahead":                     {{hours: 5, newest: -16 * days}},
		"a boot with the clock at 1970, then the right time": {{hours: 3}, {hours: 1, off: time.Minute, set: -50 * 365 * days, waits: true}, {hours: 1, set: 50 * 365 * days}},
	} {
		t.Run(name, func(t *testing.T) {
			g, now, passed := guard{}, noon, time.Duration(-1)
			for i, s := range steps {
				now = now.Add(s.set + s.off)
				if s.off > 0 {
					passed = -1
				}
				reason := ""
				for range s.hours {
					reason = g.look(now, now.Add(-s.newest), passed, half)
					now, passed = now.Add(time.Hour), time.Hour
				}
				if (reason != "") != s.waits {
					t.Fatalf("step %d: %q, want it to wait: %v; %+v", i, reason, s.waits, g)
				}
			}
		})
	}
}

// The wait is stored in the database, logged once, and ends when the clock is right again.
func TestTrimWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := create(t)
		defer s.Close()
		addRecords(t, s, record("old", "oas_a", time.Now().Add(-29*days)), record("new", "oas_a", time.Now()))
		var ahead time.Duration
		var log strings.Builder
		runFor := func(d time.Duration) {
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() {
				keep := Retention{Rows: 30 * days, Rollups: 730 * days, Running: time.Now}
				s.Trim(ctx, keep, func() time.Time { return time.Now().Add(ahead) }, slog.New(slog.NewTextHandler(&log, nil)))
				close(ended)
			}()
			time.Sleep(d)
			stop()
			<-ended
		}
		left := func() int {
			list, _, err := s.Requests(t.Context(), RequestQuery{Limit: 10})
			if err != nil {
				t.Fatal(err)
			}
			return len(list)
		}
		runFor(time.Minute)
		ahead = 40 * days // by this clock, the newest row is too old
		addRecords(t, s, record("ahead", "oas_a", time.Now().Add(ahead)))
		runFor(2*time.Hour + time.Minute)
		runFor(time.Minute) // another start does not end the wait
		wait := s.TrimWaits()
		if n := left(); n != 3 || wait == nil || !strings.Contains(wait.Reason, "40.0 days") {
			t.Fatalf("%d rows are left with a clock 40 days ahead, and it waits for %+v", n, wait)
		}
		if n := strings.Count(log.String(), "check the clock"); n != 1 {
			t.Errorf("logged %d times: %s", n, log.String())
		}
		runFor(7 * days)
		if n := left(); n != 1 || s.TrimWaits() != nil {
			t.Errorf("%d rows are left after seven days, waiting for %+v", n, s.TrimWaits())
		}
	})
}

// A machine that boots with its clock behind: a request in the future is not part of the last day and is not the last request.
func TestStatisticsDoNotCountTheFuture(t *testing.T) {
	s, _ := create(t)
	addRecords(t, s, record("now", "oas_a", noon.Add(-time.Hour)), record("ahead", "oas_a", noon.Add(48*time.Hour)), record("only", "oas_b", noon.Add(48*time.Hour)))
	one := must[api.Statistics](t)(s.Statistics(t.Context(), "oas_a", noon))
	all := must[AllStatistics](t)(s.AllStatistics(t.Context(), noon))
	for name, got := range map[string]api.Statistics{"own": one, "admin's": all.ByKey["oas_a"]} {
		if got.TotalRequests != 2 || got.Last24h != 1 || got.LastRequest == nil || !got.LastRequest.Equal(noon.Add(-time.Hour)) {
			t.Errorf("%s: %d in the last day of %d, the last at %v", name, got.Last24h, got.TotalRequests, got.LastRequest)
		}
	}
	if b := all.ByKey["oas_b"]; b.LastRequest != nil || b.Last24h != 0 || b.TotalRequests != 1 {
		t.Errorf("a key with only future rows: %+v", b)
	}
	if all.Total.LastRequest == nil || all.Total.LastRequest.After(noon) || all.Total.Last24h != 1 {
		t.Errorf("total: %+v", all.Total)
	}
	later := must[AllStatistics](t)(s.AllStatistics(t.Context(), noon.Add(72*time.Hour)))
	if last := later.ByKey["oas_b"].LastRequest; last == nil || !last.Equal(noon.Add(48*time.Hour)) {
		t.Errorf("once that time has passed, the last request is %v", last)
	}
}
