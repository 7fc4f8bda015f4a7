package server

import (
	"slices"
	"strings"

	"ollama-api-service/internal/dialect"
)

// access says who may use a route.
type access uint8

const (
	adminsOnly access = iota // the zero value is the strictest
	anyKey
	anyone
	adminsOrHere // admins, and programs on this machine if METRICS_OPEN is set
)

// admin reports whether the route needs an admin key.
func (a access) admin() bool { return a == adminsOnly || a == adminsOrHere }

// purpose is what a route is for.
type purpose uint8

const (
	own        purpose = iota // answered by the gateway itself
	metadata                  // reads from the backend, at no cost to it
	inference                 // takes a slot, is limited and recorded
	management                // changes the backend, is limited and recorded
)

var purposeNames = [...]string{own: "own", metadata: "metadata", inference: "inference", management: "management"}

// route is one row of the routing table. A path that is not in the table does not exist.
type route struct {
	method, template string
	access           access
	family           dialect.Family
	purpose          purpose
	counted          bool // limited, journalled and recorded in the books
	kind             dialect.Kind
	upstream         string // constant path at the backend; "" if the gateway itself answers
	optional         bool   // with anyone: the route reads a key if the request has one
	serve            func(*exchange) error
}

// ollama reports whether the route is part of Ollama's or OpenAI's API. These routes accept a key in the path.
func (r *route) ollama() bool {
	return r.purpose != own || r.template == "/" || r.template == "/api/version"
}

