package server

import (
	"cmp"
	"net/http"
	"strconv"
	"strings"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/dialect"
	"ollama-api-service/internal/limit"
	"ollama-api-service/internal/proxy"
	"ollama-api-service/internal/sched"
)

const (
	wholeAnswer = 1 << 20 // a body up to this is read to its end before its header goes out
	heldTail    = 4 << 10 // of a longer one, this much waits for the books
	maxSentence = 64 << 10
)

// infer serves one counted request: read it, ask whether it may, wait for a slot, book it, carry it to Ollama, and let the
// client have the end of the answer when that is on the books.
func (s *Server) infer(x *exchange) error {
	if err := s.newEnough(x.route.kind); err != nil {
		return err
	}
	taken, err := s.Limits.Reserve(x.key) // before the body: a key at its limit must not fill the memory
	x.showLimits(s.Limits, taken)
	if err != nil {
		return err
	}
	defer taken.Done()

	req, err := s.readRequest(x)
	if err != nil {
		return x.giveBack(taken, err)
	}
	s.startHeartbeat(x, req)
	defer x.beat.pause()
	lease, err := s.acquire(x, req)
	if err != nil {
		return x.giveBack(taken, err)
	}
	defer lease.Release()

	b := s.open(x, req, lease)
	if err := s.Books.Admit(&b.record.Admission); err != nil {
		return x.giveBack(taken, err)
	}
	x.record = &b.record
	defer b.close() // whatever happens, one end is booked

	up := s.upstreamRequest(x, req)
	x.journey.serve(b, up)
	resp, err := s.Upstream.Do(x.r.Context(), up)
	if err != nil {
		if api.AsError(err).Code == api.CodeNoBackend {
			s.Backend.Unreachable("a request could not be brought to it")
			return x.giveBack(taken, b.failed(err))
		}
		return b.failed(err)
	}
	defer resp.Close()
	req.Body = nil // it is sent: a client that is slow to take its answer must not hold it
	if err := b.begin(resp); err != nil {
		return err
	}
	if stream, sse := resp.Streams(); stream {
		return b.stream(resp, dialect.NewMeter(x.route.kind, sse, req.StripUsage, req.Alias))
	}
	return b.whole(resp)
}

// giveBack returns what a request has taken that never went upstream.
func (x *exchange) giveBack(taken *limit.Reservation, err error) error {
	x.beat.pause()
	taken.Cancel()
	x.showLimits(x.s.Limits, nil)
	return err
}

// readRequest reads the body, what it says, and whether the key may have that. Blobs have none that is read: they pass as
// they come.
func (s *Server) readRequest(x *exchange) (*dialect.Request, error) {
	if x.route.kind == dialect.None {
		if !validDigest(x.param) {
			return nil, api.Errorf(api.CodeBadRequest, "the digest must be sha256: and 64 hexadecimal digits")
		}
		return &dialect.Request{}, nil
	}
	body, err := x.readBody(s.MaxBody)
	if err != nil {
		return nil, err
	}
	req, err := x.route.kind.Read(body, s.terms(x.key))
	if err != nil {
		return nil, err
	}
	if req.Changes != nil {
		x.Header()["X-Policy"] = []string{strings.Join(req.Changes, ", ")}
	}
	switch {
	case req.Remote && !x.key.AllowCloud:
		return nil, api.Errorf(api.CodeForbidden, "this key may not make models that run elsewhere (remote_host): an admin can set allow_cloud")
	case req.WebSearch && !x.key.AllowCloud:
		return nil, api.Errorf(api.CodeForbidden, "this key may not let the server search the web (the tool web_search): leave it out, or an admin can set allow_cloud")
	}
	return req, mayUse(x.key, req.Alias, req.Models...)
}

// terms are what a key's bodies are read under.
func (s *Server) terms(k *api.Key) *dialect.Terms {
	return &dialect.Terms{
		Aliases: s.Aliases, Policed: k.Role != api.RoleAdmin, Key: k.Policy, Models: s.Policy, Standard: s.Standard, Registries: s.Registries,
	}
}

