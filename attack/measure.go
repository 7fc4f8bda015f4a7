//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// The kinds of Ollama.
const (
	fakeOllama = "fake"
	realOllama = "real"
)

// run is one execution of the command.
type run struct {
	root, dir, program string
	logs               string  // directory for the gateway's logs; empty: no logs
	scale              float64 // factor of all load durations
	answer             int     // tokens of a victim's answer
	counts             []int   // numbers of attackers
	log                io.Writer
	quiet              map[string]*bed // beds without attackers, by their settings
}

// result has the figures of one attack.
type result struct {
	Attack    string  `json:"attack"`
	Ollama    string  `json:"ollama"`
	Attackers int     `json:"attackers"`
	Without   served  `json:"without"` // before and after, in total
	Under     served  `json:"with"`
	Kept      float64 `json:"kept"`     // fraction of the throughput without attackers
	Need      float64 `json:"need"`     // 0.95 of the victims' fair share
	KeptCPU   float64 `json:"kept_cpu"` // the same of the answers for a second of Ollama's processor time; 0: it needs none
	Noise     float64 `json:"noise"`    // difference between the two runs without attackers
	P99       float64 `json:"p99_ratio"`

	Bound     time.Duration `json:"bound_ns"` // of a victim's wait, by docs/fairness.md
	Requests  int           `json:"evaluated_requests"`
	Evaluated int           `json:"evaluated_tokens"`
	Booked    int64         `json:"booked_tokens"`
	GPU       float64       `json:"evaluated_gpu_ms"`
	BookedGPU float64       `json:"booked_gpu_ms"`
	Loads     int           `json:"loads"`
	Aborted   int           `json:"loads_aborted"`
	Lost      int           `json:"lost_slots"` // that Ollama has lost for good
	CPU       float64       `json:"cpu"`        // processors that the gateway used
	Peak      int64         `json:"peak_bytes"`
	Sent      int64         `json:"sent"`
	Answered  int64         `json:"answered"`
	Missed    []string      `json:"missed"`
}

// all runs the chosen attacks against one kind of Ollama.
func (r *run) all(kind string, chosen []attack) ([]result, error) {
	r.quiet = map[string]*bed{}
	if kind == realOllama {
		if err := shareProcessors(); err != nil {
			return nil, err
		}
	}
	defer func() {
		for _, b := range r.quiet {
			b.close()
		}
	}()
	var results []result
	for _, a := range chosen {
		if kind == realOllama && !a.real {
			continue
		}
		some, err := r.attack(kind, a)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", a.name, err)
		}
		results = append(results, some...)
	}
	return results, nil
}

// upstream returns a new Ollama of the given kind.
func (r *run) upstream(kind string) (upstream, error) {
	switch kind {
	case fakeOllama:
		return startFake([]string{"work:latest", "cold1:latest", "cold2:latest", "cold3:latest"}, 4, 1, quick)
	case realOllama:
		dir, err := os.MkdirTemp(r.dir, "real-")
		if err != nil {
			return nil, err
		}
		return startReal(r.root, dir)
	default:
		return nil, fmt.Errorf("-ollama: got %q, want fake or real", kind)
	}
}

func (r *run) bed(kind string, a *attack) (*bed, error) {
	o, err := r.upstream(kind)
	if err != nil {
		return nil, err
	}
	b, err := newBed(r, a, o)
	if err != nil {
		o.stop()
	}
	return b, err
}

// attack measures with two attackers and with one. Each is compared with the same run without attackers. Attacks that need little of
// the processor run at the same time, so that a slow moment of this machine is in all figures. The others run one after the other,
// between two runs without attackers.
func (r *run) attack(kind string, a attack) ([]result, error) {
	calm := attack{settings: a.settings, tls: a.tls, found: a.found, padding: a.padding}
	name := fmt.Sprint(calm.settings, calm.tls, calm.found, calm.padding)
	quiet := r.quiet[name]
	if quiet == nil {
		var err error
		if quiet, err = r.bed(kind, &calm); err != nil {
			return nil, err
		}
		r.quiet[name] = quiet
	}
	counts := r.counts
	if kind == realOllama {
		counts = counts[:1] // it is slow on a machine without a GPU
	}
	results, errs := make([]result, len(counts)), make([]error, len(counts))
	var before, after served
	stop := quiet.busy()
	time.Sleep(r.last(time.Second / 2))
	if a.heavy || kind == realOllama {
		before = quiet.window(r.last(a.lasts / 2))
		stop()
		for i, n := range counts {
			results[i], errs[i] = r.under(kind, &a, n)
		}
		stop = quiet.busy()
		time.Sleep(r.last(time.Second / 2))
		after = quiet.window(r.last(a.lasts / 2))
	} else {
		var all sync.WaitGroup
		for i, n := range counts {
			all.Go(func() { results[i], errs[i] = r.under(kind, &a, n) })
		}
		before, after = quiet.window(r.last(a.lasts/2)), quiet.window(r.last(a.lasts/2))
		all.Wait()
	}
	stop()
	for i := range results {
		results[i].compare(&a, before, after)
		fmt.Fprintln(r.log, line(&results[i]))
	}
	return results, errors.Join(errs...)
}

func (r *run) last(d time.Duration) time.Duration { return time.Duration(float64(d) * r.scale) }

