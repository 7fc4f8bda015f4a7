//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// measureLimit is the longest time of a measurement.
const measureLimit = time.Minute

// work is the amount of work for each figure.
type work struct {
	short            bool // for a test: without the waits that only matter for figures
	chats, chatConns int  // small chats, closed loop
	streams, chunks  int  // concurrent streams, records of each
	rate             int  // requests per second of the open loop
	span             time.Duration
	rpsConns         int
	rpsSpan          time.Duration
	idle             int // idle streams
	steady           int // streams with a chunk each 250 ms; twice as many with one each 500 ms
	steadySpan       time.Duration
	enduring         int // keys of the sustained load
	endure           time.Duration
	prompts, images  int // large bodies for the CPU
	keys, uses       int // keys in the large database; different keys used for the first time
}

var (
	fullWork = work{
		chats: 6_000, chatConns: 32, streams: 256, chunks: 200, rate: 500, span: 3 * time.Second, rpsConns: 64, rpsSpan: 2 * time.Second,
		idle: 1000, steady: 5000, steadySpan: 6 * time.Second, enduring: 8000, endure: 30 * time.Second, prompts: 40, images: 5, keys: 1_000_000, uses: 5_000,
	}
	quickWork = work{
		chats: 1_000, chatConns: 32, streams: 256, chunks: 20, rate: 500, span: time.Second, rpsConns: 64, rpsSpan: time.Second,
		idle: 200, steady: 300, steadySpan: time.Second, enduring: 80, endure: 2 * time.Second, prompts: 5, images: 1, keys: 20_000, uses: 500,
	}
)

// part is one measurement that -only chooses.
type part struct {
	name   string
	rounds int // at most; 0 means as many as -rounds says
	does   string
	run    func(b *bench, round int) error
}

// parts are all measurements in the order in which they run.
var parts = []part{
	{"chats", 0, "CPU of small chats, with 1 and with 1,000 keys, quiet and under load", (*bench).chats},
	{"chunks", 0, "CPU of streamed chunks", (*bench).chunks},
	{"latency", 0, "added time to the first byte", (*bench).latency},
	{"rps", 0, "requests per second", (*bench).throughput},
	{"idle", 2, "memory of idle streams", (*bench).idle},
	{"streams", 2, "5,000 streams of 4 chunks a second", (*bench).steadyStreams},
	{"many", 1, "10,000 streams of 2 chunks a second", (*bench).manyStreams},
	{"bodies", 2, "a 20 MB image and a 1 MB prompt", (*bench).bodies},
	{"sustained", 1, "full load for a while: are all rows in the database?", (*bench).sustained},
	{"start", 0, "start of the service", (*bench).startup},
	{"keys", 2, "a million keys in the database", (*bench).manyKeys},
	{"books", 1, "statistics of many rows", (*bench).statistics},
}

func partNames() []string {
	names := make([]string, len(parts))
	for i, p := range parts {
		names[i] = p.name
	}
	return names
}

// bench is one run: the mock, the running contestants, and the measurements so far.
type bench struct {
	dir           string
	work          work
	self          string // this program
	mock          *proc
	targets       []target
	up            map[string]*running
	program       string // path of the service's binary; empty if there is none
	programBefore string
	commit        string // the commit before; empty if it is not measured
	filled        *filled
	rows          int    // of the books
	kept          string // directory that keeps the books
	booked        *booked
	endured       []endured
	figures       figures
	notes         []string
	failed        bool
	peers         bool // it compares with other gateways
}

// openFiles is what ten thousand streams through one process need, with a reserve.
const openFiles = 65536

// newBench builds the service, and the one of the commit before, and starts the contestants.
func newBench(root, dir string, o options) (*bench, error) {
	b := &bench{dir: dir, work: o.work, rows: o.rows, kept: o.books, peers: o.peers, up: map[string]*running{}, figures: figures{}}
	// Only root may exceed the limit. Without it, the parts with many streams name what failed.
	syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: openFiles, Max: openFiles})
	var err error
	if b.self, err = os.Executable(); err != nil {
		return nil, err
	}
	if b.mock, err = startOwn(dir, "mock", "mock", filepath.Join(root, "testdata", "ollama-0.24.0")); err != nil {
		return nil, err
	}
	b.up[direct] = plain(b.mock, otherKeys(1))
	if slices.Contains(o.contestants, service) {
		b.addService(root, o.service)
	}
	if slices.Contains(o.contestants, before) && o.before != "" {
		fmt.Println("building the service of the commit before,", o.before)
		program, commit, err := buildBefore(root, dir, o.before)
		if err != nil {
			b.note(before, err)
		} else {
			b.commit, b.programBefore = commit, program
			b.targets = append(b.targets, serviceTarget(before, program, dir, b.mock.addr))
		}
	}
	b.targets = append(b.targets, reverseTarget(dir, b.mock.addr))
	for _, o := range []otherProxy{nginxProxy, haproxyProxy, caddyProxy} {
		b.targets = append(b.targets, o.target(dir, b.mock.addr))
	}
	b.targets = slices.DeleteFunc(b.targets, func(t target) bool { return !slices.Contains(o.contestants, t.name) })
	if b.peers {
		b.addPeers()
	}
	b.startAll(o.parts)
	return b, nil
}

