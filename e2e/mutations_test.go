package e2e

import (
	"bytes"
	"flag"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ollama-api-service/internal/backend"
	"ollama-api-service/internal/test/ollamatest"
)

var mutations = flag.Int("mutations", 10_000, "how many changed requests TestChangedRequests sends")

// statusLines finds the beginnings of answers.
var statusLines = regexp.MustCompile(`(?m)^HTTP/1\.[01] (\d{3}) `)

const goodBody = `{"model":"tiny","messages":[{"role":"user","content":"x"}],"prompt":"x","input":"x","max_tokens":2}`

// The requests that a user's key may cause upstream.
var userCalls = map[string]bool{
	"POST /api/generate": true, "POST /api/chat": true, "POST /api/embed": true, "POST /api/embeddings": true, "POST /api/show": true,
	"POST /v1/chat/completions": true, "POST /v1/completions": true, "POST /v1/embeddings": true, "POST /v1/responses": true, "POST /v1/messages": true,
	"GET /api/tags": true, "HEAD /api/tags": true, "GET /api/ps": true, "GET /v1/models": true,
	"GET /api/version": true, // the service's own probe
}

// tally counts the results of a run.
type tally struct {
	sent, forwarded, unauthorised, ownFailures, hung atomic.Int64
	status                                           [10]atomic.Int64
}

// The test sends randomly changed rows of the catalogue. Nothing panics, the service itself never fails, Ollama gets no request that a
// user's key may not make, and memory does not grow. The seed is printed. For a long run, use "-args -mutations 1000000".
func TestChangedRequests(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	g := openGate(t, "LOG_LEVEL=error", "MAX_BODY_BYTES=1MiB")
	var corpus [][]byte
	for _, rows := range [][]row{bodyRows(t, g), textRows(g), fieldRows(t, g), pathRows(t, g), framingRows(t, g), headerRows(t, g), credentialRows(t, g)} {
		for _, r := range rows {
			if raw := []byte(r.send); len(raw) < 8<<10 && !bytes.Contains(raw, []byte(g.admin)) {
				corpus = append(corpus, raw)
			}
		}
	}
	// Most rows are bad, so the corpus gets as many good requests.
	for n := len(corpus); n > 0; {
		for call := range userCalls {
			method, path, _ := strings.Cut(call, " ")
			body := ""
			if method == http.MethodPost {
				g.fake.Script(method, path) // a row may have scripted a fault
				body = goodBody
			}
			corpus = append(corpus, []byte(send(call, body, bearer(g.user))))
			n--
		}
	}
	var sum tally
	g.fake.Forget()
	// After the first half, the garbage collector has reached its working size.
	g.mutate(t, rand.New(rand.NewPCG(seed, 0)), corpus, *mutations/2, &sum)
	before := peakMemory(t, g.service)
	g.mutate(t, rand.New(rand.NewPCG(seed, 1)), corpus, *mutations-*mutations/2, &sum)
	now, after := memory(t, g.service, "VmRSS"), peakMemory(t, g.service)
	t.Logf("%d requests, %d of them went to Ollama, %d unauthorized, %d failures of the service itself, %d connections that did not end; answers by their first digit: 1xx %d, 2xx %d, 3xx %d, 4xx %d, 5xx %d; memory %d KiB, at most %d KiB more than after the first half",
		sum.sent.Load(), sum.forwarded.Load(), sum.unauthorised.Load(), sum.ownFailures.Load(), sum.hung.Load(),
		sum.status[1].Load(), sum.status[2].Load(), sum.status[3].Load(), sum.status[4].Load(), sum.status[5].Load(), now>>10, (after-before)>>10)
	if sum.forwarded.Load() == 0 || sum.status[2].Load() == 0 || sum.status[4].Load() == 0 {
		t.Error("the changed requests are not a mixture of good and bad ones")
	}
	// serve.go lets the heap grow to 64 MiB before a collection, which a short run does not reach in its first half.
	if grown := after - before; grown > 64<<20 {
		t.Errorf("memory grew by %d KiB", grown>>10)
	}
	if log := g.stdout.String(); strings.Contains(log, `"msg":"panic"`) {
		t.Error("the log has a panic")
	}
	g.stop(t)
}

// mutate sends n changed requests over several concurrent connections.
func (g *gate) mutate(t *testing.T, random *rand.Rand, corpus [][]byte, n int, sum *tally) {
	const clients = 4
	inputs := make(chan []byte)
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			for raw := range inputs {
				g.converse(t, raw, sum)
			}
		})
	}
	for i := range n {
		inputs <- change(random, corpus)
		if i%100 == 0 {
			g.look(t, sum)
		}
	}
	close(inputs)
	all.Wait()
	g.look(t, sum)
}

