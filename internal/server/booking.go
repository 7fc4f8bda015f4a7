package server

import (
	"cmp"
	"net/http"
	"strconv"
	"strings"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/backend"
	"ollama-api-service/internal/dialect"
	"ollama-api-service/internal/limit"
	"ollama-api-service/internal/proxy"
	"ollama-api-service/internal/sched"
)

const (
	wholeAnswer = 1 << 20 // a body up to this is read to its end before its header goes out
	heldTail    = 4 << 10 // of a longer one, this much waits for the books
	maxSentence = 64 << 10
	restTime    = 10 * time.Second // for which a whole answer is read on after its client has left
)

// booking is one counted request between its admission and its end.
type booking struct {
	s      *Server
	x      *exchange
	req    *dialect.Request
	lease  *sched.Lease
	taken  *limit.Reservation
	record api.Record
	// The servers whose models the request changes; nil for inference.
	targets []*backend.Backend
	// What the servers had of it that did not serve it in the end, and how long it waited for a slot again.
	slot, gpu, waited, loading, charged time.Duration

	ahead    int64 // pieces of the answer of which the journal knows
	upstream upstreamContext
	ended    bool
	twice    bool       // Ollama has run twice for it and counts the second run
	over     *api.Error // why the stream was cut
}

func (s *Server) open(x *exchange, req *dialect.Request, lease *sched.Lease, taken *limit.Reservation) *booking {
	b := &booking{s: s, x: x, req: req, lease: lease, taken: taken}
	b.record.Admission = api.Admission{
		ID: x.id, ClientRequestID: x.theirID, At: time.Now(), Key: x.key.Preview, Endpoint: x.route.template,
		Backend: lease.Backend.Name, Class: purposeNames[x.route.purpose], Streamed: req.Stream, ClientAddr: addressText(x.addr),
		Client:         api.ClientOf(x.forwardedHeader("User-Agent")),
		PromptEstimate: req.PromptTokens,
	}
	if x.key.Metered() {
		b.record.OutputEstimate = max(req.MaxOutput, 0)
	}
	if len(req.Models) > 0 {
		b.record.Model, b.record.Alias = req.Model().String(), req.Alias
		if !s.Fleet.Knows(b.record.Model) {
			b.record.Model, b.record.Alias = api.UnknownModel, cmp.Or(req.Alias, b.record.Model)
		}
	}
	return b
}

// admit writes the request to the journal. From here on it has a row.
func (b *booking) admit() error {
	if err := b.s.Books.Admit(&b.record.Admission, b.x.key.Strict); err != nil {
		return err
	}
	b.x.record = &b.record
	return nil
}

// forward passes an answer on to the client.
func (b *booking) forward(resp *proxy.Response) error {
	defer resp.Close()
	b.req.Body = nil // it is sent: a client that is slow to take its answer must not hold it
	b.x.releaseBody()
	if err := b.begin(resp); err != nil {
		return err
	}
	if stream, sse := resp.Streams(); stream {
		return b.stream(resp, b.meter(sse))
	}
	return b.whole(resp)
}

// begin notes the first byte of an answer, and refuses answers that no client of ours should see.
func (b *booking) begin(resp *proxy.Response) error {
	b.record.FirstByte = time.Since(b.x.arrived)
	b.x.beat.pause()
	stream, sse := resp.Streams()
	if stream {
		b.lease.NoteFirstByte()
	}
	switch {
	case compressed(resp):
		return b.failed(errCompressed)
	case resp.Status >= 300 && resp.Status < 400:
		return b.failed(errRedirects)
	case resp.Status == http.StatusUnauthorized:
		// It is about the server's own account, and must not look like a bad key of ours.
		return b.failed(errSignedOut)
	case resp.Status == http.StatusNotFound && b.x.route.kind.Since() != "" &&
		strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain"):
		// A route it does not know; an unknown model is answered with JSON.
		return b.failed(tooOld(b.lease.Backend.State().Version, b.x.route.kind.Since()))
	case b.x.started() && !(stream && sse && resp.Status == http.StatusOK):
		return b.tooLate(resp)
	}
	return nil
}

