//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
)

// The figures, which are rows of the tables.
const (
	chatCPU    = "CPU per small chat, µs"
	chunkCPU   = "CPU per streamed chunk, µs"
	latency50  = "added latency p50, µs"
	latency99  = "added latency p99, µs"
	throughput = "requests per second"
	idleStream = "memory per idle stream, KiB"
	chunkRate  = "chunks per second, thousands"
	chunkAlone = "chunks in a separate read, %"

	firstStart = "first start, empty directory, to listening with its admin key printed, ms"
	nextStart  = "start to the first answered chat, ms"
	idleMemory = "resident memory after that chat, MiB"
	binarySize = "size of the binary (static, stripped), MiB"

	cachedFew  = "one key, few in the database"
	cachedMany = "one key, very many in the database"
	firstSome  = "each key for the first time, some in the database"
	firstMany  = "each key for the first time, very many in the database"
)

// goal is a target for a figure of the service: at most bound, as a ratio to the ReverseProxy or as an absolute value.
type goal struct {
	row   string
	ratio bool
	bound float64
	unit  string
}

var goals = []goal{
	{chatCPU, true, 0.6, "of the ReverseProxy's"},
	{chunkCPU, true, 1.0, "of the ReverseProxy's"},
	{idleStream, false, 40, "KiB"},
}

// figures holds what each round measured, by row and contestant.
type figures map[string]map[string][]float64

func (f figures) add(row, name string, v float64) {
	if f[row] == nil {
		f[row] = map[string][]float64{}
	}
	f[row][name] = append(f[row][name], v)
}

// last returns the newest value, 0 if there is none.
func (f figures) last(row, name string) float64 {
	if v := f[row][name]; len(v) > 0 {
		return v[len(v)-1]
	}
	return 0
}

// median returns the median. Its second result reports whether there is a measurement.
func (f figures) median(row, name string) (float64, bool) {
	v := f[row][name]
	return median(v), len(v) > 0
}

// median returns the middle value, or the mean of the two middle ones; 0 if there is none.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

// cell returns a median with the lowest and the highest round.
func (f figures) cell(row, name string) string {
	m, ok := f.median(row, name)
	if !ok {
		return "n/a"
	}
	v := f[row][name]
	if len(v) == 1 {
		return number(m)
	}
	return fmt.Sprintf("%s (%s … %s)", number(m), number(slices.Min(v)), number(slices.Max(v)))
}

// ratio returns one contestant's median divided by another's.
func (f figures) ratio(row, name, over string) string {
	a, ok := f.median(row, name)
	b, ok2 := f.median(row, over)
	if !ok || !ok2 || b <= 0 {
		return "n/a"
	}
	return fmt.Sprintf("%.2f", a/b)
}

// number formats v with three significant digits.
func number(v float64) string {
	switch a := max(v, -v); {
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

// report returns the whole text of RESULTS.md.
func report(f figures, notes []string, machine string, rounds int, w work) string {
	var s strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&s, format, args...) }
	p("# Benchmark results\n\nMeasured by `make bench` on %s.\nEach figure is the median of %d rounds (lowest … highest).\n\n", machine, rounds)
	compare(p, f)
	verdicts(p, f)
	if len(f[cachedFew])+len(f[firstStart]) > 0 || len(f[binarySize]) > 0 {
		alone(p, f, w)
	}
	p("## How to read it\n\n%s\n", explanation(w))
	if len(notes) > 0 {
		p("\n## Not measured\n\n")
		for _, n := range notes {
			p("- %s\n", n)
		}
	}
	return s.String()
}

// compare writes the table that compares the contestants.
func compare(p func(string, ...any), f figures) {
	p("| | service | bare ReverseProxy | nginx | service / ReverseProxy | service / nginx | only the mock |\n|---|---|---|---|---|---|---|\n")
	for _, row := range []string{chatCPU, chunkCPU, latency50, latency99, throughput, idleStream, chunkRate, chunkAlone} {
		if len(f[row]) == 0 {
			continue
		}
		alone := f.cell(row, direct)
		if alone == "n/a" {
			alone = ""
		}
		p("| %s | %s | %s | %s | %s | %s | %s |\n", row, f.cell(row, service), f.cell(row, reverse), f.cell(row, nginx),
			f.ratio(row, service, reverse), f.ratio(row, service, nginx), alone)
	}
	p("\n")
}

