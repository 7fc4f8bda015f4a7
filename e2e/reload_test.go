package e2e

import (
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"
)

// On a real Ollama, one key that alternates num_ctx below the model's own has it loaded again for each request when it asks Ollama itself,
// and never through the gateway. Above it, each is a load that the gateway does and that only this key pays for.
func TestOneKeyThatAlternatesNumCtx(t *testing.T) {
	const rounds = 4
	ask := func(i int, options string) string {
		return fmt.Sprintf(`{"model":"tiny","prompt":"the sea %d","stream":false,"options":{"num_predict":4%s}}`, i, options)
	}
	loaded := func(a answer) time.Duration {
		t.Helper()
		ns, _ := a.want(t, http.StatusOK).object(t)["load_duration"].(float64)
		return time.Duration(ns)
	}
	var direct, through, above time.Duration
	call(t, "POST", ollamaURL+"/api/generate", "", ask(0, "")).want(t, http.StatusOK)
	for i := range rounds {
		direct += loaded(call(t, "POST", ollamaURL+"/api/generate", "", ask(i, fmt.Sprintf(`,"num_ctx":%d`, 256+i))))
		direct += loaded(call(t, "POST", ollamaURL+"/api/generate", "", ask(i, "")))
	}
	s := serve(t)
	victim, attacker := s.makeKey(t, ""), s.makeKey(t, "")
	for i := range rounds {
		a := call(t, "POST", s.URL+"/api/generate", attacker.Secret, ask(i, fmt.Sprintf(`,"num_ctx":%d`, 256+i)))
		through += loaded(a)
		if got := a.Header.Get("X-Policy"); got != "num_ctx dropped" {
			t.Errorf("X-Policy is %q, want num_ctx dropped", got)
		}
		through += loaded(call(t, "POST", s.URL+"/api/generate", victim.Secret, ask(i, "")))
	}
	t.Logf("%d requests, every second with another num_ctx: Ollama takes %v to have the model ready, and %v through the gateway", 2*rounds, direct, through)
	if through > direct/4 {
		t.Errorf("through the gateway Ollama takes %v to have the model ready, and %v without it: want at most a fourth", through, direct)
	}
	began := time.Now()
	above += loaded(call(t, "POST", s.URL+"/api/generate", attacker.Secret, ask(0, `,"num_ctx":1024`)))
	back := loaded(call(t, "POST", s.URL+"/api/generate", victim.Secret, ask(0, "")))
	above += back
	t.Logf("a larger num_ctx and back took %v, of which Ollama saw %v behind the gateway's own loads", time.Since(began), above)
	if above > direct/rounds {
		t.Errorf("two changes that the gateway makes leave %v of loads to the requests, want at most %v", above, direct/rounds)
	}
	for _, r := range s.rows(t, victim.Preview, rounds+1)[:1] {
		// On a busy machine Ollama itself still takes a moment after the gateway's load.
		if most := r.SlotMS - r.LoadingMS + back.Seconds()*1000 + 5; r.LoadingMS <= 0 || *r.GPUMS > most {
			t.Errorf("the request behind the change back is booked %.0f ms, want at most the %.0f for which it ran behind a load of %.0f", *r.GPUMS, most, r.LoadingMS)
		}
	}
}

// On a real Ollama, a model is thrown out past the gateway: of the requests that find it so, the first one is booked the load.
func TestAModelThatIsThrownOutPastTheGateway(t *testing.T) {
	s := start(t, t.TempDir(), ollamaURL+"?slots=4", nil)
	key := s.makeKey(t, `,"rate_limit":null`)
	const body = `{"model":"tiny","prompt":"the sea","stream":false,"options":{"num_predict":16}}`
	for range 2 {
		call(t, "POST", s.URL+"/api/generate", key.Secret, body).want(t, http.StatusOK)
	}
	call(t, "POST", ollamaURL+"/api/generate", "", `{"model":"tiny","keep_alive":0}`).want(t, http.StatusOK)
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			if a, err := tryCall(t.Context(), "POST", s.URL+"/api/generate", key.Secret, body); err != nil || a.Status != http.StatusOK {
				t.Errorf("%d, %v", a.Status, err)
			}
		})
	}
	all.Wait()
	var booked int
	for _, r := range s.rows(t, key.Preview, 5)[:3] {
		t.Logf("slot_ms %.0f, gpu_ms %.0f, loading_ms %.0f, load_ms %.0f", r.SlotMS, *r.GPUMS, r.LoadingMS, *r.LoadMS)
		if r.LoadingMS > 0 {
			booked++
		}
	}
	if booked != 1 {
		t.Errorf("%d requests are booked the load, want 1", booked)
	}
}