// tooLate tells what Ollama answered where a heartbeat has promised a stream: its own sentence, as an event.
func (b *booking) tooLate(resp *proxy.Response) error {
	body, _, err := resp.Head(maxSentence)
	if err != nil {
		return b.failed(err)
	}
	sentence := dialect.Sentence(body)
	if sentence == "" {
		sentence = "the Ollama server answered " + strconv.Itoa(resp.Status) + " and no stream: try again"
	}
	code := api.CodeUpstreamError
	if resp.Status < 500 {
		_, code = b.outcome(resp.Status)
	}
	return b.failed(api.Errorf(cmp.Or(code, api.CodeUpstreamError), "%s", sentence))
}

// header readies what of the upstream's header a client needs. It goes out with the first bytes behind it: an upstream that dies
// before those is a failure with a status of its own.
func (b *booking) header(resp *proxy.Response, length int64) {
	if b.x.started() {
		return // a heartbeat came first
	}
	b.sayWhere()
	h := b.x.Header()
	if t := resp.Header["Content-Type"]; len(t) > 0 {
		h["Content-Type"] = t[:1]
	}
	if length >= 0 {
		h["Content-Length"] = []string{strconv.FormatInt(length, 10)}
	} else {
		h["X-Accel-Buffering"] = []string{"no"} // an nginx in front must not hold a stream back
	}
	if resp.Status == http.StatusServiceUnavailable {
		h["Retry-After"] = []string{"5"} // Ollama's own 503 names none
	}
	b.x.planned = resp.Status
}

// sayWhere names the server, and how long the request waited for it.
func (b *booking) sayWhere() {
	h := b.x.Header()
	h["X-Backend"] = []string{b.record.Backend}
	if b.x.route.purpose == inference {
		h["X-Queue-Wait-Ms"] = []string{strconv.FormatInt((b.waited + b.lease.Waited).Milliseconds(), 10)}
	}
}

// stream passes a streamed answer piece by piece; its end goes out when it is booked.
func (b *booking) stream(resp *proxy.Response, m *dialect.Meter) error {
	b.record.Streamed = true
	b.x.meter = m
	b.header(resp, -1)
	resp.Header = nil // the stream may last, and nothing needs it any more
	b.x.beat.resume()
	b.upstream.streamBegins()
	sent, err := resp.Stream(b.pass, m)
	b.x.beat.pause()
	if err != nil && api.AsError(err).Code == api.CodeClientGone {
		if b.upstream.keepReading() {
			_, err = resp.Stream(discard, m)
		} else {
			b.upstream.waitAtMost(b.s.leaveTime)
			resp.Leave(m, b.s.leaveTime) // before the slot is free
		}
	}
	if m.Cut && err == nil && !b.upstream.clientLeft() {
		return b.cut(resp, m, sent)
	}
	if err == nil && resp.EndedInOrder() && m.AtRepeatLimit() && !b.upstream.clientLeft() {
		return b.repeated(resp, m, sent)
	}
	rest := m.Finish()
	b.finished(rest)
	b.record.BytesOut = sent + int64(len(rest))
	b.twice = m.Thought
	b.count(m.Usage, m.Tokens)
	switch {
	case b.upstream.clientLeft():
		return b.failed(api.Wrap(api.CodeClientGone, err, "the client went away"))
	case m.Complete:
		// All of the answer is here; whether the client stays for the last piece changes nothing.
		b.record.Status = cmp.Or(b.x.status, resp.Status)
	case err != nil:
		b.s.note(b.lease.Backend, err)
		return b.failed(err)
	case m.Failed && b.x.route.purpose == management:
		// A failed pull says so in its own last line, and ends as Ollama ends it.
		b.end(api.OutcomeUpstream, api.CodeUpstreamError)
		return b.last(rest)
	case m.Failed && len(rest) > 0:
		return b.failed(errEndedEarly) // its error came within the end, which no client gets to see
	case m.Failed:
		b.end(api.OutcomeUpstream, api.CodeUpstreamError)
		return b.x.endFailed() // its own error record has passed
	default:
		b.s.note(b.lease.Backend, errEndedEarly)
		return b.failed(errEndedEarly)
	}
	b.end(api.OutcomeOK, "")
	return b.last(rest)
}

// meter reads the stream as it passes, and asks before each piece whether the key still has it.
func (b *booking) meter(sse bool) *dialect.Meter {
	m := dialect.NewMeter(b.x.route.kind, sse, b.req.StripUsage, b.req.Alias)
	m.Schema = b.req.Schema
	if b.x.route.purpose == inference && b.x.key.Metered() {
		m.More = func(pieces int64) bool {
			b.over = b.taken.Passes(pieces, b.gpu+b.lease.GPU())
			return b.over == nil
		}
	}
	return m
}