func (b *bench) addService(root, program string) {
	var err error
	if program == "" {
		fmt.Println("building the service")
		if program, err = buildService(root, b.dir, "ollama-api-service"); err != nil {
			b.note(service, err)
			return
		}
	}
	info, err := os.Stat(program)
	if err != nil {
		b.note(service, err)
		return
	}
	b.program = program
	b.figures.add(binarySize, service, float64(info.Size())/(1<<20))
	b.targets = append(b.targets, serviceTarget(service, program, b.dir, b.mock.addr))
}

// startAll starts the contestants that the parts share.
func (b *bench) startAll(chosen []part) {
	shared := slices.ContainsFunc(chosen, func(p part) bool { return slices.Contains([]string{"chats", "chunks", "latency", "rps"}, p.name) })
	if !shared {
		return
	}
	keys := 1
	if slices.ContainsFunc(chosen, func(p part) bool { return p.name == "chats" }) && !b.peers {
		keys = manyInTurn
	}
	fmt.Println("starting the contestants")
	var came []target
	for _, t := range b.targets {
		r, err := t.start(t.name, keys)
		if err != nil {
			b.note(t.name, err)
			continue
		}
		b.up[t.name] = r
		came = append(came, t)
	}
	b.targets = came
}

func (b *bench) close() {
	for _, r := range b.up {
		r.stop()
	}
}

// note keeps what could not be measured and why. A proxy that is not installed is no failure.
func (b *bench) note(name string, err error) {
	text := fmt.Sprintf("%s: %v", name, err)
	fmt.Println("  !", text)
	b.notes = append(b.notes, text)
	if !errors.Is(err, errMissing) {
		b.failed = true
	}
}

// rounds runs the chosen parts, each as often as wanted. When the limit has passed, the first round is completed and nothing else begins.
func (b *bench) rounds(chosen []part, rounds int, limit time.Duration) {
	begin := time.Now()
	for i := range rounds {
		for _, p := range chosen {
			if p.rounds > 0 && i >= p.rounds {
				continue
			}
			if i > 0 && time.Since(begin) > limit {
				fmt.Printf("round %d of %d, %s: left out after %v\n", i+1, rounds, p.name, limit)
				continue
			}
			fmt.Printf("round %d of %d, %s: %s (%s so far)\n", i+1, rounds, p.name, p.does, time.Since(begin).Round(time.Second))
			if err := p.run(b, i); err != nil {
				b.note(service, fmt.Errorf("%s: %w", p.name, err))
			}
		}
	}
}

// each runs do for each contestant, in an order that turns from round to round, after those in first.
func (b *bench) each(round int, what string, do func(name string, r *running) error, first ...string) {
	fmt.Println(" ", what)
	names := make([]string, len(b.targets))
	for i, t := range b.targets {
		names[i] = t.name
	}
	for _, name := range append(first, turned(names, round)...) {
		if err := do(name, b.up[name]); err != nil {
			b.note(name, fmt.Errorf("%s: %w", what, err))
		}
	}
}

// eachFresh runs do for each contestant on a freshly started process with one key.
func (b *bench) eachFresh(round int, what string, do func(name string, r *running) error) {
	fmt.Println(" ", what)
	for _, t := range turned(b.targets, round) {
		r, err := t.start(fmt.Sprintf("%s-fresh-%d", strings.ToLower(t.name), time.Now().UnixNano()), 1)
		if err == nil {
			err = do(t.name, r)
			r.kill()
		}
		if err != nil {
			b.note(t.name, fmt.Errorf("%s: %w", what, err))
		}
	}
}

// progress prints a measured value of one contestant.
func progress(name, format string, args ...any) {
	fmt.Printf("    %-13s "+format+"\n", append([]any{name}, args...)...)
}

// turned returns list rotated by the round, so that no contestant is always measured first.
func turned[T any](list []T, round int) []T {
	if len(list) == 0 {
		return nil
	}
	n := round % len(list)
	return append(append([]T(nil), list[n:]...), list[:n]...)
}
