package server_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/server"
	"ollama-api-service/internal/store"
	"ollama-api-service/internal/test/ollamatest"
)

// rows waits until n requests are recorded, and returns them by the client's own id.
func (b *bed) rows(n int) map[string]api.Record {
	b.t.Helper()
	all := map[string]api.Record{}
	b.until(fmt.Sprintf("%d rows", n), func() bool {
		list, _, err := b.store.Requests(b.t.Context(), store.RequestQuery{Limit: 1000})
		if err != nil {
			b.t.Fatal(err)
		}
		for _, r := range list {
			all[r.ClientRequestID] = r
		}
		return len(list) >= n
	})
	if len(all) != n {
		b.t.Fatalf("got %d requests on the books, want %d", len(all), n)
	}
	return all
}

// named starts a request with the client's own id. The function that it returns ends the request.
func (b *bed) named(id, path, key, body string) (answered <-chan *http.Response, leave func()) {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.t.Context())
	came, over := make(chan *http.Response, 1), make(chan struct{})
	go func() {
		defer close(over)
		req := b.request("POST", path, key, body).WithContext(ctx)
		req.Header.Set("X-Request-Id", id)
		if resp, err := b.client.Do(req); err == nil {
			came <- resp
		}
	}()
	return came, func() { cancel(); <-over }
}

// Wherever a client aborts a stream, its row counts at least the pieces that it received.
func TestAStreamBrokenOffAtEachPiece(t *testing.T) {
	b := start(t, setup{slots: 8})
	key, _ := b.key(`{"name":"leaver","role":"user","rate_limit":null}`)
	asked := map[string]int64{}
	for _, f := range flows() {
		for n := range 51 {
			gate := make(chan struct{})
			chunks, pieces := generated(f.name, 60)
			b.ollama.Script("POST", f.path, ollamatest.Answer{Chunks: chunks, Gate: gate})
			before := len(b.ollama.RequestsTo("POST", f.path))
			id := fmt.Sprintf("%s-%d", f.name, n)
			answered, leave := b.named(id, f.path, key, fmt.Sprintf(f.request, "some words of a prompt"))
			r := b.ollama.WaitRequestTo(before+1, "POST", f.path)
			seen := int64(0)
			if n > 0 {
				for range pieces[n-1] + 1 {
					gate <- struct{}{}
				}
				for in := bufio.NewReader((<-answered).Body); seen < int64(n); {
					line, err := in.ReadString('\n')
					if err != nil {
						t.Fatal(err)
					}
					if strings.Contains(line, f.counts) {
						seen++
					}
				}
			}
			leave()
			r.WaitClosed()
			asked[id] = seen
		}
	}
	for id, r := range b.rows(len(asked)) {
		most := asked[id] + 1
		if asked[id] == 0 {
			most = r.Total.Milliseconds() // no piece has shown how fast the model is
		}
		compare(t, fmt.Sprintf("%s: the client got %d pieces; the row has %s, estimated %v, %d and %d tokens", id, asked[id], r.Outcome, r.Estimated, r.PromptTokens, r.CompletionTokens),
			fact{"r.Outcome", r.Outcome, api.OutcomeClientGone},
			fact{"r.Estimated", r.Estimated, true},
			fact{"r.PromptTokens == 0", r.PromptTokens == 0, false},
			fact{"r.CompletionTokens < asked[id]", r.CompletionTokens < asked[id], false},
			fact{"r.CompletionTokens > most", r.CompletionTokens > most, false},
		)
	}
}

// generated returns a stream of a flow with the given number of tokens, and the indexes of the chunks that carry them.
func generated(flow string, tokens int) (chunks []string, pieces []int) {
	first := 0
	switch flow {
	case "native":
		chunks = ollamatest.ChatLines("tiny", 17, tokens)
	case "chat":
		chunks = ollamatest.ChatEvents("tiny", 17, tokens, true)
	case "completions":
		chunks = ollamatest.CompletionEvents("tiny", 17, tokens, true)
	case "responses":
		chunks, first = ollamatest.ResponseEvents("tiny", 17, tokens), 4
	case "messages":
		chunks, first = ollamatest.MessageEvents("tiny", 17, tokens), 2
	}
	for i := range tokens {
		pieces = append(pieces, first+i)
	}
	return chunks, pieces
}