// cut ends a stream whose key has nothing left: nothing more is generated, and the client gets the end of an answer that has
// reached its length.
func (b *booking) cut(resp *proxy.Response, m *dialect.Meter, sent int64) error {
	resp.Close()
	return b.atLength(resp.Status, sent, m.Tokens, m.CutOff, api.OutcomeCut, b.over.Code)
}

// repeated ends a stream that Ollama has ended because a token repeats, as one that has reached its length: the server did what it does,
// and a client that took it for a failure would ask for the same answer again.
func (b *booking) repeated(resp *proxy.Response, m *dialect.Meter, sent int64) error {
	return b.atLength(resp.Status, sent, m.Tokens, m.RepeatEnd, api.OutcomeOK, "")
}

// atLength books what has passed of a stream without an end, and then sends the end that is made for it.
func (b *booking) atLength(
	status int, sent, records int64, end func(int64, time.Duration) []byte, outcome api.Outcome, code api.Code,
) error {
	b.count(dialect.Usage{}, records)
	b.record.Status = cmp.Or(b.x.status, status)
	b.bookPrompt(true)
	rest := end(b.record.PromptTokens, time.Since(b.record.At))
	b.record.BytesOut = sent + int64(len(rest))
	b.finished(rest)
	b.end(outcome, code)
	return b.last(rest)
}

// whole passes an answer that is one object: read to its end before its header goes out, so that a death of the upstream is
// a clean 502; one too long for that passes but for its tail.
func (b *booking) whole(resp *proxy.Response) error {
	body, all, err := resp.Head(wholeAnswer)
	if err != nil {
		b.s.note(b.lease.Backend, err)
		return b.failed(err)
	}
	outcome, code := b.outcome(resp.Status)
	b.record.Status = resp.Status
	if all {
		if err := unreadable(resp.Status, body); err != nil {
			return b.failed(err)
		}
		if len(body) == 0 && resp.Status == http.StatusOK && b.x.route.purpose == inference {
			return b.failed(errEndedEarly)
		}
		var used dialect.Usage
		if resp.Status < 400 { // an error has none, whatever it looks like
			used = b.x.route.kind.WholeUsage(body)
		}
		var estimated int64
		if resp.Status < 400 && used.PromptTokens == 0 && used.CompletionTokens == 0 {
			if estimated = b.x.route.kind.Estimate(body); estimated > 0 {
				used = dialect.Usage{} // at its repeat limit Ollama counts nothing
			}
		}
		if used.Counted && b.req.Schema {
			estimated = b.x.route.kind.Thought(body)
			b.twice = estimated > 0
		}
		b.count(used, estimated)
		if b.record.Estimated && resp.Status < 400 {
			b.bookPrompt(true) // Ollama never says what it was
		}
		b.finished(body)
		if b.req.Alias != "" {
			body = dialect.EchoModel(body, b.req.Alias)
		}
		body = dialect.AddSentence(b.x.family, resp.Status, body)
		b.record.BytesOut = int64(len(body))
		b.end(outcome, code)
		b.header(resp, int64(len(body)))
		return b.last(body)
	}
	length, named := resp.Length, b.req.Alias == ""
	if !named {
		length = -1
		body, named = dialect.EchoPart(body, b.req.Sent, b.req.Alias)
	}
	b.header(resp, length)
	ctx, done := extendedContext(b.x.r.Context(), restTime)
	defer done()
	resp.Outlive(ctx)
	sent, tail, err := resp.Pass(b.x, body, heldTail)
	if !named {
		tail, _ = dialect.EchoPart(tail, b.req.Sent, b.req.Alias) // /v1/embeddings names its model behind the numbers
	}
	b.record.BytesOut = sent + int64(len(tail))
	if err != nil {
		b.s.note(b.lease.Backend, err)
		b.count(b.x.route.kind.TailUsage(tail), 0)
		e := b.x.asError(err)
		if e.Code == api.CodeClientGone && b.record.Estimated {
			b.bookUpwards()
		}
		b.end(outcomeOf(e), e.Code)
		panic(http.ErrAbortHandler) // half a JSON object takes no error record
	}
	b.count(b.x.route.kind.TailUsage(tail), 0)
	b.end(outcome, code)
	return b.last(tail)
}

