//go:build linux

// Command bench compares this service with a plain httputil.ReverseProxy and with nginx, all in front of one mock Ollama, in one
// run on one machine, and writes bench/RESULTS.md. Run it with "make bench" or "go run ./bench".
package main

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"ollama-api-service/internal/test/tool"
)

// parts are the measurements that -only chooses from, in the order in which they run.
var parts = []string{"cpu", "chunk", "latency", "rps", "idle", "start", "keys", "books"}

func init() {
	// Children end with the thread that started them (Pdeathsig): this keeps main on the first thread, which lives to the end.
	runtime.LockOSThread()
}

func main() {
	err := run(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 2 && args[0] == "mock" {
		return serveMock(args[1])
	}
	if len(args) == 2 && args[0] == "reverseproxy" {
		return serveReverseProxy(args[1])
	}
	if len(args) == 1 && args[0] == "awake" {
		return keepAwake()
	}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	rounds := f.Int("rounds", 5, "rounds; each figure is the median over them")
	quick := f.Bool("quick", false, "two rounds of a tenth of the work: shows that the benchmark runs, but the figures mean little")
	only := f.String("only", "", "comma-separated parts to measure: "+strings.Join(parts, ",")+" (default all)")
	rows := f.Int("rows", 500_000, "rows of the books for the statistics queries")
	dir := f.String("books", "", "directory that keeps these books for the next run (default: none)")
	program := f.String("service", "", "binary of the service to measure (default: build it as for a release)")
	out := f.String("out", "", "file for the results (default bench/RESULTS.md for a whole run, none with -quick or -only)")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 || *rounds < 1 || *rounds > 100 || *rows < 100_000 {
		return errors.New("usage: bench [-rounds 1..100] [-quick] [-only parts] [-rows 100000..] [-books directory] [-service binary] [-out file]")
	}
	chosen := parts
	if *only != "" {
		chosen = strings.Split(*only, ",")
	}
	for _, p := range chosen {
		if !slices.Contains(parts, p) {
			return fmt.Errorf("-only: %q is not one of %s", p, strings.Join(parts, ", "))
		}
	}
	root, err := tool.ModuleRoot()
	if err != nil {
		return err
	}
	if *out == "" && !*quick && *only == "" {
		*out = filepath.Join(root, "bench", "RESULTS.md")
	}
	w := fullWork
	if *quick {
		w, *rounds = quickWork, min(*rounds, 2)
	}
	if *program != "" {
		if *program, err = filepath.Abs(*program); err != nil {
			return err
		}
	}
	return measure(root, *program, *out, chosen, *rounds, w, *rows, *dir)
}

// measure starts the contestants, runs the rounds, prints the table and writes it to out if out is not empty.
func measure(root, program, out string, chosen []string, rounds int, w work, rows int, books string) error {
	dir, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	go tool.RemoveOnSignal(dir)
	b, err := newBench(root, program, dir, w)
	if err != nil {
		return err
	}
	defer b.close()
	begin := time.Now()
	for i := range rounds {
		fmt.Printf("round %d of %d (%s so far)\n", i+1, rounds, time.Since(begin).Round(time.Second))
		for _, part := range chosen {
			b.part(part, i)
		}
	}
	if slices.Contains(chosen, "books") && b.program != "" {
		if b.booked, err = b.books(rows, books); err != nil {
			b.note(service, fmt.Errorf("books: %w", err))
		}
	}
	text := report(b.figures, b.notes, machine(), rounds, w)
	if b.booked != nil {
		text += b.booked.report(machine())
	}
	fmt.Print("\n" + text)
	if out != "" {
		before, err := os.ReadFile(out)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if len(chosen) == 1 && b.booked != nil {
			text = string(before) + b.booked.report(machine()) // the rest stays
		}
		if err := os.WriteFile(out, []byte(keepBooks(string(before), text)), 0o644); err != nil {
			return err
		}
	}
	if b.failed {
		return errors.New("some figures could not be measured; the notes above name them")
	}
	return nil
}