// routeList returns the routing table: who may use a route, what it is for, and which function serves it. docs/decisions.md explains why
// routes match exactly.
func (s *Server) routeList() []route {
	list := []route{
		{"GET", "/", anyone, dialect.Native, own, false, 0, "", false, s.root},
		{"HEAD", "/", anyone, dialect.Native, own, false, 0, "", false, s.root},
		{"GET", "/api/version", anyone, dialect.Native, own, false, 0, "", false, s.version},
		{"HEAD", "/api/version", anyone, dialect.Native, own, false, 0, "", false, s.version},
		{"GET", "/health", anyone, dialect.Native, own, false, 0, "", true, s.health},
		{"GET", "/healthz", anyone, dialect.Native, own, false, 0, "", false, s.alive},
		{"HEAD", "/healthz", anyone, dialect.Native, own, false, 0, "", false, s.alive},
		{"GET", "/readyz", anyone, dialect.Native, own, false, 0, "", false, s.readiness},
		{"HEAD", "/readyz", anyone, dialect.Native, own, false, 0, "", false, s.readiness},
		{"GET", "/metrics", adminsOrHere, dialect.Native, own, false, 0, "", false, s.scrape},
		{"GET", "/debug/pprof/{profile}", adminsOnly, dialect.Native, own, false, 0, "", false, s.profile},
		{"GET", "/openapi.json", anyone, dialect.Native, own, false, 0, "", false, s.document},
		{"GET", "/docs", anyone, dialect.Native, own, false, 0, "", false, s.page},
		{"HEAD", "/docs", anyone, dialect.Native, own, false, 0, "", false, s.page},
		{"GET", "/redoc", anyone, dialect.Native, own, false, 0, "", false, s.page},
		{"HEAD", "/redoc", anyone, dialect.Native, own, false, 0, "", false, s.page},
		{"GET", "/docs/{file}", anyone, dialect.Native, own, false, 0, "", false, s.file},
		{"HEAD", "/docs/{file}", anyone, dialect.Native, own, false, 0, "", false, s.file},

		{"POST", "/api/keys", adminsOnly, dialect.Native, own, false, 0, "", false, s.manage},
		{"GET", "/api/keys", adminsOnly, dialect.Native, own, false, 0, "", false, s.manage},
		{"GET", "/api/keys/{key_preview}", adminsOnly, dialect.Native, own, false, 0, "", false, s.manage},
		{"PATCH", "/api/keys/{key_preview}", adminsOnly, dialect.Native, own, false, 0, "", false, s.manage},
		{"DELETE", "/api/keys/{key_preview}", adminsOnly, dialect.Native, own, false, 0, "", false, s.manage},
		{"POST", "/api/keys/{key_preview}/rotate", adminsOnly, dialect.Native, own, false, 0, "", false, s.manage},
		{"GET", "/api/stats", anyKey, dialect.Native, own, false, 0, "", false, s.manage},
		{"GET", "/api/admin/stats", adminsOnly, dialect.Native, own, false, 0, "", false, s.manage},
		{"GET", "/api/admin/usage", adminsOnly, dialect.Native, own, false, 0, "", false, s.manage},
		{"GET", "/api/admin/audit", adminsOnly, dialect.Native, own, false, 0, "", false, s.manage},
		{"GET", "/api/admin/requests", adminsOnly, dialect.Native, own, false, 0, "", false, s.manage},
		{"GET", "/api/admin/explain/{request_id}", adminsOnly, dialect.Native, own, false, 0, "", false, s.manage},
		{"GET", "/api/queue", anyKey, dialect.Native, own, false, 0, "", false, s.manage},
		{"GET", "/api/admin/backends", adminsOnly, dialect.Native, own, false, 0, "", false, s.manage},
		{"POST", "/api/admin/backends", adminsOnly, dialect.Native, own, false, 0, "", false, s.manage},
		{"PATCH", "/api/admin/backends/{name}", adminsOnly, dialect.Native, own, false, 0, "", false, s.manage},
		{"DELETE", "/api/admin/backends/{name}", adminsOnly, dialect.Native, own, false, 0, "", false, s.manage},

		{"GET", "/api/models", anyKey, dialect.Native, metadata, false, 0, "/api/tags", false, s.list},
		{"GET", "/api/tags", anyKey, dialect.Native, metadata, false, 0, "/api/tags", false, s.list},
		{"HEAD", "/api/tags", anyKey, dialect.Native, metadata, false, 0, "/api/tags", false, s.list},
		{"GET", "/api/ps", anyKey, dialect.Native, metadata, false, 0, "/api/ps", false, s.list},
		{"POST", "/api/show", anyKey, dialect.Native, metadata, false, dialect.Show, "/api/show", false, s.show},
		{"GET", "/v1/models", anyKey, dialect.OpenAI, metadata, false, 0, "/v1/models", false, s.list},
		{"GET", "/v1/models/{model}", anyKey, dialect.OpenAI, metadata, false, 0, "/v1/models", false, s.oneModel},

		{"POST", "/api/generate", anyKey, dialect.Native, inference, true, dialect.Generate, "/api/generate", false, s.infer},
		{"POST", "/api/chat", anyKey, dialect.Native, inference, true, dialect.Chat, "/api/chat", false, s.infer},
		{"POST", "/api/embed", anyKey, dialect.Native, inference, true, dialect.Embed, "/api/embed", false, s.infer},
		{"POST", "/api/embeddings", anyKey, dialect.Native, inference, true, dialect.Embeddings, "/api/embeddings", false, s.infer},
		{"POST", "/v1/chat/completions", anyKey, dialect.OpenAI, inference, true, dialect.OpenAIChat, "/v1/chat/completions", false, s.infer},
		{"POST", "/v1/completions", anyKey, dialect.OpenAI, inference, true, dialect.OpenAICompletions, "/v1/completions", false, s.infer},
		{"POST", "/v1/embeddings", anyKey, dialect.OpenAI, inference, true, dialect.OpenAIEmbeddings, "/v1/embeddings", false, s.infer},
		{"POST", "/v1/responses", anyKey, dialect.Responses, inference, true, dialect.OpenAIResponses, "/v1/responses", false, s.infer},
		{"POST", "/v1/messages", anyKey, dialect.Anthropic, inference, true, dialect.AnthropicMessages, "/v1/messages", false, s.infer},
		{"POST", "/v1/messages/count_tokens", anyKey, dialect.Anthropic, metadata, false, dialect.AnthropicCount, "", false, s.countTokens},

		{"POST", "/api/pull", adminsOnly, dialect.Native, management, true, dialect.Transfer, "/api/pull", false, s.changeModels},
		{"POST", "/api/push", adminsOnly, dialect.Native, management, true, dialect.Transfer, "/api/push", false, s.changeModels},
		{"POST", "/api/create", adminsOnly, dialect.Native, management, true, dialect.Create, "/api/create", false, s.changeModels},
		{"POST", "/api/copy", adminsOnly, dialect.Native, management, true, dialect.Copy, "/api/copy", false, s.changeModels},
		{"DELETE", "/api/delete", adminsOnly, dialect.Native, management, true, dialect.Delete, "/api/delete", false, s.changeModels},
		{"POST", "/api/me", adminsOnly, dialect.Native, management, false, 0, accountPath, false, s.account},
		{"HEAD", "/api/blobs/{digest}", adminsOnly, dialect.Native, management, false, 0, "/api/blobs/", false, s.hasBlob},
		{"POST", "/api/blobs/{digest}", adminsOnly, dialect.Native, management, true, 0, "/api/blobs/", false, s.changeModels},
	}
	return list
}

// table finds routes. Exact paths are in a map. The few paths with a parameter are found by the text before and after the parameter.
type table struct {
	exact  map[string][]*route
	params []paramRoutes
	all    []*route
	listed []string // "METHOD template" of each, in order
}

type paramRoutes struct {
	before, after string
	routes        []*route
}

func newTable(list []route) *table {
	t := &table{exact: make(map[string][]*route)}
	for i := range list {
		r := &list[i]
		t.all = append(t.all, r)
		t.listed = append(t.listed, r.method+" "+r.template)
		before, rest, param := strings.Cut(r.template, "{")
		if !param {
			t.exact[r.template] = append(t.exact[r.template], r)
			continue
		}
		_, after, _ := strings.Cut(rest, "}")
		j := slices.IndexFunc(t.params, func(p paramRoutes) bool { return p.before == before && p.after == after })
		if j < 0 {
			j = len(t.params)
			t.params = append(t.params, paramRoutes{before: before, after: after})
		}
		t.params[j].routes = append(t.params[j].routes, r)
	}
	return t
}
