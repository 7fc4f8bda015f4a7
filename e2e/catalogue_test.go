package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"ollama-api-service/internal/backend"
	"ollama-api-service/internal/test/ollamatest"
)

// row is one request of the catalogue of bad input, with the expected result. docs/proof.md has one line for each number.
type row struct {
	name string // "B10 two Authorization headers: the same key", where "B10 two Authorization headers" is the line in docs/proof.md
	send string // the request, byte for byte
	want int
	by   writer
	ends bool   // the connection is closed, and no byte after the request is read as another one
	half bool   // the client stops sending, but reads on
	says string // a part of the body
	has  string // a line of the answer's header: "Allow: POST"
	not  string // a text that, like the keys, must be in neither the answer nor the log
	why  string // the reason, if the answer is unexpected
	// ollama checks the requests that Ollama got. If it is nil, Ollama must get none.
	ollama func(t *testing.T, got []*ollamatest.Request)
	before func(t *testing.T)
	// then makes further checks of the answer.
	then func(t *testing.T, a answer)
}

// writer is the program that writes the answer.
type writer int

const (
	ours    writer = iota // the gateway, in the client's dialect, with an id
	nethttp               // net/http itself, before it has read a request: in plain text, without an id, and then it closes the connection
	ollamas               // Ollama; the gateway forwards the answer
)

// gate is a service with a scripted Ollama, and with the keys that the rows use.
type gate struct {
	*service
	fake        *ollamatest.Server
	address     string // of the service itself, without a tap
	user, admin string
	secrets     []string       // must not be in any answer or log
	statuses    map[string]int // of all answers that the gateway wrote, by request id
}

func openGate(t *testing.T, env ...string) *gate {
	fake := ollamatest.Start(t)
	g := &gate{statuses: map[string]int{}, service: start(t, t.TempDir(), fake.URL, nil, append(env, "LOG_LEVEL=debug", "DEFAULT_MAX_TOKENS=8192")...), fake: fake}
	g.address = addressLine.FindStringSubmatch(g.stdout.String())[1]
	g.admin = g.Admin
	g.user = g.key(t, "").Secret
	g.secrets = append(g.secrets, g.admin)
	return g
}

// key creates a user key without a request limit. Its text must not appear in any answer or log.
func (g *gate) key(t *testing.T, fields string) madeKey {
	t.Helper()
	k := g.makeKey(t, `,"rate_limit":null`+fields)
	g.secrets = append(g.secrets, k.Secret)
	return k
}

// send returns a request as a client writes it. If it has a body, send adds its length.
func send(line, body string, fields ...string) string {
	b := line + " HTTP/1.1\r\nHost: 127.0.0.1\r\n" + strings.Join(append(fields, ""), "\r\n")
	if body != "" {
		b += "Content-Length: " + strconv.Itoa(len(body)) + "\r\n"
	}
	return b + "\r\n" + body
}

func bearer(key string) string { return "Authorization: Bearer " + key }

// post returns a request with the user's key.
func (g *gate) post(path, body string, fields ...string) string {
	return send("POST "+path, body, append([]string{bearer(g.user)}, fields...)...)
}

// asAdmin returns a request with the admin's key.
func (g *gate) asAdmin(line, body string, fields ...string) string {
	return send(line, body, append([]string{bearer(g.admin)}, fields...)...)
}

const small = `{"model":"tiny","messages":[{"role":"user","content":"x"}],"stream":false,"max_tokens":5}`

// reached checks that a request was served, and that upstream got the given texts.
func reached(path string, parts ...string) func(*testing.T, []*ollamatest.Request) {
	return func(t *testing.T, got []*ollamatest.Request) {
		t.Helper()
		if len(got) != 1 || got[0].Path != path {
			t.Fatalf("Ollama got %d requests: %v", len(got), got)
		}
		for _, part := range parts {
			if body := string(got[0].Body); !strings.Contains(body, part) {
				t.Errorf("Ollama got %.300s, want %s in it", body, part)
			}
		}
	}
}

// got returns the requests that Ollama got, without the service's own.
func (g *gate) got() []*ollamatest.Request {
	return slices.DeleteFunc(g.fake.Requests(), func(r *ollamatest.Request) bool { return r.Header.Get("User-Agent") == backend.Agent })
}

