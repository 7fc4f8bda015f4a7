package server

import (
	"net/http"
	"strings"

	"ollama-api-service/internal/api"
)

const (
	maxTarget = 8 << 10
	maxFields = 100
)

// ruled are the header fields that this service acts on. If such a field is spelled with an underscore, one proxy may drop it and the next
// may act on it (CVE-2025-64484 of oauth2-proxy). Other fields with underscores, such as Codex's session_id, have no meaning here.
var ruled = map[string]bool{
	"Authorization": true, "X-Api-Key": true, "Api-Key": true,
	"Content-Length": true, "Transfer-Encoding": true, "Content-Encoding": true, "Content-Type": true,
	"X-Forwarded-For": true, "X-Forwarded-Host": true, "X-Forwarded-Proto": true, "X-Real-Ip": true, "X-Request-Id": true,
	"Anthropic-Version": true, "X-Backend": true, "User-Agent": true, "Sec-Fetch-Site": true,
}

// checkHead refuses a head that is too large, or that another program could read differently. net/http itself refuses two lengths in
// HTTP/1, unknown codings, malformed lines and a missing Host.
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
		// net/http checks this only in HTTP/1 (RFC 9113, 8.1.1).
		return api.Errorf(api.CodeBadRequest, "the request has more than one Content-Length")
	}
	return nil
}

// boundConnection closes the connection after a request whose end is ambiguous: one with both a length and chunks (net/http uses the
// chunks and drops the length silently), or one with chunks in HTTP/1.0 (net/http uses the length and drops the coding silently). The
// bytes that follow are then never read as a request (RFC 9112, 6.1).
func (x *exchange) boundConnection() {
	if x.r.ProtoMajor == 1 && (len(x.r.TransferEncoding) > 0 || x.r.ProtoMinor == 0) {
		x.Header().Set("Connection", "close")
	}
}
