package server

import (
	"cmp"
	"net/http"
	"slices"
	"sync"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/backend"
	"ollama-api-service/internal/dialect"
	"ollama-api-service/internal/explain"
	"ollama-api-service/internal/proxy"
)

const (
	metadataTime = 10 * time.Second // Open WebUI waits no longer for a list
	unionTime    = 4 * time.Second  // for one server's list if there are several servers
	maxMetadata  = 32 << 20
)

// list answers /api/tags, /api/models, /api/ps and /v1/models with the models that the key may see.
func (s *Server) list(x *exchange) error {
	resp, body, err := s.union(x)
	if err != nil {
		return err
	}
	if resp.Status != http.StatusOK {
		return x.pass(resp, body)
	}
	aliases := x.live.Aliases
	if x.route.upstream == "/api/ps" {
		aliases = nil // a loaded model is listed under one name
	}
	body, err = dialect.FilterModels(body, x.key.MayUse, aliases)
	if err == nil && x.family == dialect.Anthropic {
		body, err = dialect.AnthropicModels(body)
	}
	if err != nil {
		return api.Wrap(api.CodeUpstreamError, err, "the list of the Ollama server cannot be read")
	}
	return x.pass(resp, body)
}

// oneModel answers /v1/models/{model} from the list of models, so that no name from a client becomes a path at the backend.
func (s *Server) oneModel(x *exchange) error {
	model, _, err := api.ParseModel(x.param)
	if err != nil {
		return err
	}
	alias := ""
	if to, ok := x.live.Aliases.Resolve(model); ok {
		alias, model = x.param, to.Model
	}
	if err := mayUse(x.key, alias, model); err != nil {
		return err
	}
	resp, body, err := s.union(x)
	if err != nil {
		return err
	}
	if resp.Status != http.StatusOK {
		return x.pass(resp, body)
	}
	entry, err := dialect.ListedModel(body, model, x.param)
	if err != nil {
		return api.Wrap(api.CodeUpstreamError, err, "the list of the Ollama server cannot be read")
	}
	if entry == nil {
		return api.Errorf(api.CodeNotFound, "model '%s' not found", cmp.Or(alias, model.String()))
	}
	if x.family == dialect.Anthropic {
		if entry, err = dialect.AnthropicModel(entry); err != nil {
			return api.Wrap(api.CodeUpstreamError, err, "the list of the Ollama server cannot be read")
		}
	}
	return x.pass(resp, entry)
}

// readQuestion reads a body that asks about a model, and checks that the key may use the model.
func (s *Server) readQuestion(x *exchange) (*dialect.Request, error) {
	body, err := x.readBody(s.mostBody(x.route))
	if err != nil {
		return nil, err
	}
	req, err := x.route.kind.Read(body, s.terms(x))
	if err != nil {
		return nil, err
	}
	return req, mayUse(x.key, req.Alias, req.Models...)
}

// show answers /api/show. Non-admins do not see the paths of the server.
func (s *Server) show(x *exchange) error {
	req, err := s.readQuestion(x)
	if err != nil {
		return err
	}
	resp, answer, err := s.askHolder(x, req)
	if err != nil {
		return err
	}
	if resp.Status == http.StatusOK && x.key.Role != api.RoleAdmin {
		if answer, err = dialect.HideModelfile(answer); err != nil {
			return api.Wrap(api.CodeUpstreamError, err, "the answer of the Ollama server cannot be read")
		}
	}
	return x.pass(resp, answer)
}

// countTokens answers /v1/messages/count_tokens, which Ollama does not have, with Ollama's own formula. Claude's clients call it often; it
// costs the backend and the key nothing.
func (s *Server) countTokens(x *exchange) error {
	req, err := s.readQuestion(x)
	if err != nil {
		return err
	}
	return x.sendJSON(map[string]int64{"input_tokens": req.PromptTokens})
}

const (
	accountPath  = "/api/me"
	accountSince = "0.12.0" // the first Ollama with accountPath
)

// account answers POST /api/me with the account of the Ollama server at ollama.com. The ollama command sends this request before it pushes,
// signs in or signs out. It shows its user the sign-in address that a 401 contains.
func (s *Server) account(x *exchange) error {
	targets, err := s.targets(x)
	if err != nil {
		return err
	}
	if state := targets[0].State(); state.Older(accountSince) {
		return tooOld(state.Version, accountSince)
	}
	resp, body, err := s.ask(x, targets[0], "POST", accountPath, nil)
	if err != nil {
		return err
	}
	return x.pass(resp, body)
}

