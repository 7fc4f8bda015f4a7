package e2e

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// contract is the OpenAPI document. A tap checks every answer against it.
type contract struct {
	doc      map[string]any
	compiler *jsonschema.Compiler

	mu      sync.Mutex
	schemas map[string]*jsonschema.Schema
}

// theContract is read once, because all services of a run are the same binary.
var theContract struct {
	sync.Mutex
	*contract
}

func contractOf(t *testing.T, url string) *contract {
	t.Helper()
	theContract.Lock()
	defer theContract.Unlock()
	if theContract.contract != nil {
		return theContract.contract
	}
	res, err := http.Get(url + "/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	doc, err := jsonschema.UnmarshalJSON(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if theContract.contract, err = newContract(doc); err != nil {
		t.Fatal(err)
	}
	return theContract.contract
}

func newContract(doc any) (*contract, error) {
	c := &contract{doc: doc.(map[string]any), compiler: jsonschema.NewCompiler(), schemas: map[string]*jsonschema.Schema{}}
	c.compiler.AssertFormat()
	return c, c.compiler.AddResource("openapi.json", doc)
}

// find returns the part of the document at the path of names, or nil if there is none.
func (c *contract) find(names ...string) map[string]any {
	o := c.doc
	for _, name := range names {
		o, _ = o[name].(map[string]any)
	}
	return o
}

// template returns the documented path that matches a path. A documented path without parameters has precedence.
func (c *contract) template(path string) string {
	if rest, ok := strings.CutPrefix(path, "/k/"); ok {
		_, path, _ = strings.Cut(rest, "/")
		path = "/" + path
	}
	path = "/" + strings.Join(strings.FieldsFunc(path, func(c rune) bool { return c == '/' }), "/") // doubled slashes mean one
	paths := c.find("paths")
	if paths[path] != nil {
		return path
	}
	for template := range paths {
		before, rest, ok := strings.Cut(template, "{")
		_, after, _ := strings.Cut(rest, "}")
		if ok && strings.HasPrefix(path, before) && strings.HasSuffix(path, after) && len(path) > len(before)+len(after) &&
			!strings.Contains(path[len(before):len(path)-len(after)], "/") {
			return template
		}
	}
	return ""
}

// check returns an error if an answer does not match the document. cut means that the connection broke before the end of the answer.
func (c *contract) check(req *asked, res *http.Response, body []byte, cut bool) error {
	template := c.template(req.URL.EscapedPath())
	method := strings.ToLower(req.Method)
	if method == "head" && c.find("paths", template, method) == nil {
		method = "get" // each route that answers GET also answers HEAD
	}
	operation := c.find("paths", template, method)
	if operation == nil {
		return c.checkUnknown(template, method, res)
	}
	status := fmt.Sprint(res.StatusCode)
	at := []string{"paths", template, method, "responses", status}
	answer := c.find(at...)
	if answer == nil {
		return fmt.Errorf("status %s is not described", status)
	}
	if ref, ok := answer["$ref"].(string); ok {
		at = strings.Split(strings.TrimPrefix(ref, "#/"), "/")
		answer = c.find(at...)
	}
	if err := checkHeaders(answer, res); err != nil {
		return err
	}
	if res.StatusCode < 300 {
		if err := c.checkRequest(template, req); err != nil {
			return fmt.Errorf("the answer has status %s, but %w", status, err)
		}
	}
	content, _ := answer["content"].(map[string]any)
	if req.Method == http.MethodHead || len(content) == 0 && len(body) == 0 {
		return nil
	}
	mediaType, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if content[mediaType] == nil {
		return fmt.Errorf("%d bytes of %q with status %s are not described", len(body), mediaType, status)
	}
	schema, err := c.schema(append(at, "content", mediaType, "schema")...)
	if err != nil {
		return err
	}
	return checkRecords(schema, records(mediaType, body, cut))
}

