package server

import (
	"context"
	"strings"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/backend"
	"ollama-api-service/internal/dialect"
	"ollama-api-service/internal/proxy"
	"ollama-api-service/internal/sched"
)

// changeModels serves one counted request that changes the models of a server: pull, push, create, copy, delete, or the upload of a file.
// It is limited and booked like inference, but takes no slot and no tokens, may last as long as the network needs, and is sent once.
func (s *Server) changeModels(x *exchange) error {
	targets, err := s.targets(x)
	if err != nil {
		return err
	}
	taken, err := s.Limits.Reserve(x.key)
	x.showLimits(s.Limits, taken)
	if err != nil {
		return err
	}
	defer taken.Done()

	req, err := s.readChange(x)
	if err != nil {
		return x.giveBack(taken, err)
	}
	b := s.open(x, req, &sched.Lease{Backend: targets[0]}, taken)
	if b.targets = targets; len(targets) > 1 {
		b.record.Backend = allServers
	}
	if err := b.admit(); err != nil {
		return x.giveBack(taken, err)
	}
	defer b.close()

	b.upstream.open(x.r.Context(), s, nil)
	defer b.upstream.end()
	if len(targets) > 1 {
		return b.everywhere()
	}
	up := x.changeRequest(req)
	b.sends(up)
	resp, err := b.sendTo(targets[0], up)
	if err != nil {
		return b.unanswered(err)
	}
	return b.forward(resp)
}

// readChange reads the body of a change. Files are not read: they pass as they come.
func (s *Server) readChange(x *exchange) (*dialect.Request, error) {
	if x.route.kind == dialect.None {
		return &dialect.Request{}, checkDigest(x.param)
	}
	body, err := x.readBody(s.MaxBody)
	if err != nil {
		return nil, err
	}
	req, err := x.route.kind.Read(body, s.terms(x))
	if err != nil {
		return nil, err
	}
	return req, x.accept(req)
}

// changeRequest is what Ollama gets. It has no bounds of time, because hashing and downloading are silent for as long as they take.
func (x *exchange) changeRequest(req *dialect.Request) *proxy.Request {
	up := x.upstreamRequest(x.route.method, x.route.upstream, req.Body)
	up.Once = true // a pull or a delete that arrived just as its connection ended may be under way
	if x.route.kind == dialect.None {
		up.Path += x.param // of its grammar: it needs no encoding
		up.Upload, up.UploadLength = &receiver{x}, x.r.ContentLength
	}
	return up
}

// receiver counts the bytes of a body that passes unread.
type receiver struct{ x *exchange }

func (r *receiver) Read(p []byte) (int, error) {
	n, err := r.x.r.Body.Read(p)
	r.x.received += int64(n)
	return n, err
}

// targets finds the servers whose models the request changes: the only server, the one that X-Backend names, or all.
func (s *Server) targets(x *exchange) ([]*backend.Backend, error) {
	all, name := s.Fleet.All(), strings.Join(x.r.Header["X-Backend"], ",")
	if b := s.Fleet.Named(name); b != nil {
		return []*backend.Backend{b}, nil
	}
	several := name == allServers && onAll[x.route.template]
	if several || name == "" && len(all) == 1 {
		return all, nil
	}
	var names []string
	for _, b := range all {
		names = append(names, b.Name)
	}
	hint := ""
	if onAll[x.route.template] {
		hint = ", or * for all of them"
	}
	return nil, api.Errorf(api.CodeBadRequest, "name the Ollama server in the header X-Backend: %s%s", strings.Join(names, ", "), hint)
}

// reread has the lists of a server whose models were changed read again, before its client learns that they are: the next request
// may be for the new one.
func (b *booking) reread(outcome api.Outcome) {
	if b.x.route.kind == dialect.None || outcome != api.OutcomeOK {
		return
	}
	for _, at := range b.targets {
		b.s.Fleet.Reread(context.WithoutCancel(b.x.r.Context()), at)
	}
}

// hasBlob answers HEAD /api/blobs/{digest}.
func (s *Server) hasBlob(x *exchange) error {
	if err := checkDigest(x.param); err != nil {
		return err
	}
	targets, err := s.targets(x)
	if err != nil {
		return err
	}
	resp, _, err := s.ask(x, targets[0], "HEAD", x.route.upstream+x.param, nil)
	if err != nil {
		return err
	}
	x.WriteHeader(resp.Status)
	return nil
}

func checkDigest(s string) error {
	if !validDigest(s) {
		return api.Errorf(api.CodeBadRequest, "the digest must be sha256: and 64 hexadecimal digits")
	}
	return nil
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
