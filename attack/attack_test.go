//go:build linux

package main

import (
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Each attack runs for a moment against the program, so that it keeps working. The test checks no times: "make attack" measures
// them.
func TestAttacksRun(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: make test runs it")
	}
	dir := t.TempDir()
	program, err := buildService("..", dir)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for some := range slices.Chunk(attacks, (len(attacks)+3)/4) { // they wait most of the time
		all.Go(func() {
			r := &run{root: "..", dir: dir, program: program, scale: 0.05, answer: 2, counts: []int{2}, log: io.Discard}
			results, err := r.all(fakeOllama, some)
			if err != nil || len(results) != len(some) {
				t.Errorf("got %d results of %d attacks, error %v", len(results), len(some), err)
				return
			}
			for i, x := range results {
				if x.Attack != some[i].name || x.Sent == 0 {
					t.Errorf("%s: got %s with %d requests sent, want this attack with at least one", some[i].name, x.Attack, x.Sent)
				}
				if slices.Contains(x.Missed, ended) {
					t.Errorf("%s: %s", x.Attack, ended)
				}
			}
		})
	}
	all.Wait()
}

// compare misses each figure that is beyond its bound, and no other.
func TestFiguresThatAreMissed(t *testing.T) {
	calm := served{Answers: 100, PerSecond: 30, P99: time.Second}
	good := result{
		Attackers: 2, Sent: 1, Under: served{PerSecond: 23, P99: time.Second, LongestWait: time.Second}, Bound: 2 * time.Second,
		Booked: 95, Evaluated: 100, Peak: 1,
	}
	for name, c := range map[string]struct {
		change func(x *result)
		want   string
	}{
		"nothing":            {func(*result) {}, ""},
		"throughput":         {func(x *result) { x.Under.PerSecond = 22 }, "victims keep 0.73, want 0.76"},
		"throughput of one":  {func(x *result) { x.Attackers, x.Under.PerSecond = 1, 25 }, "victims keep 0.83, want 0.84"},
		"wait":               {func(x *result) { x.Under.LongestWait = 3 * time.Second }, "waited for 3s"},
		"failures":           {func(x *result) { x.Under.Failures, x.Under.Failure = 2, "503" }, "2 requests of victims failed (503)"},
		"tokens":             {func(x *result) { x.Booked = 94 }, "94 tokens booked of 100"},
		"memory":             {func(x *result) { x.Peak = 101 }, "a peak"},
		"no attack was made": {func(x *result) { x.Sent = 0 }, "sent nothing"},
	} {
		x := good
		c.change(&x)
		x.compare(&attack{memory: 100}, calm, calm)
		got := strings.Join(x.Missed, "; ")
		if (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: got the missed figures %q, want %q", name, got, c.want)
		}
	}
	x := good
	x.compare(&attack{}, served{Answers: 3, PerSecond: 1}, calm)
	if len(x.Missed) == 0 {
		t.Error("got no missed figure with too few answers to compare with, want one")
	}
}

func TestSectionOfTheProof(t *testing.T) {
	text := "# Proof\n<!-- bad input -->\n| B1 |\n<!-- end of bad input -->\n" + proofBegins + "old\n" + proofEnds + "\nrest\n"
	held, bad := result{Attack: "held-one"}, result{Attack: "bad-one", Missed: []string{"victims keep less"}}
	got, err := withSection(text, []result{held, bad}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| B1 |\n", "`held-one`", "- `bad-one`, , 0 attackers: victims keep less\n", proofEnds + "\nrest\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("got\n%s\nwant %q in it", got, want)
		}
	}
	if strings.Contains(got, "old") {
		t.Errorf("got the old table, want it replaced:\n%s", got)
	}
	if _, err := withSection("nothing", nil, 0); err == nil {
		t.Error("got no error without a place for the table, want one")
	}
}

func TestChoose(t *testing.T) {
	some, err := choose("batch,heavy")
	if err != nil || len(some) != 4 { // batch, batch-long, queue-batch, heavy
		t.Errorf("got %d attacks, error %v; want 4", len(some), err)
	}
	if _, err := choose("nothing-like-that"); err == nil {
		t.Error("got no error for an unknown attack, want one")
	}
	seen := map[string]bool{}
	for _, a := range attacks {
		if seen[a.name] || a.what == "" || a.lasts == 0 {
			t.Errorf("%q is a duplicate, or has no description or duration", a.name)
		}
		seen[a.name] = true
	}
}

// The scripted Ollama is a model of time: its reports and its answers agree with what it counts.
func TestTheScriptedOllama(t *testing.T) {
	o, err := startFake([]string{"work:latest"}, 4, 1, quick)
	if err != nil {
		t.Fatal(err)
	}
	defer o.stop()
	g := &gateway{url: o.url}
	c := &attacker{bed: &bed{gateway: g}, key: "x"}
	c.client = newAttacker(c.bed, "x", 0).client
	defer c.close()
	c.ask(t.Context(), generate, prompt(attackerMark, "work", 5, ""), time.Minute)
	c.ask(t.Context(), "/api/chat", toolBody(6), time.Minute)
	third := `{"model":"work","stream":true,"max_tokens":7,"messages":[{"role":"user","content":"attacker"}]}`
	c.ask(t.Context(), "/v1/chat/completions", third, time.Minute)
	if c.answered.Load() != 3 {
		t.Fatalf("got %d answers, want 3", c.answered.Load())
	}
	got := o.books(attackerMark)
	first := asked{Prompt: "the attacker asks"}
	if got.requests != 3 || got.tokens <= 5+6+7+first.tokens() || got.gpu == 0 {
		t.Errorf("got %d requests with %d tokens in %v of the GPU", got.requests, got.tokens, got.gpu)
	}
	if ended, aborted := o.loadsEnded(); ended != 1 || aborted != 0 {
		t.Errorf("got %d loads, %d cancelled; want 1 and 0", ended, aborted)
	}
	if o.books(attackerMark).requests != 0 {
		t.Error("the books have entries after they were read, want none")
	}
}
