package e2e

import (
	"flag"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var fits = flag.Int("fits", 1, "how often TestTheModelOfABackend repeats its runs")

// TestTheModelOfABackend fits the simulator's model of a backend (internal/sched) to a real one, and prints the error. In the model, a
// request takes a time for each token of its prompt and its answer, and a fraction longer for each other running request.
func TestTheModelOfABackend(t *testing.T) {
	call(t, "POST", ollamaURL+"/api/create", "", `{"model":"fitted","from":"tiny","parameters":{"num_thread":1,"num_ctx":2048},"stream":false}`).want(t, http.StatusOK)
	defer func() {
		call(t, "DELETE", ollamaURL+"/api/delete", "", `{"model":"fitted"}`).want(t, http.StatusOK)
	}()
	var mu sync.Mutex
	type run struct{ prompt, output, others, seconds float64 }
	var runs []run
	one := func(words, tokens, others, salt int) {
		body := fmt.Sprintf(`{"model":"fitted","prompt":%q,"stream":false,"raw":true,"options":{"num_predict":%d}}`,
			fmt.Sprint(salt, " ", strings.Repeat("once upon a time ", words/4)), tokens) // the number makes the prompt differ from cached ones
		from := time.Now()
		var a struct {
			Prompt float64 `json:"prompt_eval_count"`
			Output float64 `json:"eval_count"`
		}
		call(t, "POST", ollamaURL+"/api/generate", "", body).want(t, http.StatusOK).decode(t, &a)
		mu.Lock()
		defer mu.Unlock()
		runs = append(runs, run{a.Prompt, a.Output, float64(others), time.Since(from).Seconds()})
	}
	one(4, 4, 0, 0)
	runs = nil
	salt := 1
	for range *fits {
		for _, words := range []int{4, 100, 400} {
			for _, tokens := range []int{4, 20, 60} {
				one(words, tokens, 0, salt)
				salt++
			}
		}
	}
	alone := len(runs)
	for range *fits {
		for _, words := range []int{4, 100, 400} {
			var all sync.WaitGroup
			for range 4 {
				salt++
				own := salt
				all.Go(func() { one(words, 30, 3, own) })
			}
			all.Wait()
		}
	}
	// First least squares of the relative error over single requests, then the slowdown of concurrent ones.
	var pp, po, oo, p1, o1 float64
	for _, r := range runs[:alone] {
		p, o := r.prompt/r.seconds, r.output/r.seconds
		pp, po, oo, p1, o1 = pp+p*p, po+p*o, oo+o*o, p1+p, o1+o
	}
	det := pp*oo - po*po
	perPrompt, perOutput := (p1*oo-o1*po)/det, (o1*pp-p1*po)/det
	slowing := 0.0
	for _, r := range runs[alone:] {
		slowing += (r.seconds/(r.prompt*perPrompt+r.output*perOutput) - 1) / r.others / float64(len(runs)-alone)
	}
	var off []float64
	for _, r := range runs {
		off = append(off, math.Abs((r.prompt*perPrompt+r.output*perOutput)*(1+slowing*r.others)/r.seconds-1))
	}
	slices.Sort(off)
	t.Logf("%d runs: %.3f ms per token of the prompt, %.3f ms per token of the answer, %.2f longer for each other that runs; off by %.0f %% in the median, %.0f %% at the 90th percentile",
		len(runs), perPrompt*1000, perOutput*1000, slowing, 100*off[len(off)/2], 100*off[len(off)*9/10])
	if !(perOutput > 0) || math.IsNaN(perPrompt) || len(runs) != *fits*(9+12) {
		t.Error("nothing was fitted")
	}
}
