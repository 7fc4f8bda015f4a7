package ollamatest

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/test/tool"
)

// recordedDate is the day of the recordings. Generated answers contain it too, so that every answer is the same each time.
const recordedDate = "Mon, 23 Nov 2026 12:59:03 GMT"

// Dir is the directory of the test data: testdata in the root of the repository. It panics outside of the repository.
func Dir() string {
	if noRoot != nil {
		panic("ollamatest: " + noRoot.Error())
	}
	return filepath.Join(root, "testdata")
}

// The root is found at the start, because a test may change the working directory.
var root, noRoot = tool.ModuleRoot()

// Recording returns a recorded answer as bytes: status line, header and body with its chunk framing. It panics if there is no such
// recording, which is a mistake in the test.
func Recording(name string) []byte {
	raw, err := os.ReadFile(filepath.Join(Dir(), "ollama-0.24.0", name+".http"))
	if err != nil {
		panic("ollamatest: " + err.Error())
	}
	return raw
}

// RecordedRequest returns the request body of a recorded answer.
func RecordedRequest(name string) []byte {
	body, err := os.ReadFile(filepath.Join(Dir(), "ollama-0.24.0", name+".request.json"))
	if err != nil {
		panic("ollamatest: " + err.Error())
	}
	return body
}

// fromRecording parses a recording so that write produces the same bytes again.
func fromRecording(name string) Answer {
	in := bufio.NewReader(bytes.NewReader(Recording(name)))
	var a Answer
	line, _ := in.ReadString('\n')
	a.Status, _ = strconv.Atoi(strings.Fields(line)[1])
	a.Header = http.Header{}
	for {
		line, _ = in.ReadString('\n')
		name, value, ok := strings.Cut(strings.TrimRight(line, "\r\n"), ": ")
		if !ok {
			break
		}
		a.Header.Add(name, value)
	}
	if a.Header.Get("Transfer-Encoding") != "chunked" {
		rest, _ := io.ReadAll(in)
		a.Body = string(rest)
		return a
	}
	a.Header.Del("Transfer-Encoding")
	for {
		line, _ = in.ReadString('\n')
		size, err := strconv.ParseInt(strings.TrimSpace(line), 16, 32)
		if err != nil || size == 0 {
			return a
		}
		chunk := make([]byte, size+2)
		io.ReadFull(in, chunk)
		a.Chunks = append(a.Chunks, string(chunk[:size]))
	}
}

// renamed replaces the name tiny in a recording by another model's name.
func (a Answer) renamed(model string) Answer {
	if model == "" || model == "tiny" {
		return a
	}
	name, _ := json.Marshal(model)
	rename := func(s string) string { return strings.ReplaceAll(s, `"model":"tiny"`, `"model":`+string(name)) }
	if a.Body != "" {
		a.Body = rename(a.Body)
		a.Header.Del("Content-Length")
	}
	for i, c := range a.Chunks {
		a.Chunks[i] = rename(c)
	}
	return a
}

// complete sets the fields that a scripted answer left out.
func (a Answer) complete(r *Request, models []string) Answer {
	if a.Raw != "" {
		return a
	}
	var base Answer
	switch {
	case a.Recording != "":
		base = fromRecording(a.Recording)
	case a.Tokens > 0:
		base = generated(r, a)
	case a.Chunks != nil || a.Body != "" || a.Status != 0:
		base = Answer{Chunks: a.Chunks, Body: a.Body, Header: http.Header{"Content-Type": {contentType(a)}}}
	default:
		base = recorded(r, models)
	}
	a.Chunks, a.Body = base.Chunks, base.Body
	if a.Status == 0 {
		a.Status = base.Status
	}
	h := base.Header
	for name, values := range a.Header {
		if values == nil {
			h.Del(name)
		} else {
			h[name] = values
		}
	}
	a.Header = h
	return a
}

func contentType(a Answer) string {
	switch {
	case a.Chunks == nil && !json.Valid([]byte(a.Body)):
		return "text/plain"
	case a.Chunks == nil:
		return "application/json; charset=utf-8"
	case len(a.Chunks) > 0 && (strings.HasPrefix(a.Chunks[0], "data:") || strings.HasPrefix(a.Chunks[0], "event:")):
		return "text/event-stream"
	}
	return "application/x-ndjson"
}

// requestBody holds the fields of a request that Ollama reads. encoding/json ignores case and uses the last duplicate, as Ollama does.
type requestBody struct {
	Model, Name   string
	Source        string
	Prompt        string
	Messages      []json.RawMessage
	Input         any
	Stream        *bool
	KeepAlive     any            `json:"keep_alive"`
	StreamOptions *streamOptions `json:"stream_options"`
}

