//go:build linux

package main

import (
	"cmp"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
)

// report returns the text of RESULTS.md without the sections about the books.
func report(b *bench, machine string, rounds int, reasons map[string]string) string {
	var s strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&s, format, args...) }
	f := b.figures
	p("# Benchmark results\n\nMeasured by `make bench` on %s.\nEach figure is the median of %d rounds or fewer.\n\n", machine, rounds)
	compare(p, f, f.cell, true)
	verdicts(p, f, b.endured)
	enduredReport(p, b.endured)
	regressions(p, f, b.commit, reasons)
	if len(f[cachedFew])+len(f[firstStart]) > 0 || len(f[binarySize]) > 0 {
		alone(p, f, b.work)
	}
	p("## How to read it\n\n%s\n\n", explanation(b.work))
	if rounds > 1 {
		p("## Lowest and highest round\n\n")
		compare(p, f, f.spread, false)
	}
	if len(b.notes) > 0 {
		p("## Not measured\n\n")
		for _, n := range b.notes {
			p("- %s\n", n)
		}
	}
	return s.String()
}

// compare writes a table that compares the contestants, with ratios if wanted.
func compare(p func(string, ...any), f figures, cell func(row, name string) string, ratios bool) {
	titles := map[string]string{reverse: "bare ReverseProxy", direct: "only the mock"}
	var names []string
	for _, name := range slices.Concat(allContestants, []string{oneAPI, portkey, direct}) {
		for _, row := range compared() {
			if len(f[row][name]) > 0 && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	head := []string{""}
	for _, name := range names {
		head = append(head, cmp.Or(titles[name], name))
	}
	over := []string{reverse, nginx, before}
	if ratios {
		for _, name := range over {
			head = append(head, "service / "+name)
		}
	}
	p("| %s |\n|%s\n", strings.Join(head, " | "), strings.Repeat("---|", len(head)))
	for _, row := range compared() {
		if len(f[row]) == 0 {
			continue
		}
		cells := []string{row}
		for _, name := range names {
			cells = append(cells, cell(row, name))
		}
		for _, name := range over {
			if ratios {
				cells = append(cells, f.ratio(row, service, name))
			}
		}
		p("| %s |\n", strings.Join(cells, " | "))
	}
	p("\n")
}

// alone writes the figures that only the service has.
func alone(p func(string, ...any), f figures, w work) {
	p("## Only the service\n\n| | |\n|---|---|\n")
	for _, row := range []string{nextStart, firstStart, idleMemory, binarySize} {
		if len(f[row]) > 0 {
			p("| %s | %s |\n", row, f.withSpread(row, service))
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
		p("| %s | %s | %s | %s |\n", r.title, f.withSpread(r.few, service), f.withSpread(r.many, service), ratio)
	}
	p("\n")
}

func explanation(w work) string {
	return fmt.Sprintf(`All contestants run at the same time on 127.0.0.1 in front of one mock Ollama and take turns inside each round. So other load on
the machine affects all of them; trust the ratios more than the digits.

- The service has everything on: a stored key, rate and concurrency limits that count, a slot on the backend, the journal and the
  database, a JSON log line per request in a file. “before” is the same with the service built from the commit before (-before).
- The ReverseProxy is Go's httputil.ReverseProxy with nothing added.
- nginx (worker_processes auto) checks the key with a map, has limit_req, writes its access log and keeps connections to the mock open.
  haproxy checks the key with a map file, counts in a stick table and writes a log line. Caddy checks the key with a map and writes a JSON
  log line; it has no rate limit of its own. None of them buffers.
- CPU is user and system time of all of a contestant's processes on the kernel's CPU clock, including their work after the last answer.
  The CPU of the load generator and of the mock does not count.
- A small chat is not streamed: %d of them over %d connections, each sending again as soon as it has its answer. With 1,000 keys, each
  request has the next key. Under load, one thread for each core spins at normal priority meanwhile and walks through %d MiB of memory, so
  the kernel takes cores from the contestant, and the caches are those of a machine with other work.
- Chunks are %d streams of %d records 5 ms apart, the first after 50 ms, including their requests. If fewer chunks arrive in a
  separate read, the contestant sent several in one piece, which is cheaper for it.
- The first byte is measured with small chats at %d requests per second, whether or not answers keep up, from the moment when a request was
  due. The time of the mock without a proxy in the same round is subtracted; the last column shows it. During the measurement of the p50,
  spinners with idle priority keep the cores awake, because waking a core costs more than a proxy and would hide its cost. The p99 is
  measured without them, because a virtual machine can lose busy cores. A negative value means that the machine had other work.
- Requests per second are over %d connections; load generator, contestant and mock share all cores.
- Idle streams are %d that have had their first record, on a freshly started process: the resident memory with them minus the memory
  before, without the kernel's memory for sockets.
- Streams that are open at the same time are %d with a record each 250 ms and then %d with one each 500 ms, on a freshly started process. A
  record says when the mock sent it, and its delay is its age when the load generator has read it. If fewer chunks a second arrive than
  sent, the cores do not suffice. An error is a stream that does not begin or that ends.
- The sustained load is small chats over %d connections for %v with each number of keys, each connection sending again as soon as it has its
  answer. 503 are requests that the service refused because its journal was full. Rows lost are answered requests without a row after
  the journal was empty and the service had stopped. The CPU is all that the service used from the first request until its books were
  written, divided by the answered requests; with most keys, until after the minute in which the load ended.
- Large bodies go to a freshly started process that has answered 200 small chats. Memory is the highest resident memory during the first
  request minus the memory before; a body of 20 MB is 19.1 MiB. CPU and time are the mean of %d images and %d prompts, one after another.`,
		w.chats, w.chatConns, busySize>>20, w.streams, w.chunks, w.rate, w.rpsConns, w.idle, w.steady, 2*w.steady, w.rpsConns, w.endure, w.images, w.prompts)
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
	for _, o := range []otherProxy{nginxProxy, haproxyProxy, caddyProxy} {
		if version := o.version(); version != "" {
			parts = append(parts, o.name+" "+version)
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