// outcome is how an answer with this status is booked.
func (b *booking) outcome(status int) (api.Outcome, api.Code) {
	switch {
	case status < 400:
		return api.OutcomeOK, ""
	case status == http.StatusNotFound:
		return api.OutcomeRefused, api.CodeNotFound
	case status < 500:
		return api.OutcomeRefused, api.CodeBadRequest
	}
	return api.OutcomeUpstream, api.CodeUpstreamError
}

// last sends the end of an answer. The row says what upstream delivered: a client that is gone by now changes nothing.
func (b *booking) last(p []byte) error {
	if b.x.r.Method == http.MethodHead || len(p) == 0 {
		if !b.x.started() {
			b.x.WriteHeader(b.x.planned)
		}
		return nil
	}
	if _, err := b.x.Write(p); err != nil {
		panic(http.ErrAbortHandler)
	}
	return nil
}

// unanswered books a request that no server answered. If none could be reached, the key gets back what the request had taken.
func (b *booking) unanswered(err error) error {
	failed := b.failed(err)
	if api.AsError(err).Code == api.CodeNoBackend {
		return b.x.giveBack(b.taken, failed)
	}
	return failed
}

// failed books a failure and returns it.
func (b *booking) failed(err error) error {
	b.x.beat.pause()
	e := b.x.asError(err)
	if !neverRan[e.Code] && b.record.PromptTokens == 0 && b.record.CompletionTokens == 0 && b.x.route.purpose == inference {
		b.record.PromptTokens, b.record.Estimated = b.req.PromptTokens, true
	}
	if e.Code == api.CodeClientGone && b.record.Estimated {
		b.bookUpwards()
	}
	if !b.x.started() && e.Code != api.CodeClientGone {
		b.record.Status = statuses[e.Code]
		b.sayWhere()
	}
	b.end(outcomeOf(e), e.Code)
	return e
}

// left books a request that ended while its model was loaded for it. It has cost the server a load, so it counts, but used no tokens.
func (b *booking) left(err error) error {
	b.x.beat.pause()
	e := b.x.asError(err)
	if !b.x.started() && e.Code != api.CodeClientGone {
		b.record.Status = statuses[e.Code]
		b.sayWhere()
	}
	b.end(outcomeOf(e), e.Code)
	return e
}

// neverRan are the failures of requests for which no server did anything.
var neverRan = map[api.Code]bool{api.CodeNoBackend: true, api.CodeQueueFull: true, api.CodeQueueTimeout: true}

func outcomeOf(err error) api.Outcome {
	switch api.AsError(err).Code {
	case api.CodeClientGone:
		return api.OutcomeClientGone
	case api.CodeUpstreamTimeout, api.CodeQueueTimeout:
		return api.OutcomeTimeout
	case api.CodeStopping:
		return api.OutcomeInterrupted
	case api.CodeNotFound, api.CodeBadRequest:
		return api.OutcomeRefused
	}
	return api.OutcomeUpstream
}

// end gives the slot back, settles what the key has used and writes the row, once.
func (b *booking) end(outcome api.Outcome, code api.Code) {
	if b.ended {
		return
	}
	b.ended = true
	r := &b.record
	r.Outcome, r.ErrorCode, r.BytesIn = outcome, code, b.x.received
	if r.Status == 0 {
		r.Status = b.x.status
	}
	if outcome == api.OutcomeOK || outcome == api.OutcomeCut || outcome == api.OutcomeRefused {
		b.lease.Backend.Answered()
	}
	b.reread(outcome)
	b.nameModel(outcome)
	r.Slot = b.slot + b.lease.Release()
	r.GPU = b.gpu + b.lease.GPU()
	if code != api.CodeNoBackend { // that is given back
		b.taken.Settle(limit.Used{Tokens: r.PromptTokens + r.CompletionTokens, GPU: r.GPU})
	}
	r.Total = time.Since(b.x.arrived)
	r.Queued, r.Loading = b.waited+b.lease.Waited, b.loading+b.lease.Loading
	b.booked()
	if err := b.s.Books.End(r); err != nil {
		b.s.Log.Error("the end of a request could not be journalled", "request_id", r.ID, "cause", err.Error())
	}
}

// close books what nothing else has booked, which is a panic.
func (b *booking) close() {
	if !b.ended {
		b.end(api.OutcomeUpstream, api.CodeInternal)
	}
}
