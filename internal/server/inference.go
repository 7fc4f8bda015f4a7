package server

import (
	"cmp"
	"context"
	"strings"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/backend"
	"ollama-api-service/internal/dialect"
	"ollama-api-service/internal/limit"
	"ollama-api-service/internal/sched"
)

// infer serves one counted request: read it, ask whether it may, wait for a slot, book it, carry it to Ollama, and let the
// client have the end of the answer when that is on the books.
func (s *Server) infer(x *exchange) error {
	if err := s.newEnough(x.route.kind); err != nil {
		return err
	}
	if err := s.Books.Room(); err != nil { // before the wait for a slot, which may load a model
		return err
	}
	taken, err := s.Limits.Reserve(x.key) // before the body: a key at its limit must not fill the memory
	x.showLimits(s.Limits, taken)
	if err != nil {
		return err
	}
	defer taken.Done()

	req, err := s.readRequest(x, taken)
	if err != nil {
		return x.giveBack(taken, err)
	}
	if req.Stream {
		ctx, leave := context.WithCancel(x.r.Context())
		defer leave()
		x.r, x.leave = x.r.WithContext(ctx), leave
	}
	s.startHeartbeat(x, req)
	defer x.beat.pause()
	lease, unserved := s.acquire(x, req, nil)
	if lease == nil {
		return x.giveBack(taken, unserved)
	}
	defer lease.Release()

	b := s.open(x, req, lease, taken)
	if err := b.admit(); err != nil {
		return x.giveBack(taken, err)
	}
	defer b.close() // whatever happens, one end is booked
	if unserved != nil {
		return b.left(unserved)
	}

	b.upstream.open(x.r.Context(), s, b.leaving())
	defer b.upstream.end()
	up := x.upstreamRequest(x.route.method, x.route.upstream, req.Body)
	up.FirstByte, up.Idle, up.Deadline = s.FirstByte, s.Idle, x.deadline()
	resp, err := b.send(up)
	if err != nil {
		return b.unanswered(err)
	}
	return b.forward(resp)
}

// giveBack returns what a request has taken that never went upstream.
func (x *exchange) giveBack(taken *limit.Reservation, err error) error {
	x.beat.pause()
	taken.Cancel()
	x.refused(err)
	x.showLimits(x.s.Limits, nil)
	return err
}

// readRequest reads the body, what it says, and whether the key may have that, and takes the tokens it may use.
func (s *Server) readRequest(x *exchange, taken *limit.Reservation) (*dialect.Request, error) {
	if _, err := taken.Hold(0, 0); err != nil { // a key with nothing left must not fill the memory either
		return nil, err
	}
	body, err := x.readBody(s.MaxBody)
	if err != nil {
		return nil, err
	}
	var req *dialect.Request
	err = x.inTurn(body.Size() > largeBody, func() (err error) {
		req, err = s.parse(x, body, taken)
		return err
	})
	if err != nil {
		return nil, err
	}
	return req, x.accept(req)
}

// accept checks whether the key may have what a body asks for. From here on only what goes upstream of the body is in memory.
func (x *exchange) accept(req *dialect.Request) error {
	pieces, outline := x.body.Held()
	if err := x.holdUpTo(pieces+req.Added, outline); err != nil {
		return err
	}
	if req.Changes != nil {
		x.Header()["X-Policy"] = []string{strings.Join(req.Changes, ", ")}
	}
	if req.Remote && !x.key.AllowCloud {
		return api.Errorf(api.CodeForbidden, "this key may not make models that run elsewhere (remote_host): an admin can set allow_cloud")
	}
	return mayUse(x.key, req.Alias, req.Models...)
}

