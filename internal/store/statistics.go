package store

import (
	"cmp"
	"context"
	"database/sql"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"ollama-api-service/internal/api"
)

// AllStatistics is the usage of all keys, in total and by key.
type AllStatistics struct {
	Total api.Statistics
	ByKey map[string]api.Statistics // by preview; keys without requests are missing
}

// Statistics returns the usage of one key. It returns zeros for a preview without requests.
func (s *Store) Statistics(ctx context.Context, key string, now time.Time) (api.Statistics, error) {
	sum := newSummary()
	of := func(string) *summary { return sum }
	f := api.RequestFilter{Keys: []string{key}}
	err := s.read(ctx, func(tx *sql.Tx) error {
		if err := readTotals(ctx, tx, &f, of); err != nil {
			return err
		}
		if err := readParts(ctx, tx, &f, of); err != nil {
			return err
		}
		if err := readLast(ctx, tx, now, key, sum); err != nil {
			return err
		}
		return s.readLastDay(ctx, tx, now, &f, of)
	})
	if err != nil {
		return api.Statistics{}, err
	}
	return sum.statistics(), nil
}

// readLast corrects a time of the last request that is in the future because of a wrong clock: it becomes the time of the last request
// before now, or zero if there is no such row.
func readLast(ctx context.Context, tx *sql.Tx, now time.Time, key string, sum *summary) error {
	if sum.last <= millis(now) {
		return nil
	}
	var last sql.NullInt64
	err := tx.QueryRowContext(ctx, `SELECT MAX(at) FROM requests WHERE key = $1 AND at <= $2`, key, millis(now)).Scan(&last)
	sum.last = last.Int64
	return err
}

// totals caches the summaries of keys. A summary is up to date as long as its key has no more requests than it counts.
type totals struct {
	mu    sync.Mutex
	byKey map[string]*summary
}

// mostChanged is the largest number of changed keys that are read one by one instead of reading all keys.
const mostChanged = 250

// AllStatistics returns the usage of all keys and of each key.
func (s *Store) AllStatistics(ctx context.Context, now time.Time) (AllStatistics, error) {
	overall := newSummary()
	var sums map[string]*summary
	lastDay := map[string]*summary{}
	err := s.read(ctx, func(tx *sql.Tx) (err error) {
		if sums, err = s.allTotals(ctx, tx); err != nil {
			return err
		}
		if err := readLatencies(ctx, tx, &api.RequestFilter{Keys: []string{allKeys}}, func(string) *summary { return overall }); err != nil {
			return err
		}
		if sums, err = withLast(ctx, tx, now, sums); err != nil {
			return err
		}
		return s.readLastDay(ctx, tx, now, &api.RequestFilter{}, summaries(lastDay))
	})
	if err != nil {
		return AllStatistics{}, err
	}
	all := AllStatistics{ByKey: make(map[string]api.Statistics, len(sums))}
	for key, sum := range sums {
		one := sum.statistics() // the summary itself is shared
		if day := lastDay[key]; day != nil {
			one.Last24h = day.Last24h
		}
		overall.merge(sum)
		overall.Last24h += one.Last24h
		all.ByKey[key] = one
	}
	all.Total = overall.statistics()
	return all, nil
}

// withLast applies readLast to each key. Summaries are shared, so it corrects copies.
func withLast(ctx context.Context, tx *sql.Tx, now time.Time, sums map[string]*summary) (map[string]*summary, error) {
	for key, sum := range sums {
		if sum.last <= millis(now) {
			continue
		}
		corrected := *sum
		corrected.LastRequest = nil
		if err := readLast(ctx, tx, now, key, &corrected); err != nil {
			return nil, err
		}
		sums[key] = &corrected
	}
	return sums, nil
}

// summaries returns a function that creates a summary for each new key.
func summaries(sums map[string]*summary) func(string) *summary {
	return func(key string) *summary {
		sum := sums[key]
		if sum == nil {
			sum = newSummary()
			sums[key] = sum
		}
		return sum
	}
}

// allTotals returns the summary of each key, except for its last day, all at one instant. It reads only keys whose number of requests has
// changed since the last call.
func (s *Store) allTotals(ctx context.Context, tx *sql.Tx) (map[string]*summary, error) {
	sums := map[string]*summary{}
	if err := readTotals(ctx, tx, &api.RequestFilter{}, summaries(sums)); err != nil {
		return nil, err
	}
	changed := map[string]*summary{}
	s.totals.mu.Lock()
	for key, sum := range sums {
		if known := s.totals.byKey[key]; known != nil && known.count == sum.count {
			sums[key] = known
		} else {
			changed[key] = sum
		}
	}
	s.totals.mu.Unlock()
	if len(changed) == 0 {
		return sums, nil
	}
	f := api.RequestFilter{}
	if len(changed) <= mostChanged {
		f.Keys = slices.Collect(maps.Keys(changed))
	}
	// Discard what is read for keys that have not changed.
	unused := newSummary()
	err := readParts(ctx, tx, &f, func(key string) *summary {
		if sum := changed[key]; sum != nil {
			return sum
		}
		return unused
	})
	if err != nil {
		return nil, err
	}
	s.totals.mu.Lock()
	defer s.totals.mu.Unlock()
	for key, sum := range changed {
		if known := s.totals.byKey[key]; known == nil || known.count < sum.count {
			s.totals.byKey[key] = sum
		}
	}
	return sums, nil
}

// The rollups of a thousand keys have a hundred thousand rows, and moving a row from the database into Go costs more than reading it. So
// each key is one row with its parts packed into a text. The separators are control characters, which model names, routes and outcomes do
// not contain. A bucket and its count are packed into one number.
const (
	fieldEnd = "\x1f"
	partEnd  = "\x1e"
	// bucketBase is larger than every bucket: the longest time.Duration, three centuries, is in bucket 431.
	bucketBase = 1024
)

