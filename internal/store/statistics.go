package store

import (
	"cmp"
	"context"
	"database/sql"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"ollama-api-service/internal/api"
)

// AllStatistics is what the books say of everybody, together and by key.
type AllStatistics struct {
	Total api.Statistics
	ByKey map[string]api.Statistics // by preview; a key without a request is not in it
}

// Statistics is what the books say of one key. A preview without a request has zeros.
func (s *Store) Statistics(ctx context.Context, key string, now time.Time) (api.Statistics, error) {
	sum := newSummary()
	of := func(string) *summary { return sum }
	err := s.read(ctx, func(tx *sql.Tx) error {
		if err := readTotals(ctx, tx, api.RequestFilter{Keys: []string{key}}, of); err != nil {
			return err
		}
		err := readLatencies(ctx, tx, `WHERE key = $3`, func(_ string, counts []api.LatencyCount) { sum.latencies = counts }, key)
		if err != nil {
			return err
		}
		return readLastDay(ctx, tx, now, api.RequestFilter{Keys: []string{key}}, of)
	})
	if err != nil {
		return api.Statistics{}, err
	}
	return sum.statistics(), nil
}

// AllStatistics is the statistics of everybody and of each key.
func (s *Store) AllStatistics(ctx context.Context, now time.Time) (AllStatistics, error) {
	// The latencies are half of the work, and nobody compares them with the counts: they are read at the same time.
	latencies := map[string][]api.LatencyCount{}
	var failed error
	var beside sync.WaitGroup
	beside.Go(func() {
		failed = s.read(ctx, func(tx *sql.Tx) error {
			return readLatencies(ctx, tx, "", func(key string, counts []api.LatencyCount) { latencies[key] = counts })
		})
	})
	byKey, err := s.allCounts(ctx, now)
	beside.Wait()
	if err != nil || failed != nil {
		return AllStatistics{}, cmp.Or(err, failed)
	}
	total := newSummary()
	all := AllStatistics{ByKey: make(map[string]api.Statistics, len(byKey))}
	for key, sum := range byKey {
		total.merge(sum)
		sum.latencies = latencies[key]
		all.ByKey[key] = sum.statistics()
	}
	total.latencies = latencies[everybody]
	all.Total = total.statistics()
	return all, nil
}

// allCounts is the summary of each key without its latencies, all of one instant.
func (s *Store) allCounts(ctx context.Context, now time.Time) (map[string]*summary, error) {
	byKey := map[string]*summary{}
	of := func(key string) *summary {
		sum := byKey[key]
		if sum == nil {
			sum = newSummary()
			byKey[key] = sum
		}
		return sum
	}
	err := s.read(ctx, func(tx *sql.Tx) error {
		if err := readTotals(ctx, tx, api.RequestFilter{}, of); err != nil {
			return err
		}
		return readLastDay(ctx, tx, now, api.RequestFilter{}, of)
	})
	return byKey, err
}

// Of a thousand keys' rollups there are a hundred thousand rows, and each row that crosses from the database into Go costs
// more than reading it: so each key comes as one row with its parts packed into a text. The separators are control
// characters, which no model name, route or outcome holds. A bucket and its count travel as one number.
const (
	fieldEnd = "\x1f"
	partEnd  = "\x1e"
	// bucketBase is above every bucket: three centuries, the longest time.Duration, are in 431.
	bucketBase = 1024
)

// readTotals reads the sums of all time of the keys that where chooses, and of each key by model, by endpoint and by outcome.
func readTotals(ctx context.Context, tx *sql.Tx, f api.RequestFilter, of func(string) *summary) error {
	b := &builder{}
	err := rows(ctx, tx, `SELECT key, `+cellSums+` FROM usage_sum AS u WHERE `+forever(b, byKey, &f),
		func(r *sql.Rows) error {
			var key string
			var u used
			if err := r.Scan(append([]any{&key}, u.into()...)...); err != nil {
				return err
			}
			of(key).used = u
			return nil
		}, b.args...)
	for _, d := range []struct {
		column string
		kind   kind
		counts func(*summary) map[string]int64
	}{
		{"model", byModel, func(s *summary) map[string]int64 { return s.ByModel }},
		{"endpoint", byEndpoint, func(s *summary) map[string]int64 { return s.ByEndpoint }},
		{"outcome", byOutcome, func(s *summary) map[string]int64 { return s.ByOutcome }},
	} {
		if err != nil {
			return err
		}
		b := &builder{}
		packed := `string_agg(` + d.column + ` || ` + b.param(fieldEnd) + ` || CAST(count AS TEXT), ` + b.param(partEnd) + `)`
		err = rows(ctx, tx, `SELECT key, `+packed+` FROM usage_sum AS u WHERE `+forever(b, byKey|d.kind, &f)+` GROUP BY key`,
			func(r *sql.Rows) error {
				var key, parts string
				if err := r.Scan(&key, &parts); err != nil {
					return err
				}
				return unpackCounts(d.counts(of(key)), parts)
			}, b.args...)
	}
	return err
}

