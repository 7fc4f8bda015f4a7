package store

import (
	"database/sql"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"ollama-api-service/internal/api"
)

// scattered returns n sample records over forty days, in random order.
func scattered(n int, random *rand.Rand) []api.Record {
	recs := sample(n)
	for i := range recs {
		if i%3 > 0 {
			recs[i].At = recs[i].At.Add(-time.Duration(random.IntN(36)) * 24 * time.Hour)
		}
	}
	random.Shuffle(n, func(i, j int) { recs[i], recs[j] = recs[j], recs[i] })
	return recs
}

// Answers from memory equal those of the database, group by group and in order, while requests of all times are added.
func TestPagesAreWhatTheDatabaseSays(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: make test runs it")
	}
	s, _ := create(t)
	random := rand.New(rand.NewPCG(21, 22))
	recs := scattered(1200, random)
	groupings := [][]api.Dimension{
		{api.ByKey},
		{api.ByModel, api.ByKey},
		{api.ByKey, api.ByDay},
		{api.ByWeek, api.ByKey},
		{api.ByKey, api.ByModel, api.ByMonth},
		{api.ByHour, api.ByKey},
		{api.ByKey, api.ByOutcome, api.ByDay},
		{api.ByBackend, api.ByKey, api.ByHour},
	}
	zones := []*time.Location{nil, must[*time.Location](t)(api.ParseZone("Europe/Berlin"))}
	for i := 0; i < len(recs); {
		n := min(random.IntN(40), len(recs)-i)
		addRecords(t, s, recs[i:i+n]...)
		i += n
		q := UsageQuery{By: groupings[random.IntN(len(groupings))], Limit: []int{1, 7, 100_000}[random.IntN(3)], Zone: zones[random.IntN(2)]}
		if random.IntN(3) > 0 || q.Zone != nil {
			q.From = noon.Add(-time.Duration(random.IntN(30*24)) * time.Hour)
		}
		if random.IntN(3) == 0 {
			q.To = recs[random.IntN(len(recs))].At
		}
		if slices.Contains(q.By, api.ByHour) {
			q.From = noon.Add(-time.Duration(random.IntN(40*24)) * time.Hour)
			q.To = q.From.Add(50 * time.Hour)
		}
		got, want := must[Usage](t)(s.Usage(t.Context(), q)), Usage{}
		err := s.read(t.Context(), func(tx *sql.Tx) error {
			k, err := readKept(t.Context(), tx)
			if err != nil {
				return err
			}
			p, _, _, err := q.plan(k)
			if err != nil || len(p.runs)+len(p.rows) == 0 {
				return err
			}
			if !q.paged(&p) {
				t.Errorf("%+v was not answered from pages", q)
			}
			return q.bySum(t.Context(), tx, &p, &want)
		})
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got.Rows, want.Rows) || got.Groups != want.Groups || !reflect.DeepEqual(got.Total, want.Total) {
			t.Fatalf("after %d requests, %+v:\n%d groups, total %+v\n%+v\nwant %d, total %+v\n%+v", i, q, got.Groups, got.Total, got.Rows, want.Groups, want.Total, want.Rows)
		}
	}
}

