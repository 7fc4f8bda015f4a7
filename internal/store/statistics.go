package store

import (
	"context"
	"database/sql"
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
	err := s.read(ctx, func(tx *sql.Tx) error {
		err := rows(ctx, tx, `SELECT `+totalColumns+` FROM usage_total WHERE key = $1`, func(r *sql.Rows) error {
			part, err := scanPart(r)
			sum.add(&part)
			return err
		}, key)
		if err != nil {
			return err
		}
		err = rows(ctx, tx, `SELECT key, bucket, count FROM usage_latency WHERE key = $1 ORDER BY bucket`, func(r *sql.Rows) error {
			_, c, err := scanLatency(r)
			sum.latencies = append(sum.latencies, c)
			return err
		}, key)
		if err != nil {
			return err
		}
		args := append(lastDay(now), key)
		return tx.QueryRowContext(ctx, `SELECT `+lastDayCount+` FROM (SELECT $9 AS key) k`, args...).Scan(&sum.Last24h)
	})
	return sum.statistics(), err
}

// AllStatistics is the statistics of everybody and of each key, all of one instant.
func (s *Store) AllStatistics(ctx context.Context, now time.Time) (AllStatistics, error) {
	total, byKey := newSummary(), map[string]*summary{}
	of := func(key string) *summary {
		sum := byKey[key]
		if sum == nil {
			sum = newSummary()
			byKey[key] = sum
		}
		return sum
	}
	err := s.read(ctx, func(tx *sql.Tx) error {
		err := rows(ctx, tx, `SELECT `+totalColumns+` FROM usage_total`, func(r *sql.Rows) error {
			part, err := scanPart(r)
			total.add(&part)
			of(part.key).add(&part)
			return err
		})
		if err != nil {
			return err
		}
		err = rows(ctx, tx, `SELECT key, bucket, count FROM usage_latency ORDER BY key, bucket`, func(r *sql.Rows) error {
			key, c, err := scanLatency(r)
			sum := total
			if key != everybody {
				sum = of(key)
			}
			sum.latencies = append(sum.latencies, c)
			return err
		})
		if err != nil {
			return err
		}
		return rows(ctx, tx, `SELECT k.key, `+lastDayCount+` FROM (SELECT DISTINCT key FROM usage_hour) k`, func(r *sql.Rows) error {
			var key string
			var n int64
			err := r.Scan(&key, &n)
			of(key).Last24h = n
			total.Last24h += n
			return err
		}, lastDay(now)...)
	})
	if err != nil {
		return AllStatistics{}, err
	}
	all := AllStatistics{total.statistics(), make(map[string]api.Statistics, len(byKey))}
	for key, sum := range byKey {
		all.ByKey[key] = sum.statistics()
	}
	return all, nil
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

const totalColumns = `key, model, endpoint, outcome, count, total_ms, prompt_tokens, completion_tokens, estimated, slot_ms, last_at`

// part is one row of usage_total.
type part struct {
	totalKey
	totals
}

func scanPart(r *sql.Rows) (part, error) {
	var p part
	err := r.Scan(&p.key, &p.model, &p.endpoint, &p.outcome, &p.count, &p.total, &p.prompt, &p.completion, &p.estimated, &p.slot, &p.last)
	return p, err
}

func scanLatency(r *sql.Rows) (string, api.LatencyCount, error) {
	var key string
	var c api.LatencyCount
	err := r.Scan(&key, &c.Bucket, &c.Count)
	return key, c, err
}

// summary is statistics in the making.
type summary struct {
	api.Statistics
	totalMS   float64
	lastMS    int64
	latencies []api.LatencyCount
}

func newSummary() *summary {
	return &summary{Statistics: api.Statistics{ByModel: map[string]int64{}, ByEndpoint: map[string]int64{}, ByOutcome: map[string]int64{}}}
}

func (s *summary) add(p *part) {
	s.TotalRequests += p.count
	// A request about no model (a blob upload) is in the sum alone.
	if p.model != "" {
		s.ByModel[p.model] += p.count
	}
	s.ByEndpoint[p.endpoint] += p.count
	s.ByOutcome[p.outcome] += p.count
	s.PromptTokens += p.prompt
	s.CompletionTokens += p.completion
	s.EstimatedRows += p.estimated
	s.SlotMS += p.slot
	s.totalMS += p.total
	s.lastMS = max(s.lastMS, p.last)
}

func (s *summary) statistics() api.Statistics {
	if s.TotalRequests > 0 {
		s.AverageSeconds = s.totalMS / 1000 / float64(s.TotalRequests)
		last := instant(s.lastMS)
		s.LastRequest = &last
	}
	s.Percentiles = api.Percentiles{
		P50: api.LatencyQuantile(s.latencies, 0.50).Seconds(),
		P95: api.LatencyQuantile(s.latencies, 0.95).Seconds(),
		P99: api.LatencyQuantile(s.latencies, 0.99).Seconds(),
	}
	return s.Statistics
}
