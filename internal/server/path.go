package server

import (
	"cmp"
	"net/http"
	"net/url"
	"strings"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/dialect"
)

// cleanPath reads the path as it was sent and removes a key from its front. Clients whose base address ends in a slash send doubled or
// trailing slashes; cleanPath removes them. The path that goes upstream is always a constant of the table. Everything else is matched as
// it is: an encoded path may contain a parameter but never matches a route's constant part (docs/decisions.md).
func (x *exchange) cleanPath() error {
	u := x.r.URL
	x.path = x.s.below(u.EscapedPath())
	if rest, ok := strings.CutPrefix(strings.TrimLeft(x.path, "/"), "k/"); ok {
		key, path, _ := strings.Cut(strings.TrimLeft(rest, "/"), "/")
		key, err := url.PathUnescape(key)
		if err != nil || key == "" {
			return api.Errorf(api.CodeNotFound, "no such path: write /k/KEY/ before the path")
		}
		x.pathKey, x.path = key, "/"+path
	}
	x.path = singleSlashes(x.path)
	x.encoded = strings.IndexByte(x.path, '%') >= 0
	x.family = familyOf(x.path, x.r.Header)
	switch {
	case x.r.Method == http.MethodConnect, x.r.Method == http.MethodTrace, x.r.RequestURI == "*":
		// These concern the service, a connection or a proxy, not a path of the table.
		x.Header().Set("Allow", "GET, HEAD, POST, PATCH, DELETE")
		return api.Errorf(api.CodeMethodNotAllowed, "CONNECT, TRACE and the path * are not served")
	case u.Host != "" || u.Scheme != "" || !strings.HasPrefix(u.Path, "/"):
		return api.Errorf(api.CodeBadRequest, "the request line must name a path")
	}
	return nil
}

// below removes BASE_PATH from a path. A path without BASE_PATH is returned as it is: a proxy may have removed the prefix, and probes on
// this machine do not send it.
func (s *Server) below(path string) string {
	if s.BasePath == "" {
		return path
	}
	rest, ok := strings.CutPrefix("/"+strings.TrimLeft(path, "/"), s.BasePath)
	if !ok || rest != "" && rest[0] != '/' {
		return path
	}
	return cmp.Or(rest, "/")
}

func singleSlashes(path string) string {
	if path == "/" || !strings.Contains(path, "//") && !strings.HasSuffix(path, "/") {
		return path
	}
	var b strings.Builder
	for segment := range strings.SplitSeq(path, "/") {
		if segment != "" {
			b.WriteByte('/')
			b.WriteString(segment)
		}
	}
	return cmp.Or(b.String(), "/")
}

// find sets the exchange's route and parameter. It returns CodeNotFound, CodeMethodNotAllowed with the allowed methods, or
// CodeNoWebSocket. Each GET route also answers HEAD: net/http leaves the body out.
func (t *table) find(x *exchange) error {
	methods, param := t.at(x.path)
	if methods == nil || x.encoded && param == "" {
		return t.unknown(x)
	}
	x.param = param
	var get *route
	allowed := make([]string, 0, len(methods)+1)
	for _, r := range methods {
		if r.method == x.r.Method {
			x.route = r
			return nil
		}
		if r.method == http.MethodGet {
			get = r
		}
		if r.method != http.MethodHead || get == nil {
			allowed = append(allowed, r.method)
		}
	}
	if get != nil {
		if x.r.Method == http.MethodHead {
			x.route = get
			return nil
		}
		allowed = append(allowed, http.MethodHead)
	}
	x.Header().Set("Allow", strings.Join(allowed, ", "))
	if x.r.Method == http.MethodGet && strings.EqualFold(x.r.Header.Get("Upgrade"), "websocket") {
		return api.Errorf(api.CodeNoWebSocket, "this service does not support WebSocket: send the request with %s over HTTP",
			strings.Join(allowed, " or "))
	}
	return api.Errorf(api.CodeMethodNotAllowed, "this path answers %s only", strings.Join(allowed, ", "))
}

// at returns the routes of a path, and the parameter in the path.
func (t *table) at(path string) (methods []*route, param string) {
	if methods := t.exact[path]; methods != nil {
		return methods, ""
	}
	for _, p := range t.params {
		if param, ok := p.match(path); ok {
			return p.routes, param
		}
	}
	return nil, ""
}

// match returns the segment between before and after, percent-decoded once.
func (p paramRoutes) match(path string) (string, bool) {
	if !strings.HasPrefix(path, p.before) || !strings.HasSuffix(path, p.after) || len(path) <= len(p.before)+len(p.after) {
		return "", false
	}
	raw := path[len(p.before) : len(path)-len(p.after)]
	if strings.Contains(raw, "/") {
		return "", false
	}
	param, err := url.PathUnescape(raw)
	return param, err == nil && param != ""
}

// unknown returns the failure of a path that is not in the table. If the base URL of a client is wrong, its user must see the path that
// was probably meant. So the failure has the dialect of that path.
func (t *table) unknown(x *exchange) error {
	meant := ""
	if !x.encoded {
		meant = t.meant(x.path)
	}
	switch {
	case meant != "":
		x.family = familyOf(meant, x.r.Header)
	case x.r.Header["Anthropic-Version"] != nil:
		x.family = dialect.Anthropic
	case x.family == dialect.Native && strings.Contains(x.path, "/v1/"):
		x.family = dialect.OpenAI
	}
	switch {
	case meant == "":
		return api.Errorf(api.CodeNotFound, "no such path: GET %s/ lists all paths", x.s.BasePath)
	case x.pathKey == "" && strings.Contains(x.path, "/k/"):
		return api.Errorf(api.CodeNotFound, "no such path: a key comes first in the path, as in %s/k/KEY%s", x.s.BasePath, meant)
	case strings.HasPrefix(meant, "/v1/") && !strings.Contains(strings.ToLower(x.path), "/v1"):
		return api.Errorf(api.CodeNotFound, "no such path; did you mean %s? The base URL that the client is set to probably needs /v1 at its end",
			x.s.BasePath+meant)
	}
	return api.Errorf(api.CodeNotFound, "no such path; did you mean %s? Check the base URL that the client is set to: the client adds the rest of the path itself",
		x.s.BasePath+meant)
}

// meant returns the template of the route that a wrong path ends with, or ends with once /v1 or /api is put before its end. It returns ""
// if there is no such route.
func (t *table) meant(path string) string {
	const most = 4 // segments of the longest template; this also bounds the work
	segments := strings.Split(strings.ToLower(path), "/")[1:]
	for segments = segments[max(0, len(segments)-most):]; len(segments) > 0; segments = segments[1:] {
		end := "/" + strings.Join(segments, "/")
		for _, before := range [...]string{"", "/v1", "/api"} {
			if methods, _ := t.at(before + end); methods != nil {
				return methods[0].template
			}
		}
	}
	return ""
}

// familyOf is the dialect of a request's errors, also where no route is found for it. Where Anthropic's clients share a path
// with OpenAI's, their header tells them apart.
func familyOf(path string, h http.Header) dialect.Family {
	first, _, _ := strings.Cut(strings.TrimPrefix(path, "/v1/"), "/")
	switch {
	case !strings.HasPrefix(path, "/v1/"):
		return dialect.Native
	case first == "messages", first == "models" && h["Anthropic-Version"] != nil:
		return dialect.Anthropic
	case first == "responses":
		return dialect.Responses
	}
	return dialect.OpenAI
}
