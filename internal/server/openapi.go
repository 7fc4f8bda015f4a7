package server

import (
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// describeProxied adds the routes that no huma operation serves, from the table: what Ollama answers, this API answers.
func (s *Server) describeProxied(doc *huma.OpenAPI) {
	for _, r := range s.routes.all {
		if item := doc.Paths[r.template]; item != nil && described(item, r.method) {
			continue
		}
		op := &huma.Operation{
			Method: r.method, Path: r.template, OperationID: operationID(r), Summary: summaries[r.method+" "+r.template], Tags: []string{tags[r.class]},
			Responses: map[string]*huma.Response{"200": {Description: "The answer"}},
		}
		if r.access != anyone {
			op.Responses["401"] = &huma.Response{Description: "No good API key"}
		} else {
			op.Security = []map[string][]string{}
		}
		if r.counted {
			op.Responses["429"] = &huma.Response{Description: "Over the key's limit; Retry-After says when to come back"}
			op.Responses["503"] = &huma.Response{Description: "No slot became free, or no backend; Retry-After says when to come back"}
		}
		if r.kind != 0 {
			op.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/json": {Schema: &huma.Schema{Type: huma.TypeObject}}}}
		}
		if _, param, ok := strings.Cut(r.template, "{"); ok {
			name, _, _ := strings.Cut(param, "}")
			op.Parameters = []*huma.Param{{Name: name, In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}}}
		}
		doc.AddOperation(op)
	}
}

func described(item *huma.PathItem, method string) bool {
	return map[string]*huma.Operation{
		http.MethodGet: item.Get, http.MethodPost: item.Post, http.MethodPatch: item.Patch,
		http.MethodDelete: item.Delete, http.MethodHead: item.Head,
	}[method] != nil
}

func operationID(r *route) string {
	words := strings.FieldsFunc(strings.ToLower(r.method+"/"+r.template), func(c rune) bool { return strings.ContainsRune("/{}_", c) })
	if len(words) == 1 {
		words = append(words, "root")
	}
	return strings.Join(words, "-")
}

var tags = [...]string{own: "Service", metadata: "Models", inference: "Inference", management: "Model management (admin)"}

var summaries = map[string]string{
	"GET /": "Service information", "HEAD /": "Whether the service answers", "GET /api/version": "The Ollama server's version",
	"HEAD /api/version": "Whether the service answers", "GET /health": "Health, with details for admins", "GET /healthz": "Liveness",
	"HEAD /healthz": "Liveness", "GET /readyz": "Readiness", "HEAD /readyz": "Readiness", "GET /openapi.json": "This document", "GET /metrics": "Metrics for Prometheus (admin)",
	"GET /api/models": "List available models", "GET /api/tags": "List available models", "HEAD /api/tags": "Whether models can be listed",
	"GET /api/ps": "List loaded models", "POST /api/show": "Show a model", "GET /v1/models": "List models (OpenAI)", "GET /v1/models/{model}": "One model (OpenAI)",
	"POST /api/generate": "Generate text", "POST /api/chat": "Chat", "POST /api/embed": "Embed texts", "POST /api/embeddings": "Embed one text (older form)",
	"POST /v1/chat/completions": "Chat (OpenAI)", "POST /v1/completions": "Complete text (OpenAI)", "POST /v1/embeddings": "Embed texts (OpenAI)",
	"POST /v1/responses": "Respond (OpenAI)", "POST /v1/messages": "Chat (Anthropic)", "POST /v1/messages/count_tokens": "Estimate a message's tokens (Anthropic)",
	"POST /api/pull": "Download a model", "POST /api/push": "Upload a model", "POST /api/create": "Create a model", "POST /api/copy": "Copy a model",
	"DELETE /api/delete": "Delete a model", "HEAD /api/blobs/{digest}": "Whether a blob is there", "POST /api/blobs/{digest}": "Upload a blob",
}
