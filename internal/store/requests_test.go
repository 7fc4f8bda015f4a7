package store

import (
	"database/sql"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"ollama-api-service/internal/api"
)

func record(id, key string, at time.Time) api.Record {
	return api.Record{
		Admission: api.Admission{ID: id, At: at, Key: key, Model: "tiny:latest", Endpoint: "/api/chat", Class: "inference"},
		Outcome:   api.OutcomeOK, Status: 200, PromptTokens: 3, CompletionTokens: 5, Total: 2 * time.Second, Slot: time.Second, GPU: 750 * time.Millisecond, Queued: 125 * time.Millisecond,
	}
}

func addRecords(t testing.TB, s *Store, recs ...api.Record) int {
	t.Helper()
	for len(recs) > 0 {
		n := min(len(recs), 5000)
		if got := must[int](t)(s.AddRecords(t.Context(), recs[:n])); len(recs) == n {
			return got
		}
		recs = recs[n:]
	}
	return 0
}

func TestRecordRow(t *testing.T) {
	s, _ := create(t)
	full := api.Record{
		Admission: api.Admission{
			ID: "full", ClientRequestID: "theirs", At: noon, Key: "oas_a", Model: "qwen3:latest", Alias: "claude-x",
			Endpoint: "/api/chat", Backend: "gpu1", Class: "inference", Streamed: true, ClientAddr: "10.0.0.7", PromptEstimate: 99,
		},
		Outcome: api.OutcomeUpstream, Status: 502, ErrorCode: api.CodeUpstreamError, PromptTokens: 1, CompletionTokens: 2, Estimated: true,
		FirstByte: 1500 * time.Microsecond, Total: 2500 * time.Microsecond, Slot: 2 * time.Millisecond, GPU: 1250 * time.Microsecond, Reserved: 77, ReservedGPU: time.Second, Queued: 3 * time.Millisecond, Loading: -1,
		OllamaTotal: pointer(4 * time.Nanosecond), OllamaLoad: pointer(time.Duration(0)), OllamaPromptEval: pointer(time.Hour),
		OllamaEval: pointer(7 * time.Nanosecond), BytesIn: 8, BytesOut: 9,
	}
	bare := api.Record{Admission: api.Admission{ID: "bare", At: noon, Key: "oas_a", Endpoint: "/v1/chat/completions", Class: "inference"}, Outcome: api.OutcomeOK, GPU: -1}
	addRecords(t, s, full, bare)
	ms := noon.UnixMilli()
	for id, want := range map[string][]any{
		"full": {
			"full", "theirs", ms, "oas_a", "", "claude-x", "", "inference", "", "", int64(502),
			"upstream_error", int64(1), int64(1), int64(2), int64(1), 1.5, 2.5, 2.0, int64(4), int64(0), int64(time.Hour), int64(7), int64(8), int64(9), "10.0.0.7", 1.25, int64(77), 1000.0, int64(1), 3.0, nil,
		},
		"bare": {
			"bare", "", ms, "oas_a", "", "", "", "inference", "", "", int64(0),
			"", int64(0), int64(0), int64(0), int64(0), nil, 0.0, 0.0, nil, nil, nil, nil, int64(0), int64(0), "", nil, nil, nil, int64(2), 0.0, 0.0,
		},
	} {
		got := make([]any, len(want))
		into := make([]any, len(want))
		for i := range got {
			into[i] = &got[i]
		}
		if err := s.reader.QueryRow(`SELECT * FROM requests WHERE id = $1`, id).Scan(into...); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("row\n%v\nwant\n%v", got, want)
		}
	}
}

