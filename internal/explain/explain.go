// Package explain records how requests were served (their waits, servers and costs) and explains it in sentences.
package explain

import (
	"fmt"
	"strings"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/sched"
)

// Explained is everything that is known about how a request was served.
type Explained struct {
	RequestID  string      `json:"request_id" example:"019ab7a2-6f3e-7c51-9d1b-2f0c7e4a8b90"`
	State      string      `json:"state" enum:"waiting,running,ended"`
	Key        string      `json:"key" doc:"Key preview" example:"oas_8rT2kLmN0q"`
	KeyName    string      `json:"key_name,omitempty" example:"Production API Key"`
	Weight     float64     `json:"weight" doc:"The weight of its key. If only the row is left (recorded_only): the current weight" example:"1"`
	Class      api.Class   `json:"class" enum:"interactive,batch"`
	Model      string      `json:"model" example:"llama3.2:latest"`
	Endpoint   string      `json:"endpoint" example:"/api/chat"`
	At         time.Time   `json:"at" doc:"When it asked for a slot"`
	WaitedMS   *float64    `json:"waited_ms" doc:"How long it has waited for a slot, in total; null if that is no longer known"`
	Ahead      *int        `json:"ahead" doc:"How many requests waited for the model when this one arrived; null if that is no longer known"`
	Position   *int        `json:"position" doc:"Its position in the queue; null unless it waits"`
	ExpectedMS *float64    `json:"expected_wait_ms" doc:"How long it will probably still wait; null unless it waits"`
	Tries      []Try       `json:"tries" nullable:"false" doc:"The servers that it was sent to, in order"`
	SlotMS     *float64    `json:"slot_ms" doc:"How long it has held slots; null before it gets one"`
	ChargedMS  *float64    `json:"charged_ms" doc:"What its key was charged for it in the queue order, divided by the weight: its time in slots while other keys waited, with loads, and with the time in which its prompt stopped other requests. While it runs, its time in slots so far; null if only the row is known"`
	GPUMS      *float64    `json:"gpu_ms" doc:"Its share of the servers' time: requests that run at the same time share that time. Null until it ends"`
	LoadMS     *float64    `json:"loading_ms" doc:"How long servers loaded the model because of it; its key is charged for this time"`
	Outcome    api.Outcome `json:"outcome" doc:"How it ended; empty before the end, and if it was refused before it got a server"`
	ErrorCode  api.Code    `json:"error_code" doc:"Why it failed; empty if it did not"`
	Recorded   bool        `json:"recorded_only" doc:"Whether only its row in the books is known, because it ended long ago or before the service started"`
	Words      []string    `json:"explanation" nullable:"false" doc:"The same as sentences"`
}

// Try is one attempt: a server that the request was sent to.
type Try struct {
	Backend  string  `json:"backend" example:"gpu1"`
	Why      string  `json:"why" enum:"loaded,warm_start,change,only," doc:"Why this server: it had the model loaded, it most likely still had the conversation in its cache, it changed its model for the request, or it is the only one with the model; empty if that is no longer known"`
	WaitedMS float64 `json:"waited_ms"`
	LoadMS   float64 `json:"loading_ms"`
	Failed   string  `json:"failed,omitempty" doc:"Why it failed there and was sent to another server"`
}

// Explain reports what is known about the request at now.
func (t *History) Explain(now time.Time) Explained {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := Explained{
		RequestID: t.id, State: "running", Key: t.key, Weight: t.weight, Class: t.class, Model: t.model, Endpoint: t.endpoint, At: t.asked.UTC(),
		Ahead: &t.ahead, Tries: []Try{}, Outcome: t.outcome, ErrorCode: t.code,
	}
	waited := t.waited
	switch {
	case t.ended:
		e.State = "ended"
	case !t.waiting.IsZero():
		e.State = "waiting"
		waited += now.Sub(t.waiting)
	}
	e.WaitedMS = api.Measured(waited)
	if len(t.tries) == 0 {
		return e
	}
	var load time.Duration
	for _, one := range t.tries {
		load += one.loading
		e.Tries = append(e.Tries, Try{one.backend, string(one.why), api.Milliseconds(one.waited), api.Milliseconds(one.loading), one.failed})
	}
	e.LoadMS = api.Measured(load)
	slot, charged := t.slot, t.charged
	if t.outcome == "" {
		if !t.ended && t.waiting.IsZero() {
			slot = now.Sub(t.tries[len(t.tries)-1].since)
			charged = slot
		}
	} else {
		e.GPUMS = api.Measured(t.gpu)
	}
	e.SlotMS, e.ChargedMS = api.Measured(slot), api.Measured(time.Duration(float64(charged)/e.Weight))
	return e
}

