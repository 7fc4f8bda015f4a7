// Package explain keeps how requests were served — their waits, servers and costs — and says it in words.
package explain

import (
	"fmt"
	"strings"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/sched"
)

// Explained is all that is known of how a request was served.
type Explained struct {
	RequestID  string      `json:"request_id" example:"019ab7a2-6f3e-7c51-9d1b-2f0c7e4a8b90"`
	State      string      `json:"state" enum:"waiting,running,ended"`
	Key        string      `json:"key" doc:"Key preview" example:"oas_8rT2kLmN0q"`
	KeyName    string      `json:"key_name,omitempty" example:"Production API Key"`
	Weight     float64     `json:"weight" doc:"Of its key; where only the row is left (recorded_only), as it is now" example:"1"`
	Class      api.Class   `json:"class" enum:"interactive,batch"`
	Model      string      `json:"model" example:"llama3.2:latest"`
	Endpoint   string      `json:"endpoint" example:"/api/chat"`
	At         time.Time   `json:"at" doc:"When it asked for a slot"`
	WaitedMS   *float64    `json:"waited_ms" doc:"How long it waited for a slot, so far or in all; null where nobody knows any more"`
	Ahead      *int        `json:"ahead" doc:"How many waited for the model when it came; null where nobody knows any more"`
	Position   *int        `json:"position" doc:"Turns until its own; null unless it waits"`
	ExpectedMS *float64    `json:"expected_wait_ms" doc:"How long it may still wait; null unless it waits"`
	Tries      []Try       `json:"tries" nullable:"false" doc:"The servers that it was brought to, in order"`
	SlotMS     *float64    `json:"slot_ms" doc:"For how long it has held slots; null before it has one"`
	ChargedMS  *float64    `json:"charged_ms" doc:"What its key was charged in the order of turns: slot_ms over the weight"`
	GPUMS      *float64    `json:"gpu_ms" doc:"Its part of the servers' time, where each instant is divided among the requests that run; null until it is over"`
	LoadMS     *float64    `json:"loading_ms" doc:"How long servers loaded the model for it: it caused the change, and its key is charged for it"`
	Outcome    api.Outcome `json:"outcome" doc:"How it ended; empty until then, and where it was refused before it had a server"`
	ErrorCode  api.Code    `json:"error_code" doc:"Why it failed; empty if it did not"`
	Recorded   bool        `json:"recorded_only" doc:"It is known from its row alone: it ended long ago, or before the service was started"`
	Words      []string    `json:"explanation" nullable:"false" doc:"The same in words"`
}

// Try is one server that a request was brought to.
type Try struct {
	Backend  string  `json:"backend" example:"gpu1"`
	Why      string  `json:"why" enum:"loaded,warm_start,change,only," doc:"Why this one: it had the model loaded, most likely knew the conversation, changed its model for it, or no other has the model; empty where nobody knows any more"`
	WaitedMS float64 `json:"waited_ms"`
	LoadMS   float64 `json:"loading_ms"`
	Failed   string  `json:"failed,omitempty" doc:"Why it went on to another"`
}

