//go:build linux

package main

import (
	"runtime"
	"strconv"
	"strings"
	"time"
)

// The requests of small chats, which the recorded answers belong to; the others ask the mock for streams.
const (
	smallChat    = `{"model":"tiny","messages":[{"role":"user","content":"the sea"}],"stream":false,"options":{"num_predict":8,"seed":1}}`
	openaiChat   = `{"model":"tiny","messages":[{"role":"user","content":"the sea"}],"max_tokens":8,"seed":1}`
	openaiStream = `{"model":"tiny","messages":[{"role":"user","content":"chunks=%d"}],"stream":true,"max_tokens":8192}`
	streamChat   = `{"model":"tiny","messages":[{"role":"user","content":"chunks=%d"}],"options":{"num_predict":8192}}`
)

// variant is one way in which the CPU of small chats is measured.
type variant struct {
	openai bool
	keys   int  // in turn
	loaded bool // with keepBusy running
}

// manyInTurn is the number of keys that a contestant knows.
const manyInTurn = 1000

// variants are all ways, the quiet ones first. The number of keys does not matter to the dialect.
func variants() (all []variant) {
	for _, loaded := range []bool{false, true} {
		for _, openai := range []bool{false, true} {
			all = append(all, variant{openai, 1, loaded})
			if !openai {
				all = append(all, variant{openai, manyInTurn, loaded})
			}
		}
	}
	return all
}

// row names the figure.
func (v variant) row() string {
	words := []string{"native", "1 key"}
	if v.openai {
		words[0] = "OpenAI"
	}
	if v.keys > 1 {
		words[1] = "1,000 keys"
	}
	if v.loaded {
		words = append(words, "under load")
	}
	return "CPU per small chat, " + strings.Join(words, ", ") + ", µs"
}

// chats measures the CPU of small chats that are not streamed, in all ways.
func (b *bench) chats(round int) error {
	var busy *proc
	defer func() {
		if busy != nil {
			busy.kill()
		}
	}()
	for _, v := range variants() {
		if b.peers && (v.loaded || v.keys > 1) {
			continue
		}
		if v.loaded && busy == nil {
			var err error
			if busy, err = startProc(b.dir, "busy", nil, b.self, "busy", strconv.Itoa(runtime.NumCPU())); err != nil {
				return err
			}
		}
		b.each(round, v.row(), func(name string, r *running) error { return b.chatsOf(name, r, v) })
	}
	return nil
}

func (b *bench) chatsOf(name string, r *running, v variant) error {
	path, body := r.native, smallChat
	if v.openai {
		path, body = r.openai, openaiChat
	}
	if path == "" {
		return nil
	}
	l, err := dial(r.addr, b.work.chatConns)
	if err != nil {
		return err
	}
	defer l.close()
	next := r.inTurn(path, body, v.keys)
	if _, _, err := l.closed(next, b.work.chats/5, 0, measureLimit); err != nil {
		return err
	}
	us, err := cpuOf(r.proc, func() (int, error) {
		n, _, err := l.closed(next, b.work.chats, 0, 2*measureLimit)
		return n, err
	})
	if err != nil {
		return err
	}
	b.figures.add(v.row(), name, us)
	progress(name, "%.1f", us)
	return nil
}

// cpuOf returns the CPU in microseconds that p uses for each unit of work of do, including the work that p does afterwards.
func cpuOf(p *proc, do func() (int, error)) (float64, error) {
	before, err := p.quiet()
	if err != nil {
		return 0, err
	}
	n, err := do()
	if err != nil {
		return 0, err
	}
	after, err := p.quiet()
	if err != nil {
		return 0, err
	}
	return float64(after-before) / float64(n) / 1e3, nil
}

// latency measures two percentiles of the time to the first byte of a small chat at a fixed rate, less those of the mock without a proxy.
func (b *bench) latency(round int) error {
	awake, err := startProc(b.dir, "awake", nil, b.self, "awake")
	if err != nil {
		return err
	}
	// The mock's own latency comes first: the others are measured against it.
	b.each(round, "first byte, with cores kept awake", func(name string, r *running) error {
		return b.latencyOf(firstByte, 50, b.work.span/2, name, r)
	}, direct)
	awake.kill()
	b.each(round, "first byte, p99", func(name string, r *running) error {
		return b.latencyOf(firstTail, 99, b.work.span, name, r)
	}, direct)
	return nil
}

func (b *bench) latencyOf(row string, percentile float64, span time.Duration, name string, r *running) error {
	l, err := dial(r.addr, 64)
	if err != nil {
		return err
	}
	defer l.close()
	request := b.small(r)
	if _, _, err := l.closed(func() []byte { return request }, 200, 0, measureLimit); err != nil {
		return err
	}
	if _, err := r.quiet(); err != nil {
		return err
	}
	hist, err := l.paced(request, b.work.rate, span)
	if err != nil {
		return err
	}
	us := float64(hist.ValueAtPercentile(percentile)) / 1e3
	progress(name, "p%.0f %.0f us", percentile, us)
	if name != direct {
		us -= b.figures.last(row, direct)
	}
	b.figures.add(row, name, us)
	return nil
}

// throughput measures the number of small chats per second when all cores are busy. Load generator and mock use a share of them.
func (b *bench) throughput(round int) error {
	b.each(round, "small chats a second", func(name string, r *running) error {
		l, err := dial(r.addr, b.work.rpsConns)
		if err != nil {
			return err
		}
		defer l.close()
		request := b.small(r)
		n, took, err := l.closed(func() []byte { return request }, 0, b.work.rpsSpan, b.work.rpsSpan+measureLimit)
		if err != nil {
			return err
		}
		rps := float64(n) / took.Seconds()
		b.figures.add(throughput, name, rps)
		progress(name, "%.0f requests/s", rps)
		_, err = r.quiet()
		return err
	}, direct)
	return nil
}
