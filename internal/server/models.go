package server

import (
	"cmp"
	"net/http"
	"strconv"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/dialect"
	"ollama-api-service/internal/proxy"
)

const (
	metadataTime = 10 * time.Second // Open WebUI gives a list no longer
	maxMetadata  = 32 << 20
)

// list answers /api/tags, /api/models, /api/ps and /v1/models with what the key may see.
func (s *Server) list(x *exchange) error {
	resp, body, err := s.ask(x, "GET", x.route.upstream, nil)
	if err != nil {
		return err
	}
	if resp.Status != http.StatusOK {
		return x.pass(resp, body)
	}
	aliases := s.Aliases
	if x.route.upstream == "/api/ps" {
		aliases = nil // what is loaded is loaded under one name
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

// oneModel answers /v1/models/{model} out of the list, so that no name of a client becomes a path at the backend.
func (s *Server) oneModel(x *exchange) error {
	model, _, err := api.ParseModel(x.param)
	if err != nil {
		return err
	}
	alias := ""
	if to, ok := s.Aliases.Resolve(model); ok {
		alias, model = x.param, to.Model
	}
	if err := mayUse(x.key, alias, model); err != nil {
		return err
	}
	resp, body, err := s.ask(x, "GET", x.route.upstream, nil)
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

// show answers /api/show; who is no admin does not see the paths of the server.
func (s *Server) show(x *exchange) error {
	body, err := x.readBody(s.mostBody(x.route))
	if err != nil {
		return err
	}
	req, err := x.route.kind.Read(body, s.terms(x.key))
	if err != nil {
		return err
	}
	if err := mayUse(x.key, req.Alias, req.Models...); err != nil {
		return err
	}
	resp, answer, err := s.ask(x, "POST", x.route.upstream, req.Body)
	if err != nil {
		return err
	}
	if resp.Status == http.StatusOK && x.key.Role != api.RoleAdmin {
		if answer, err = dialect.WithoutModelfile(answer); err != nil {
			return api.Wrap(api.CodeUpstreamError, err, "the answer of the Ollama server cannot be read")
		}
	}
	return x.pass(resp, answer)
}

// countTokens answers /v1/messages/count_tokens, which Ollama does not have, by Ollama's own formula. Claude's clients ask it
// often: it costs the backend and the key nothing.
func (s *Server) countTokens(x *exchange) error {
	body, err := x.readBody(s.MaxBody)
	if err != nil {
		return err
	}
	req, err := x.route.kind.Read(body, s.terms(x.key))
	if err != nil {
		return err
	}
	if err := mayUse(x.key, req.Alias, req.Models...); err != nil {
		return err
	}
	return x.sendJSON(map[string]int64{"input_tokens": req.PromptTokens})
}

// hasBlob answers HEAD /api/blobs/{digest}.
func (s *Server) hasBlob(x *exchange) error {
	if !validDigest(x.param) {
		return api.Errorf(api.CodeBadRequest, "the digest must be sha256: and 64 hexadecimal digits")
	}
	resp, _, err := s.ask(x, "HEAD", x.route.upstream+x.param, nil)
	if err != nil {
		return err
	}
	x.WriteHeader(resp.Status)
	return nil
}

// ask sends a metadata request and reads its whole answer.
func (s *Server) ask(x *exchange, method, path string, body []byte) (*proxy.Response, []byte, error) {
	resp, err := s.Upstream.Do(x.r.Context(), &proxy.Request{
		Method: method, Path: path, Body: body,
		Accept: x.passing("Accept"), UserAgent: x.passing("User-Agent"), FirstByte: metadataTime, Idle: metadataTime,
	})
	if err != nil {
		if api.AsError(err).Code == api.CodeNoBackend {
			s.Backend.Unreachable("a request could not be brought to it")
		}
		return nil, nil, err
	}
	defer resp.Close()
	if compressed(resp) {
		return nil, nil, errCompressed
	}
	if resp.Status >= 300 && resp.Status < 400 || resp.Status == http.StatusUnauthorized {
		return nil, nil, api.Errorf(api.CodeUpstreamError, "the Ollama server answered %d where it should not: ask who runs it", resp.Status)
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

// pass sends a metadata answer on.
func (x *exchange) pass(resp *proxy.Response, body []byte) error {
	body = x.withSentence(resp.Status, body)
	h := x.Header()
	if t := resp.Header.Get("Content-Type"); t != "" {
		h.Set("Content-Type", t)
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	x.WriteHeader(resp.Status)
	if x.r.Method == http.MethodHead {
		return nil
	}
	if _, err := x.Write(body); err != nil {
		return api.Wrap(api.CodeClientGone, err, "the client went away")
	}
	return nil
}
