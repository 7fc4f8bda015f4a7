package server_test

import (
	"testing"

	"ollama-api-service/internal/test/ollamatest"
)

// A request for the embeddings of many texts has as many slots as it takes in Ollama, on both routes, and gives all of them back.
func TestEmbeddingsHaveASlotForEachText(t *testing.T) {
	for path, body := range map[string]string{
		"/api/embed":     `{"model":"tiny","input":["one","two","three"]}`,
		"/v1/embeddings": `{"model":"tiny","input":["one","two","three"]}`,
	} {
		t.Run(path, func(t *testing.T) {
			b := start(t, setup{slots: 4})
			gate := make(chan struct{})
			b.ollama.Script("POST", path, ollamatest.Answer{HeaderGate: gate, Body: `{"embeddings":[[1],[1],[1]],"prompt_eval_count":3}`})
			answer := b.begin(path, b.user(), body)
			b.ollama.WaitRequestTo(1, "POST", path)
			const inUse = `ollama_api_in_flight_requests{backend="gpu1"}`
			if got := b.metrics()[inUse]; got != 3 {
				t.Errorf("got %v slots in use, want 3", got)
			}
			close(gate)
			if r := answer(); r.status != 200 {
				t.Errorf("%d %s, want 200", r.status, r.body)
			}
			if got := b.metrics()[inUse]; got != 0 {
				t.Errorf("afterwards: got %v slots in use, want none", got)
			}
		})
	}
}