// under measures a window with n attackers, with a gateway and an Ollama of its own. Otherwise, one attack would change the figures
// of the next.
func (r *run) under(kind string, a *attack, n int) (result, error) {
	x := result{Attack: a.name, Ollama: kind, Attackers: n}
	b, err := r.bed(kind, a)
	if err != nil {
		return x, err
	}
	defer b.close()
	var keys []string
	for i := range n {
		key, err := b.newKey(fmt.Sprint("attacker ", i), a.key)
		if err != nil {
			return x, err
		}
		keys = append(keys, key)
	}
	if a.prepare != nil {
		a.prepare()
	}
	stop := b.busy()
	time.Sleep(r.last(time.Second))
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	var attackers []*attacker
	for i, key := range keys {
		at := newAttacker(b, key, i)
		attackers = append(attackers, at)
		all.Go(func() { a.run(ctx, at) })
	}
	time.Sleep(r.last(2 * time.Second)) // before that, the gateway does not know how long the attackers' requests take
	cpu := b.cpu()
	x.Under = b.window(r.last(a.lasts))
	x.CPU = (b.cpu() - cpu).Seconds() / r.last(a.lasts).Seconds()
	x.Peak = b.memory("VmHWM")
	victims := b.backend.books(victimMark)
	cancel()
	all.Wait()
	stop()
	for _, at := range attackers {
		at.close()
		x.Sent += at.sent.Load()
		x.Answered += at.answered.Load()
	}
	if !b.alive() {
		x.Missed = append(x.Missed, ended)
		return x, nil
	}
	if err := x.settle(b, keys); err != nil {
		return x, err
	}
	attacks := b.backend.books(attackerMark)
	x.Requests, x.Evaluated, x.GPU = attacks.requests, attacks.tokens, ms(attacks.gpu)
	if err := r.keepLog(b, &x); err != nil {
		return x, err
	}
	x.Loads, x.Aborted = b.backend.loadsEnded()
	x.Lost = b.backend.lostSlots()
	x.Bound = bound(max(victims.longest, attacks.longest), victimCount+n, a.queues)
	return x, nil
}

// keepLog copies the gateway's log.
func (r *run) keepLog(b *bed, x *result) error {
	if r.logs == "" {
		return nil
	}
	text, err := os.ReadFile(filepath.Join(b.dir, "log"))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(r.logs, fmt.Sprintf("%s-%s-%d.log", x.Ollama, x.Attack, x.Attackers)), text, 0o600)
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// settle reads the books of the attackers after their last request has been booked.
func (x *result) settle(b *bed, keys []string) error {
	last := used{Requests: -1}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		var sum used
		for _, key := range keys {
			u, err := b.used(key)
			if err != nil {
				return err
			}
			sum.Requests += u.Requests
			sum.Prompt += u.Prompt
			sum.Completion += u.Completion
			sum.GPU += u.GPU
		}
		if sum == last || time.Now().After(end) {
			x.Booked, x.BookedGPU = sum.Prompt+sum.Completion, sum.GPU
			return nil
		}
		last = sum
	}
}

// bound is W of docs/fairness.md for keys of equal weight. T is the longest time that a request was in Ollama in this run.
func bound(hold time.Duration, keys, queues int) time.Duration {
	const s, p = 4, inFlight - 1
	t := hold.Seconds()
	w := t + (float64(keys-1)*(s+p+1)*t+p*t)/s
	if queues > 1 {
		l := quick.load.Seconds()
		stint := 16 * (l + t/2)
		w = float64(queues) * (stint + l + t) * math.Ceil(1+w/stint)
	}
	return time.Duration(w * float64(time.Second))
}

const ended = "the service has ended"

// minAnswers is the least number of answers in a window without attackers that is enough to compare with.
const minAnswers = 15

// compare compares the figures with those of the two runs without attackers around them.
func (x *result) compare(a *attack, before, after served) {
	x.Without = served{
		PerSecond: (before.PerSecond + after.PerSecond) / 2, P99: (before.P99 + after.P99) / 2,
		LongestWait: max(before.LongestWait, after.LongestWait), Failures: before.Failures + after.Failures,
		Answers: before.Answers + after.Answers, CPU: before.CPU + after.CPU,
	}
	weight := a.weight
	if weight == 0 {
		weight = 1
	}
	x.Need = 0.95 * victimCount / (victimCount + weight*float64(x.Attackers))
	if before.Answers < minAnswers || after.Answers < minAnswers {
		x.Missed = append(x.Missed, fmt.Sprintf("only %d and %d answers without attackers: too few to compare with", before.Answers, after.Answers))
		return
	}
	x.Noise = math.Abs(before.PerSecond-after.PerSecond) / x.Without.PerSecond
	x.Kept = x.Under.PerSecond / x.Without.PerSecond
	if x.Under.CPU > 0 && x.Without.CPU > 0 {
		x.KeptCPU = float64(x.Under.Answers) / x.Under.CPU.Seconds() / (float64(x.Without.Answers) / x.Without.CPU.Seconds())
	}
	x.P99 = x.Under.P99.Seconds() / x.Without.P99.Seconds()
	miss := func(format string, args ...any) { x.Missed = append(x.Missed, fmt.Sprintf(format, args...)) }
	if x.Kept < x.Need {
		miss("victims keep %.2f, want %.2f", x.Kept, x.Need)
	}
	if x.Under.LongestWait > x.Bound {
		miss("a victim waited for %v, want at most %v", x.Under.LongestWait, x.Bound)
	}
	if x.Under.Failures > 0 {
		miss("%d requests of victims failed (%s)", x.Under.Failures, x.Under.Failure)
	}
	if x.Sent == 0 {
		miss("the attackers sent nothing")
	}
	if float64(x.Booked) < 0.95*float64(x.Evaluated) {
		miss("%d tokens booked of %d evaluated", x.Booked, x.Evaluated)
	}
	if x.Lost > 0 {
		miss("%d of %d slots of the model were lost", x.Lost, realSlots)
	}
	if a.memory > 0 && x.Peak > a.memory {
		miss("a peak of %d MB, want at most %d MB", x.Peak/1_000_000, a.memory/1_000_000)
	}
}
