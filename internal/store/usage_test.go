package store

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/api"
)

// sample returns n records of five days up to noon, with all values that groups and filters distinguish, many at boundaries of hours.
func sample(n int) []api.Record {
	random := rand.New(rand.NewPCG(7, 8))
	pick := func(of ...string) string { return of[random.IntN(len(of))] }
	recs := make([]api.Record, n)
	for i := range recs {
		at := noon.Add(-time.Duration(random.Int64N(int64(5 * 24 * time.Hour)))).Truncate(time.Millisecond)
		if i%4 == 0 {
			at = at.Truncate(time.Hour).Add(time.Duration(random.IntN(3)-1) * time.Millisecond)
		}
		r := record(fmt.Sprintf("id-%04d", i), pick("oas_a", "oas_b", "oas_c"), at)
		r.Model, r.Endpoint, r.Backend = pick("tiny:latest", "qwen3:latest", ""), pick("/api/chat", "/v1/embeddings"), pick("gpu1", "gpu2")
		r.Outcome = api.Outcome(pick("ok", "ok", "ok", "client_gone", "interrupted"))
		r.PromptTokens, r.CompletionTokens, r.Estimated = random.Int64N(100), random.Int64N(1000), random.IntN(3) == 0
		// Whole milliseconds, so that their sums are exact in any order.
		r.Slot, r.Total, r.FirstByte = time.Duration(random.IntN(900))*time.Millisecond, time.Duration(random.IntN(3))*time.Second, time.Duration(random.IntN(3))*time.Millisecond
		r.GPU = time.Duration(random.IntN(700)-1) * time.Millisecond // -1 ms means not measured
		r.Queued = time.Duration(random.IntN(900)-1) * time.Millisecond
		r.BytesIn, r.BytesOut = random.Int64N(50), random.Int64N(5000)
		recs[i] = r
	}
	return recs
}

func chosenBy(f *api.RequestFilter, r *api.Record) bool {
	in := func(names []string, name string) bool { return len(names) == 0 || slices.Contains(names, name) }
	return in(f.Keys, r.Key) && in(f.Models, r.Model) && in(f.Endpoints, r.Endpoint) && in(f.Backends, r.Backend) && in(f.Outcomes, string(r.Outcome)) &&
		(f.From.IsZero() || !r.At.Before(f.From)) && (f.To.IsZero() || r.At.Before(f.To))
}

func usedBy(r *api.Record) used {
	var amounts [sumCount]int64
	for i, c := range sumColumns {
		amounts[i] = c.Amount(r)
	}
	return one(millis(r.At), &amounts)
}

// byHand computes the expected Usage row by row: groups by their joined names, unordered.
func byHand(recs []api.Record, q UsageQuery) map[string]used {
	groups := map[string]used{}
	date := func(at time.Time, by api.Dimension) string {
		zone := cmp.Or(q.Zone, time.UTC)
		y, m, d := at.In(zone).Date()
		for by == api.ByMonth && d > 1 || by == api.ByWeek && time.Date(y, m, d, 12, 0, 0, 0, zone).Weekday() != time.Monday {
			d--
		}
		return time.Date(y, m, d, 0, 0, 0, 0, zone).UTC().String()
	}
	for i := range recs {
		r := &recs[i]
		if !chosenBy(&q.RequestFilter, r) {
			continue
		}
		name := ""
		for _, d := range q.By {
			name += map[api.Dimension]string{
				api.ByKey: r.Key, api.ByModel: r.Model, api.ByEndpoint: r.Endpoint, api.ByBackend: r.Backend, api.ByOutcome: string(r.Outcome),
				api.ByHour: r.At.Truncate(time.Hour).String(), api.ByDay: date(r.At, d), api.ByWeek: date(r.At, d), api.ByMonth: date(r.At, d),
			}[d] + "|"
		}
		u, one := groups[name], usedBy(r)
		u.add(&one)
		groups[name] = u
	}
	return groups
}

func groupName(g *api.UsageGroup, by []api.Dimension) string {
	name := ""
	for _, d := range by {
		switch d {
		case api.ByHour, api.ByDay, api.ByWeek, api.ByMonth:
			name += g.Start.String() + "|"
		default:
			name += **g.Name(d) + "|"
		}
	}
	return name
}

// For any time range, filter and grouping, the answer equals counting row by row.
func TestUsageIsExact(t *testing.T) {
	recs := sample(3000)
	for name, prepare := range map[string]func(*Store){
		"rows of the tail": func(s *Store) { addRecords(t, s, recs...) },
		"packs":            func(s *Store) { s.foldRows = 500; addRecords(t, s, recs...) },
		"sums and late rows": func(s *Store) {
			s.foldRows = 200
			for i := 0; i < len(recs); i += 500 {
				addRecords(t, s, recs[i:i+500]...)
				sumUp(t, s, noon.Add(time.Duration(i-2500)*time.Minute))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := create(t)
			prepare(s)
			usageIsExact(t, s, recs)
		})
	}
}

// sumUp closes the hours before until.
func sumUp(t testing.TB, s *Store, until time.Time) {
	t.Helper()
	if err := s.closeHours(t.Context(), down(millis(until), hourMS)); err != nil {
		t.Fatal(err)
	}
}

