package store

import (
	"database/sql"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pressly/goose/v3"
	"pgregory.net/rapid"

	"ollama-api-service/internal/api"
)

func TestPackedColumnsAreRead(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 40).Draw(t, "n")
		column := rapid.SliceOfN(rapid.OneOf(rapid.Int64(), rapid.Int64Range(0, 300)), n, n)
		want := [][]int64{column.Draw(t, "a"), column.Draw(t, "b"), column.Draw(t, "c")}
		b := pack(want...)
		got, length, err := unpack(b, len(want))
		if err != nil || length != n {
			t.Fatalf("%d entries, %v, want %d", length, err, n)
		}
		for i := range want {
			for k := range n {
				if v := got[i].at(k); v != want[i][k] {
					t.Fatalf("column %d has %d at %d, want %d", i, v, k, want[i][k])
				}
			}
		}
		if _, _, err := unpack(b[:rapid.IntRange(0, len(b)-1).Draw(t, "cut")], len(want)); err == nil {
			t.Fatal("a pack that is cut off was read, want an error")
		}
		unpack(rapid.SliceOf(rapid.Byte()).Draw(t, "any bytes"), len(want)) // must not panic
	})
}

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

// Sums are those of the rows, however rows come, repeat and are late, and whichever process sums them up.
func TestSumsAreThoseOfTheRows(t *testing.T) {
	s, path := create(t)
	random := rand.New(rand.NewPCG(11, 12))
	recs := scattered(600, random)
	added := map[string]api.Record{}
	for range 25 { // batches of any size, some or parts of them repeatedly
		one := s
		if random.IntN(2) == 0 {
			one = open(t, path)
		}
		one.foldRows = 1 + random.IntN(80)
		n, from := random.IntN(60), random.IntN(len(recs))
		part := recs[from:min(from+n+1, len(recs))]
		addRecords(t, one, part...)
		for _, r := range part {
			added[r.ID] = r
		}
		if random.IntN(3) == 0 {
			sumUp(t, one, noon.Add(-time.Duration(random.IntN(1000))*time.Hour))
		}
	}
	var list []api.Record
	for _, r := range added {
		list = append(list, r)
	}
	usageIsExact(t, s, list)
	statisticsAgree(t, s, list)
}

// statisticsAgree compares the totals of all time with the requests.
func statisticsAgree(t *testing.T, s *Store, recs []api.Record) {
	t.Helper()
	fresh, _ := create(t)
	addRecords(t, fresh, recs...)
	for _, now := range []time.Time{noon, noon.Add(-50 * time.Minute), noon.Add(-30 * time.Hour)} {
		got, want := must[AllStatistics](t)(s.AllStatistics(t.Context(), now)), must[AllStatistics](t)(fresh.AllStatistics(t.Context(), now))
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("statistics are %+v\nwant %+v", got, want)
		}
		for key, one := range got.ByKey {
			if own := must[api.Statistics](t)(s.Statistics(t.Context(), key, now)); !reflect.DeepEqual(one, own) {
				t.Fatalf("%s: %+v in all statistics\n%+v in its own", key, one, own)
			}
		}
	}
}

// While rows are added and summed up, each answer is that of one moment.
func TestAnswersWhileRowsAreAdded(t *testing.T) {
	s, _ := create(t)
	s.foldRows = 100
	recs := scattered(600, rand.New(rand.NewPCG(25, 26)))
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for j := range 20 {
				if i == 0 {
					addRecords(t, s, recs[30*j:30*j+30]...)
					sumUp(t, s, noon.Add(-time.Duration(20-j)*time.Hour))
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
					t.Errorf("%d by group, %d in total, %d in statistics (%v), want equal multiples of 30", sum, answer.Total.Requests, stats.Total.TotalRequests, err)
				}
			}
		})
	}
	all.Wait()
	usageIsExact(t, s, recs)
}