// checkUnknown checks answers that belong to no operation: to unknown paths and methods, and to malformed requests.
func (c *contract) checkUnknown(template, method string, res *http.Response) error {
	switch res.StatusCode {
	case http.StatusForbidden, http.StatusNoContent:
		if method == "options" {
			return nil // a preflight, whether the page may call or not
		}
	case http.StatusNotFound:
		if template == "" {
			return nil
		}
	case http.StatusMethodNotAllowed, http.StatusUpgradeRequired, http.StatusBadRequest, http.StatusRequestURITooLong, http.StatusRequestHeaderFieldsTooLarge:
		return nil
	}
	return fmt.Errorf("the request is not described, but got the answer %d", res.StatusCode)
}

func checkHeaders(answer map[string]any, res *http.Response) error {
	described, _ := answer["headers"].(map[string]any)
	if res.Header.Get("X-Request-Id") == "" {
		return fmt.Errorf("an answer without X-Request-Id")
	}
	for _, name := range []string{"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "Retry-After", "X-Should-Retry", "WWW-Authenticate", "Request-Id", "X-Policy"} {
		if res.Header.Get(name) != "" && described[name] == nil {
			return fmt.Errorf("status %d has the header %s, which is not described", res.StatusCode, name)
		}
	}
	for _, name := range []string{"Retry-After", "WWW-Authenticate"} {
		if described[name] != nil && res.Header.Get(name) == "" {
			return fmt.Errorf("status %d lacks the header %s", res.StatusCode, name)
		}
	}
	return nil
}

// checkRequest checks that a request that the service accepted matches the document.
func (c *contract) checkRequest(template string, req *asked) error {
	at := []string{"paths", template, strings.ToLower(req.Method), "requestBody", "content", "application/json", "schema"}
	if c.find(at...) == nil {
		return nil
	}
	<-req.whole
	if len(strings.TrimSpace(string(req.body))) == 0 {
		return nil
	}
	schema, err := c.schema(at...)
	if err != nil {
		return err
	}
	return checkRecords(schema, []string{string(req.body)})
}

func (c *contract) schema(names ...string) (*jsonschema.Schema, error) {
	escape := strings.NewReplacer("~", "~0", "/", "~1")
	pointer := "openapi.json#"
	for _, name := range names {
		pointer += "/" + escape.Replace(name)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.schemas[pointer]; s != nil {
		return s, nil
	}
	s, err := c.compiler.Compile(pointer)
	c.schemas[pointer] = s
	return s, err
}

func checkRecords(schema *jsonschema.Schema, list []string) error {
	for _, text := range list {
		value, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
		if err != nil {
			value = text // [DONE], a page, a picture
		}
		if err := schema.Validate(value); err != nil {
			return fmt.Errorf("%s does not match: %w", shape(value), err)
		}
	}
	return nil
}

// shape returns a description of a value without its texts, which may be keys.
func shape(value any) string {
	b, _ := json.Marshal(value)
	return redact(string(b[:min(len(b), 500)]))
}

// records returns the parts of a body that the schema describes: for a stream, each line or the data of each event. If the body was cut, an
// incomplete last part is left out.
func records(mediaType string, body []byte, cut bool) []string {
	var list []string
	switch mediaType {
	case "application/x-ndjson":
		list = strings.Split(string(body), "\n")
	case "text/event-stream":
		for event := range strings.SplitSeq(string(body), "\n\n") {
			var data []string
			for line := range strings.SplitSeq(event, "\n") {
				if d, ok := strings.CutPrefix(line, "data:"); ok {
					data = append(data, strings.TrimPrefix(d, " "))
				}
			}
			list = append(list, strings.Join(data, "\n"))
		}
	default:
		if cut {
			return nil
		}
		return []string{string(body)}
	}
	var whole []string
	for i, text := range list {
		if text == "" || cut && i == len(list)-1 && !json.Valid([]byte(text)) {
			continue
		}
		whole = append(whole, text)
	}
	return whole
}

// tap forwards bytes between clients and the service, and checks each answer against the document. It works for every client: Go, curl, a
// browser or the ollama command. Clients must use its address.
func tap(t *testing.T, address string) *wire {
	t.Helper()
	c := contractOf(t, "http://"+address)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{contract: c, address: l.Addr().String(), conns: map[net.Conn]bool{}}
	w.all.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			w.all.Go(func() { w.connect(client, address) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		w.close()
		w.all.Wait()
		for _, v := range w.violations {
			t.Error("an answer does not match /openapi.json: " + v)
		}
	})
	return w
}

type wire struct {
	contract *contract
	nonsense atomic.Bool // the scripted Ollama sends invalid answers, so forwarded answers are not checked
	address  string
	all      sync.WaitGroup

	mu         sync.Mutex
	conns      map[net.Conn]bool
	closed     bool
	violations []string
}

func (w *wire) keep(c net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		c.Close()
	}
	w.conns[c] = true
}