// play sends a row and, in the same write, a second request, which must either be answered or never be read.
func (g *gate) play(t *testing.T, r row) {
	behind := send("GET /healthz", "", "Connection: close")
	if r.ends {
		behind = send("POST /api/generate", `{"model":"tiny","prompt":"smuggled","stream":false}`, bearer(g.admin))
	}
	if r.before != nil {
		r.before(t)
	}
	before := len(g.got())
	c, err := net.Dial("tcp", g.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	sent := make(chan struct{})
	go func() { // the service may refuse the request before it has read all
		defer close(sent)
		if r.half {
			io.WriteString(c, r.send)
			c.(*net.TCPConn).CloseWrite()
			return
		}
		io.WriteString(c, r.send+behind)
	}()
	in := bufio.NewReader(c)
	method, _, _ := strings.Cut(r.send, " ")
	a, err := readAnswer(in, method)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	if a.Status != r.want {
		t.Fatalf("%d, want %d: %s", a.Status, r.want, redact(a.Body[:min(len(a.Body), 500)]))
	}
	g.check(t, r, a)
	second, err := readAnswer(in, http.MethodGet)
	switch {
	case r.ends && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET):
		t.Errorf("the service read the bytes after the request: got %d, %v", second.Status, err)
	case !r.ends && (err != nil || second.Status != http.StatusOK):
		t.Errorf("the next request on the connection: %d, %v", second.Status, err)
	}
	c.Close()
	<-sent
	got := g.got()[before:]
	switch {
	case r.ollama != nil:
		r.ollama(t, got)
	case len(got) > 0:
		t.Errorf("Ollama got %s %s %.200s", got[0].Method, got[0].Path, got[0].Body)
	}
	if r.then != nil {
		r.then(t, a)
	}
}

func readAnswer(in *bufio.Reader, method string) (answer, error) {
	if _, err := in.Peek(1); err != nil {
		return answer{}, err
	}
	for informal := 0; ; informal++ {
		res, err := http.ReadResponse(in, &http.Request{Method: method})
		if err != nil {
			return answer{}, err
		}
		if res.StatusCode < 200 {
			continue
		}
		if informal > 0 {
			res.Header.Set("1xx", strconv.Itoa(informal)) // how many came before the answer
		}
		body, err := io.ReadAll(res.Body)
		return answer{Status: res.StatusCode, Header: res.Header, Body: string(body)}, err
	}
}

func (g *gate) check(t *testing.T, r row, a answer) {
	t.Helper()
	id := a.Header.Get("X-Request-Id")
	switch r.by {
	case nethttp:
		if id != "" || strings.Contains(a.Body, "{") || !r.ends {
			t.Errorf("not net/http's: id %q, body %q", id, a.Body)
		}
	case ours:
		g.statuses[id] = a.Status
		if !uuidText.MatchString(id) {
			t.Errorf("X-Request-Id is %q", id)
		}
		if a.Status >= 400 {
			checkFailure(t, r, a)
		}
		g.checkDocument(t, r, a)
	}
	if a.Status == http.StatusUnauthorized && a.Header.Get("WWW-Authenticate") != `Bearer realm="ollama-api-service"` {
		t.Errorf("WWW-Authenticate is %q", a.Header.Get("WWW-Authenticate"))
	}
	if a.Status >= 300 && a.Status < 400 {
		t.Error("a redirect")
	}
	if r.says != "" && !strings.Contains(a.Body, r.says) {
		t.Errorf("the answer is %.300s, want %q in it", redact(a.Body), r.says)
	}
	if name, value, ok := strings.Cut(r.has, ": "); ok && a.Header.Get(name) != value {
		t.Errorf("%s is %q, want %q", name, a.Header.Get(name), value)
	}
	if r.not != "" {
		g.secrets = append(g.secrets, r.not)
	}
	for _, secret := range g.secrets {
		if strings.Contains(a.Body, secret) || strings.Contains(fmt.Sprint(a.Header), secret) {
			t.Error("the answer contains a credential")
		}
	}
}

