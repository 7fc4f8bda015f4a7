package server_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ollama-api-service/internal/server"
	"ollama-api-service/internal/test/ollamatest"
)

// flow is a streamed answer of about 4 KiB in one dialect, as Ollama writes it.
type flow struct {
	name, path string
	request    string // %q is the prompt, which may contain the place where the answer breaks
	kind       string
	open       []string // records that are sent as they come
	end        []string // the terminal records, held back until they are complete
	spare      int      // bytes at the end without information: blank lines
	counts     string   // a text that each record with a token contains
}

const brokeOff = "the connection to the Ollama server broke: try again"

func flows() []flow {
	const ndjson, sse = "application/x-ndjson", "text/event-stream"
	list := []flow{
		{name: "native", path: "/api/chat", request: `{"model":"tiny","messages":[{"role":"user","content":%q}]}`, kind: ndjson, counts: `"done":false`},
		{
			name: "chat", path: "/v1/chat/completions", request: `{"model":"tiny","messages":[{"role":"user","content":%q}],"stream":true,"stream_options":{"include_usage":true}}`,
			kind: sse, spare: 2, counts: `"finish_reason":null`,
		},
		{
			name: "completions", path: "/v1/completions", request: `{"model":"tiny","prompt":%q,"stream":true,"stream_options":{"include_usage":true}}`,
			kind: sse, spare: 2, counts: `"finish_reason":null`,
		},
		{name: "responses", path: "/v1/responses", request: `{"model":"tiny","input":%q,"stream":true}`, kind: sse, counts: `"delta":`},
		{
			name: "messages", path: "/v1/messages", request: `{"model":"tiny","max_tokens":9,"messages":[{"role":"user","content":%q}],"stream":true}`,
			kind: sse, spare: 1, counts: `"text_delta"`,
		},
	}
	terminal := 1
	for i, records := range [][]string{
		ollamatest.ChatLines("tiny", 17, 28), ollamatest.ChatEvents("tiny", 17, 15, true), ollamatest.CompletionEvents("tiny", 17, 12, true),
		ollamatest.ResponseEvents("tiny", 17, 4), ollamatest.MessageEvents("tiny", 17, 26),
	} {
		if list[i].name == "messages" {
			terminal = 2
		}
		list[i].open, list[i].end = records[:len(records)-terminal], records[len(records)-terminal:]
	}
	return list
}

// failure returns the dialect's error record after n events, up to the part that differs between requests.
func (f *flow) failure(code, sentence string, events int) string {
	kind := "api_error"
	inner := fmt.Sprintf(`{"message":%q,"type":"api_error","param":null,"code":%q}`, sentence, code)
	switch f.name {
	case "native":
		return fmt.Sprintf(`{"error":%q,"detail":%q}`, sentence, sentence) + "\n"
	case "responses":
		return "event: error\n" + fmt.Sprintf(`data: {"type":"error","sequence_number":%d,"code":%q,"message":%q,"param":null,"error":%s}`, events, code, sentence, inner) + "\n\n" +
			"event: response.failed\ndata: {\"response\":{"
	case "messages":
		if code == "timeout" {
			kind = "timeout_error"
		}
		return "event: error\n" + fmt.Sprintf(`data: {"type":"error","error":{"type":%q,"message":%q},"request_id":`, kind, sentence)
	}
	return `data: {"error":` + inner + "}\n\n"
}

// endsLoudly checks a stream that must end with an error record: a stream of lines must then break, and a stream of events must end in
// order. It returns what is wrong, or "".
func (f *flow) endsLoudly(r reply, passed, code, sentence string) string {
	events := strings.Count(passed, "\n\n")
	failure := f.failure(code, sentence, events)
	last, ok := strings.CutPrefix(r.body, passed)
	complaint := ""
	switch rest, begun := strings.CutPrefix(last, failure); {
	case r.status != 200 || !ok || !begun || (r.err != nil) != (f.name == "native"):
		complaint = "want\n" + passed + failure
	case f.name == "responses":
		complaint = f.failed(rest, passed, events+1, sentence)
	case f.name == "messages" && (strings.Count(last, "\n\n") != 1 || !strings.HasSuffix(last, "}\n\n")) || f.name != "messages" && rest != "":
		complaint = "behind the failure is " + rest
	}
	if complaint == "" {
		return ""
	}
	return fmt.Sprintf("the client saw %d, %v and\n%s\n%s", r.status, r.err, r.body, complaint)
}