// If a request ends without its terminal record, its row has the outcome and an estimate, never a silent 0.
func TestRowsOfRequestsThatDoNotEnd(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: make test runs it")
	}
	for _, c := range []struct {
		name    string
		outcome api.Outcome
		answer  ollamatest.Answer
		end     string // what ends the request: the client, the gateway, or Ollama
	}{
		{"the client leaves", api.OutcomeClientGone, ollamatest.Answer{Fault: ollamatest.Hang}, "client"},
		{"the gateway stops", api.OutcomeInterrupted, ollamatest.Answer{Fault: ollamatest.Hang}, "gateway"},
		{"Ollama is silent", api.OutcomeTimeout, ollamatest.Answer{Fault: ollamatest.Hang}, ""},
		{"Ollama breaks off", api.OutcomeUpstream, ollamatest.Answer{Fault: ollamatest.Reset, FaultAt: 30}, ""},
		{"Ollama fails", api.OutcomeUpstream, ollamatest.Answer{Status: 500, Body: `{"error":"the runner died"}`}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := start(t, setup{slots: 20, change: func(o *server.Options) {
				if c.outcome == api.OutcomeTimeout {
					o.FirstByte = 100 * time.Millisecond
				}
			}})
			key := b.user()
			n := 0
			for _, f := range flows() {
				for _, whole := range []bool{false, true} {
					b.ollama.Script("POST", f.path, c.answer)
					body := fmt.Sprintf(f.request, "some words of a prompt")
					if whole {
						body = strings.NewReplacer(`,"stream":true`, "", `,"stream_options":{"include_usage":true}`, "").Replace(body)
						body = strings.TrimSuffix(body, "}") + `,"stream":false}`
					}
					before := len(b.ollama.RequestsTo("POST", f.path))
					answered, leave := b.named(fmt.Sprint(f.name, whole), f.path, key, body)
					b.ollama.WaitRequestTo(before+1, "POST", f.path)
					n++
					switch c.end {
					case "client":
						leave()
					case "":
						io.Copy(io.Discard, (<-answered).Body)
						leave()
					default:
						defer leave()
					}
				}
			}
			if c.end == "gateway" {
				b.stop()
			}
			for id, r := range b.rows(n) {
				if r.Outcome != c.outcome || !r.Estimated || r.PromptTokens == 0 {
					t.Errorf("%s: %s, estimated %v, %d tokens of the prompt", id, r.Outcome, r.Estimated, r.PromptTokens)
				}
			}
		})
	}
}

// With COUNT_GRACE, the gateway reads on after the client has left. Its tokens are counted, and its slot stays taken until then.
func TestCountGrace(t *testing.T) {
	versions(t, func(t *testing.T, http2 bool) {
		b := start(t, setup{slots: 1, http2: http2, change: func(o *server.Options) { o.CountGrace = time.Minute }})
		key := b.user()
		n := 0
		for _, f := range flows() {
			gate := make(chan struct{})
			chunks, pieces := generated(f.name, 20)
			b.ollama.Script("POST", f.path, ollamatest.Answer{Chunks: chunks, Gate: gate})
			answered, leave := b.named(f.name, f.path, key, fmt.Sprintf(f.request, "x"))
			r := b.ollama.WaitRequestTo(1, "POST", f.path)
			for range pieces[2] + 1 {
				gate <- struct{}{}
			}
			resp := <-answered
			if _, err := resp.Body.Read(make([]byte, 10)); err != nil {
				t.Fatal(err)
			}
			leave()
			b.until("the gateway has noticed", func() bool { return b.server.ReadOn() == 1 })
			for range len(chunks) - pieces[2] - 2 {
				gate <- struct{}{} // this would block if the gateway had stopped reading
			}
			if busy := b.sched.Snapshot().InFlight; busy != 1 {
				t.Errorf("%s: got %d slots taken while the gateway reads on, want 1", f.name, busy)
			}
			gate <- struct{}{}
			r.WaitAnswered()
			n++
			b.until("the slot is free", func() bool { return b.sched.Snapshot().InFlight == 0 })
		}
		for id, r := range b.rows(n) {
			if r.Outcome != api.OutcomeClientGone || r.Estimated || r.PromptTokens != 17 || r.CompletionTokens != 20 {
				t.Errorf("%s: %s, estimated %v, %d and %d tokens", id, r.Outcome, r.Estimated, r.PromptTokens, r.CompletionTokens)
			}
		}
	})
}

// COUNT_GRACE is a bound: the gateway aborts a longer answer and estimates its tokens. A gateway that stops does not wait for the answer.
func TestCountGraceIsABound(t *testing.T) {
	for name, grace := range map[string]time.Duration{"over": 20 * time.Millisecond, "the gateway stops": time.Hour} {
		t.Run(name, func(t *testing.T) {
			b := start(t, setup{slots: 1, change: func(o *server.Options) { o.CountGrace = grace }})
			gate := make(chan struct{})
			b.ollama.Script("POST", "/api/chat", ollamatest.Answer{Tokens: 20, Gate: gate})
			answered, leave := b.named("one", "/api/chat", b.user(), `{"model":"tiny","messages":[{"role":"user","content":"x y z"}]}`)
			r := b.ollama.WaitRequestTo(1, "POST", "/api/chat")
			for range 3 {
				gate <- struct{}{}
			}
			for in := bufio.NewReader((<-answered).Body); ; {
				if line, err := in.ReadString('\n'); err != nil {
					t.Fatal(err)
				} else if strings.Contains(line, ollamatest.Word(2)) {
					break
				}
			}
			leave()
			if grace == time.Hour {
				gate <- struct{}{}
				b.stop()
			}
			r.WaitClosed()
			row := b.rows(1)["one"]
			if row.Outcome != api.OutcomeClientGone || !row.Estimated || row.CompletionTokens < 3 || row.PromptTokens == 0 {
				t.Errorf("%s, estimated %v, %d and %d tokens", row.Outcome, row.Estimated, row.PromptTokens, row.CompletionTokens)
			}
		})
	}
}