// newEnough refuses what the backend's version does not have yet.
func (s *Server) newEnough(kind dialect.Kind) error {
	state, since := s.Backend.State(), kind.Since()
	if since == "" || !state.Older(since) {
		return nil
	}
	return tooOld(state.Version, since)
}

func tooOld(has, needed string) error {
	e := api.Errorf(api.CodeTooOld, "the Ollama server is version %s and this route needs %s or newer: ask who runs it for an upgrade, or use another route", cmp.Or(has, "unknown"), needed)
	e.NoRetry = true
	return e
}

// mayUse refuses models that the key may not use, in the words for one that is not there: under the alias that was asked for,
// if there is one.
func mayUse(k *api.Key, alias string, models ...api.Model) error {
	for _, m := range models {
		if k.MayUse(m) {
			continue
		}
		if m.Cloud() && !k.AllowCloud {
			return api.Errorf(api.CodeForbidden, "this key may not use cloud models: an admin can set allow_cloud")
		}
		return api.Errorf(api.CodeNotFound, "model '%s' not found", cmp.Or(alias, m.String()))
	}
	return nil
}

// showLimits writes the key's hourly limit and what is left of it.
func (x *exchange) showLimits(limits *limit.Memory, taken *limit.Reservation) {
	var state limit.State
	if taken != nil {
		state = taken.State()
	} else {
		state = limits.State(x.key)
	}
	if state.Limit < 0 {
		return
	}
	h := x.Header()
	h["X-Ratelimit-Limit"] = []string{strconv.FormatInt(state.Limit, 10)}
	h["X-Ratelimit-Remaining"] = []string{strconv.FormatInt(state.Remaining, 10)}
	h["X-Ratelimit-Reset"] = []string{strconv.FormatInt(int64((state.Reset+time.Second-1)/time.Second), 10)}
}

// acquire waits for a slot where the route needs one: changing the backend's models takes none of its compute.
func (s *Server) acquire(x *exchange, req *dialect.Request) (*sched.Lease, error) {
	if x.route.class != inference {
		return &sched.Lease{Backend: s.Backend}, nil
	}
	var start time.Time
	if x.journey != nil {
		start = time.Now()
	}
	lease, err := s.Sched.Acquire(x.r.Context(), req.Model().String(), x.deadline())
	x.journey.waited(start, err)
	return lease, err
}

// deadline is when the request must be over. Transfers of models have none: they take as long as the network does.
func (x *exchange) deadline() time.Time {
	if x.route.class == management {
		return time.Time{}
	}
	return x.arrived.Add(x.s.MaxRequestTime)
}

// upstreamRequest is what Ollama gets: a constant path, no query, and of the client's header the two values that change its
// answers.
func (s *Server) upstreamRequest(x *exchange, req *dialect.Request) *proxy.Request {
	r := &proxy.Request{
		Method: x.route.method, Path: x.route.upstream, Body: req.Body,
		Accept: x.r.Header.Get("Accept"), UserAgent: x.r.UserAgent(),
		FirstByte: s.FirstByte, Idle: s.Idle, Deadline: x.deadline(),
	}
	if x.route.class == management {
		// Hashing and downloading are silent for as long as they take.
		r.FirstByte, r.Idle = 0, 0
		// A pull or a delete that arrived just as its connection ended may be under way.
		r.Once = true
	}
	if x.route.kind == dialect.None {
		r.Path += x.param // of its grammar: it needs no encoding
		r.Upload, r.UploadLength = &receiver{x}, x.r.ContentLength
	}
	return r
}

// booking is one counted request between its admission and its end.
type booking struct {
	s      *Server
	x      *exchange
	req    *dialect.Request
	lease  *sched.Lease
	record api.Record
	ended  bool
}

func (s *Server) open(x *exchange, req *dialect.Request, lease *sched.Lease) *booking {
	b := &booking{s: s, x: x, req: req, lease: lease}
	b.record.Admission = api.Admission{
		ID: x.id, ClientRequestID: x.theirID, At: time.Now(), Key: x.key.Preview, Endpoint: x.route.template,
		Backend: lease.Backend.Name, Class: classNames[x.route.class], Streamed: req.Stream, ClientAddr: x.addr.String(),
		PromptEstimate: req.PromptTokens,
	}
	if len(req.Models) > 0 {
		b.record.Model, b.record.Alias = req.Model().String(), req.Alias
	}
	return b
}