// Explain reports what is known of the request at now.
func (t *History) Explain(now time.Time) Explained {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := Explained{
		RequestID: t.id, State: "running", Key: t.key, Weight: t.weight, Class: t.class, Model: t.model, Endpoint: t.endpoint, At: t.asked.UTC(),
		Ahead: &t.ahead, Tries: []Try{}, Outcome: t.outcome, ErrorCode: t.code,
	}
	waited := t.waited
	switch {
	case t.over:
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
	slot := t.slot
	if t.outcome == "" {
		if !t.over && t.waiting.IsZero() {
			slot = now.Sub(t.tries[len(t.tries)-1].since)
		}
	} else {
		e.GPUMS = api.Measured(t.gpu)
	}
	e.charge(slot)
	return e
}

func (e *Explained) charge(slot time.Duration) {
	e.SlotMS = api.Measured(slot)
	charged := api.Milliseconds(slot) / e.Weight
	e.ChargedMS = &charged
}

// FromRow reports what the row of an earlier request says. k is its key.
func FromRow(r *api.Record, k api.Key) Explained {
	e := Explained{
		RequestID: r.ID, State: "ended", Key: r.Key, Weight: k.Weight, Class: k.Class, Model: r.Model, Endpoint: r.Endpoint, At: r.At.UTC(),
		Tries: []Try{{Backend: r.Backend}}, GPUMS: api.Measured(r.GPU), WaitedMS: api.Measured(r.Queued), LoadMS: api.Measured(r.Loading), Outcome: r.Outcome, ErrorCode: r.ErrorCode, Recorded: true,
	}
	if e.Weight == 0 { // of a key whose setting is gone
		e.Weight, e.Class = api.DefaultWeight, api.ClassInteractive
	}
	e.charge(r.Slot)
	return e
}

var reasons = map[sched.Reason]string{
	sched.ReasonLoaded: "it had the model in its memory, and was the least busy of those that had",
	sched.ReasonPrefix: "it had the model in its memory, and has most likely kept the beginning of this conversation",
	sched.ReasonChange: "it changed its model for this request",
	sched.ReasonOnly:   "no other server has the model",
}

// Sentences says it in words.
func (e *Explained) Sentences() []string {
	var list []string
	say := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	if e.Recorded {
		say("It is known from its row in the books alone, which does not say who waited with it, nor why it went where it did.")
	}
	switch {
	case e.State == "waiting" && e.Position != nil:
		say("It has waited %s for a slot and is number %d of those that wait for %s; about %s more, by how long requests have held slots lately.",
			seconds(e.WaitedMS), *e.Position, e.Model, seconds(e.ExpectedMS))
	case e.State == "waiting":
		say("It has waited %s for a slot.", seconds(e.WaitedMS))
	case e.WaitedMS != nil && len(e.Tries) == 0:
		say("It waited %s for a slot and got none.", seconds(e.WaitedMS))
	case e.WaitedMS != nil && *e.WaitedMS < 1:
		say("It had a slot at once.")
	case e.WaitedMS != nil:
		say("It waited %s for a slot.", seconds(e.WaitedMS))
	}
	if e.Ahead != nil && (*e.Ahead > 0 || e.State == "waiting") {
		say("%s for the model when it came.", others(*e.Ahead))
	}
	share := "takes its turns with others by what they have used"
	if e.Class == api.ClassBatch {
		share = "takes what interactive keys leave; passed over for a quarter of MAX_QUEUE_WAIT, it takes turns with them by what they have used and its weight"
	}
	say("Its key has the weight %g and the class %s: it %s.", e.Weight, e.Class, share)
	for _, t := range e.Tries {
		list = append(list, t.sentence())
	}
	if e.SlotMS != nil && len(e.Tries) > 0 {
		cost := fmt.Sprintf("It held a slot for %s, which counts as up to %s for its key in the order of turns (over the weight, while other keys waited)", seconds(e.SlotMS), seconds(e.ChargedMS))
		if e.GPUMS != nil {
			cost += fmt.Sprintf("; its part of the server's time was %s", seconds(e.GPUMS))
		}
		list = append(list, cost+".")
	}
	switch {
	case e.Outcome == api.OutcomeOK:
		say("It ended well.")
	case e.ErrorCode != "":
		say("It ended with %s.", strings.ReplaceAll(string(e.ErrorCode), "_", " "))
	}
	return list
}

func (t *Try) sentence() string {
	s := fmt.Sprintf("It went to %s", t.Backend)
	if why := reasons[sched.Reason(t.Why)]; why != "" {
		s += ": " + why
	}
	switch {
	case t.LoadMS > 0 && t.Why == string(sched.ReasonChange):
		s += fmt.Sprintf(", which took %s", seconds(&t.LoadMS))
	case t.LoadMS > 0:
		s += fmt.Sprintf("; Ollama had thrown the model out by then, and loaded it again in %s", seconds(&t.LoadMS))
	}
	if t.Failed != "" {
		s += fmt.Sprintf("; that failed (%s), and it went on to another", strings.ReplaceAll(t.Failed, "_", " "))
	}
	return s + "."
}

func others(n int) string {
	switch n {
	case 0:
		return "Nobody else waited"
	case 1:
		return "One other request waited"
	}
	return fmt.Sprintf("%d other requests waited", n)
}

// seconds is a time as people read it.
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