func usageIsExact(t *testing.T, s *Store, recs []api.Record) {
	random := rand.New(rand.NewPCG(9, 10))
	filters := []api.RequestFilter{
		{},
		{Keys: []string{"oas_a"}},
		{Models: []string{"", "qwen3:latest"}, Outcomes: []string{"ok"}},
		{Endpoints: []string{"/api/chat"}, Backends: []string{"gpu2"}},
		{Keys: []string{"oas_nobody"}},
	}
	groupings := [][]api.Dimension{
		{api.ByKey},
		{api.ByDay},
		{api.ByHour},
		{api.ByModel, api.ByDay},
		{api.ByWeek},
		{api.ByMonth, api.ByKey},
		{api.ByBackend, api.ByWeek, api.ByOutcome},
		{api.ByHour, api.ByKey, api.ByOutcome},
		{api.ByEndpoint, api.ByBackend},
		{},
	}
	for i := range 200 {
		q := UsageQuery{RequestFilter: filters[i%len(filters)], By: groupings[i%len(groupings)], Limit: 100_000}
		at := func() time.Time {
			if random.IntN(2) == 0 {
				return recs[random.IntN(len(recs))].At
			}
			return noon.Add(-time.Duration(random.Int64N(int64(6 * 24 * time.Hour))))
		}
		if i%3 != 0 {
			q.From = at()
		}
		if i%5 != 0 {
			q.To = at()
		}
		got := must[Usage](t)(s.Usage(t.Context(), q))
		want := byHand(recs, q)
		if q.From.After(q.To) && !q.To.IsZero() {
			want = nil
		}
		var sum int64
		for _, row := range got.Rows {
			name := groupName(&row, q.By)
			w, ok := want[name]
			if !ok || !reflect.DeepEqual(row.Usage, w.usage()) {
				t.Fatalf("%+v:\n%s has %+v\nwant %+v", q, name, row.Usage, w.usage())
			}
			sum += row.Requests
		}
		if len(got.Rows) != len(want) || got.Groups != int64(len(want)) || got.Total.Requests != sum {
			t.Fatalf("%+v: %d rows, %d groups, total %d; want %d of %d", q, len(got.Rows), got.Groups, got.Total.Requests, len(want), sum)
		}
	}
}

func TestUsageInOrder(t *testing.T) {
	s, _ := create(t)
	var recs []api.Record
	for i, n := range []int{2, 5, 3} {
		for j := range n {
			recs = append(recs, record(fmt.Sprint(i, j), fmt.Sprint("oas_", i), noon.Add(time.Duration(-j%2)*24*time.Hour)))
		}
	}
	addRecords(t, s, recs...)
	list := func(by ...api.Dimension) (names string) {
		for _, g := range must[Usage](t)(s.Usage(t.Context(), UsageQuery{By: by, Limit: 4})).Rows {
			names += fmt.Sprintf("%s%d ", strings.TrimSuffix(*g.Key, "|"), g.Requests)
		}
		return names
	}
	if got, want := list(api.ByKey), "oas_15 oas_23 oas_02 "; got != want {
		t.Errorf("by key: %s, want %s", got, want)
	}
	// The earlier day comes first and, within it, the most requests. No more rows than the limit, but all are in the total.
	if got, want := list(api.ByKey, api.ByDay), "oas_12 oas_01 oas_21 oas_13 "; got != want {
		t.Errorf("by key and day: %s, want %s", got, want)
	}
	all := must[Usage](t)(s.Usage(t.Context(), UsageQuery{By: []api.Dimension{api.ByKey, api.ByDay}, Limit: 4}))
	if all.Groups != 6 || all.Total.Requests != 10 || len(all.Rows) != 4 {
		t.Errorf("%d groups, %d requests, %d rows; want 6, 10 and 4", all.Groups, all.Total.Requests, len(all.Rows))
	}
}

// Days of a zone whose clocks go forward at midnight have their own requests: such a day starts at one o'clock.
func TestUsageByDayWhereMidnightIsSkipped(t *testing.T) {
	for name, skipped := range map[string]time.Time{
		"Atlantic/Azores": time.Date(2026, 3, 29, 1, 0, 0, 0, time.UTC), "America/Santiago": time.Date(2026, 9, 6, 4, 0, 0, 0, time.UTC), "Africa/Cairo": time.Date(2026, 4, 23, 22, 0, 0, 0, time.UTC),
	} {
		s, _ := create(t)
		zone := must[*time.Location](t)(api.ParseZone(name))
		days := []time.Time{skipped.Add(-9 * 24 * time.Hour), skipped.Add(-time.Minute), skipped.Add(time.Minute), skipped.Add(6 * 24 * time.Hour)}
		for i, at := range days {
			addRecords(t, s, record(strconv.Itoa(i), "oas_a", at))
		}
		for _, by := range api.Times {
			ctx, stop := context.WithTimeout(t.Context(), 10*time.Second) // stops an endless query
			got := must[Usage](t)(s.Usage(ctx, UsageQuery{
				RequestFilter: api.RequestFilter{From: days[0].Add(-time.Hour), To: days[3].Add(time.Hour)}, By: []api.Dimension{by}, Limit: 100, Zone: zone,
			}))
			stop()
			want := map[time.Time]int64{}
			for _, at := range days {
				want[by.Begin(at.In(zone)).UTC()]++
			}
			if by == api.ByDay && len(want) != len(days) {
				t.Errorf("%s: %d days, want %d", name, len(days), len(want))
			}
			if len(got.Rows) != len(want) {
				t.Errorf("%s by %s: %d groups, want %d", name, by, len(got.Rows), len(want))
			}
			for _, row := range got.Rows {
				if row.Requests != want[row.Start.UTC()] {
					t.Errorf("%s by %s: %d requests from %v on, want %d", name, by, row.Requests, row.Start, want[row.Start.UTC()])
				}
			}
		}
	}
}

