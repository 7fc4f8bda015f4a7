package server

import (
	"net/http"
	"strings"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/auth"
)

const (
	maxTarget = 8 << 10
	maxFields = 100
)

// ruled are the fields of a header that this service obeys. One of them spelled with an underscore could be dropped by one proxy
// and obeyed by the next (CVE-2025-64484 of oauth2-proxy); others with underscores, such as Codex's session_id, mean nothing.
var ruled = map[string]bool{
	"Authorization": true, "X-Api-Key": true, "Api-Key": true, "Content-Length": true, "Transfer-Encoding": true, "Content-Encoding": true, "Content-Type": true,
	"X-Forwarded-For": true, "X-Forwarded-Host": true, "X-Forwarded-Proto": true, "X-Real-Ip": true, "X-Request-Id": true,
	"Anthropic-Version": true, "X-Backend": true, "User-Agent": true, "Sec-Fetch-Site": true,
}

// checkHead refuses a head that is too large, or that another reader could take for something else. What net/http refuses by
// itself never gets here: two lengths, unknown codings, broken lines, a missing Host.
func (x *exchange) checkHead() error {
	if len(x.r.RequestURI) > maxTarget {
		return api.Errorf(api.CodeTargetTooLong, "the path and query are longer than %d bytes", maxTarget)
	}
	fields := 0
	for name, values := range x.r.Header {
		fields += len(values)
		if strings.IndexByte(name, '_') >= 0 && ruled[http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-"))] {
			return api.Errorf(api.CodeBadRequest, "a header is spelled with an underscore: write it with a hyphen")
		}
	}
	if fields > maxFields {
		return api.Errorf(api.CodeHeadTooLarge, "the header has more than %d fields", maxFields)
	}
	if len(x.r.Header["Content-Length"]) > 1 {
		// net/http sees to it in HTTP/1 alone (RFC 9113, 8.1.1).
		return api.Errorf(api.CodeBadRequest, "the request has more than one Content-Length")
	}
	return nil
}

// boundConnection closes the connection after a request whose end two readers could see in two places: a length beside chunks
// (net/http goes by the chunks and drops the length unseen), or chunks in HTTP/1.0 (it goes by the length and drops the coding
// unseen). Nothing that stands behind is then read as a request (RFC 9112, 6.1).
func (x *exchange) boundConnection() {
	if x.r.ProtoMajor == 1 && (len(x.r.TransferEncoding) > 0 || x.r.ProtoMinor == 0) {
		x.Header().Set("Connection", "close")
	}
}

// passing is a field of the client's header as it goes to Ollama: one with a key in it, put there by mistake, does not.
func (x *exchange) passing(name string) string {
	value := x.r.Header.Get(name)
	if auth.MayHoldKey(value) {
		return ""
	}
	return value
}
