package server

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/rs/cors"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/auth"
)

const (
	corsOrigin        = "Access-Control-Allow-Origin"
	corsAskedMethod   = "Access-Control-Request-Method"
	corsAskedHeaders  = "Access-Control-Request-Headers"
	preflightLifetime = 12 * time.Hour
	maxOrigin         = 300 // bytes; a host name has at most 253
)

// ambient are the header fields that name a session or a payer. A page of another origin may not send them. All other fields are allowed,
// because each version of an SDK adds its own, and none of them gives the page a right that it does not have.
var ambient = []string{"cookie", "x-charge-key", "x-csrf-token"}

// crossOrigin lets pages of the given origins call the service from a browser. The page sends the key in a header, never in a cookie:
// Access-Control-Allow-Credentials is not sent, so a browser adds no credentials of its own (Fetch standard, 3.2.5).
func crossOrigin(next http.Handler, origins []api.Origin) http.Handler {
	if len(origins) == 0 {
		return next
	}
	rules := cors.New(cors.Options{
		AllowOriginFunc: func(origin string) bool { return admits(origins, origin) },
		AllowedMethods:  []string{"GET", "HEAD", "POST", "PATCH", "DELETE"},
		AllowedHeaders:  []string{"*"}, // echoes the requested fields; a star in the answer would not include Authorization
		ExposedHeaders: []string{
			"Deprecation", "Request-Id", "Retry-After", "X-Backend", "X-Client-Request-Id", "X-Key-Expires", "X-Policy", "X-Queue-Wait-Ms",
			"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "X-Request-Id", "X-Should-Retry",
			openAIRequests.limit, openAIRequests.remaining, openAIRequests.reset, openAITokens.limit, openAITokens.remaining, openAITokens.reset,
			anthropicRequests.limit, anthropicRequests.remaining, anthropicRequests.reset,
			anthropicTokens.limit, anthropicTokens.remaining, anthropicTokens.reset,
		},
		AllowPrivateNetwork: true, // a page on the internet that the operator has admitted may call a gateway in a private network
		MaxAge:              int(preflightLifetime.Seconds()),
		OptionsPassthrough:  true, // a refusal is written, and logged, like every other one
	})
	answer := rules.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if preflight(r) && w.Header().Get(corsOrigin) != "" {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		next.ServeHTTP(w, r)
	}))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if preflight(r) {
			withoutAmbient(r.Header)
		}
		answer.ServeHTTP(w, r)
	})
}

func preflight(r *http.Request) bool {
	return r.Method == http.MethodOptions && r.Header.Get("Origin") != "" && r.Header.Get(corsAskedMethod) != ""
}

// withoutAmbient removes the ambient fields from the list that a preflight asks for, so that they are not echoed.
func withoutAmbient(h http.Header) {
	asked := strings.Split(strings.Join(h[corsAskedHeaders], ","), ",")
	asked = slices.DeleteFunc(asked, func(name string) bool {
		return slices.Contains(ambient, strings.ToLower(strings.TrimSpace(name)))
	})
	if _, ok := h[corsAskedHeaders]; ok {
		h[corsAskedHeaders] = []string{strings.Join(asked, ",")}
	}
}

func admits(origins []api.Origin, origin string) bool {
	return slices.ContainsFunc(origins, func(o api.Origin) bool { return o.Admits(origin) })
}

// refusePreflight returns the refusal of a preflight request, which tells the operator which setting admits the page. The browser shows its
// user only that the request failed.
func (x *exchange) refusePreflight() error {
	if !preflight(x.r) {
		return nil
	}
	origin := x.r.Header.Get("Origin")
	if admits(x.live.Origins, origin) {
		return nil // the method is the reason, and the route table reports that
	}
	// No browser sends a star. A client that does must not make the operator put one into the setting.
	if _, err := api.ParseOrigin(origin); err != nil || strings.Contains(origin, "*") || len(origin) > maxOrigin || auth.MayHoldKey(origin) {
		return api.Errorf(api.CodeForbidden,
			"pages of this origin may not call the service, and no setting can admit it: no browser sends such an Origin")
	}
	return api.Wrap(api.CodeForbidden, fmt.Errorf("CORS_ORIGINS does not admit %s", origin),
		fmt.Sprintf("pages of %s may not call this service: its operator can admit them with the setting CORS_ORIGINS=%[1]s", origin))
}
