package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"slices"
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
	sums, err := s.summaries(ctx, now, &api.RequestFilter{Keys: []string{key}})
	if err != nil {
		return api.Statistics{}, err
	}
	sum := sums[key]
	if sum == nil {
		sum = newSummary()
	}
	return sum.statistics(), nil
}

// AllStatistics returns the usage of all keys and of each key.
func (s *Store) AllStatistics(ctx context.Context, now time.Time) (AllStatistics, error) {
	sums, err := s.summaries(ctx, now, &api.RequestFilter{})
	if err != nil {
		return AllStatistics{}, err
	}
	overall := newSummary()
	all := AllStatistics{ByKey: make(map[string]api.Statistics, len(sums))}
	for key, sum := range sums {
		overall.merge(sum)
		all.ByKey[key] = sum.statistics()
	}
	all.Total = overall.statistics()
	return all, nil
}

// summaries returns the statistics of each key that matches the filter: totals of all time, and what is not in these yet.
func (s *Store) summaries(ctx context.Context, now time.Time, f *api.RequestFilter) (map[string]*summary, error) {
	out := map[string]*summary{}
	err := s.read(ctx, func(tx *sql.Tx) error {
		k, d, err := s.begin(ctx, tx)
		if err != nil {
			return err
		}
		byID := map[int64]*summary{}
		of := func(key int64) *summary {
			sum := byID[key]
			if sum == nil {
				sum = newSummary()
				byID[key] = sum
				out[d.keys[key]] = sum
			}
			return sum
		}
		c := d.choose(f)
		if c.none {
			return nil
		}
		tail, err := s.tail.in(ctx, tx, d, k.folded)
		if err == nil {
			k.coverTail(tail)
			err = readForever(ctx, tx, d, &c, of)
		}
		if err == nil {
			err = readPacks(ctx, tx, `n > $1`, func(_ int64, p *packed) {
				for i := range p.n {
					if key := p.find[1].at(i); c.has(key, 0) {
						u := p.used(i)
						of(key).one(d.shapes[p.find[2].at(i)], &u)
					}
				}
			}, k.forever)
		}
		if err != nil {
			return err
		}
		for i := range tail.len() {
			if c.has(tail.key[i], 0) {
				u := tail.used(i)
				of(tail.key[i]).one(d.shapes[tail.shape[i]], &u)
			}
		}
		p := plan{kept: k, sources: k.sources(byKey)}
		if p.cut(millis(now)-dayMS+1, millis(now)+1, ownTime); k.end > 0 {
			err = p.fill(ctx, tx, d, tail, &c, func(_, key, _ int64, u *used) { of(key).Last24h += u[ofCount] })
		}
		if err != nil {
			return err
		}
		for key, sum := range out {
			if err := readLast(ctx, tx, now, key, sum); err != nil {
				return err
			}
		}
		return nil
	})
	return out, err
}

// readLast corrects a time of the last request that is in the future because of a wrong clock: it becomes the time of the last request
// before now, or zero if there is no such row.
func readLast(ctx context.Context, tx *sql.Tx, now time.Time, key string, sum *summary) error {
	if sum.used[ofLast] <= millis(now) {
		return nil
	}
	var last sql.NullInt64
	err := tx.QueryRowContext(ctx, `SELECT at FROM requests WHERE key = $1 AND at <= $2 ORDER BY at DESC LIMIT 1`, key, millis(now)).Scan(&last)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	sum.used[ofLast] = last.Int64
	return err
}

// readForever reads the totals of all time.
func readForever(ctx context.Context, tx *sql.Tx, d *dictionary, c *chosen, of func(int64) *summary) error {
	for i, k := range append(slices.Clone(foreverKinds), byKey|byBucket) {
		total := run{source: source{kind: k, width: foreverMS}, to: 1}
		err := readSums(ctx, tx, total, &chosen{keys: c.keys}, func(_, key, shape int64, u *used) {
			sum := of(key)
			if k&byBucket != 0 {
				sum.buckets[shape] += u[ofCount]
				return
			}
			sum.count(k, d.shapes[shape], u[ofCount])
			if i == 0 {
				sum.used.add(u)
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// summary collects the statistics of a key.
type summary struct {
	api.Statistics
	used    used
	buckets map[int64]int64
}

func newSummary() *summary {
	return &summary{
		Statistics: api.Statistics{ByModel: map[string]int64{}, ByEndpoint: map[string]int64{}, ByOutcome: map[string]int64{}},
		buckets:    map[int64]int64{},
	}
}

// one adds one request.
func (s *summary) one(at shape, u *used) {
	for _, k := range foreverKinds {
		s.count(k, at, 1)
	}
	s.used.add(u)
	if u[ofTimed] > 0 {
		s.buckets[bucketOf(u)]++
	}
}

func bucketOf(u *used) int64 { return int64(api.LatencyBucket(time.Duration(u[ofTotal]))) }

// count adds requests to those of a name. Requests without a name (a blob upload has no model) are only in the sum.
func (s *summary) count(k kind, at shape, n int64) {
	for i, c := range shapeColumns {
		counts := map[string]map[string]int64{"model": s.ByModel, "endpoint": s.ByEndpoint, "outcome": s.ByOutcome}[c.Name]
		if k&(2<<i) != 0 && at[i] != "" && counts != nil {
			counts[at[i]] += n
		}
	}
}

// merge adds another key's counts.
func (s *summary) merge(o *summary) {
	for _, m := range [][2]map[string]int64{{s.ByModel, o.ByModel}, {s.ByEndpoint, o.ByEndpoint}, {s.ByOutcome, o.ByOutcome}} {
		for name, n := range m[1] {
			m[0][name] += n
		}
	}
	for bucket, n := range o.buckets {
		s.buckets[bucket] += n
	}
	s.used.add(&o.used)
	s.Last24h += o.Last24h
}

func (s *summary) statistics() api.Statistics {
	u := s.used.usage()
	s.TotalRequests, s.EstimatedRows, s.PromptTokens, s.CompletionTokens = u.Requests, u.Estimated, u.PromptTokens, u.CompletionTokens
	s.SlotMS, s.GPUMS, s.QueueMS = u.SlotMS, u.GPUMS, u.QueueMS
	if u.AverageSeconds != nil {
		s.AverageSeconds = *u.AverageSeconds
	}
	if s.used[ofLast] > 0 {
		s.LastRequest = u.LastRequest
	}
	latencies := make([]api.LatencyCount, 0, len(s.buckets))
	for bucket, n := range s.buckets {
		latencies = append(latencies, api.LatencyCount{Bucket: int(bucket), Count: n})
	}
	slices.SortFunc(latencies, func(a, b api.LatencyCount) int { return cmp.Compare(a.Bucket, b.Bucket) })
	s.Percentiles = api.Percentiles{
		P50: api.LatencyQuantile(latencies, 0.50).Seconds(),
		P95: api.LatencyQuantile(latencies, 0.95).Seconds(),
		P99: api.LatencyQuantile(latencies, 0.99).Seconds(),
	}
	return s.Statistics
}