// begin notes the first byte of an answer, and refuses answers that no client of ours should see.
func (b *booking) begin(resp *proxy.Response) error {
	b.record.FirstByte = time.Since(b.x.arrived)
	b.x.beat.pause()
	stream, sse := resp.Streams()
	switch {
	case compressed(resp):
		return b.failed(errCompressed)
	case resp.Status >= 300 && resp.Status < 400:
		return b.failed(api.Errorf(api.CodeUpstreamError, "the Ollama server redirects: OLLAMA_BASE_URL must name it directly"))
	case resp.Status == http.StatusUnauthorized:
		// It is about the server's own account, and must not look like a bad key of ours.
		return b.failed(api.Errorf(api.CodeUpstreamError, "the Ollama server is not signed in where this model needs it: ask who runs it"))
	case resp.Status == http.StatusNotFound && b.x.route.kind.Since() != "" && strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain"):
		// A route it does not know; an unknown model is answered with JSON.
		return b.failed(tooOld(b.s.Backend.State().Version, b.x.route.kind.Since()))
	case b.x.started() && !(stream && sse && resp.Status == http.StatusOK):
		return b.tooLate(resp)
	}
	return nil
}

var (
	errCompressed = api.Errorf(api.CodeUpstreamError, "the Ollama server answered compressed, which nobody asked for: ask who runs it")
	errEndedEarly = api.Errorf(api.CodeUpstreamError, "the answer of the Ollama server ended too early: try again")
)

// compressed says whether an answer comes in a coding: neither its usage nor its end could be read, and no client asked for it.
func compressed(resp *proxy.Response) bool {
	coding := resp.Header.Get("Content-Encoding")
	return coding != "" && !strings.EqualFold(coding, "identity")
}