// readTotals reads the all-time sums of the keys that match the filter.
func readTotals(ctx context.Context, tx *sql.Tx, f *api.RequestFilter, of func(string) *summary) error {
	b := &builder{}
	return rows(ctx, tx, `SELECT key, `+cellSums+` FROM usage_sum AS u WHERE `+forever(b, byKey, f),
		func(r *sql.Rows) error {
			var key string
			var u used
			if err := r.Scan(append([]any{&key}, u.into()...)...); err != nil {
				return err
			}
			of(key).used = u
			return nil
		}, b.args...)
}

// readParts reads the all-time requests of each key by model, by endpoint and by outcome, and its latencies.
func readParts(ctx context.Context, tx *sql.Tx, f *api.RequestFilter, of func(string) *summary) error {
	for _, d := range []struct {
		column string
		kind   kind
		counts func(*summary) map[string]int64
	}{
		{"model", byModel, func(s *summary) map[string]int64 { return s.ByModel }},
		{"endpoint", byEndpoint, func(s *summary) map[string]int64 { return s.ByEndpoint }},
		{"outcome", byOutcome, func(s *summary) map[string]int64 { return s.ByOutcome }},
	} {
		b := &builder{}
		packed := `string_agg(` + d.column + ` || ` + b.param(fieldEnd) + ` || CAST(count AS TEXT), ` + b.param(partEnd) + `)`
		err := rows(ctx, tx, `SELECT key, `+packed+` FROM usage_sum AS u WHERE `+forever(b, byKey|d.kind, f)+` GROUP BY key`,
			func(r *sql.Rows) error {
				var key, parts string
				if err := r.Scan(&key, &parts); err != nil {
					return err
				}
				return unpackCounts(d.counts(of(key)), parts)
			}, b.args...)
		if err != nil {
			return err
		}
	}
	return readLatencies(ctx, tx, f, of)
}

// forever is the condition for the all-time sums of one kind.
func forever(b *builder, k kind, f *api.RequestFilter) string {
	return `kind = ` + b.param(int64(k)) + ` AND width = ` + b.param(foreverMS) + ` AND start = 0` + empty(k) + b.filter(f)
}

func readLatencies(ctx context.Context, tx *sql.Tx, f *api.RequestFilter, of func(string) *summary) error {
	b := &builder{}
	packed := `string_agg(CAST(count * ` + b.param(bucketBase) + ` + bucket AS TEXT), ` + b.param(partEnd) + `)`
	return rows(ctx, tx, `SELECT key, `+packed+` FROM usage_latency WHERE bucket >= 0`+b.filter(f)+` GROUP BY key`,
		func(r *sql.Rows) error {
			var key, parts string
			if err := r.Scan(&key, &parts); err != nil {
				return err
			}
			counts, err := unpackLatencies(parts)
			of(key).latencies = counts
			return err
		}, b.args...)
}

// readLastDay counts the requests of each key that matches the filter in the 24 hours up to now, to the millisecond.
func (s *Store) readLastDay(ctx context.Context, tx *sql.Tx, now time.Time, f *api.RequestFilter, of func(string) *summary) error {
	k, err := readKept(ctx, tx)
	if err != nil {
		return err
	}
	p := plan{kept: k, sources: k.sources(byKey, len(f.Keys) > 0)}
	if p.cut(millis(now)-dayMS+1, millis(now)+1, ownTime); k.end == 0 {
		return nil
	}
	fine := p
	if len(f.Keys) == 0 {
		fine.runs = nil
		names := s.pages.known
		current, err := requestsIn(ctx, tx, &p)
		if err != nil {
			return err
		}
		for id := range p.pages(byKey, &fine) {
			sum, err := s.page(ctx, tx, id, current)
			if err != nil {
				return err
			}
			for i, at := range sum.pairs {
				of(names()[at.key]).Last24h += sum.used[i].count
			}
		}
		if len(fine.runs)+len(fine.rows) == 0 {
			return nil
		}
	}
	b := &builder{}
	with, query := fine.build(b, f, false, "key, count", "key, 1 AS count")
	return rows(ctx, tx, `WITH RECURSIVE `+with+` SELECT key, SUM(count) FROM (`+query+`) AS used GROUP BY key`, func(r *sql.Rows) error {
		var key string
		var n int64
		if err := r.Scan(&key, &n); err != nil {
			return err
		}
		of(key).Last24h += n
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

// summary collects the statistics of a key.
type summary struct {
	api.Statistics
	used
	latencies []api.LatencyCount
}

func newSummary() *summary {
	return &summary{Statistics: api.Statistics{ByModel: map[string]int64{}, ByEndpoint: map[string]int64{}, ByOutcome: map[string]int64{}}}
}

// unpackCounts adds "name count" parts. Requests without a name (a blob upload has no model) are only in the sum.
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

// unpackLatencies reads count*bucketBase+bucket parts in any order.
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
	s.TotalRequests, s.EstimatedRows = s.count, s.estimated
	s.PromptTokens, s.CompletionTokens = s.prompt, s.completion
	s.SlotMS, s.GPUMS, s.QueueMS = s.slot, s.gpu, s.queue
	var timed int64 // requests with a known duration; interrupted ones have none
	for _, b := range s.latencies {
		timed += b.Count
	}
	if timed > 0 {
		s.AverageSeconds = s.total / 1000 / float64(timed)
	}
	if s.count > 0 && s.last > 0 {
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
