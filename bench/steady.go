//go:build linux

package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// The figures of streams that are open at the same time.
const (
	steadyTail   = "5,000 streams, 4 chunks/s: delay of a chunk p99, ms"
	steadyMedian = "5,000 streams, 4 chunks/s: delay of a chunk p50, ms"
	steadyCPU    = "5,000 streams, 4 chunks/s: CPU per chunk, µs"
	steadyMemory = "5,000 streams, 4 chunks/s: memory per stream, KiB"
	steadyRate   = "5,000 streams, 4 chunks/s: chunks per second, thousands"
	steadyErrors = "5,000 streams, 4 chunks/s: streams with an error"
	manyErrors   = "10,000 streams, 2 chunks/s: streams with an error"
	manyTail     = "10,000 streams, 2 chunks/s: delay of a chunk p99, ms"
	manyMemory   = "10,000 streams, 2 chunks/s: memory per stream, KiB"
)

// steadyStreams measures streams of which all are open and have a chunk now and then.
func (b *bench) steadyStreams(round int) error {
	b.eachFresh(round, fmt.Sprintf("%d streams, a chunk each 250 ms", b.work.steady), func(name string, r *running) error {
		s, err := b.crowd(name, r, b.work.steady, 250*time.Millisecond)
		if err != nil {
			return err
		}
		b.figures.add(steadyTail, name, s.delay(99))
		b.figures.add(steadyMedian, name, s.delay(50))
		b.figures.add(steadyCPU, name, s.cpu)
		b.figures.add(steadyMemory, name, s.kib)
		b.figures.add(steadyRate, name, s.rate/1e3)
		b.figures.add(steadyErrors, name, float64(s.failed))
		return nil
	})
	return nil
}

// manyStreams measures twice as many streams with the same number of chunks a second.
func (b *bench) manyStreams(round int) error {
	b.eachFresh(round, fmt.Sprintf("%d streams, a chunk each 500 ms", 2*b.work.steady), func(name string, r *running) error {
		s, err := b.crowd(name, r, 2*b.work.steady, 500*time.Millisecond)
		if err != nil {
			return err
		}
		b.figures.add(manyErrors, name, float64(s.failed))
		b.figures.add(manyTail, name, s.delay(99))
		b.figures.add(manyMemory, name, s.kib)
		return nil
	})
	return nil
}

// crowded is what a crowd of streams costs.
type crowded struct {
	ages           *hdrhistogram.Histogram // from the mock's write of a record to its arrival, in nanoseconds
	failed         int                     // streams that ended before their time or never began
	example        error                   // why one of them did
	cpu, kib, rate float64
}

// delay is a percentile of the age of records, in milliseconds.
func (c *crowded) delay(percentile float64) float64 {
	return float64(c.ages.ValueAtPercentile(percentile)) / 1e6
}

// crowd opens n streams with a record every gap and measures while all are open.
func (b *bench) crowd(name string, r *running, n int, gap time.Duration) (*crowded, error) {
	c := &crowded{ages: hdrhistogram.New(1_000, int64(time.Minute), 3)}
	empty, err := settledAfterSome(r)
	if err != nil {
		return nil, err
	}
	l, err := dial(r.addr, n)
	if err != nil {
		return nil, err
	}
	defer l.close()
	request := r.first(fmt.Sprintf(`{"model":"tiny","messages":[{"role":"user","content":"chunks=1000000000 every=%d"}]}`, gap.Milliseconds()))
	l.fail = func(err error) { c.failed, c.example = c.failed+1, err }
	if err := l.hold(request, max(1, n/8), 2*measureLimit); err != nil {
		return nil, err
	}
	// The collections of garbage that belong to the opening are not those of a steady state.
	if err := l.listen(b.work.steadySpan/4, nil); err != nil {
		return nil, err
	}
	before, err := r.cpu()
	if err != nil {
		return nil, err
	}
	begin, records := time.Now(), 0
	if err := l.listen(b.work.steadySpan, func(age time.Duration) {
		records++
		c.ages.RecordValue(min(int64(age), int64(time.Minute)))
	}); err != nil {
		return nil, err
	}
	took := time.Since(begin)
	after, err := r.cpu()
	if err != nil {
		return nil, err
	}
	full, err := r.rss()
	if err != nil {
		return nil, err
	}
	if records == 0 {
		return nil, fmt.Errorf("no records arrived: %w", c.example)
	}
	c.cpu = float64(after-before) / 1e3 / float64(records)
	c.kib = float64(full-empty) / float64(n) / 1024
	c.rate = float64(records) / took.Seconds()
	progress(name, "delay p50 %.1f ms, p99 %.1f ms, %.1f us of CPU per chunk, %.1f KiB per stream, %.0f chunks/s, %d of %d streams failed",
		c.delay(50), c.delay(99), c.cpu, c.kib, c.rate, c.failed, n)
	if c.failed > 0 {
		progress(name, "one of them: %v", c.example)
	}
	return c, nil
}

// listen reads the streams for a time and calls each with the age of each stamped record.
func (l *load) listen(span time.Duration, each func(age time.Duration)) error {
	for _, w := range l.order {
		w.answer.body = nil
		if each != nil {
			w.answer.body = func(p []byte) { stampsIn(p, monotonic(), each) }
		}
	}
	end := time.Now().Add(span)
	err := l.run(end, -1, func() bool { return false }, func(w *wire, done bool) error {
		if done && w.err == nil {
			l.give(w, errors.New("the stream ended"))
		}
		return nil
	}, nil)
	if errors.Is(err, errLate) {
		return nil
	}
	return err
}