type streamOptions struct {
	IncludeUsage bool `json:"include_usage"`
}

func readRequest(r *Request) (requestBody, error) {
	var b requestBody
	// A decoder stops after the first value, as Ollama's /api does.
	err := json.NewDecoder(bytes.NewReader(r.Body)).Decode(&b)
	if errors.Is(err, io.EOF) && strings.HasPrefix(r.Path, "/api/") {
		err = errors.New("missing request body")
	}
	if b.Model == "" {
		b.Model = b.Name
	}
	return b, err
}

// streams reports whether a request for path asks for a stream: /api streams by default, /v1 only on request.
func (b requestBody) streams(path string) bool {
	if b.Stream != nil {
		return *b.Stream
	}
	return strings.HasPrefix(path, "/api/")
}

func (b requestBody) usage() bool { return b.StreamOptions != nil && b.StreamOptions.IncludeUsage }

// recorded answers like Ollama 0.24.0.
func recorded(r *Request, models []string) Answer {
	if a, ok := recordedWithoutBody(r, models); ok {
		return a
	}
	allow, known := methods[r.Path]
	if !known {
		return fromRecording("error-path")
	}
	if r.Method != allow {
		a := fromRecording("error-method")
		a.Header.Set("Allow", allow)
		return a
	}
	b, err := readRequest(r)
	if err != nil {
		return failure(r.Path, http.StatusBadRequest, err.Error())
	}
	switch r.Path {
	case "/api/pull", "/api/push", "/api/create":
		return progress(r.Path, b)
	}
	model := b.Model
	if r.Path == "/api/copy" {
		model = b.Source
	}
	if !installed(models, model) {
		return unknownModel(r.Path, model)
	}
	switch r.Path {
	case "/api/copy", "/api/delete":
		return Answer{Header: http.Header{}}
	}
	return fromRecording(recordingFor(r.Path, b)).renamed(b.Model)
}

// methods are the routes with a body.
var methods = map[string]string{
	"/api/generate": "POST", "/api/chat": "POST", "/api/embed": "POST", "/api/embeddings": "POST", "/api/show": "POST",
	"/api/pull": "POST", "/api/push": "POST", "/api/create": "POST", "/api/copy": "POST", "/api/delete": "DELETE",
	"/v1/chat/completions": "POST", "/v1/completions": "POST", "/v1/embeddings": "POST", "/v1/responses": "POST", "/v1/messages": "POST",
}

func recordingFor(path string, b requestBody) string {
	unload := b.KeepAlive != nil && strings.TrimRight(fmt.Sprint(b.KeepAlive), "sm") == "0"
	switch path {
	case "/api/show":
		return "show"
	case "/api/embed":
		return "embed"
	case "/api/embeddings":
		return "embeddings"
	case "/v1/embeddings":
		return "v1-embeddings"
	case "/api/generate":
		switch {
		case b.Prompt == "" && unload:
			return "generate-unload"
		case b.Prompt == "":
			return "generate-load"
		}
	case "/api/chat":
		if len(b.Messages) == 0 {
			return "chat-load"
		}
	}
	name := map[string]string{
		"/api/generate": "generate", "/api/chat": "chat", "/v1/chat/completions": "v1-chat",
		"/v1/completions": "v1-completions", "/v1/responses": "v1-responses", "/v1/messages": "v1-messages",
	}[path]
	if b.streams(path) {
		name += "-stream"
		if b.usage() && (path == "/v1/chat/completions" || path == "/v1/completions") {
			name += "-usage"
		}
	}
	return name
}

// recordedWithoutBody answers the routes that read no body.
func recordedWithoutBody(r *Request, models []string) (Answer, bool) {
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	switch {
	case r.Path == "/" && r.Method == http.MethodHead:
		return fromRecording("head-root"), true
	case r.Path == "/" && read:
		return fromRecording("root"), true
	case r.Path == "/api/version" && read:
		return fromRecording("version"), true
	case r.Path == "/api/tags" && read:
		return listed("tags", models), true
	case r.Path == "/api/ps" && r.Method == http.MethodGet:
		return listed("ps", models[:min(1, len(models))]), true
	case r.Path == "/v1/models" && r.Method == http.MethodGet:
		return listed("v1-models", models), true
	case strings.HasPrefix(r.Path, "/v1/models/") && r.Method == http.MethodGet:
		id := strings.TrimPrefix(r.Path, "/v1/models/")
		if !installed(models, id) {
			return unknownModel(r.Path, id), true
		}
		a := fromRecording("v1-model")
		name, _ := json.Marshal(id)
		a.Body = strings.Replace(a.Body, `"tiny"`, string(name), 1)
		a.Header.Del("Content-Length")
		return a, true
	case strings.HasPrefix(r.Path, "/api/blobs/"):
		return blob(r), true
	}
	return Answer{}, false
}