// failed checks a response.failed event without its beginning. It must describe the answer whose beginning the client has seen. failed
// returns what is wrong, or "".
func (f *flow) failed(rest, passed string, sequence int, sentence string) string {
	var event struct {
		Response struct {
			ID, Object, Status, Model string
			Error                     struct{ Code, Message string }
			Output                    []any
		}
		Sequence int `json:"sequence_number"`
		Type     string
	}
	if err := json.Unmarshal([]byte(`{"response":{`+rest), &event); err != nil {
		return "response.failed: " + err.Error()
	}
	r, id := event.Response, "resp_312023"
	if !strings.Contains(passed, id) {
		id = "resp_"
	}
	if event.Type != "response.failed" || event.Sequence != sequence || !strings.HasPrefix(r.ID, id) || len(r.ID) < len("resp_312023") || r.Object != "response" ||
		r.Status != "failed" || r.Error.Code != "server_error" || r.Error.Message != sentence || r.Output == nil || id != "resp_" && r.Model != "tiny" {
		return fmt.Sprintf("response.failed is %+v", event)
	}
	return ""
}

// refused checks an answer that must be a failure with its own status. It returns what is wrong, or "".
func (f *flow) refused(r reply, status int, sentence string) string {
	if r.status == status && r.err == nil && strings.Contains(r.body, `"`+sentence) && strings.HasPrefix(r.body, "{") && r.header.Get("Content-Type") == "application/json" {
		return ""
	}
	return fmt.Sprintf("the client saw %d, %v, %v and\n%s\nwant %d and %s", r.status, r.err, r.header, r.body, status, sentence)
}

func (f *flow) head() string {
	return "HTTP/1.1 200 OK\r\nContent-Type: " + f.kind + "\r\nDate: Mon, 23 Nov 2026 12:59:03 GMT\r\nTransfer-Encoding: chunked\r\n\r\n"
}

// wire returns the answer as it is on the wire, with one chunk for each record.
func (f *flow) wire() string {
	var b strings.Builder
	b.WriteString(f.head())
	for _, list := range [][]string{f.open, f.end} {
		for _, record := range list {
			fmt.Fprintf(&b, "%x\r\n%s\r\n", len(record), record)
		}
	}
	return b.String() + "0\r\n\r\n"
}

// upTo returns the part of the body that has arrived if the connection breaks after n bytes.
func (f *flow) upTo(n int) string {
	var b strings.Builder
	at := len(f.head())
	for _, list := range [][]string{f.open, f.end} {
		for _, record := range list {
			at += len(fmt.Sprintf("%x\r\n", len(record)))
			if n > at {
				b.WriteString(record[:min(n-at, len(record))])
			}
			at += len(record) + len("\r\n")
		}
	}
	return b.String()
}

// seen returns what a client must see if body has arrived, and the number of tokens that the books must have.
func (f *flow) seen(body string) (text string, whole bool, tokens int) {
	all := strings.Join(f.open, "") + strings.Join(f.end, "")
	for _, record := range f.open {
		if !strings.HasPrefix(body[len(text):], record) {
			break
		}
		text += record
	}
	tokens = strings.Count(text, f.counts)
	if len(body) >= len(all)-f.spare {
		return all, true, tokens
	}
	return text, false, tokens
}

// fault is one place where an answer breaks.
type fault struct {
	flow *flow
	at   int
	how  ollamatest.Fault
}

var order = regexp.MustCompile(`break (\d+) (\d)`)

// breaking breaks each answer at the place that the prompt names.
func (f *flow) breaking(r *ollamatest.Request) ollamatest.Answer {
	m := order.FindSubmatch(r.Body)
	if m == nil {
		return ollamatest.Answer{Status: 500, Body: `{"error":"the request did not arrive as it was sent"}`}
	}
	at, _ := strconv.Atoi(string(m[1]))
	how, _ := strconv.Atoi(string(m[2]))
	return ollamatest.Answer{Raw: f.wire(), Fault: ollamatest.Fault(how), FaultAt: at}
}

// complaint returns what is wrong with the answer that a client got from a fault, or "".
func (c fault) complaint(r reply) string {
	text, whole, _ := c.flow.seen(c.flow.upTo(c.at))
	switch {
	case !whole && text == "":
		return c.flow.refused(r, 502, brokeOff)
	case !whole:
		return c.flow.endsLoudly(r, text, "upstream_error", brokeOff)
	case r.status != 200 || r.err != nil || r.body != text:
		return fmt.Sprintf("all of the answer had come, but the client saw %d, %v and\n%s\nwant\n%s", r.status, r.err, r.body, text)
	}
	return ""
}

