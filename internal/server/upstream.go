package server

import (
	"net/http"
	"strings"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/auth"
	"ollama-api-service/internal/backend"
	"ollama-api-service/internal/dialect"
	"ollama-api-service/internal/proxy"
)

// upstreamRequest is what Ollama gets: a constant path, no query, and of the client's header the two values that change its answers.
func (x *exchange) upstreamRequest(method, path string, body dialect.Pieces) *proxy.Request {
	return &proxy.Request{
		Method: method, Path: path, Body: body, Accept: x.forwardedHeader("Accept"), UserAgent: x.forwardedHeader("User-Agent"),
	}
}

// forwardedHeader returns the value of a client's header field that the gateway forwards to Ollama. It returns "" if the value may contain
// a key by mistake.
func (x *exchange) forwardedHeader(name string) string {
	value := x.r.Header.Get(name)
	if auth.MayHoldKey(value) {
		return ""
	}
	return value
}

// sendTo sends a request to a server, and tells the fleet if that fails.
func (b *booking) sendTo(at *backend.Backend, up *proxy.Request) (*proxy.Response, error) {
	resp, err := b.s.pools.to(at).Do(b.upstream.ctx, up)
	b.s.note(at, err)
	return resp, err
}

// note reports a failed request to the fleet. A client that left, or an answer that took too long, is not a failure of b.
func (s *Server) note(b *backend.Backend, err error) {
	if err == nil {
		return
	}
	switch api.AsError(err).Code {
	case api.CodeNoBackend:
		s.Fleet.Failed(b, true)
	case api.CodeUpstreamError:
		s.Fleet.Failed(b, false)
	}
}

// What only the operator can change is not worth a second try.
var (
	errCompressed = &api.Error{Code: api.CodeUpstreamError, NoRetry: true, Message: "the Ollama server compressed its answer, although the gateway did not ask for it: ask the operator"}
	errRedirects  = &api.Error{Code: api.CodeUpstreamError, NoRetry: true, Message: "the Ollama server redirects: OLLAMA_BASE_URL must name it directly"}
	errSignedOut  = &api.Error{Code: api.CodeUpstreamError, NoRetry: true, Message: "the Ollama server is not signed in where this model needs it: ask the operator"}
	errEndedEarly = api.Errorf(api.CodeUpstreamError, "the answer of the Ollama server ended too early: try again")
)

// compressed reports whether an answer is compressed. Its usage and its end could not be read, and no client asked for it.
func compressed(resp *proxy.Response) bool {
	coding := resp.Header.Get("Content-Encoding")
	return coding != "" && !strings.EqualFold(coding, "identity")
}

// unreadable is the failure for an answer that is no JSON: a proxy in front of Ollama writes such, and Ollama itself where it
// lacks a route, panics (500 and nothing), or does not know the Host that it is called by (403 and nothing). It is nil for every
// other answer.
func unreadable(status int, body []byte) error {
	switch {
	case len(body) == 0 && status < http.StatusBadRequest || len(body) > 0 && dialect.Valid(body):
		return nil
	case status == http.StatusForbidden && len(body) == 0:
		return api.Errorf(api.CodeUpstreamError, "the Ollama server refuses the name that it is called by: set OLLAMA_BASE_URL to its address, or OLLAMA_HOST there")
	case status == http.StatusNotFound:
		return api.Errorf(api.CodeNotFound, "the Ollama server does not know this route: it may be too old")
	case status == http.StatusRequestEntityTooLarge:
		return api.Errorf(api.CodeTooLarge, "the body is larger than what stands before the Ollama server takes")
	}
	return api.Errorf(api.CodeUpstreamError, "the Ollama server answered %d without JSON: ask the operator whether OLLAMA_BASE_URL names an Ollama", status)
}
