//go:build linux

// Command attack is a red team: some keys try to harm others, or to get more than they pay for. It measures what eight other keys
// lose by it. Run it with "make attack" or "go run ./attack".
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"ollama-api-service/internal/test/tool"
)

func init() {
	// Children end with the thread that started them (Pdeathsig). This keeps main on the first thread, which ends last.
	runtime.LockOSThread()
}

var errMissed = errors.New("a figure is beyond its bound")

func main() {
	err := attackMain(os.Args[1:], os.Stdout)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "attack:", err)
		os.Exit(1)
	}
}

// options of the command.
type options struct {
	only, ollama, program, logs string
	seconds                     float64
	asJSON, update, list        bool
}

func attackMain(args []string, out io.Writer) error {
	var o options
	f := flag.NewFlagSet("attack", flag.ContinueOnError)
	f.StringVar(&o.only, "only", "", "comma-separated names of attacks, or parts of them (default all)")
	f.StringVar(&o.ollama, "ollama", "fake,real", "in front of which Ollama: fake, real or both")
	f.StringVar(&o.program, "service", "", "binary of the service to attack (default: build it as it is shipped)")
	f.Float64Var(&o.seconds, "scale", 1, "how long each attack lasts, as a part of what is usual, from 0.05 to 20")
	f.StringVar(&o.logs, "logs", "", "directory to keep the gateway's logs of each run with attackers in (default: none)")
	f.BoolVar(&o.asJSON, "json", false, "print the figures as JSON; progress is on standard error")
	f.BoolVar(&o.update, "update", false, "write the table into docs/proof.md")
	f.BoolVar(&o.list, "list", false, "print the attacks and end")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 || o.seconds < 0.05 || o.seconds > 20 {
		return errors.New("usage: attack [-only names] [-ollama fake,real] [-service binary] [-scale 0.05..20] [-logs directory] " +
			"[-json] [-update] [-list]")
	}
	chosen, err := choose(o.only)
	if err != nil {
		return err
	}
	if o.list {
		for _, a := range chosen {
			fmt.Fprintf(out, "%-18s %s\n", a.name, a.what)
		}
		return nil
	}
	root, err := tool.ModuleRoot()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "attack-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	go tool.RemoveOnSignal(dir)
	r := &run{root: root, dir: dir, scale: o.seconds, answer: 12, counts: []int{2, 1}, logs: o.logs, log: os.Stderr}
	if r.program = o.program; r.program == "" {
		if r.program, err = buildService(root, dir); err != nil {
			return err
		}
	} else if r.program, err = filepath.Abs(r.program); err != nil {
		return err
	}
	began := time.Now()
	var results []result
	for _, kind := range strings.Split(o.ollama, ",") {
		some, err := r.all(kind, chosen)
		if err != nil {
			return err
		}
		results = append(results, some...)
	}
	if o.asJSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		err = e.Encode(results)
	} else {
		_, err = io.WriteString(out, fmt.Sprintf("%s\n%s on %d processors\n%s",
			table(results), time.Since(began).Round(time.Second), runtime.NumCPU(), missed(results)))
	}
	if err == nil && o.update {
		err = updateProof(root, results, time.Since(began))
	}
	for _, x := range results {
		if err == nil && len(x.Missed) > 0 {
			err = errMissed
		}
	}
	return err
}