// look checks the requests that Ollama got since the last call. All requests of a run together would fill the test's memory.
func (g *gate) look(t *testing.T, sum *tally) {
	for _, r := range g.fake.Forget() {
		if r.Header.Get("User-Agent") == backend.Agent {
			continue
		}
		sum.forwarded.Add(1)
		if bad := forbidden(r, g.secrets); bad != "" {
			sum.unauthorised.Add(1)
			t.Errorf("%s %s: %s", r.Method, redact(r.RequestURI), bad)
		}
	}
}

// forbidden returns the part of an upstream request that was not authorized, or "". The key of the rows may use all models here: the fuzz
// targets check the models.
func forbidden(r *ollamatest.Request, secrets []string) string {
	if !userCalls[r.Method+" "+r.RequestURI] {
		return "is no call of a user"
	}
	for name, values := range r.Header {
		switch name {
		case "Content-Type", "Content-Length", "Accept", "User-Agent":
		default:
			return "has the header " + name
		}
		for _, secret := range secrets {
			if strings.Contains(strings.Join(values, " "), secret) {
				return "has a key in its header " + name
			}
		}
	}
	return ""
}

// converse sends bytes and a last request, and counts the answers.
func (g *gate) converse(t *testing.T, raw []byte, sum *tally) {
	c, err := net.Dial("tcp", g.address)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	sum.sent.Add(1)
	_, _ = c.Write(append(raw, send("GET /healthz", "", "Connection: close")...)) // the service may already have reset the connection
	var said bytes.Buffer
	// The service waits for the rest of an incomplete request, so the test ends the connection after a moment.
	c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := io.Copy(&said, c); err != nil {
		_ = c.(*net.TCPConn).CloseWrite()
		c.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.Copy(&said, c); err != nil && os.IsTimeout(err) {
			sum.hung.Add(1)
			t.Errorf("the connection that began with %q did not end", redact(string(raw[:min(len(raw), 200)])))
		}
	}
	for _, m := range statusLines.FindAllSubmatch(said.Bytes(), -1) {
		sum.status[m[1][0]-'0'].Add(1)
		// net/http answers 501 and 505 to unknown codings and versions. Any other 5xx is a fault of the service.
		if status := string(m[1]); status >= "500" && status != "501" && status != "505" {
			sum.ownFailures.Add(1)
			t.Errorf("%s to %q: %.300s", status, redact(string(raw[:min(len(raw), 1500)])), redact(said.String()))
		}
	}
}

// pieces are texts that turn a request into another meaningful one.
var pieces = strings.Split("\r\n|\n|\r\n\r\n|\r| |\t|:|,|;|/|//|..|%2f|%00|\x00|\xff|\"|{|}|[|]|0|-1|99999999999|chunked|Transfer-Encoding: chunked\r\n|Content-Length: 5\r\n|Content-Length: 0\r\n|"+
	"Connection: keep-alive, Authorization\r\n|Expect: 100-continue\r\n|Upgrade: h2c\r\n|Host: x\r\n|GET |POST |DELETE |HTTP/1.0|HTTP/1.1|HTTP/2.0|/api/delete|/api/pull|/api/tags|/v1/models|"+
	"\"model\":\"evil\",|\"Model\":\"tiny\",|\"stream\":true,|\"keep_alive\":0,|\"options\":{\"num_predict\":-1},|0\r\n\r\n|5\r\nhello\r\n", "|")

// change makes a request from one or two of the corpus.
func change(random *rand.Rand, corpus [][]byte) []byte {
	raw := bytes.Clone(corpus[random.IntN(len(corpus))])
	for range random.IntN(4) {
		at := random.IntN(len(raw) + 1)
		to := min(len(raw), at+random.IntN(40))
		switch random.IntN(6) {
		case 0:
			raw = append(raw[:at:at], raw[to:]...)
		case 1:
			raw = append(append(raw[:at:at], raw[at:to]...), raw[at:]...)
		case 2, 3:
			raw = append(append(raw[:at:at], pieces[random.IntN(len(pieces))]...), raw[at:]...)
		case 4:
			if at < len(raw) {
				raw[at] ^= 1 << random.IntN(8)
			}
		case 5:
			other := corpus[random.IntN(len(corpus))]
			raw = append(raw[:at:at], other[random.IntN(len(other)):]...)
		}
	}
	return raw
}