// dump returns each row of the usage tables as text.
func dump(t *testing.T, s *Store) []string {
	t.Helper()
	var all []string
	for table, columns := range map[string]string{
		"requests": "id, key, at, shape", "packs": "hour, n, hex(find), hex(rest)", "sums": "kind || '-' || width, start, part, hex(cells)",
		"kept": "what, since, 0, 0",
	} {
		err := s.read(t.Context(), func(tx *sql.Tx) error {
			return rows(t.Context(), tx, "SELECT "+columns+" FROM "+table, func(r *sql.Rows) error {
				var a, b, c, d any
				err := r.Scan(&a, &b, &c, &d)
				all = append(all, fmt.Sprint(table, a, b, c, d))
				return err
			})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(all)
	return all
}

func TestAddRecordsTwice(t *testing.T) {
	s, _ := create(t)
	s.foldRows = 100
	var batch []api.Record
	for i := range 300 {
		r := record(fmt.Sprint(i), fmt.Sprint("oas_", i%7), noon.Add(time.Duration(i)*time.Second))
		r.Total = time.Duration(i) * time.Millisecond
		batch = append(batch, r)
	}
	if n := addRecords(t, s, batch...); n != 300 {
		t.Fatalf("%d new of 300", n)
	}
	before := dump(t, s)
	if n := addRecords(t, s, batch...); n != 0 {
		t.Fatalf("%d new in a batch that was already added", n)
	}
	if after := dump(t, s); !slices.Equal(before, after) {
		t.Fatal("adding the same batch again changed the tables")
	}
	// Half of them known, and one ID twice within the batch.
	mixed := append(slices.Clone(batch[:10]), record("new", "oas_0", noon), record("new", "oas_0", noon))
	if n := addRecords(t, s, mixed...); n != 1 {
		t.Fatalf("%d new of 1", n)
	}
	// Known and new ones alternating, as many as fit into one statement.
	mixed = nil
	for i := range 60 {
		mixed = append(mixed, batch[i], record(fmt.Sprint("new", i), "oas_0", noon))
	}
	if n := addRecords(t, s, mixed...); n != 60 {
		t.Fatalf("%d new of 60", n)
	}
	all := must[AllStatistics](t)(s.AllStatistics(t.Context(), noon.Add(time.Hour)))
	if all.Total.TotalRequests != 361 || all.Total.Last24h != 361 {
		t.Errorf("%d requests, %d in a day, want 361", all.Total.TotalRequests, all.Total.Last24h)
	}
}

func TestAdmittedSince(t *testing.T) {
	s, _ := create(t)
	minute := noon.Truncate(time.Minute)
	addRecords(t, s, record("1", "oas_a", minute), record("2", "oas_a", minute.Add(59999*time.Millisecond)),
		record("3", "oas_a", minute.Add(time.Minute)), record("4", "oas_b", minute.Add(time.Minute)), record("5", "oas_a", minute.Add(-time.Millisecond)))
	got := must[[]Admitted](t)(s.AdmittedSince(t.Context(), minute))
	want := []Admitted{{"oas_a", minute, 2}, {"oas_a", minute.Add(time.Minute), 1}, {"oas_b", minute.Add(time.Minute), 1}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestUsedSince(t *testing.T) {
	s, _ := create(t)
	minute := noon.Truncate(time.Minute)
	ended, long, before, unseen, given := record("1", "oas_a", minute.Add(-2*time.Second)), record("2", "oas_a", minute.Add(-29*time.Minute)), record("3", "oas_a", minute.Add(-time.Minute)),
		record("4", "oas_b", minute.Add(-10*time.Minute)), record("5", "oas_b", minute)
	long.Total = 30*time.Minute + 5*time.Second
	unseen.Outcome, unseen.Total, unseen.CompletionTokens, unseen.GPU, unseen.Reserved, unseen.ReservedGPU = api.OutcomeInterrupted, 0, 0, -1, 4100, 3*time.Second
	given.ErrorCode = api.CodeNoBackend
	addRecords(t, s, ended, long, before, unseen, given)
	ahead, step := record("6", "oas_a", minute.Add(41*time.Minute)), record("7", "oas_c", minute.Add(-10*time.Minute))
	step.Outcome, step.Total, step.GPU, step.ReservedGPU = api.OutcomeInterrupted, 0, -1, 90*24*time.Hour // the clock was changed in between
	addRecords(t, s, ahead, step)
	got := must[[]Used](t)(s.UsedSince(t.Context(), minute, minute.Add(40*time.Minute), 31*time.Minute))
	want := []Used{{"oas_a", minute, 8, 750 * time.Millisecond}, {"oas_a", minute.Add(time.Minute), 8, 750 * time.Millisecond}, {"oas_b", minute.Add(21 * time.Minute), 4100, 3 * time.Second}, {"oas_c", minute.Add(21 * time.Minute), 8, 31 * time.Minute}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, u := range must[[]Used](t)(s.UsedSince(t.Context(), minute.Add(-time.Hour), minute.Add(5*time.Minute), 31*time.Minute)) {
		if u.Minute.After(minute.Add(5 * time.Minute)) {
			t.Errorf("%v counts, although it is in the future", u)
		}
	}
}

func TestTallies(t *testing.T) {
	s, _ := create(t)
	minute := noon.Truncate(time.Minute)
	for range 2 {
		err := s.AddTallies(t.Context(), []api.Tally{
			{Minute: noon, Who: "10.0.0.7", What: "unauthorized", Count: 3},
			{Minute: minute, Who: "10.0.0.7", What: "unauthorized", Count: 4},
			{Minute: minute, Who: "oas_a", What: "metadata", Count: 1},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var n, refused int64
	if err := s.reader.QueryRow(`SELECT COUNT(*), SUM(CASE WHEN who = '10.0.0.7' AND minute = $1 THEN count END) FROM tallies`, millis(minute)).
		Scan(&n, &refused); err != nil {
		t.Fatal(err)
	}
	if n != 2 || refused != 14 {
		t.Errorf("%d rows, %d refused; want 2 and 14", n, refused)
	}
}

func TestStatistics(t *testing.T) {
	s, _ := create(t)
	first, second, third, other := record("1", "oas_a", noon), record("2", "oas_a", noon.Add(-25*time.Hour)), record("3", "oas_a", noon.Add(-time.Hour)), record("4", "oas_b", noon.Add(time.Second))
	older := record("5", "oas_a", noon.Add(-30*time.Hour))
	second.Model, second.Endpoint, second.Outcome, second.Estimated, second.Total = "qwen3:latest", "/v1/chat/completions", api.OutcomeClientGone, true, 4*time.Second
	third.Model, third.Endpoint = "", "/api/blobs/{digest}"
	addRecords(t, s, first, third, other)
	addRecords(t, s, second, older) // older ones are added later

	now := noon.Add(2 * time.Second)
	got := must[api.Statistics](t)(s.Statistics(t.Context(), "oas_a", now))
	p50, p99 := got.Percentiles.P50, got.Percentiles.P99
	if math.Abs(p50-2) > 0.1 || math.Abs(p99-4) > 0.2 {
		t.Errorf("median %v and p99 %v, want 2 and 4", p50, p99)
	}
	want := api.Statistics{
		TotalRequests: 4, ByModel: map[string]int64{"tiny:latest": 2, "qwen3:latest": 1},
		ByEndpoint: map[string]int64{"/api/chat": 2, "/v1/chat/completions": 1, "/api/blobs/{digest}": 1},
		ByOutcome:  map[string]int64{"ok": 3, "client_gone": 1}, AverageSeconds: 10.0 / 4, Percentiles: got.Percentiles, Last24h: 2,
		PromptTokens: 12, CompletionTokens: 20, EstimatedRows: 1, SlotMS: 4000, GPUMS: 3000, QueueMS: 500, LastRequest: &noon,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
	all := must[AllStatistics](t)(s.AllStatistics(t.Context(), now))
	if !reflect.DeepEqual(all.ByKey["oas_a"], want) {
		t.Errorf("in all statistics\n%+v\nwant\n%+v", all.ByKey["oas_a"], want)
	}
	if b := all.ByKey["oas_b"]; len(all.ByKey) != 2 || b.TotalRequests != 1 || b.Last24h != 1 {
		t.Errorf("by key %+v", all.ByKey)
	}
	sum := all.Total
	totals := fmt.Sprintln(sum.TotalRequests, sum.Last24h, sum.ByModel["tiny:latest"], sum.PromptTokens, sum.LastRequest)
	if want := fmt.Sprintln(5, 3, 3, 15, other.At); totals != want || math.Abs(sum.Percentiles.P50-2) > 0.1 {
		t.Errorf("total %sand median %v, want %sand 2", totals, sum.Percentiles.P50, want)
	}
	none := must[api.Statistics](t)(s.Statistics(t.Context(), "oas_none", now))
	if got, want := fmt.Sprintln(none.TotalRequests, none.LastRequest == nil, none.ByModel != nil, none.AverageSeconds, none.Percentiles.P99), "0 true true 0 0\n"; got != want {
		t.Errorf("statistics of an unknown key: %swant %s", got, want)
	}
}

// The last day is exact, whatever minute and hour its ends cut.
func TestLastDayToTheMillisecond(t *testing.T) {
	s, _ := create(t)
	random := rand.New(rand.NewPCG(1, 2))
	var recs []api.Record
	var edges []time.Time
	for i := range 1500 {
		at := noon.Add(-time.Duration(random.Int64N(int64(47 * time.Hour)))).Truncate(time.Millisecond)
		if i%4 == 0 {
			at = at.Truncate(time.Hour).Add(time.Duration(random.IntN(3)-1) * time.Millisecond) // at boundaries of hours and minutes
		}
		edges = append(edges, at)
		recs = append(recs, record(fmt.Sprint(i), fmt.Sprint("oas_", i%2), at))
	}
	addRecords(t, s, recs...)
	for i := range 45 {
		now := noon.Add(-time.Duration(random.Int64N(int64(20 * time.Hour)))).Truncate(time.Millisecond)
		switch i % 3 {
		case 1:
			now = edges[i] // a request exactly now
		case 2:
			now = edges[i].Add(24 * time.Hour) // a request exactly one day old
		}
		want := map[string]int64{}
		for _, r := range recs {
			if r.At.After(now.Add(-24*time.Hour)) && !r.At.After(now) {
				want[r.Key]++
			}
		}
		if got := must[api.Statistics](t)(s.Statistics(t.Context(), "oas_1", now)); got.Last24h != want["oas_1"] {
			t.Fatalf("%d in the day before %v, want %d", got.Last24h, now, want["oas_1"])
		}
		all := must[AllStatistics](t)(s.AllStatistics(t.Context(), now))
		if all.Total.Last24h != want["oas_0"]+want["oas_1"] || all.ByKey["oas_0"].Last24h != want["oas_0"] {
			t.Fatalf("%d of all keys in the day before %v, want %d", all.Total.Last24h, now, want["oas_0"]+want["oas_1"])
		}
	}
}

func TestPercentilesOf100k(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: make test runs it")
	}
	s, _ := create(t)
	random := rand.New(rand.NewPCG(3, 4))
	exact := map[string][]float64{}
	const allKeys = ""
	var recs []api.Record
	for i := range 100_000 {
		r := record(fmt.Sprint(i), fmt.Sprint("oas_", i%3), noon)
		r.Total = time.Duration(math.Exp(random.NormFloat64()*1.5) * float64(800*time.Millisecond))
		recs = append(recs, r)
		for _, who := range []string{r.Key, allKeys} {
			exact[who] = append(exact[who], r.Total.Seconds())
		}
	}
	addRecords(t, s, recs...)
	all := must[AllStatistics](t)(s.AllStatistics(t.Context(), noon))
	for who, seconds := range exact {
		slices.Sort(seconds)
		got := all.Total.Percentiles
		if who != allKeys {
			got = must[api.Statistics](t)(s.Statistics(t.Context(), who, noon)).Percentiles
			if got != all.ByKey[who].Percentiles {
				t.Errorf("%s: %v in its own statistics, %v in all", who, got, all.ByKey[who].Percentiles)
			}
		}
		for q, v := range map[float64]float64{0.5: got.P50, 0.95: got.P95, 0.99: got.P99} {
			want := seconds[int(math.Ceil(q*float64(len(seconds))))-1]
			if off := math.Abs(v-want) / want; off > 0.05 {
				t.Errorf("quantile %v of %s is %v, exactly %v: %.1f %% off", q, who, v, want, 100*off)
			}
		}
	}
}

func TestInterruptedRequestsHaveNoDuration(t *testing.T) {
	s, _ := create(t)
	done, cut := record("done", "oas_0000000001", noon), record("cut", "oas_0000000001", noon)
	done.Total = 2 * time.Second
	cut.Total, cut.Outcome = 0, api.OutcomeInterrupted
	if n, err := s.AddRecords(t.Context(), []api.Record{done, cut}); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	all, err := s.AllStatistics(t.Context(), noon)
	if err != nil {
		t.Fatal(err)
	}
	for _, got := range []api.Statistics{all.Total, all.ByKey["oas_0000000001"]} {
		if got.TotalRequests != 2 || got.AverageSeconds != 2 || got.Percentiles.P50 < 1.9 {
			t.Errorf("%d requests, average %v, percentiles %v", got.TotalRequests, got.AverageSeconds, got.Percentiles)
		}
	}
}