func (w *wire) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	for c := range w.conns {
		c.Close()
	}
}

func (w *wire) unpacked(body []byte) []byte {
	z, err := gzip.NewReader(bytes.NewReader(body))
	if err == nil {
		body, err = io.ReadAll(z)
	}
	if err != nil {
		w.violation("a body that is not gzip: %v", err)
	}
	return body
}

func (w *wire) violation(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.violations = append(w.violations, fmt.Sprintf(format, args...))
}

// asked is a request. Its body may be read when it is complete.
type asked struct {
	*http.Request
	whole chan struct{}
	body  []byte
}

func (w *wire) connect(client net.Conn, address string) {
	defer client.Close()
	w.keep(client)
	service, err := net.Dial("tcp", address)
	if err != nil {
		return // the service does not listen any more; closing tells the client
	}
	defer service.Close()
	w.keep(service)
	up, upCopy := io.Pipe()
	down, downCopy := io.Pipe()
	requests := make(chan *asked, 100)
	var both sync.WaitGroup
	both.Go(func() { w.readRequests(up, requests) })
	both.Go(func() { w.readAnswers(down, requests) })
	both.Go(func() {
		io.Copy(service, io.TeeReader(client, upCopy))
		service.Close() // the client has left: the service must notice at once
		upCopy.Close()
	})
	io.Copy(client, io.TeeReader(service, downCopy))
	client.Close()
	downCopy.CloseWithError(io.ErrUnexpectedEOF)
	both.Wait()
}

func (w *wire) readRequests(from *io.PipeReader, requests chan<- *asked) {
	defer close(requests)
	defer io.Copy(io.Discard, from)
	for in := bufio.NewReader(from); ; {
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		a := &asked{Request: req, whole: make(chan struct{})}
		requests <- a // the answer may come before the request's body has arrived
		a.body, err = io.ReadAll(req.Body)
		close(a.whole)
		if err != nil {
			return
		}
	}
}

func (w *wire) readAnswers(from *io.PipeReader, requests <-chan *asked) {
	defer io.Copy(io.Discard, from)
	for in := bufio.NewReader(from); ; {
		if _, err := in.Peek(1); err != nil {
			return
		}
		req, ok := <-requests
		if !ok {
			return // an answer to bytes that are not a request
		}
		res, err := http.ReadResponse(in, req.Request)
		for err == nil && res.StatusCode < 200 {
			res, err = http.ReadResponse(in, req.Request)
		}
		if err != nil {
			return
		}
		body, broken := io.ReadAll(res.Body)
		if res.Header.Get("Content-Encoding") == "gzip" && len(body) > 0 {
			body = w.unpacked(body)
		}
		if err := w.contract.check(req, res, body, broken != nil); err != nil && (res.StatusCode >= 300 || !w.nonsense.Load()) {
			w.violation("%s %s: %v", req.Method, w.contract.template(req.URL.EscapedPath()), err)
		}
		if broken != nil {
			return
		}
	}
}