// verdicts lists the targets and whether they were reached.
func verdicts(p func(string, ...any), f figures) {
	p("## Targets\n\n")
	for _, g := range goals {
		got, ok := f.median(g.row, service)
		if g.ratio {
			base, has := f.median(g.row, reverse)
			if ok = ok && has && base > 0; ok {
				got /= base
			}
		}
		verdict := "not measured"
		if ok {
			verdict = fmt.Sprintf("**reached** with %.2f", got)
			if got > g.bound {
				verdict = fmt.Sprintf("**missed** with %.2f", got)
			}
		}
		p("- %s: at most %g %s: %s\n", g.row, g.bound, g.unit, verdict)
	}
	p("\n")
}

// alone writes the figures that only the service has.
func alone(p func(string, ...any), f figures, w work) {
	p("## Only the service\n\n| | |\n|---|---|\n")
	for _, row := range []string{nextStart, firstStart, idleMemory, binarySize} {
		if len(f[row]) > 0 {
			p("| %s | %s |\n", row, f.cell(row, service))
		}
	}
	p("\n")
	if len(f[cachedMany])+len(f[firstMany]) == 0 {
		return
	}
	p("CPU per small chat, µs, by the number of keys in the database:\n\n| | fewer keys | %d keys | ratio |\n|---|---|---|---|\n", w.keys)
	for _, r := range []struct{ title, few, many string }{
		{fmt.Sprintf("always the same key (%d keys)", smallCount), cachedFew, cachedMany},
		{fmt.Sprintf("each key for the first time since the start (%d keys)", w.uses+2), firstSome, firstMany},
	} {
		ratio := "n/a"
		a, ok := f.median(r.few, service)
		b, ok2 := f.median(r.many, service)
		if ok && ok2 && a > 0 {
			ratio = fmt.Sprintf("%.2f", b/a)
		}
		p("| %s | %s | %s | %s |\n", r.title, f.cell(r.few, service), f.cell(r.many, service), ratio)
	}
	p("\n")
}

func explanation(w work) string {
	return fmt.Sprintf(`All contestants run at the same time on 127.0.0.1 in front of one mock Ollama and take turns inside each round. So other load on
the machine affects all of them; trust the ratios more than the digits.

- The service has everything on: a stored key, rate and concurrency limits that count, a slot on the backend, the journal and the
  database, a JSON log line per request in a file.
- The ReverseProxy is Go's httputil.ReverseProxy with nothing added.
- nginx (worker_processes auto, all workers summed) checks the key with a map, has limit_req, writes its access log and keeps
  connections to the mock open.
- CPU is user and system time of the contestant's processes on the kernel's CPU clock, including their work after the last answer.
  The CPU of the load generator and of the mock does not count.
- A small chat is not streamed: %d of them over %d connections, each sending again as soon as it has its answer.
- Chunks are %d streams of %d records 5 ms apart, the first after 50 ms, including their requests. If fewer chunks arrive in a
  separate read, the contestant sent several in one piece, which is cheaper for it.
- Latency is measured at %d requests per second, whether or not answers keep up, from the moment when a request was due. The
  latency of the mock without a proxy in the same round is subtracted; the last column shows it. During the measurement of the p50,
  spinners with idle priority keep the cores awake, because waking a core costs more than a proxy and would hide its cost. The p99 is
  measured without them, because a virtual machine can lose busy cores. A negative value means that the machine had other work.
- Requests per second are over %d connections; load generator, contestant and mock share all cores.
- Idle streams are %d that have had their first record, on a freshly started process: the resident memory with them minus the memory
  before, without the kernel's memory for sockets.`,
		w.chats, w.chatConns, w.streams, w.chunks, w.rate, w.rpsConns, w.idle)
}

// machine describes the machine of the measurement, without its name.
func machine() string {
	model := "an unknown CPU"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		model = cpuModel(string(text))
	}
	kernel := "unknown"
	if text, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		kernel, _, _ = strings.Cut(strings.TrimSpace(string(text)), "-")
	}
	parts := []string{fmt.Sprintf("%s, %d cores", model, runtime.NumCPU()), "Linux " + kernel, runtime.Version()}
	if program, err := nginxProgram(); err == nil {
		if text, err := exec.Command(program, "-v").CombinedOutput(); err == nil {
			if _, version, ok := strings.Cut(strings.TrimSpace(string(text)), "nginx/"); ok {
				parts = append(parts, "nginx "+version)
			}
		}
	}
	return strings.Join(parts, ", ")
}

// cpuModel returns the name of the first processor.
func cpuModel(cpuinfo string) string {
	for line := range strings.Lines(cpuinfo) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return "an unknown CPU"
}