// A day begins at midnight in the requested zone, even if clocks change on that day or the offset is not a whole hour.
func TestUsageByDayOfAZone(t *testing.T) {
	s, _ := create(t)
	recs := sample(1500)
	for i := range recs {
		recs[i].At = recs[i].At.Add(-30 * 24 * time.Hour) // to 25 October, when summer time ends in Europe, and before
	}
	addRecords(t, s, recs...)
	for i, name := range []string{"Europe/Berlin", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe", "America/Santiago", "+05:30", "-11:45"} {
		zone := must[*time.Location](t)(api.ParseZone(name))
		for _, q := range []UsageQuery{
			{By: []api.Dimension{api.ByDay}},
			{By: []api.Dimension{api.ByDay, api.ByKey}},
			{By: []api.Dimension{api.ByWeek, api.ByKey}},
			{By: []api.Dimension{api.ByModel, api.ByMonth}, RequestFilter: api.RequestFilter{From: recs[i].At}},
			{By: []api.Dimension{api.ByKey, api.ByDay, api.ByModel}},
			{By: []api.Dimension{api.ByDay, api.ByOutcome}, RequestFilter: api.RequestFilter{Keys: []string{"oas_a"}}},
			{By: []api.Dimension{api.ByDay}, RequestFilter: api.RequestFilter{Models: []string{""}, From: recs[i].At, To: recs[i+20].At}},
			{By: []api.Dimension{api.ByDay, api.ByBackend}, RequestFilter: api.RequestFilter{From: noon.Add(-33 * 24 * time.Hour)}},
		} {
			q.Zone, q.Limit = zone, 100_000
			got, want := must[Usage](t)(s.Usage(t.Context(), q)), byHand(recs, q)
			if q.From.After(q.To) && !q.To.IsZero() {
				want = nil
			}
			if len(got.Rows) != len(want) {
				t.Errorf("%s, %+v: %d groups, want %d", name, q, len(got.Rows), len(want))
			}
			for _, row := range got.Rows {
				if w := want[groupName(&row, q.By)]; !reflect.DeepEqual(row.Usage, w.usage()) {
					t.Fatalf("%s, %+v:\n%s has %+v\nwant %+v", name, q, groupName(&row, q.By), row.Usage, w.usage())
				}
			}
		}
	}
	for _, name := range []string{"Local", "local", "Mars/Base", "../etc/passwd", "+25:00", "5"} {
		if zone, err := api.ParseZone(name); err == nil {
			t.Errorf("%s is accepted as a zone: %v", name, zone)
		}
	}
	if zone := must[*time.Location](t)(api.ParseZone("UTC")); zone != time.UTC {
		t.Errorf("UTC is %v", zone)
	}
}

// Weeks and months of past years are composed of days, and of nothing else.
func TestMonthsAreReadFromDays(t *testing.T) {
	s, _ := create(t)
	recs := years()
	addRecords(t, s, recs...)
	if err := s.foldAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	sumUp(t, s, noon)
	for _, by := range []api.Dimension{api.ByWeek, api.ByMonth} {
		q := UsageQuery{By: []api.Dimension{by}, Limit: 1000}
		q.From, q.To = noon.AddDate(-2, 0, 0).Truncate(24*time.Hour), noon.Truncate(24*time.Hour)
		err := s.read(t.Context(), func(tx *sql.Tx) error {
			p, _, _, err := q.plan(must[kept](t)(readKept(t.Context(), tx)))
			for _, r := range p.runs {
				if r.width < dayMS {
					t.Errorf("%s: %d ms from %v, want whole days", by, r.width, instant(r.from))
				}
			}
			if len(p.rows) > 0 {
				t.Errorf("%s: rows are read: %v, want none", by, p.rows)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		got, want := must[Usage](t)(s.Usage(t.Context(), q)), byHand(recs, q)
		if len(got.Rows) != len(want) || len(want) < 20 {
			t.Errorf("%d groups by %s, want %d", len(got.Rows), by, len(want))
		}
		for _, row := range got.Rows {
			if w := want[groupName(&row, q.By)]; !reflect.DeepEqual(row.Usage, w.usage()) {
				t.Errorf("%s %v has %+v, want %+v", by, row.Start, row.Usage, w.usage())
			}
		}
	}
}