// unreadable is the failure for an answer that is no JSON: a proxy in front of Ollama writes such, and Ollama itself where it
// lacks a route. It is nil for every other answer.
func unreadable(status int, body []byte) error {
	switch {
	case len(body) == 0 || dialect.Valid(body):
		return nil
	case status == http.StatusNotFound:
		return api.Errorf(api.CodeNotFound, "the Ollama server does not know this route: it may be too old")
	case status == http.StatusRequestEntityTooLarge:
		return api.Errorf(api.CodeTooLarge, "the body is larger than what stands before the Ollama server takes")
	}
	return api.Errorf(api.CodeUpstreamError, "the Ollama server answered %d and no JSON: ask who runs it whether OLLAMA_BASE_URL names an Ollama", status)
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

// stream passes a streamed answer piece by piece; its end goes out when it is booked.
func (b *booking) stream(resp *proxy.Response, m *dialect.Meter) error {
	b.record.Streamed = true
	b.header(resp, -1)
	b.x.beat.resume()
	sent, err := resp.Stream(b.x, m)
	b.x.beat.pause()
	rest := m.Finish()
	b.x.journey.finished(rest)
	b.x.events = m.Events
	b.record.BytesOut = sent + int64(len(rest))
	b.count(m.Usage, m.Records)
	switch {
	case m.Complete:
		// All of the answer is here; whether the client stays for the last piece changes nothing.
		b.record.Status = cmp.Or(b.x.status, resp.Status)
	case err != nil:
		return b.failed(err)
	case m.Failed && b.x.route.class == management:
		// A failed pull says so in its own last line, and ends as Ollama ends it.
		b.end(api.OutcomeUpstream, api.CodeUpstreamError)
		return b.last(rest)
	case m.Failed:
		b.end(api.OutcomeUpstream, api.CodeUpstreamError)
		panic(http.ErrAbortHandler) // its own error record has passed: only the break is missing
	default:
		return b.failed(errEndedEarly)
	}
	b.end(api.OutcomeOK, "")
	return b.last(rest)
}

// whole passes an answer that is one object: read to its end before its header goes out, so that a death of the upstream is
// a clean 502; one too long for that passes but for its tail.
func (b *booking) whole(resp *proxy.Response) error {
	body, all, err := resp.Head(wholeAnswer)
	if err != nil {
		return b.failed(err)
	}
	outcome, code := b.outcome(resp.Status)
	b.record.Status = resp.Status
	if all {
		if err := unreadable(resp.Status, body); err != nil {
			return b.failed(err)
		}
		if len(body) == 0 && resp.Status == http.StatusOK && b.x.route.class == inference {
			return b.failed(errEndedEarly)
		}
		b.count(b.x.route.kind.WholeUsage(body), 0)
		b.x.journey.finished(body)
		if b.req.Alias != "" {
			body = dialect.EchoModel(body, b.req.Alias)
		}
		body = b.x.withSentence(resp.Status, body)
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
	sent, tail, err := resp.Pass(b.x, body, heldTail)
	if !named {
		tail, _ = dialect.EchoPart(tail, b.req.Sent, b.req.Alias) // /v1/embeddings names its model behind the numbers
	}
	b.record.BytesOut = sent + int64(len(tail))
	if err != nil {
		b.count(dialect.Usage{}, 0)
		b.end(outcomeOf(err), api.AsError(err).Code)
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

// count takes over what the terminal record said, or what passed where there is none.
func (b *booking) count(u dialect.Usage, records int64) {
	r := &b.record
	if u.Counted {
		r.PromptTokens, r.CompletionTokens = u.PromptTokens, u.CompletionTokens
		r.OllamaTotal, r.OllamaLoad, r.OllamaPromptEval, r.OllamaEval = u.Total, u.Load, u.PromptEval, u.Completion
		return
	}
	if b.x.route.class != inference || b.record.Status >= 400 {
		return // nothing was generated
	}
	r.PromptTokens, r.CompletionTokens, r.Estimated = b.req.PromptTokens, records, true
}

// failed books a failure and returns it.
func (b *booking) failed(err error) error {
	b.x.beat.pause()
	e := b.x.whoLeft(err)
	if e.Code != api.CodeNoBackend && b.record.PromptTokens == 0 && b.record.CompletionTokens == 0 && b.x.route.class == inference {
		b.record.PromptTokens, b.record.Estimated = b.req.PromptTokens, true
	}
	if !b.x.started() && e.Code != api.CodeClientGone {
		b.record.Status = statuses[e.Code]
	}
	b.end(outcomeOf(e), e.Code)
	return e
}

func outcomeOf(err error) api.Outcome {
	switch api.AsError(err).Code {
	case api.CodeClientGone:
		return api.OutcomeClientGone
	case api.CodeUpstreamTimeout:
		return api.OutcomeTimeout
	case api.CodeStopping:
		return api.OutcomeInterrupted
	case api.CodeNotFound, api.CodeBadRequest:
		return api.OutcomeRefused
	}
	return api.OutcomeUpstream
}

// end gives the slot back and writes the row, once.
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
	r.Slot = b.lease.Release()
	r.Total = time.Since(b.x.arrived)
	b.s.metrics.book(r, b.lease.Waited)
	b.x.journey.booked(b.x, r)
	if err := b.s.Books.End(r); err != nil {
		// The answer is the client's all the same; the admission is journalled, so the row is not lost, only less exact.
		b.s.Log.Error("the end of a request could not be journalled", "request_id", r.ID, "cause", err.Error())
	}
}

// close books what nothing else has booked, which is a panic.
func (b *booking) close() {
	if !b.ended {
		b.end(api.OutcomeUpstream, api.CodeInternal)
	}
}

// receiver counts the bytes of a body that passes unread.
type receiver struct{ x *exchange }

func (r *receiver) Read(p []byte) (int, error) {
	n, err := r.x.r.Body.Read(p)
	r.x.received += int64(n)
	return n, err
}

func validDigest(s string) bool {
	const prefix = "sha256:"
	if len(s) != len(prefix)+64 || s[:len(prefix)] != prefix {
		return false
	}
	for _, c := range []byte(s[len(prefix):]) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