// FromRow explains an earlier request by its row in the books. k is its key.
func FromRow(r *api.Record, k api.Key) Explained {
	if k.Weight == 0 { // the key and its settings are gone
		k = api.NewKey("", "", nil)
	}
	e := Explained{
		RequestID: r.ID, State: "ended", Key: r.Key, Weight: k.Weight, Class: k.Class, Model: r.Model, Endpoint: r.Endpoint, At: r.At.UTC(),
		Tries: []Try{{Backend: r.Backend}}, GPUMS: api.Measured(r.GPU), WaitedMS: api.Measured(r.Queued), LoadMS: api.Measured(r.Loading),
		Outcome: r.Outcome, ErrorCode: r.ErrorCode, Recorded: true, SlotMS: api.Measured(r.Slot),
	}
	return e
}

var reasons = map[sched.Reason]string{
	sched.ReasonLoaded: "it was the least busy server with the model in memory",
	sched.ReasonPrefix: "it had the model in memory, and most likely the beginning of this conversation in its cache",
	sched.ReasonChange: "it changed its model for this request",
	sched.ReasonOnly:   "no other server has the model",
}

// Sentences returns the explanation as sentences.
func (e *Explained) Sentences() []string {
	var list []string
	say := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	if e.Recorded {
		say("Only its row in the books is left. The row does not say which requests waited at the same time, or why this server was chosen.")
	}
	switch {
	case e.State == "waiting" && e.Position != nil:
		say("It has waited %s for a slot and is number %d in the queue for %s. By the length of recent requests, it will wait about %s more.",
			seconds(e.WaitedMS), *e.Position, e.Model, seconds(e.ExpectedMS))
	case e.State == "waiting":
		say("It has waited %s for a slot.", seconds(e.WaitedMS))
	case e.WaitedMS != nil && len(e.Tries) == 0:
		say("It waited %s for a slot and got none.", seconds(e.WaitedMS))
	case e.WaitedMS != nil && *e.WaitedMS < 1:
		say("It got a slot at once.")
	case e.WaitedMS != nil:
		say("It waited %s for a slot.", seconds(e.WaitedMS))
	}
	if e.Ahead != nil && (*e.Ahead > 0 || e.State == "waiting") {
		say("%s for the model when it arrived.", others(*e.Ahead))
	}
	share := "shares the servers with other keys by what each of them has used"
	if e.Class == api.ClassBatch {
		share = "gets slots that interactive keys do not need. After a quarter of MAX_QUEUE_WAIT, its request competes with theirs by usage and weight"
	}
	say("Its key has the weight %g and the class %s: it %s.", e.Weight, e.Class, share)
	for _, t := range e.Tries {
		list = append(list, t.sentence())
	}
	if e.SlotMS != nil && len(e.Tries) > 0 {
		cost := fmt.Sprintf("It held a slot for %s", seconds(e.SlotMS))
		if e.ChargedMS != nil {
			cost += fmt.Sprintf(", and counts as %s for its key in the queue order (the time while other keys waited, divided by the weight)",
				seconds(e.ChargedMS))
		}
		if e.GPUMS != nil {
			cost += fmt.Sprintf("; its share of the server's time was %s", seconds(e.GPUMS))
		}
		list = append(list, cost+".")
	}
	switch {
	case e.Outcome == api.OutcomeOK:
		say("It ended successfully.")
	case e.ErrorCode != "":
		say("It ended with %s.", strings.ReplaceAll(string(e.ErrorCode), "_", " "))
	}
	return list
}

func (t *Try) sentence() string {
	s := fmt.Sprintf("It was sent to %s", t.Backend)
	if why := reasons[sched.Reason(t.Why)]; why != "" {
		s += ": " + why
	}
	switch {
	case t.LoadMS > 0 && t.Why == string(sched.ReasonChange):
		s += fmt.Sprintf(", which took %s", seconds(&t.LoadMS))
	case t.LoadMS > 0:
		s += fmt.Sprintf("; Ollama had unloaded the model in the meantime, and loaded it again in %s", seconds(&t.LoadMS))
	}
	if t.Failed != "" {
		s += fmt.Sprintf("; that failed (%s), and it was sent to another server", strings.ReplaceAll(t.Failed, "_", " "))
	}
	return s + "."
}

func others(n int) string {
	switch n {
	case 0:
		return "No other request waited"
	case 1:
		return "One other request waited"
	}
	return fmt.Sprintf("%d other requests waited", n)
}

// seconds formats a time for people.
func seconds(ms *float64) string {
	if ms == nil {
		return "an unknown time"
	}
	d := time.Duration(*ms * float64(time.Millisecond))
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}
