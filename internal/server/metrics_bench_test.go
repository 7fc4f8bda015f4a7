package server

import (
	"net/http"
	"testing"
	"time"

	"ollama-api-service/internal/admin"
	"ollama-api-service/internal/api"
	"ollama-api-service/internal/backend"
	"ollama-api-service/internal/books"
	"ollama-api-service/internal/sched"
)

// The cost of metrics for a streamed chat: for its row and for its answer.
func BenchmarkMetricsOfARequest(b *testing.B) {
	be := backend.New("gpu1", nil, 4, "", "")
	fleet := backend.NewFleet(be)
	s := &Server{Options: Options{Parts: admin.Parts{Fleet: fleet, Books: &books.Books{}}}, Sched: sched.New(fleet, sched.Options{MaxQueue: 1, MaxWait: time.Second})}
	m := newMetrics(s)
	x := &exchange{r: &http.Request{Method: "POST"}, reply: reply{status: 200}}
	x.route = &route{method: "POST", template: "/api/chat", purpose: inference}
	x.record = &api.Record{
		Admission: api.Admission{Model: "llama3.2:latest", Backend: "gpu1", Class: "inference", Streamed: true}, Outcome: api.OutcomeOK, Status: 200,
		PromptTokens: 26, CompletionTokens: 120, FirstByte: 250 * time.Millisecond, Total: 1500 * time.Millisecond, Slot: 1490 * time.Millisecond,
	}
	random := uint32(1)
	b.ReportAllocs()
	for b.Loop() {
		random = random*1664525 + 1013904223
		x.record.Total = time.Duration(random)
		m.open.Inc()
		m.book(x.record)
		m.ended(x)
		m.open.Dec()
	}
}