// old creates a database of the first schema with these requests: only its rows and the tables of that version.
func old(t testing.TB, recs ...api.Record) (path string) {
	t.Helper()
	s, full := create(t)
	addRecords(t, s, recs...)
	path = filepath.Join(t.TempDir(), "old.db")
	db := must[*sql.DB](t)(sql.Open("sqlite", dsn(path)))
	defer db.Close()
	db.SetMaxOpenConns(1)
	if err := useLog(t.Context(), db); err != nil { // as the first start does
		t.Fatal(err)
	}
	provider := must[*goose.Provider](t)(goose.NewProvider(goose.DialectSQLite3, db, migrationFiles(), goose.WithDisableGlobalRegistry(true)))
	if _, err := provider.UpTo(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	columns := `id, client_request_id, at, key, alias, class, status, error_code, streamed, prompt_tokens, completion_tokens,
		estimated, ttfb_ms, total_ms, slot_ms, ollama_total_ns, ollama_load_ns, ollama_prompt_eval_ns, ollama_eval_ns, bytes_in, bytes_out, client_addr`
	for _, statement := range []string{
		`ATTACH '` + full + `' AS full`,
		`INSERT INTO requests (` + columns + `, model, endpoint, backend, outcome) SELECT r.` + columns + `, s.model, s.endpoint, s.backend, s.outcome
			FROM full.requests r JOIN full.shapes s ON s.id = r.shape`,
	} {
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	add := must[*sql.Stmt](t)(db.Prepare(`INSERT INTO usage_latency VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET count = count + 1`))
	defer add.Close()
	for i := range recs {
		if recs[i].Total > 0 {
			for _, key := range []string{recs[i].Key, "*"} {
				if _, err := add.Exec(key, api.LatencyBucket(recs[i].Total)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return path
}

// A database of an earlier version gives the same answers before, while and after its usage is converted, also with new requests.
func TestUsageOfAnEarlierVersion(t *testing.T) {
	recs := sample(900)
	for i := range recs {
		recs[i].GPU, recs[i].Queued = -1, -1 // not measured in that version
	}
	path := old(t, recs[:700]...)
	s := must[*Store](t)(Create(t.Context(), path))
	defer s.Close()
	usageIsExact(t, s, recs[:700])
	statisticsAgree(t, s, recs[:700])
	s.foldRows = 50
	have := 700
	for step, done := 0, false; !done; step++ {
		addRecords(t, s, recs[have:min(have+40, len(recs))]...)
		have = min(have+40, len(recs))
		if step%2 == 1 {
			sumUp(t, s, noon.Add(time.Duration(step-10)*time.Hour))
		}
		usageIsExact(t, s, recs[:have])
		statisticsAgree(t, s, recs[:have])
		listIsComplete(t, s, recs[:have])
		var err error
		if done, err = s.convertDay(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.convert(t.Context(), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	var left int
	if err := s.reader.QueryRow(`SELECT COUNT(*) FROM sqlite_master WHERE name LIKE 'usage%' OR name LIKE 'requests_%_at'`).Scan(&left); err != nil || left > 0 {
		t.Errorf("%d tables and indexes of the earlier version are left (%v), want none", left, err)
	}
	usageIsExact(t, s, recs[:have])
	listIsComplete(t, s, recs[:have])
}

func listIsComplete(t *testing.T, s *Store, recs []api.Record) {
	t.Helper()
	for _, f := range []api.RequestFilter{{Outcomes: []string{"client_gone"}}, {Keys: []string{"oas_b"}, Models: []string{""}}} {
		var got, want []string
		q := RequestQuery{RequestFilter: f, Limit: 30}
		for {
			list, next, err := s.Requests(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range list {
				got = append(got, r.ID)
			}
			if next == nil {
				break
			}
			q.Before = *next
		}
		for i := range recs {
			if chosenBy(&f, &recs[i]) {
				want = append(want, recs[i].ID)
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Fatalf("%+v: %d requests are listed, want %d", f, len(got), len(want))
		}
	}
}

// Sums whose rows were deleted are converted too.
func TestSumsOfAnEarlierVersionWithoutRows(t *testing.T) {
	recs := sample(500)
	for i := range recs {
		recs[i].GPU, recs[i].Queued = -1, -1
	}
	s := must[*Store](t)(Create(t.Context(), old(t, recs...)))
	defer s.Close()
	since := down(millis(noon)-2*dayMS, dayMS)
	for _, statement := range []string{fmt.Sprint(`DELETE FROM requests WHERE at < `, since), fmt.Sprint(`UPDATE kept SET since = `, since, ` WHERE what = 'rows'`)} {
		if _, err := s.writer.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	check := func(when string) {
		t.Helper()
		for _, by := range [][]api.Dimension{{api.ByDay}, {api.ByKey, api.ByDay}, {api.ByKey, api.ByModel}, {api.ByKey, api.ByModel, api.ByOutcome}, {api.ByHour}, {api.ByBackend}} {
			q := UsageQuery{By: by, Limit: 10_000}
			got, want := must[Usage](t)(s.Usage(t.Context(), q)), byHand(recs, q)
			if len(got.Rows) != len(want) {
				t.Errorf("%s, by %v: %d groups, want %d", when, by, len(got.Rows), len(want))
			}
			for _, row := range got.Rows {
				if w := want[groupName(&row, by)]; !reflect.DeepEqual(row.Usage, w.usage()) {
					t.Fatalf("%s, by %v: %+v, want %+v", when, by, row.Usage, w.usage())
				}
			}
		}
	}
	check("before")
	if err := s.convert(t.Context(), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	check("converted")
}