// union merges the lists of all servers. Servers that do not answer in time are left out, because half a list is better than none.
func (s *Server) union(x *exchange) (*proxy.Response, []byte, error) {
	all := s.Fleet.All()
	if len(all) == 1 {
		return s.ask(x, all[0], "GET", x.route.upstream, nil)
	}
	asked := slices.DeleteFunc(slices.Clone(all), func(b *backend.Backend) bool { return !b.State().Healthy })
	if len(asked) == 0 {
		return nil, nil, api.Errorf(api.CodeNoBackend, "no Ollama server can be reached: try again soon, or ask the operator")
	}
	answers := make([]listAnswer, len(asked))
	var running sync.WaitGroup
	for i, b := range asked {
		running.Go(func() {
			a := &answers[i]
			a.at = b
			a.resp, a.body, a.err = s.ask(x, b, "GET", x.route.upstream, nil)
		})
	}
	running.Wait()
	first, lists := answers[0], []dialect.ModelList(nil)
	for _, a := range answers {
		if a.err != nil || a.resp.Status != http.StatusOK {
			continue
		}
		first = a
		lists = append(lists, dialect.ModelList{Body: a.body, Except: func(m api.Model) bool {
			return slices.Contains(s.Fleet.Divergent(m.String()), a.at)
		}})
	}
	if len(lists) == 0 {
		return first.resp, first.body, first.err
	}
	body, err := dialect.UnionModels(lists)
	if err != nil {
		return nil, nil, api.Wrap(api.CodeUpstreamError, err, "the lists of the Ollama servers cannot be read")
	}
	return first.resp, body, nil
}

// listAnswer is the answer of one server.
type listAnswer struct {
	at   *backend.Backend
	resp *proxy.Response
	body []byte
	err  error
}

// askHolder sends a question about a model to a server that has the model. If that server cannot be reached, it asks a second one.
func (s *Server) askHolder(x *exchange, req *dialect.Request) (resp *proxy.Response, answer []byte, err error) {
	model := req.Model().String()
	if !s.Fleet.Find(x.r.Context(), model) {
		return nil, nil, notFound(cmp.Or(req.Alias, model))
	}
	holders := s.Fleet.Holding(model)
	if len(holders) == 0 {
		return nil, nil, s.Fleet.Unreachable()
	}
	for _, b := range holders[:min(len(holders), explain.MaxTries)] {
		if resp, answer, err = s.ask(x, b, "POST", x.route.upstream, req.Body); err == nil || x.r.Context().Err() != nil {
			break
		}
	}
	return resp, answer, err
}

// ask sends a metadata request to b and reads its whole answer.
func (s *Server) ask(x *exchange, b *backend.Backend, method, path string, body dialect.Pieces) (*proxy.Response, []byte, error) {
	wait := metadataTime
	if len(s.Fleet.All()) > 1 && x.route.kind == dialect.None {
		wait = unionTime
	}
	up := x.upstreamRequest(method, path, body)
	up.FirstByte, up.Idle = wait, wait
	resp, err := s.pools.to(b).Do(x.r.Context(), up)
	if err != nil {
		s.note(b, err)
		return nil, nil, err
	}
	defer resp.Close()
	if compressed(resp) {
		return nil, nil, errCompressed
	}
	if resp.Status >= 300 && resp.Status < 400 || resp.Status == http.StatusUnauthorized && path != accountPath {
		return nil, nil, api.Errorf(api.CodeUpstreamError, "the Ollama server answered with the unexpected status %d: ask the operator", resp.Status)
	}
	answer, all, err := resp.Head(maxMetadata)
	if err != nil {
		return nil, nil, err
	}
	if !all {
		return nil, nil, api.Errorf(api.CodeUpstreamError, "the answer of the Ollama server is too long")
	}
	if err := unreadable(resp.Status, answer); err != nil && method != http.MethodHead {
		return nil, nil, err
	}
	return resp, answer, nil
}

// pass forwards a metadata answer to the client.
func (x *exchange) pass(resp *proxy.Response, body []byte) error {
	return x.answer(resp.Status, resp.Header.Get("Content-Type"), dialect.AddSentence(x.family, resp.Status, body))
}
