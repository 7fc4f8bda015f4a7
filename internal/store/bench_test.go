//go:build unix

package store

import (
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"ollama-api-service/internal/api"
)

// load creates n records in the given time up to noon: a thousand keys, each with three models and two routes and occasional failures,
// with log-normal response times.
func load(n int, over time.Duration) []api.Record {
	random := rand.New(rand.NewPCG(5, 6))
	outcomes := []api.Outcome{api.OutcomeRefused, api.OutcomeUpstream, api.OutcomeClientGone}
	recs := make([]api.Record, n)
	for i := range recs {
		key := random.IntN(1000)
		r := record(fmt.Sprintf("req_%020x", random.Uint64()), fmt.Sprintf("oas_%010d", key), noon.Add(-over+over/time.Duration(n)*time.Duration(i)))
		r.Model = fmt.Sprintf("model-%d:latest", (key+random.IntN(3))%8)
		r.Endpoint = []string{"/api/chat", "/v1/chat/completions"}[random.IntN(2)]
		if random.IntN(20) == 0 {
			r.Outcome = outcomes[random.IntN(3)]
		}
		r.Total = time.Duration(math.Exp(random.NormFloat64()*1.2) * float64(time.Second))
		r.FirstByte, r.Backend, r.ClientAddr = r.Total/4, "ollama", "10.0.0.7"
		recs[i] = r
	}
	return recs
}

func BenchmarkAddRecords(b *testing.B) {
	for _, c := range []struct{ batch, keys int }{{1, 1000}, {500, 1}, {500, 8000}, {2000, 1}, {2000, 8000}, {20_000, 8000}} {
		b.Run(fmt.Sprintf("batch=%d,keys=%d", c.batch, c.keys), func(b *testing.B) {
			s, _ := create(b)
			recs := load(c.batch*b.N, 24*time.Hour)
			for i := range recs {
				recs[i].Key = fmt.Sprintf("oas_%010d", i%c.keys)
			}
			known := load(c.keys, time.Hour) // a key that is new costs more, once
			for i := range known {
				known[i].ID, known[i].Key = fmt.Sprintf("known_%020x", i), fmt.Sprintf("oas_%010d", i)
			}
			addRecords(b, s, known...)
			b.ResetTimer()
			before := cpuTime(b)
			for i := range b.N {
				if n, err := s.AddRecords(b.Context(), recs[i*c.batch:(i+1)*c.batch]); n != c.batch || err != nil {
					b.Fatal(n, err)
				}
			}
			rows := float64(c.batch * b.N)
			b.ReportMetric(rows/b.Elapsed().Seconds(), "rows/s")
			b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/rows, "cpu-us/row")
			size, err := s.Bytes(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(size)/rows, "B/row")
		})
	}
}

// cpuTime is what this process has used.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkStatistics1M(b *testing.B) {
	for name, over := range map[string]time.Duration{"month": 30 * 24 * time.Hour, "day": 24 * time.Hour} {
		s, err := Create(b.Context(), filepath.Join(b.TempDir(), "books.db"))
		if err != nil {
			b.Fatal(err)
		}
		defer s.Close()
		begun := time.Now()
		addRecords(b, s, load(1_000_000, over)...)
		b.Logf("%s: 1,000,000 rows added in %v", name, time.Since(begun))
		b.Run(name+"/one", func(b *testing.B) {
			for i := range b.N {
				got, err := s.Statistics(b.Context(), fmt.Sprintf("oas_%010d", i%1000), noon)
				if err != nil || got.TotalRequests == 0 {
					b.Fatal(got, err)
				}
			}
		})
		b.Run(name+"/all", func(b *testing.B) {
			for range b.N {
				got, err := s.AllStatistics(b.Context(), noon)
				if err != nil || got.Total.TotalRequests != 1_000_000 || len(got.ByKey) != 1000 {
					b.Fatal(len(got.ByKey), err)
				}
			}
		})
		for _, by := range [][]api.Dimension{{api.ByKey}, {api.ByDay}, {api.ByModel, api.ByDay}, {api.ByHour}} {
			b.Run(fmt.Sprint(name, "/usage by ", by), func(b *testing.B) {
				q := UsageQuery{By: by, Limit: 1000}
				q.From = noon.Add(-30 * 24 * time.Hour).Truncate(24 * time.Hour)
				if by[0] == api.ByHour {
					q.From = noon.Add(-48 * time.Hour).Truncate(time.Hour)
				}
				for range b.N {
					if _, err := s.Usage(b.Context(), q); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkKey(b *testing.B) {
	s, _ := create(b)
	if err := s.CreateKey(b.Context(), user("oas_a"), []byte("m"), by("cli")); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := s.Key(b.Context(), "oas_a"); err != nil {
			b.Fatal(err)
		}
	}
}
