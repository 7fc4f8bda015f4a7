//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// smallChat is the small request that the recorded answer belongs to; the others ask the mock for streams.
const (
	smallChat  = `{"model":"tiny","messages":[{"role":"user","content":"the sea"}],"stream":false,"options":{"num_predict":8,"seed":1}}`
	streamChat = `{"model":"tiny","messages":[{"role":"user","content":"chunks=%d"}],"options":{"num_predict":8192}}`
)

// measureLimit is the longest time of a measurement.
const measureLimit = time.Minute

// work is the amount of work for each figure.
type work struct {
	chats, chatConns int // small chats, closed loop
	streams, chunks  int // concurrent streams, records of each
	rate             int // requests per second of the open loop
	span             time.Duration
	rpsConns         int
	rpsSpan          time.Duration
	idle             int // idle streams
	keys, uses       int // keys in the large database; different keys used for the first time
}

var (
	fullWork  = work{20_000, 32, 256, 200, 500, 5 * time.Second, 64, 3 * time.Second, 1000, 1_000_000, 5_000}
	quickWork = work{2_000, 32, 256, 20, 500, time.Second, 64, time.Second, 200, 20_000, 500}
)

// bench is one run: the mock, the running contestants, and the measurements so far.
type bench struct {
	dir     string
	work    work
	self    string // this program
	mock    *proc
	targets []target
	up      map[string]*proc
	keys    map[string]string
	program string // path of the service's binary; empty if there is none
	filled  *filled
	booked  *booked
	figures figures
	notes   []string
	failed  bool
}

func newBench(root, program, dir string, w work) (*bench, error) {
	b := &bench{dir: dir, work: w, up: map[string]*proc{}, keys: map[string]string{}, figures: figures{}}
	var err error
	if b.self, err = os.Executable(); err != nil {
		return nil, err
	}
	if b.mock, err = startOwn(dir, "mock", "mock", filepath.Join(root, "testdata", "ollama-0.24.0")); err != nil {
		return nil, err
	}
	if program == "" {
		fmt.Println("building the service")
		if program, err = buildService(root, dir); err != nil {
			b.note(service, err)
		}
	}
	if program != "" {
		info, err := os.Stat(program)
		if err != nil {
			b.note(service, err)
		} else {
			b.program = program
			b.figures.add(binarySize, service, float64(info.Size())/(1<<20))
			b.targets = append(b.targets, serviceTarget(program, dir, b.mock.addr))
		}
	}
	b.targets = append(b.targets, reverseTarget(dir, b.mock.addr), nginxTarget(dir, b.mock.addr))
	var came []target
	for _, t := range b.targets {
		p, key, err := t.start(t.name)
		if err != nil {
			b.note(t.name, err)
			continue
		}
		b.up[t.name], b.keys[t.name] = p, key
		came = append(came, t)
	}
	b.targets = came
	b.up[direct] = b.mock
	return b, nil
}

func (b *bench) close() {
	for _, p := range b.up {
		p.stop()
	}
}

// note keeps what could not be measured and why. Only what is missing of nginx is no failure: it may not be installed.
func (b *bench) note(name string, err error) {
	text := fmt.Sprintf("%s: %v", name, err)
	fmt.Println("  !", text)
	b.notes = append(b.notes, text)
	if name != nginx {
		b.failed = true
	}
}

// part measures one part for all contestants, in an order that turns from round to round.
func (b *bench) part(part string, round int) {
	each := func(do func(name string, p *proc, key string) error, more ...string) {
		var names []string
		for _, t := range b.targets {
			names = append(names, t.name)
		}
		names = turned(names, round)
		for _, name := range append(more, names...) {
			if err := do(name, b.up[name], b.keys[name]); err != nil {
				b.note(name, fmt.Errorf("%s: %w", part, err))
			}
		}
	}
	switch part {
	case "cpu":
		each(b.chats)
	case "chunk":
		each(b.chunks, direct)
	case "latency":
		// The mock's own latency comes first: the others are measured against it.
		awake, err := startProc(b.dir, "awake", nil, b.self, "awake")
		if err != nil {
			b.note(direct, err)
			return
		}
		each(func(name string, p *proc, key string) error {
			return b.latency(latency50, 50, b.work.span/2, name, p, key)
		}, direct)
		awake.kill()
		each(func(name string, p *proc, key string) error {
			return b.latency(latency99, 99, b.work.span, name, p, key)
		}, direct)
	case "rps":
		each(b.throughput, direct)
	case "idle":
		for _, t := range turned(b.targets, round) {
			if err := b.idle(t, round); err != nil {
				b.note(t.name, fmt.Errorf("%s: %w", part, err))
			}
		}
	case "start", "keys":
		if b.program == "" {
			return
		}
		do := b.startup
		if part == "keys" {
			do = b.manyKeys
		}
		if err := do(round); err != nil {
			b.note(service, fmt.Errorf("%s: %w", part, err))
		}
	}
}