// forever is the condition for the sums of all time of one kind.
func forever(b *builder, k kind, f *api.RequestFilter) string {
	return `kind = ` + b.param(int64(k)) + ` AND width = ` + b.param(foreverMS) + ` AND start = 0` + empty(k) + b.filter(f)
}

func readLatencies(ctx context.Context, tx *sql.Tx, where string, take func(string, []api.LatencyCount), args ...any) error {
	return rows(ctx, tx, `SELECT key, string_agg(CAST(count * $1 + bucket AS TEXT), $2) FROM usage_latency `+where+` GROUP BY key`,
		func(r *sql.Rows) error {
			var key, parts string
			if err := r.Scan(&key, &parts); err != nil {
				return err
			}
			counts, err := unpackLatencies(parts)
			take(key, counts)
			return err
		}, append([]any{bucketBase, partEnd}, args...)...)
}

// readLastDay counts the requests of each key that the filter chooses in the 24 hours up to now, to the millisecond.
func readLastDay(ctx context.Context, tx *sql.Tx, now time.Time, f api.RequestFilter, of func(string) *summary) error {
	k, err := readKept(ctx, tx)
	if err != nil {
		return err
	}
	p := plan{kept: k, sources: k.sources(byKey, len(f.Keys) > 0)}
	if p.cut(millis(now)-dayMS+1, millis(now)+1, ownTime); k.end == 0 {
		return nil
	}
	b := &builder{}
	with, used := p.build(b, &f, false, "key, count", "key, 1 AS count")
	return rows(ctx, tx, `WITH RECURSIVE `+with+` SELECT key, SUM(count) FROM (`+used+`) AS used GROUP BY key`, func(r *sql.Rows) error {
		var key string
		var n int64
		if err := r.Scan(&key, &n); err != nil {
			return err
		}
		of(key).Last24h = n
		return nil
	}, b.args...)
}

func down(ms, step int64) int64 {
	if step == foreverMS {
		return 0
	}
	return ms - ms%step
}

func up(ms, step int64) int64 { return down(ms+step-1, step) }

// summary is statistics in the making.
type summary struct {
	api.Statistics
	used
	latencies []api.LatencyCount
}

func newSummary() *summary {
	return &summary{Statistics: api.Statistics{ByModel: map[string]int64{}, ByEndpoint: map[string]int64{}, ByOutcome: map[string]int64{}}}
}

// unpackCounts adds "name count" parts. What has no name (a blob upload is about no model) is in the sum alone.
func unpackCounts(counts map[string]int64, parts string) error {
	for part := range strings.SplitSeq(parts, partEnd) {
		name, digits, _ := strings.Cut(part, fieldEnd)
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil {
			return err
		}
		if name != "" {
			counts[name] += n
		}
	}
	return nil
}

// unpackLatencies reads count*bucketBase+bucket parts, which come in any order.
func unpackLatencies(parts string) ([]api.LatencyCount, error) {
	counts := make([]api.LatencyCount, 0, strings.Count(parts, partEnd)+1)
	for part := range strings.SplitSeq(parts, partEnd) {
		n, err := strconv.ParseInt(part, 10, 64)
		if err != nil {
			return nil, err
		}
		counts = append(counts, api.LatencyCount{Bucket: int(n % bucketBase), Count: n / bucketBase})
	}
	slices.SortFunc(counts, func(a, b api.LatencyCount) int { return cmp.Compare(a.Bucket, b.Bucket) })
	return counts, nil
}

// merge adds another key's counts, but not its latencies.
func (s *summary) merge(o *summary) {
	for _, m := range [][2]map[string]int64{{s.ByModel, o.ByModel}, {s.ByEndpoint, o.ByEndpoint}, {s.ByOutcome, o.ByOutcome}} {
		for name, n := range m[1] {
			m[0][name] += n
		}
	}
	s.used.add(&o.used)
	s.Last24h += o.Last24h
}

func (s *summary) statistics() api.Statistics {
	s.TotalRequests, s.PromptTokens, s.CompletionTokens, s.EstimatedRows, s.SlotMS, s.GPUMS = s.count, s.prompt, s.completion, s.estimated, s.slot, s.gpu
	var timed int64 // requests whose duration is known: those that a kill interrupted have none
	for _, b := range s.latencies {
		timed += b.Count
	}
	if timed > 0 {
		s.AverageSeconds = s.total / 1000 / float64(timed)
	}
	if s.count > 0 {
		last := instant(s.last)
		s.LastRequest = &last
	}
	s.Percentiles = api.Percentiles{
		P50: api.LatencyQuantile(s.latencies, 0.50).Seconds(),
		P95: api.LatencyQuantile(s.latencies, 0.95).Seconds(),
		P99: api.LatencyQuantile(s.latencies, 0.99).Seconds(),
	}
	return s.Statistics
}