var digest = regexp.MustCompile(`^sha256[:-][0-9a-f]{64}$`)

func blob(r *Request) Answer {
	name := strings.TrimPrefix(r.Path, "/api/blobs/")
	switch {
	case !digest.MatchString(name):
		return failure(r.Path, http.StatusBadRequest, "invalid digest format")
	case r.Method == http.MethodHead:
		return Answer{Status: http.StatusNotFound, Header: http.Header{}}
	case name[len("sha256:"):] != fmt.Sprintf("%x", sha256.Sum256(r.Body)):
		return failure(r.Path, http.StatusBadRequest, fmt.Sprintf("digest mismatch, expected %q", name))
	}
	return Answer{Status: http.StatusCreated, Header: http.Header{}}
}

// listed repeats the only entry of the recorded list for each model, with its name and a different digest.
func listed(recording string, models []string) Answer {
	a := fromRecording(recording)
	if slices.Equal(models, []string{"tiny:latest"}) {
		return a
	}
	open, end := strings.Index(a.Body, "[{"), strings.LastIndex(a.Body, "}]")
	entry := a.Body[open+1 : end+1]
	var entries []string
	for _, m := range models {
		e := strings.ReplaceAll(entry, "tiny:latest", m)
		sum := sha256.Sum256([]byte(m))
		e = regexp.MustCompile(`"digest":"[0-9a-f]*"`).ReplaceAllString(e, fmt.Sprintf(`"digest":"%x"`, sum))
		entries = append(entries, e)
	}
	a.Body = a.Body[:open+1] + strings.Join(entries, ",") + a.Body[end+1:]
	a.Header.Del("Content-Length")
	return a
}

// installed compares names like Ollama, in any spelling.
func installed(models []string, name string) bool {
	want, _, err := api.ParseModel(name)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(models, func(m string) bool {
		have, _, err := api.ParseModel(m)
		return err == nil && have == want
	})
}

func unknownModel(path, model string) Answer {
	switch path {
	case "/api/embed", "/api/embeddings":
		return failure(path, http.StatusNotFound, fmt.Sprintf("model %q not found, try pulling it first", model))
	}
	return failure(path, http.StatusNotFound, fmt.Sprintf("model '%s' not found", model))
}

// failure is an error in the format of the path's dialect, as in the error-* recordings.
func failure(path string, status int, message string) Answer {
	text, _ := json.Marshal(message)
	kind := map[int]string{400: "invalid_request_error", 404: "not_found_error"}[status]
	if kind == "" {
		kind = "api_error"
	}
	a := Answer{Status: status, Header: http.Header{"Content-Type": {"application/json"}}}
	switch {
	case path == "/v1/messages":
		a.Body = `{"type":"error","error":{"type":"` + kind + `","message":` + string(text) + `},"request_id":"req_302f2156cc8eb337bf9a07e6"}` + "\n"
	case !strings.HasPrefix(path, "/v1/"):
		a.Header.Set("Content-Type", "application/json; charset=utf-8")
		a.Body = `{"error":` + string(text) + `}`
	default:
		a.Body = `{"error":{"message":` + string(text) + `,"type":"` + kind + `","param":null,"code":null}}`
		if status != http.StatusBadRequest {
			a.Body += "\n"
		}
	}
	return a
}

// progress is what pull, push and create send while they work.
func progress(path string, b requestBody) Answer {
	lines := map[string][]string{
		"/api/pull": {
			`{"status":"pulling manifest"}`,
			`{"status":"pulling 124ce6d83203","digest":"sha256:124ce6d8320320928de50056c49489690530ab0e1c02150012d8f78302780608","total":537952}`,
			`{"status":"pulling 124ce6d83203","digest":"sha256:124ce6d8320320928de50056c49489690530ab0e1c02150012d8f78302780608","total":537952,"completed":537952}`,
			`{"status":"verifying sha256 digest"}`, `{"status":"writing manifest"}`, `{"status":"success"}`,
		},
		"/api/push":   {`{"status":"retrieving manifest"}`, `{"status":"pushing manifest"}`, `{"status":"success"}`},
		"/api/create": {`{"status":"parsing GGUF"}`, `{"status":"writing manifest"}`, `{"status":"success"}`},
	}[path]
	if !b.streams(path) {
		return Answer{Body: lines[len(lines)-1], Header: http.Header{"Content-Type": {"application/json; charset=utf-8"}}}
	}
	a := Answer{Header: http.Header{"Content-Type": {"application/x-ndjson"}}}
	for _, l := range lines {
		a.Chunks = append(a.Chunks, l+"\n")
	}
	return a
}
