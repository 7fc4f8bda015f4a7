package store

import (
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ollama-api-service/internal/api"
)

const days = 24 * time.Hour

func trimNow(t *testing.T, s *Store, keep Retention, now time.Time) int64 {
	t.Helper()
	return must[int64](t)((&trimmer{store: s, pause: func(context.Context, time.Duration) error { return nil }}).trim(t.Context(), keep, now))
}

// years returns two requests a day of two keys for more than two years up to noon.
func years() (recs []api.Record) {
	for i := range 800 {
		at := noon.Add(-time.Duration(i) * days).Truncate(time.Millisecond)
		a, b := record(fmt.Sprint("a", i), "oas_a", at), record(fmt.Sprint("b", i), "oas_b", at.Add(-3*time.Hour))
		a.Backend, b.Model = "gpu1", "qwen3:latest"
		recs = append(recs, a, b)
	}
	return recs
}

func TestRetention(t *testing.T) {
	s, _ := create(t)
	recs := years()
	addRecords(t, s, recs...)
	before := must[AllStatistics](t)(s.AllStatistics(t.Context(), noon))
	if n := trimNow(t, s, Retention{}, noon); n > 0 {
		t.Errorf("%d rows were deleted, want none: they are kept forever", n)
	}
	count := func(table string) (n int64) {
		if err := s.reader.QueryRow(`SELECT COUNT(*) FROM ` + table).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := count("requests"); n != int64(len(recs)) {
		t.Errorf("%d rows are left of %d that are kept forever", n, len(recs))
	}
	if err := s.AddTallies(t.Context(), []api.Tally{{Minute: noon.Add(-40 * days), Who: "x", What: "y", Count: 1}, {Minute: noon, Who: "x", What: "y", Count: 1}}); err != nil {
		t.Fatal(err)
	}
	keep := Retention{Rows: 30 * days, Rollups: 730 * days}
	trimNow(t, s, keep, noon)
	rowsSince, sumsSince := down(millis(noon)-30*dayMS, dayMS), down(millis(noon)-730*dayMS, dayMS)
	for table, want := range map[string]int64{
		fmt.Sprint("requests WHERE at < ", rowsSince): 0,
		"requests": 2 * 31,
		"tallies":  1,
		fmt.Sprint("packs WHERE hour < ", rowsSince):                                         0,
		fmt.Sprint("sums WHERE width > 0 AND start < ", sumsSince):                           0,
		fmt.Sprint("sums WHERE kind = 1 AND width = 86400000 AND start < ", sumsSince+dayMS): 1,
	} {
		if n := count(table); n != want {
			t.Errorf("%s: %d rows, want %d", table, n, want)
		}
	}

	// All-time totals are never deleted.
	if after := must[AllStatistics](t)(s.AllStatistics(t.Context(), noon)); !reflect.DeepEqual(after, before) {
		t.Errorf("all-time totals\n%+v\nwere\n%+v", after.Total, before.Total)
	}
	// Usage by day stays as long as the sums are kept.
	for _, by := range [][]api.Dimension{{api.ByKey}, {api.ByDay}, {api.ByKey, api.ByModel}, {api.ByKey, api.ByModel, api.ByBackend}, {api.ByModel, api.ByOutcome}} {
		q := UsageQuery{By: by, Limit: 10_000}
		q.From, q.To = noon.Add(-700*days).Truncate(days), noon.Add(-100*days).Truncate(days)
		if got := must[Usage](t)(s.Usage(t.Context(), q)); got.Total.Requests != 1200 || !got.From.Equal(q.From) || !got.To.Equal(q.To) {
			t.Errorf("by %v: %d requests from %v to %v, want 1200", by, got.Total.Requests, got.From, got.To)
		}
		// If an end of the range cuts an hour or a day of which only the sum is left, it is moved, and the answer contains the new end.
		q.From, q.To = noon.Add(-200*days), noon.Add(-100*days)
		got := must[Usage](t)(s.Usage(t.Context(), q))
		want := byHand(recs, UsageQuery{RequestFilter: api.RequestFilter{From: got.From, To: got.To}})[""]
		if got.From.After(q.From) || got.To.Before(q.To) || q.From.Sub(got.From) > days || got.To.Sub(q.To) > days || got.Total.Requests != want[ofCount] {
			t.Errorf("by %v: %d requests from %v to %v, want %d from about %v to %v", by, got.Total.Requests, got.From, got.To, want[ofCount], q.From, q.To)
		}
	}
	// Hours of every combination exist only as far back as the rows.
	q := UsageQuery{By: []api.Dimension{api.ByHour, api.ByKey, api.ByModel}, Limit: 10_000}
	q.From = noon.Add(-90 * days)
	if got := must[Usage](t)(s.Usage(t.Context(), q)); got.Total.Requests != 62 || millis(got.From) != rowsSince {
		t.Errorf("by hour: %d requests from %v", got.Total.Requests, got.From)
	}
	// A late row for a deleted time counts in the sums by day, and is deleted by the next trim.
	late := record("late", "oas_a", noon.Add(-40*days))
	addRecords(t, s, late)
	if list, _, err := s.Requests(t.Context(), RequestQuery{Limit: 1000}); err != nil || len(list) != 62 {
		t.Errorf("%d requests are listed (%v)", len(list), err)
	}
	trimNow(t, s, keep, noon)
	if n := count("requests"); n != 62 {
		t.Errorf("%d rows after a late one", n)
	}
	// Setting the clock back does not restore anything.
	trimNow(t, s, keep, noon.Add(-365*days))
	if got := must[Usage](t)(s.Usage(t.Context(), q)); millis(got.From) != rowsSince {
		t.Errorf("from %v after the clock was set back", got.From)
	}
}

// While old rows are deleted, new rows are written between the batches and never wait for more than one of them.
func TestTrimmingStopsNobody(t *testing.T) {
	s, _ := create(t)
	var oldRows []api.Record
	for i := range 1200 {
		oldRows = append(oldRows, record(fmt.Sprint("old", i), fmt.Sprint("oas_", i%100), noon.Add(-time.Duration(40*24*60-5*i)*time.Minute)))
	}
	addRecords(t, s, oldRows...)
	var steps atomic.Int64
	turn := make(chan struct{})
	tr := &trimmer{store: s, pause: func(ctx context.Context, d time.Duration) error {
		if d < trimPause {
			t.Errorf("a pause of %v", d)
		}
		steps.Add(1)
		turn <- struct{}{} // a row is added in each pause
		<-turn
		return nil
	}}
	done := make(chan error, 1)
	go func() {
		_, err := tr.trim(t.Context(), Retention{Rows: 2 * days}, noon)
		done <- err
	}()
	added := 0
	for trimming := true; trimming; {
		select {
		case <-turn:
			addRecords(t, s, record(fmt.Sprint("new", added), "oas_a", noon))
			added++
			turn <- struct{}{}
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			trimming = false
		}
	}
	// 1,200 rows, in batches that start at 20 and double on a fast machine.
	if added < 5 || tr.batch > mostTrim {
		t.Errorf("%d rows were added between %d batches of up to %d", added, steps.Load(), tr.batch)
	}
	list, _, err := s.Requests(t.Context(), RequestQuery{Limit: 100_000})
	if err != nil || len(list) != added {
		t.Errorf("%d requests are left, want the %d new ones (%v)", len(list), added, err)
	}
}

// Trim runs immediately and then every hour, and ends with its context.
func TestTrimNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := create(t)
		defer s.Close()
		addRecords(t, s, record("old", "oas_a", time.Now().Add(-100*days)), record("new", "oas_a", time.Now().Add(-29*days)), record("newest", "oas_a", time.Now()))
		var log strings.Builder
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			s.Trim(ctx, Retention{Rows: 30 * days, Rollups: 730 * days}, time.Now, slog.New(slog.NewTextHandler(&log, nil)))
			close(ended)
		}()
		left := func() int {
			list, _, err := s.Requests(ctx, RequestQuery{Limit: 10})
			if err != nil {
				t.Fatal(err)
			}
			return len(list)
		}
		time.Sleep(time.Second)
		if n := left(); n != 2 {
			t.Errorf("%d rows after a second", n)
		}
		time.Sleep(3 * days)
		if n := left(); n != 1 {
			t.Errorf("%d rows after another three days", n)
		}
		stop()
		<-ended
		if n := strings.Count(log.String(), "RETENTION_ROWS"); n < 2 {
			t.Errorf("%d log lines about deletions: %s", n, log.String())
		}
	})
}

// Freed pages are reused: the file does not grow while as many rows are added as deleted.
func TestFreedPagesAreUsedAgain(t *testing.T) {
	s, _ := create(t)
	pageCount := func() (n int64) {
		if err := s.reader.QueryRow(`PRAGMA page_count`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	var sizes []int64
	for day := range 10 {
		var recs []api.Record
		for i := range 300 {
			recs = append(recs, record(fmt.Sprint(day, "-", i), fmt.Sprint("oas_", i%50), noon.Add(time.Duration(day)*days+time.Duration(i)*time.Second)))
		}
		addRecords(t, s, recs...)
		trimNow(t, s, Retention{Rows: 3 * days, Rollups: 3 * days}, noon.Add(time.Duration(day)*days))
		sizes = append(sizes, pageCount())
	}
	if grown := float64(sizes[9]) / float64(sizes[5]); grown > 1.35 {
		t.Errorf("the file grew by a factor of %.2f while as many rows were added as deleted: %v pages", grown, sizes)
	}
}