// TestAnswerThatBreaksAtEveryByte lets Ollama end the connection, with a close and with a reset, after every byte of an answer in every
// dialect. The client must get the whole answer, an error status, or its dialect's error record. After an error record, a stream of lines
// breaks and a stream of events ends. The client must never get half an answer that looks complete. The books must count the tokens that
// have arrived. With FAULTS=all, both ends are tested after every byte in both versions of HTTP. Otherwise they alternate, and only every
// seventh byte is tested where the bytes differ little. With FAULTS=some, or -short, only every 29th byte is tested.
func TestAnswerThatBreaksAtEveryByte(t *testing.T) {
	for _, c := range []struct {
		name  string
		http2 bool
	}{{"HTTP 1.1", false}, {"HTTP 2", true}} {
		t.Run(c.name, func(t *testing.T) {
			b := start(t, setup{slots: 1000, http2: c.http2, change: func(o *server.Options) { o.Log = slog.New(slog.DiscardHandler) }})
			list := flows()
			var all []fault
			for i := range list {
				f := &list[i]
				b.ollama.Handle("POST", f.path, f.breaking)
				step := 1
				switch {
				case testing.Short() || os.Getenv("FAULTS") == "some":
					step = 29
				case c.http2 || f.name == "completions":
					step = 7
				}
				all = append(all, f.faults(step, os.Getenv("FAULTS") == "all")...)
			}
			unreached := b.suffer(all)
			b.stop() // this writes the rows to the books
			b.compareBooks(all, unreached)
		})
	}
}

// faults returns a flow's faults after every byte, or after each step-th byte.
func (f *flow) faults(step int, all bool) (list []fault) {
	for at := range len(f.wire()) {
		switch {
		case all:
			list = append(list, fault{f, at, ollamatest.Close}, fault{f, at, ollamatest.Reset})
		case at%step == 0:
			list = append(list, fault{f, at, []ollamatest.Fault{ollamatest.Close, ollamatest.Reset}[at/step%2]})
		}
	}
	return list
}

// suffer runs the faults with many concurrent clients. If a busy machine cannot connect to Ollama in time, the client tries again; suffer
// returns how often that happened.
func (b *bed) suffer(all []fault) (unreached int) {
	key, _ := b.key(`{"name":"faults","role":"user","rate_limit":null}`)
	next := make(chan fault)
	var clients sync.WaitGroup
	var wrong, missed atomic.Int64
	for range 32 {
		clients.Go(func() {
			for f := range next {
				ask := fmt.Sprintf(f.flow.request, fmt.Sprintf("break %d %d", f.at, f.how))
				r := b.do("POST", f.flow.path, key, ask)
				for r.status == 503 && missed.Add(1) <= 50 {
					r = b.do("POST", f.flow.path, key, ask)
				}
				if complaint := f.complaint(r); complaint != "" && wrong.Add(1) <= 5 {
					b.t.Errorf("%s, fault %d behind byte %d: %s", f.flow.name, f.how, f.at, complaint)
				}
			}
		})
	}
	for _, f := range all {
		next <- f
	}
	close(next)
	clients.Wait()
	if n := wrong.Load(); n > 0 {
		b.t.Errorf("%d of %d answers were wrong, want none", n, len(all))
	}
	return int(missed.Load())
}

// compareBooks compares the store with the answers that Ollama delivered.
func (b *bed) compareBooks(all []fault, unreached int) {
	whole, tokens := 0, 0
	for _, f := range all {
		_, complete, n := f.flow.seen(f.flow.upTo(f.at))
		tokens += n
		if complete {
			whole++
		}
	}
	stats, err := b.store.AllStatistics(b.t.Context(), time.Now())
	if err != nil {
		b.t.Fatal(err)
	}
	got := stats.Total
	if got.TotalRequests != int64(len(all)+unreached) || got.ByOutcome["ok"] != int64(whole) || got.ByOutcome["upstream_error"] != int64(len(all)+unreached-whole) || got.CompletionTokens != int64(tokens) {
		b.t.Errorf("booked %d requests, %v, %d tokens; want %d, %d of them whole, %d tokens", got.TotalRequests, got.ByOutcome, got.CompletionTokens, len(all), whole, tokens)
	}
	b.t.Logf("%d faults, %d of them behind the whole answer, %d tokens delivered and booked", len(all), whole, got.CompletionTokens)
}