// chats measures the CPU of small chats that are not streamed.
func (b *bench) chats(name string, p *proc, key string) error {
	l, err := dial(p.addr, b.work.chatConns)
	if err != nil {
		return err
	}
	defer l.close()
	request := post("/api/chat", key, smallChat)
	same := func() []byte { return request }
	if _, _, err := l.closed(same, b.work.chats/20, 0, measureLimit); err != nil {
		return err
	}
	us, err := cpuOf(p, func() (int, error) {
		n, _, err := l.closed(same, b.work.chats, 0, 2*measureLimit)
		return n, err
	})
	if err != nil {
		return err
	}
	b.figures.add(chatCPU, name, us)
	progress(name, "%.1f us of CPU per chat", us)
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

// chunks measures the CPU of streamed records, each stream's request included.
func (b *bench) chunks(name string, p *proc, key string) error {
	l, err := dial(p.addr, b.work.streams)
	if err != nil {
		return err
	}
	defer l.close()
	var s streamed
	us, err := cpuOf(p, func() (int, error) {
		s, err = l.stream(post("/api/chat", key, fmt.Sprintf(streamChat, b.work.chunks)), measureLimit)
		if err == nil && s.records != b.work.streams*b.work.chunks {
			err = fmt.Errorf("%d records arrived of %d", s.records, b.work.streams*b.work.chunks)
		}
		return s.records, err
	})
	if err != nil {
		return err
	}
	alone := 100 * float64(s.reads) / float64(s.records)
	rate := float64(s.records) / (s.took - think*wheelSlots*wheelTick).Seconds()
	if name != direct {
		b.figures.add(chunkCPU, name, us)
	}
	b.figures.add(chunkRate, name, rate/1e3)
	b.figures.add(chunkAlone, name, alone)
	progress(name, "%.2f us of CPU per chunk, %.0f chunks/s, %.0f %% in a read of their own", us, rate, alone)
	return nil
}

// latency measures a percentile at a fixed rate, and the difference to the mock without a proxy.
func (b *bench) latency(row string, percentile float64, span time.Duration, name string, p *proc, key string) error {
	l, err := dial(p.addr, 64)
	if err != nil {
		return err
	}
	defer l.close()
	request := post("/api/chat", key, smallChat)
	if _, _, err := l.closed(func() []byte { return request }, 200, 0, measureLimit); err != nil {
		return err
	}
	if _, err := p.quiet(); err != nil {
		return err
	}
	hist, err := l.paced(request, b.work.rate, span)
	if err != nil {
		return err
	}
	us := float64(hist.ValueAtPercentile(percentile)) / 1e3
	progress(name, "latency p%.0f %.0f us", percentile, us)
	if name != direct {
		us -= b.figures.last(row, direct)
	}
	b.figures.add(row, name, us)
	return nil
}

// throughput measures the number of small chats per second when all cores are busy. Load generator and mock use a share of them.
func (b *bench) throughput(name string, p *proc, key string) error {
	l, err := dial(p.addr, b.work.rpsConns)
	if err != nil {
		return err
	}
	defer l.close()
	request := post("/api/chat", key, smallChat)
	n, took, err := l.closed(func() []byte { return request }, 0, b.work.rpsSpan, b.work.rpsSpan+measureLimit)
	if err != nil {
		return err
	}
	rps := float64(n) / took.Seconds()
	b.figures.add(throughput, name, rps)
	progress(name, "%.0f requests/s", rps)
	_, err = p.quiet()
	return err
}

// idle measures the memory of streams that wait for their next record, on a process that has done little work before.
func (b *bench) idle(t target, round int) error {
	p, key, err := t.start(fmt.Sprintf("%s-idle-%d", t.name, round))
	if err != nil {
		return err
	}
	defer p.kill()
	warm, err := dial(p.addr, 8)
	if err != nil {
		return err
	}
	defer warm.close()
	request := post("/api/chat", key, smallChat)
	if _, _, err := warm.closed(func() []byte { return request }, 200, 0, measureLimit); err != nil {
		return err
	}
	before, err := settledRSS(p)
	if err != nil {
		return err
	}
	l, err := dial(p.addr, b.work.idle)
	if err != nil {
		return err
	}
	defer l.close()
	if err := l.hold(post("/api/chat", key, fmt.Sprintf(streamChat, 0)), measureLimit); err != nil {
		return err
	}
	after, err := settledRSS(p)
	if err != nil {
		return err
	}
	kib := float64(after-before) / float64(b.work.idle) / 1024
	b.figures.add(idleStream, t.name, kib)
	progress(t.name, "%.1f KiB per idle stream (%.1f -> %.1f MiB)", kib, float64(before)/(1<<20), float64(after)/(1<<20))
	return nil
}

// settledRSS is the resident memory once the process is quiet.
func settledRSS(p *proc) (int64, error) {
	if _, err := p.quiet(); err != nil {
		return 0, err
	}
	return p.rss()
}

// startup measures a start on an empty directory, and one on a directory that has data.
func (b *bench) startup(round int) error {
	g := newGateway(b.program, filepath.Join(b.dir, fmt.Sprintf("start-%d", round)), b.mock.addr)
	begin := time.Now()
	p, err := g.start("first")
	if err != nil {
		return err
	}
	b.figures.add(firstStart, service, time.Since(begin).Seconds()*1e3)
	key, err := g.newKey(p.addr, "bench")
	p.stop()
	if err != nil {
		return err
	}
	begin = time.Now()
	if p, err = g.launch("again"); err != nil {
		return err
	}
	defer p.stop()
	if err := firstAnswer(p, key); err != nil {
		return err
	}
	took := time.Since(begin)
	rss, err := settledRSS(p)
	if err != nil {
		return err
	}
	b.figures.add(nextStart, service, took.Seconds()*1e3)
	b.figures.add(idleMemory, service, float64(rss)/(1<<20))
	progress(service, "%.0f ms from start to the first answered chat, then %.1f MiB", took.Seconds()*1e3, float64(rss)/(1<<20))
	return nil
}

func progress(name, format string, args ...any) {
	fmt.Printf("  %-13s "+format+"\n", append([]any{name}, args...)...)
}

// turned returns list rotated by the round, so that no contestant is always measured first.
func turned[T any](list []T, round int) []T {
	if len(list) == 0 {
		return nil
	}
	n := round % len(list)
	return append(append([]T(nil), list[n:]...), list[:n]...)
}
