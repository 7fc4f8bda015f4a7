//go:build linux

// Command bench compares this service with the one of the commit before and with other proxies, all in front of one mock Ollama, in
// one run on one machine, and writes bench/RESULTS.md. Run it with "make bench" or "go run ./bench".
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

// run is a subcommand, which the harness starts as its own children, or the benchmark itself.
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
	if len(args) == 2 && args[0] == "busy" {
		return keepBusy(args[1])
	}
	root, err := tool.ModuleRoot()
	if err != nil {
		return err
	}
	o, err := readOptions(args, root)
	if err != nil {
		return err
	}
	return measure(root, o)
}

// options are the arguments of a run.
type options struct {
	rounds      int
	limit       time.Duration // after which no further round begins
	work        work
	parts       []part
	contestants []string
	before      string // revision; empty for none
	rows        int
	books       string
	service     string
	peers       bool
	out         string
}

func readOptions(args []string, root string) (o options, err error) {
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.IntVar(&o.rounds, "rounds", 3, "rounds; each figure is the median over them")
	f.DurationVar(&o.limit, "limit", 18*time.Minute, "time after which only the first round is completed")
	quick := f.Bool("quick", false, "one round of a tenth of the work: shows that the benchmark runs, but the figures mean little")
	only := f.String("only", strings.Join(partNames(), ","), "comma-separated parts to measure")
	with := f.String("contestants", strings.Join(allContestants, ","), "comma-separated contestants to measure")
	f.StringVar(&o.before, "before", "HEAD~1", "commit before, whose service is measured too; empty for none")
	sustained := f.Duration("sustained", fullWork.endure, "time of the sustained load, for each number of keys")
	f.IntVar(&o.rows, "rows", 500_000, "rows of the books for the statistics queries")
	f.StringVar(&o.books, "books", "", "directory that keeps these books for the next run (default: none)")
	f.StringVar(&o.service, "service", "", "binary of the service to measure (default: build it as for a release)")
	f.BoolVar(&o.peers, "peers", false, "compare with other gateways for models instead, and write bench/PEERS.md")
	f.StringVar(&o.out, "out", "", "file for the results (default bench/RESULTS.md for a whole run, none with -quick, -only or -contestants)")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 || o.rounds < 1 || o.rounds > 100 || o.rows < 100_000 {
		return o, errors.New("arguments without a flag, -rounds outside of 1..100, or -rows below 100000; -help lists the flags")
	}
	o.work = fullWork
	o.work.endure = *sustained
	if *quick {
		o.work, o.rounds = quickWork, 1
	}
	for _, name := range strings.Split(*only, ",") {
		i := slices.Index(partNames(), name)
		if i < 0 {
			return o, fmt.Errorf("-only: %q is not one of %s", name, strings.Join(partNames(), ", "))
		}
		o.parts = append(o.parts, parts[i])
	}
	o.contestants = strings.Split(*with, ",")
	for _, name := range o.contestants {
		if !slices.Contains(allContestants, name) {
			return o, fmt.Errorf("-contestants: %q is not one of %s", name, strings.Join(allContestants, ", "))
		}
	}
	if o.peers {
		o.parts, o.contestants, o.before = parts[:4], []string{service, reverse}, ""
		o.work.rate = 50 // not all of them answer hundreds a second
		if o.out == "" && !*quick {
			o.out = filepath.Join(root, "bench", "PEERS.md")
		}
		return o, nil
	}
	if o.out == "" && !*quick && len(o.parts) == len(parts) && len(o.contestants) == len(allContestants) {
		o.out = filepath.Join(root, "bench", "RESULTS.md")
	}
	if o.service != "" {
		o.service, err = filepath.Abs(o.service)
	}
	return o, err
}

// measure starts the contestants, runs the rounds, prints the tables and writes them to o.out if it is not empty.
func measure(root string, o options) error {
	reasons, err := readReasons(filepath.Join(root, "bench", "reasons.txt"))
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	go tool.RemoveOnSignal(dir)
	b, err := newBench(root, dir, o)
	if err != nil {
		return err
	}
	defer b.close()
	b.rounds(o.parts, o.rounds, o.limit)
	if o.peers {
		text := peersReport(b, machine(), o.rounds)
		fmt.Print("\n" + text)
		if o.out == "" {
			return nil
		}
		return os.WriteFile(o.out, []byte(text), 0o644)
	}
	text := report(b, machine(), o.rounds, reasons)
	if b.booked != nil {
		text += b.booked.report(machine())
	}
	fmt.Print("\n" + text)
	if o.out != "" {
		if err := write(o.out, text, b.booked, len(o.parts) == 1); err != nil {
			return err
		}
	}
	if b.failed {
		return errors.New("some figures could not be measured; the notes above name them")
	}
	return nil
}

// write writes the results to a file and keeps its sections about books of other sizes. If only the books were measured, it keeps all else.
func write(file, text string, booked *booked, onlyBooks bool) error {
	old, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if onlyBooks && booked != nil {
		text = string(old) + booked.report(machine())
	}
	return os.WriteFile(file, []byte(keepBooks(string(old), text)), 0o644)
}