// parse reads what a body says, and takes the tokens that its request may use.
func (s *Server) parse(x *exchange, body *dialect.Body, taken *limit.Reservation) (*dialect.Request, error) {
	terms := s.terms(x)
	req, err := x.route.kind.Read(body, terms)
	if err != nil {
		return nil, err
	}
	// How much is asked for is known now; until here, other requests of the key may have taken what was left.
	most, err := taken.Hold(req.PromptTokens, req.MaxOutput)
	if err != nil || most == req.MaxOutput {
		return req, err
	}
	terms.MaxOutput = most
	return x.route.kind.Read(body, terms)
}

// terms are what the bodies of a request's key are read under.
func (s *Server) terms(x *exchange) *dialect.Terms {
	k := x.key
	t := &dialect.Terms{
		Aliases: x.live.Aliases, Policed: k.Role != api.RoleAdmin, Key: k.Policy, Models: x.live.Policy, Standard: x.live.Standard,
		Registries: x.live.Registries,
		DropHosted: !k.AllowCloud,
		Own: func(m api.Model) api.Parameters {
			if m.Cloud() || !k.MayUse(m) { // Ollama would ask ollama.com; and what is refused moves nothing
				return api.Parameters{}
			}
			p := s.Fleet.Parameters(x.r.Context(), m.String())
			usual, split := s.Fleet.Context(m.String())
			p.Context, p.Split = cmp.Or(p.NumCtx, usual), split
			return p
		},
	}
	if k.MaxOutput != nil {
		t.MaxOutput = *k.MaxOutput
	}
	return t
}

// newEnough refuses a kind of request that no server is new enough for.
func (s *Server) newEnough(kind dialect.Kind) error {
	since := kind.Since()
	if since == "" {
		return nil
	}
	newest := backend.State{}
	for _, b := range s.Fleet.All() {
		state := b.State()
		if !state.Older(since) {
			return nil
		}
		if newest.Version == "" || newest.Older(state.Version) {
			newest = state
		}
	}
	return tooOld(newest.Version, since)
}

func tooOld(has, needed string) error {
	e := api.Errorf(api.CodeTooOld, "the Ollama server is version %s and this route needs %s or newer: ask the operator for an upgrade, or use another route", cmp.Or(has, "unknown"), needed)
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
		return notFound(cmp.Or(alias, m.String()))
	}
	return nil
}

// acquire waits for a slot. avoid is the server that has just failed, or nil. An error comes with a lease if the request ended while its
// model was loaded for it.
func (s *Server) acquire(x *exchange, req *dialect.Request, avoid *backend.Backend) (*sched.Lease, error) {
	model := req.Model().String()
	x.waits(model)
	s.Fleet.Find(x.r.Context(), model) // what it finds, the scheduler finds too
	ask := sched.Ask{
		ID: x.id, Key: x.key.Preview, Payer: x.key.Payer(), Weight: x.key.Weight, Batch: x.key.Class == api.ClassBatch,
		Model: model, Since: x.route.kind.Since(), Avoid: avoid, Options: req.LoadOptions, Plain: req.Plain,
		Embeds: x.route.kind.Embeds(), Texts: texts(x.route.kind, req), Prefix: req.Prefix, Deadline: x.deadline(),
	}
	lease, err := s.Sched.Acquire(x.r.Context(), ask)
	if err != nil && api.AsError(err).Code == api.CodeNoBackend && s.Fleet.Revive(x.r.Context()) {
		lease, err = s.Sched.Acquire(x.r.Context(), ask)
	}
	x.waited(lease, err)
	if err != nil && api.AsError(err).Code == api.CodeNotFound && req.Alias != "" {
		err = notFound(req.Alias) // it was asked for under this name
	}
	return lease, err
}

// texts is how many texts a request for embeddings has.
func texts(k dialect.Kind, req *dialect.Request) int {
	if !k.Embeds() {
		return 1
	}
	return int(req.Prompt.Texts)
}

func notFound(name string) error { return api.Errorf(api.CodeNotFound, "model '%s' not found", name) }

// deadline is when the request must be over.
func (x *exchange) deadline() time.Time { return x.arrived.Add(x.s.MaxRequestTime) }
