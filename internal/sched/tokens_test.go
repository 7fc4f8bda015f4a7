package sched

import (
	"testing"
	"testing/synctest"
	"time"
)

// What a request is booked that its client has left, by what is known of the prompts of its key.
func TestAPromptIsExpectedAsItsKeysPromptsWere(t *testing.T) {
	long := Prompt{Estimate: 250, Likely: 300, Text: 1000, Most: 1020, Unknown: 1020}
	learned := func(payer string, tokens ...int64) func(*modelState) {
		return func(st *modelState) {
			for _, n := range tokens {
				st.learn(payer, counted{Prompt: long, prompt: n}, time.Time{})
			}
		}
	}
	for name, c := range map[string]struct {
		before      func(*modelState)
		least, most int64
	}{
		"nothing is known: each byte":              {func(*modelState) {}, 1020, 1020},
		"it reads ordinary text":                   {learned("it", 290), 300, 350},
		"it reads what is cheaper":                 {learned("it", 100), 300, 350},
		"its text is twice as dense":               {learned("it", 600), 600, 700},
		"each character is a token":                {learned("it", 1000), 1000, 1030},
		"two others have nothing to say":           {func(st *modelState) { learned("a", 290)(st); learned("b", 290)(st) }, 1020, 1020},
		"three others have":                        {func(st *modelState) { learned("a", 290)(st); learned("b", 290)(st); learned("c", 290)(st) }, 300, 350},
		"others are dense, it is not":              {func(st *modelState) { learned("a", 990)(st); learned("it", 290)(st) }, 300, 350},
		"one dense prompt is forgotten":            {learned("it", append([]int64{900}, make30(290)...)...), 300, 380},
		"a cut prompt says nothing of each byte":   {learned("it", 1000, 256, 256, 256), 900, 1030},
		"the template has 2,000 tokens of its own": {learned("it", 2300), 2300, 2900},
	} {
		st := &modelState{}
		c.before(st)
		if got := st.expect("it", long); got < c.least || got > c.most {
			t.Errorf("%s: got %d tokens, want %d to %d", name, got, c.least, c.most)
		}
	}
	crowded := &modelState{}
	for i := range 10 * maxOwn {
		crowded.learn(string(rune(i+1)), counted{Prompt: long, prompt: 290}, time.Time{})
	}
	if len(crowded.own) > maxOwn {
		t.Errorf("%d payers are remembered, want at most %d", len(crowded.own), maxOwn)
	}
}

func make30(n int64) []int64 {
	list := make([]int64, 30)
	for i := range list {
		list[i] = n
	}
	return list
}

// A model whose speed was not measured is taken for the fastest, where no piece of its answer has shown more.
func TestASilentAnswerOfAnUnknownModelCosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Scheduler{}
		l := &Lease{sched: s, model: &modelState{}, payer: &payerState{name: "it"}, taken: time.Now()}
		time.Sleep(50 * time.Millisecond)
		if _, answer := l.Expected(Prompt{}, true); answer != 50 {
			t.Errorf("50 ms of silence: got %d tokens, want 50", answer)
		}
		if _, answer := l.Expected(Prompt{}, false); answer != 0 {
			t.Errorf("50 ms with pieces: got %d tokens besides, want 0", answer)
		}
	})
}
