package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"ollama-api-service/internal/admin"
	"ollama-api-service/internal/dialect"
	"ollama-api-service/web"
)

// object is a part of the OpenAPI document.
type object = map[string]any

// describe builds the OpenAPI document. It starts with huma's description of the typed operations, lays the entries in web/openapi over
// it, and completes both from the route table: who may use a route, how it fails, and which limits apply.
func (s *Server) describe(typed *huma.OpenAPI) (*web.File, error) {
	text, err := json.Marshal(typed)
	if err != nil {
		return nil, err
	}
	doc := object{}
	parts, err := web.Entries()
	if err != nil {
		return nil, err
	}
	for _, part := range append([][]byte{text}, parts...) {
		o, err := parse("", part)
		if err != nil {
			return nil, fmt.Errorf("an entry of the OpenAPI document: %w", err)
		}
		merge(doc, o.(object))
	}
	if s.BasePath != "" {
		doc["servers"] = []object{{"url": s.BasePath, "description": "This service"}}
	}
	shared := at(doc, "components", "responses")
	written := slices.Collect(maps.Keys(shared))
	for _, r := range s.routes.all {
		// A route without an entry is found by TestEveryRouteIsDescribed; it must not keep the service from starting.
		if op, ok := at(doc, "paths", r.template)[strings.ToLower(r.method)].(object); ok {
			s.complete(op, r, shared)
		}
	}
	for _, name := range written {
		delete(shared, name) // they were copied to where they are used
	}
	text, err = json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	return web.Compress("application/json", text)
}

// parse decodes the parts of JSON that this file works on. Schemas and examples stay raw, because a map would sort their fields, which are
// written in an order that makes sense to readers.
func parse(name string, raw json.RawMessage) (any, error) {
	raw = bytes.TrimSpace(raw)
	if len(raw) > 0 && raw[0] == '"' {
		var text string
		err := json.Unmarshal(raw, &text)
		return text, err
	}
	if len(raw) == 0 || raw[0] != '{' || name == "schema" || name == "example" || name == "examples" {
		return raw, nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, err
	}
	o := make(object, len(fields))
	for k, v := range fields {
		if name == "schemas" {
			o[k] = v
			continue
		}
		var err error
		if o[k], err = parse(k, v); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// merge lays over on base: objects are joined, everything else is replaced.
func merge(base, over object) {
	for k, v := range over {
		below, both := base[k].(object)
		if above, ok := v.(object); ok && both {
			merge(below, above)
			continue
		}
		base[k] = v
	}
}

// at returns the object at the path of names, and creates the objects that are missing.
func at(o object, names ...string) object {
	for _, name := range names {
		next, ok := o[name].(object)
		if !ok {
			next = object{}
			o[name] = next
		}
		o = next
	}
	return o
}

// complete adds to an operation what follows from its row in the routing table and from the settings.
func (s *Server) complete(op object, r *route, shared object) {
	switch {
	case r.optional, r.access == adminsOrHere && s.MetricsOpen:
		op["security"] = []any{object{}, object{"bearer": []any{}}, object{"x-api-key": []any{}}}
	case r.access == anyone:
		op["security"] = []any{}
	}
	op["description"] = strings.TrimSpace(fmt.Sprint(op["description"])) + "\n\n" + s.conditions(r)
	responses := at(op, "responses")
	for status, answer := range responses {
		if code, err := strconv.Atoi(status); err != nil || code >= 400 {
			delete(responses, status) // huma's guesses; the loop below adds the real failures
		} else {
			responses[status] = r.success(answer.(object), shared)
		}
	}
	for _, status := range r.failures() {
		name := r.failureName(status)
		if shared[name] == nil {
			shared[name] = r.failure(status)
		}
		responses[strconv.Itoa(status)] = object{"$ref": "#/components/responses/" + name}
	}
}

// success returns an answer of the entry with the headers of this route. It copies an answer that several entries share, because their
// headers may differ.
func (r *route) success(answer, shared object) object {
	own := object{}
	if ref, ok := answer["$ref"].(string); ok {
		answer = shared[strings.TrimPrefix(ref, "#/components/responses/")].(object)
	}
	maps.Copy(own, answer)
	headers := object{}
	if written, ok := answer["headers"].(object); ok {
		maps.Copy(headers, written)
	}
	r.describeHeader(headers)
	own["headers"] = headers
	return own
}

// conditions returns the sentence that tells who may use the route and which limits apply.
func (s *Server) conditions(r *route) string {
	who := "any API key"
	switch {
	case r.optional:
		who = "anyone; an admin key sees more"
	case r.access == anyone:
		who = "anyone, without a key"
	case r.access == adminsOrHere && s.MetricsOpen:
		who = "admin keys; on this machine anyone"
	case r.access.admin():
		who = "admin keys"
	}
	limits := "none; it is not counted"
	switch {
	case r.counted && r.purpose == inference:
		limits = fmt.Sprintf("the key's `rate_limit`, `max_concurrent`, tokens and GPU time; %s in all, waiting for a slot included", strings.TrimSuffix(s.MaxRequestTime.String(), "0s"))
	case r.counted:
		limits = "the key's `rate_limit` and `max_concurrent`"
	}
	if most := s.mostBody(r); most > 0 {
		limits += "; a body of " + size(most)
	}
	return "**For:** " + who + ". **Limits:** " + limits + "."
}

func size(bytes int64) string {
	switch {
	case bytes >= 1<<20 && bytes%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", bytes>>20)
	case bytes >= 1<<10 && bytes%(1<<10) == 0:
		return fmt.Sprintf("%d KiB", bytes>>10)
	}
	return fmt.Sprintf("%d bytes", bytes)
}

// mostBody returns the size of the longest body that a route reads. It is 0 for routes that read no body or forward it unread.
func (s *Server) mostBody(r *route) int64 {
	switch {
	case r.kind == dialect.Show:
		return admin.MaxBody
	case r.kind != dialect.None:
		return s.MaxBody
	case r.purpose == own && (r.method == http.MethodPost || r.method == http.MethodPatch):
		return admin.MaxBody
	}
	return 0
}

func (r *route) describeHeader(h object) {
	h["X-Request-Id"] = headerRef("X-Request-Id")
	if slices.Contains(r.families(), dialect.Anthropic) {
		h["Request-Id"] = headerRef("Request-Id")
	}
	if r.counted && r.kind != dialect.None {
		h["X-Policy"] = headerRef("X-Policy")
	}
	if r.purpose == inference {
		h["X-Queue-Wait-Ms"] = headerRef("X-Queue-Wait-Ms")
	}
	if r.counted {
		for _, name := range []string{"X-Backend", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"} {
			h[name] = headerRef(name)
		}
	}
}

func headerRef(name string) object { return object{"$ref": "#/components/headers/" + name} }