// The statistics of all keys equal those of a store that reads them for the first time, whatever was added in between.
func TestStatisticsInMemoryAreCurrent(t *testing.T) {
	s, path := create(t)
	random := rand.New(rand.NewPCG(23, 24))
	recs := scattered(500, random)
	for i := 0; i < len(recs); {
		n := min(random.IntN(60), len(recs)-i)
		other := must[*Store](t)(Open(t.Context(), path))
		addRecords(t, []*Store{s, other}[random.IntN(2)], recs[i:i+n]...)
		i += n
		now := noon.Add(-time.Duration(random.IntN(120)) * time.Minute)
		got, want := must[AllStatistics](t)(s.AllStatistics(t.Context(), now)), must[AllStatistics](t)(other.AllStatistics(t.Context(), now))
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("after %d requests: %+v\nwant %+v", i, got, want)
		}
		for key, one := range got.ByKey {
			if own := must[api.Statistics](t)(s.Statistics(t.Context(), key, now)); !reflect.DeepEqual(one, own) {
				t.Fatalf("after %d requests, %s: %+v in all statistics\n%+v in its own", i, key, one, own)
			}
		}
		if err := other.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A page is read once. Later only new cells are read, or the whole page if those are not enough.
func TestPagesReadWhatIsNew(t *testing.T) {
	s, _ := create(t)
	day := noon.Truncate(24 * time.Hour)
	var recs []api.Record
	for i := range 50 {
		recs = append(recs, record(fmt.Sprint("a", i), fmt.Sprint("oas_", i), day.Add(time.Duration(i)*time.Minute)))
	}
	addRecords(t, s, append(recs, record("b", "oas_49", day.Add(3*time.Hour)))...)
	id := pageID{byKey | byModel, period{dayMS, millis(day)}}
	read := func(requests int64) *page {
		t.Helper()
		var p *page
		err := s.read(t.Context(), func(tx *sql.Tx) (err error) {
			p, err = s.page(t.Context(), tx, id, map[period]int64{id.period: requests})
			return err
		})
		if err != nil || p.sum.count != requests {
			t.Fatalf("%d requests in %d cells, want %d (%v)", p.sum.count, len(p.pairs), requests, err)
		}
		return p
	}
	first := read(51)
	if again := read(51); again != first {
		t.Error("a page that has not changed was read again")
	}
	// After this change in the database, old cells can only come from memory.
	if _, err := s.writer.Exec(`UPDATE usage_sum SET count = 1000 WHERE kind = 3 AND width = 86400000 AND key = 'oas_3'`); err != nil {
		t.Fatal(err)
	}
	addRecords(t, s, record("c", "oas_49", day.Add(4*time.Hour)), record("d", "oas_new", day.Add(3*time.Hour)))
	if p := read(53); len(p.pairs) != 51 {
		t.Errorf("%d cells, want 51", len(p.pairs))
	}
	if _, err := s.writer.Exec(`UPDATE usage_sum SET count = 1 WHERE kind = 3 AND width = 86400000 AND key = 'oas_3'`); err != nil {
		t.Fatal(err)
	}
	// This request ended so late that it is not among the new ones.
	addRecords(t, s, record("e", "oas_late", day.Add(time.Minute)))
	if p := read(54); len(p.pairs) != 52 {
		t.Errorf("%d cells, want 52", len(p.pairs))
	}
}

func TestPagesForManyAtOnce(t *testing.T) {
	s, _ := create(t)
	recs := scattered(600, rand.New(rand.NewPCG(25, 26)))
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for j := range 20 {
				if i == 0 {
					addRecords(t, s, recs[30*j:30*j+30]...)
					continue
				}
				answer, err := s.Usage(t.Context(), UsageQuery{By: []api.Dimension{api.ByModel, api.ByKey}, Limit: 1000})
				if err != nil {
					t.Error(err)
					return
				}
				var sum int64
				for _, g := range answer.Rows {
					sum += g.Requests
				}
				stats, err := s.AllStatistics(t.Context(), noon)
				if err != nil || sum != answer.Total.Requests || stats.Total.TotalRequests < sum || sum%30 != 0 {
					t.Errorf("%d by group, %d in total, %d in statistics (%v)", sum, answer.Total.Requests, stats.Total.TotalRequests, err)
				}
			}
		})
	}
	all.Wait()
	answer, err := s.Usage(t.Context(), UsageQuery{By: []api.Dimension{api.ByModel, api.ByKey}, Limit: 1000})
	if err != nil || answer.Total.Requests != 600 {
		t.Errorf("%d requests, want 600 (%v)", answer.Total.Requests, err)
	}
}
