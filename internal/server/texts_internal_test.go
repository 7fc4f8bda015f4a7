package server

import (
	"testing"

	"ollama-api-service/internal/dialect"
)

// Each text of a request for embeddings has a slot of its own in Ollama; messages of a chat have one for all.
func TestTextsOfARequest(t *testing.T) {
	for _, c := range []struct {
		kind dialect.Kind
		body string
		want int
	}{
		{dialect.Embed, `{"model":"a","input":"one"}`, 1},
		{dialect.Embed, `{"model":"a","input":["one","two","three"]}`, 3},
		{dialect.Embed, `{"model":"a"}`, 1},
		{dialect.OpenAIEmbeddings, `{"model":"a","input":["one","two"]}`, 2},
		{dialect.Embeddings, `{"model":"a","prompt":"one"}`, 1},
		{dialect.Generate, `{"model":"a","prompt":"one","system":"two"}`, 1},
		{dialect.Chat, `{"model":"a","messages":[{"role":"user","content":"one"},{"role":"user","content":"two"}]}`, 1},
	} {
		req, err := c.kind.Read(dialect.BodyOf([]byte(c.body)), &dialect.Terms{})
		if err != nil {
			t.Fatalf("%s: %v", c.body, err)
		}
		if got := texts(c.kind, req); got != c.want {
			t.Errorf("%s: got %d texts, want %d", c.body, got, c.want)
		}
	}
}