var uuidText = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}$`)

var namedPath = regexp.MustCompile(`did you mean (/[^ "?]+)\?`)

// checkFailure checks that the body is a failure in the dialect of the path, or of the path that the failure names.
func checkFailure(t *testing.T, r row, a answer) {
	t.Helper()
	if strings.HasPrefix(r.send, "HEAD ") {
		return
	}
	if a.Header.Get("Content-Type") != "application/json" {
		t.Errorf("Content-Type is %q", a.Header.Get("Content-Type"))
	}
	_, path, _ := strings.Cut(r.send, " ")
	path, _, _ = strings.Cut(path, " ")
	if _, rest, ok := strings.Cut(path, "://"); ok {
		_, rest, _ = strings.Cut(rest, "/")
		path = "/" + rest
	}
	if rest, ok := strings.CutPrefix(path, "/k/"); ok {
		_, rest, _ = strings.Cut(rest, "/")
		path = "/" + rest
	}
	if meant := namedPath.FindStringSubmatch(a.Body); meant != nil {
		path = meant[1] // the failure has the dialect of the path that was meant
	}
	var body struct {
		Type, Detail, Message string
		RequestID             string `json:"request_id"`
		Error                 json.RawMessage
	}
	a.decode(t, &body)
	var text string
	var inner struct{ Type, Message, Code string }
	isText := json.Unmarshal(body.Error, &text) == nil
	json.Unmarshal(body.Error, &inner)
	var good bool
	switch {
	case !strings.HasPrefix(path, "/v1/"):
		good = isText && text != "" && body.Detail == text
	case strings.HasPrefix(path, "/v1/messages"):
		good = body.Type == "error" && inner.Type != "" && inner.Message != "" && body.Message == inner.Message && body.RequestID == a.Header.Get("X-Request-Id")
	default:
		good = inner.Message != "" && inner.Type != "" && inner.Code != "" && body.Type == ""
	}
	if !good {
		t.Errorf("not a failure in the dialect of %.60q: %s", path, redact(a.Body))
	}
}

// checkDocument checks the answer against the OpenAPI document, if a parser finds a request in the bytes.
func (g *gate) checkDocument(t *testing.T, r row, a answer) {
	t.Helper()
	req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(r.send)))
	if err != nil || a.Status < 300 {
		return // the input is bad although it is served, so it need not match the document
	}
	known := g.wire.contract.template(req.URL.EscapedPath()) != ""
	if !known && a.Status == http.StatusMethodNotAllowed || known && a.Status == http.StatusNotFound && strings.HasPrefix(req.URL.Path, "/k/") {
		return // CONNECT and * are not paths, and /k/KEY is allowed only before some paths
	}
	whole := make(chan struct{})
	close(whole)
	res := &http.Response{StatusCode: a.Status, Header: a.Header}
	if err := g.wire.contract.check(&asked{Request: req, whole: whole}, res, []byte(a.Body), false); err != nil {
		t.Errorf("the exchange does not match /openapi.json: %v", err)
	}
}

// close ends the service and checks its output: each answer has one line of JSON, and no line contains a key. Bad keys of one address have at
// most one line a second, and the lines have the number of the answers without one.
func (g *gate) close(t *testing.T) {
	t.Helper()
	g.stop(t)
	lines, leftOut := map[string]int{}, 0
	for line := range strings.Lines(g.stdout.String()) {
		var entry struct {
			ID      string `json:"request_id"`
			Message string `json:"msg"`
			LeftOut int    `json:"left_out"`
		}
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Errorf("a line of the log is not JSON: %v", err)
		}
		if !strings.Contains(entry.Message, "loaded") { // the load of a model has its own line
			lines[entry.ID]++
		}
		leftOut += entry.LeftOut
	}
	missing, badKey := 0, []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusTooManyRequests}
	for id, status := range g.statuses {
		switch n := lines[id]; {
		case n == 0 && slices.Contains(badKey, status):
			missing++
		case n != 1:
			t.Errorf("the request %s, answered %d, has %d lines in the log, want 1", id, status, n)
		}
	}
	if missing != leftOut {
		t.Errorf("%d refused requests have no line in the log, and its lines count %d", missing, leftOut)
	}
	stderr := strings.Replace(g.stderr.String(), g.admin, "", 1) // it is printed once, at the first start
	for i, secret := range g.secrets {
		if strings.Contains(g.stdout.String(), secret) || strings.Contains(stderr, secret) {
			t.Errorf("credential %d (%.4s…) is in the log", i, secret)
		}
	}
	for _, r := range g.got() {
		if bytes.Contains(r.Body, []byte("smuggled")) {
			t.Error("a request after another one went to Ollama")
		}
	}
}

// The catalogue of bad input, on raw sockets. The test checks the answers, that Ollama gets no refused request, where the connection ends,
// and that no credential is echoed or logged. docs/proof.md lists the catalogue by number.
func TestBadInput(t *testing.T) {
	var all []row
	ran := 0
	parts := []struct {
		name string
		env  []string
		rows func(*testing.T, *gate) []row
	}{
		{"credentials", nil, credentialRows},
		{"bodies", nil, bodyRows},
		{"models and fields", nil, fieldRows},
		{"a small bound of bodies", []string{"MAX_BODY_BYTES=1MiB"}, sizeRows},
		{"paths", nil, pathRows},
		{"framing", nil, framingRows},
		{"headers", nil, headerRows},
		{"keys", nil, keyRows},
		{"behind no proxy", nil, peerRows},
		{"behind a proxy", []string{"TRUSTED_PROXIES=127.0.0.1,10.0.0.0/8"}, proxyRows},
	}
	for _, part := range parts {
		t.Run(part.name, func(t *testing.T) {
			ran++
			g := openGate(t, part.env...)
			rows := part.rows(t, g)
			all = append(all, rows...)
			for _, r := range rows {
				t.Run(r.name, func(t *testing.T) { g.play(t, r) })
			}
			g.close(t)
		})
	}
	if ran == len(parts) { // unless -run selects only some of them
		checkProof(t, all)
	}
}
