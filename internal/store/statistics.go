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
		if err := readTotals(ctx, tx, `WHERE key = $3`, of, key); err != nil {
			return err
		}
		err := readLatencies(ctx, tx, `WHERE key = $3`, func(_ string, counts []api.LatencyCount) { sum.latencies = counts }, key)
		if err != nil {
			return err
		}
		return readLastDay(ctx, tx, `(SELECT DISTINCT key FROM usage_hour WHERE key = $9)`, of, append(lastDay(now), key)...)
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
		if err := readTotals(ctx, tx, "", of); err != nil {
			return err
		}
		return readLastDay(ctx, tx, `(SELECT DISTINCT key FROM usage_hour)`, of, lastDay(now)...)
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

func readTotals(ctx context.Context, tx *sql.Tx, where string, of func(string) *summary, args ...any) error {
	return rows(ctx, tx, `SELECT key, SUM(count), SUM(total_ms), SUM(prompt_tokens), SUM(completion_tokens), SUM(estimated), SUM(slot_ms), MAX(last_at), SUM(gpu_ms),
		string_agg(model || $1 || endpoint || $1 || outcome || $1 || CAST(count AS TEXT), $2) FROM usage_total `+where+` GROUP BY key`,
		func(r *sql.Rows) error {
			var key, parts string
			var t totals
			if err := r.Scan(&key, &t.count, &t.total, &t.prompt, &t.completion, &t.estimated, &t.slot, &t.last, &t.gpu, &parts); err != nil {
				return err
			}
			sum := of(key)
			sum.totals = t
			return sum.unpackTotals(parts)
		}, append([]any{fieldEnd, partEnd}, args...)...)
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

func readLastDay(ctx context.Context, tx *sql.Tx, keys string, of func(string) *summary, args ...any) error {
	return rows(ctx, tx, `SELECT k.key, `+lastDayCount+` FROM `+keys+` k`, func(r *sql.Rows) error {
		var key string
		var n int64
		if err := r.Scan(&key, &n); err != nil {
			return err
		}
		of(key).Last24h = n
		return nil
	}, args...)
}

// lastDayCount counts the requests of k.key in the 24 hours up to now to the millisecond: whole hours and minutes from the
// rollups, and the two ragged minutes at the ends from the rows by index. Its parameters are lastDay.
const lastDayCount = `
	(SELECT COUNT(*) FROM requests r WHERE r.key = k.key AND r.at >= $1 AND r.at < $2) +
	(SELECT COALESCE(SUM(m.count), 0) FROM usage_minute m WHERE m.key = k.key AND m.minute >= $3 AND m.minute < $4) +
	(SELECT COALESCE(SUM(h.count), 0) FROM usage_hour h WHERE h.key = k.key AND h.hour >= $4 AND h.hour < $5) +
	(SELECT COALESCE(SUM(m.count), 0) FROM usage_minute m WHERE m.key = k.key AND m.minute >= $6 AND m.minute < $7) +
	(SELECT COUNT(*) FROM requests r WHERE r.key = k.key AND r.at >= $7 AND r.at < $8)`

// lastDay cuts (now-24h, now] into [$1,$2) of rows, [$3,$4) of minutes, [$4,$5) of hours, [$6,$7) of minutes and [$7,$8) of rows.
func lastDay(now time.Time) []any {
	from, to := millis(now)-24*hourMS+1, millis(now)+1
	firstMinute, lastMinute := up(from, minuteMS), down(to, minuteMS)
	firstHour, lastHour := up(from, hourMS), down(to, hourMS)
	return []any{from, firstMinute, firstMinute, firstHour, lastHour, lastHour, lastMinute, to}
}

func down(ms, step int64) int64 { return ms - ms%step }

func up(ms, step int64) int64 { return down(ms+step-1, step) }

// summary is statistics in the making.
type summary struct {
	api.Statistics
	totals
	latencies []api.LatencyCount
}

func newSummary() *summary {
	return &summary{Statistics: api.Statistics{ByModel: map[string]int64{}, ByEndpoint: map[string]int64{}, ByOutcome: map[string]int64{}}}
}

// unpackTotals counts "model endpoint outcome count" parts.
func (s *summary) unpackTotals(parts string) error {
	for part := range strings.SplitSeq(parts, partEnd) {
		model, rest, _ := strings.Cut(part, fieldEnd)
		endpoint, rest, _ := strings.Cut(rest, fieldEnd)
		outcome, digits, _ := strings.Cut(rest, fieldEnd)
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil {
			return err
		}
		// A request about no model (a blob upload) is in the sum alone.
		if model != "" {
			s.ByModel[model] += n
		}
		s.ByEndpoint[endpoint] += n
		s.ByOutcome[outcome] += n
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
	s.count += o.count
	s.total += o.total
	s.prompt += o.prompt
	s.completion += o.completion
	s.estimated += o.estimated
	s.slot += o.slot
	s.gpu += o.gpu
	s.last = max(s.last, o.last)
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
