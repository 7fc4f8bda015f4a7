//go:build linux

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"ollama-api-service/internal/test/tool"
)

// tappedOllama is a real Ollama with the tiny model of the tests under the names of the scripted one. A tap in front of it counts what
// the attackers' requests made it evaluate.
type tappedOllama struct {
	url  string // of the tap
	own  string // of Ollama
	cmd  *exec.Cmd
	tap  *http.Server
	done chan struct{}

	mu    sync.Mutex
	spent map[string]*work
	asked map[string]int // how often each body of the attackers reached Ollama; the prompt is measured after the attack
	paths map[string]string
}

// findOllama returns the path of the ollama command in PATH or in Go's bin directory, where "go test ./e2e" installs it.
func findOllama() (string, error) {
	path, err := tool.Ollama()
	if errors.Is(err, fs.ErrNotExist) {
		return "", errors.New("no ollama command: run go install github.com/ollama/ollama@v0.6.5 (with CGO_ENABLED=1), or use -ollama fake")
	}
	return path, err
}

var listening = regexp.MustCompile(`Listening on (127\.0\.0\.1:\d+)`)

// startReal starts a real Ollama with room for one model, and creates the models.
func startReal(root, dir string) (*tappedOllama, error) {
	tool, err := findOllama()
	if err != nil {
		return nil, err
	}
	home := filepath.Join(dir, "ollama")
	if err := os.MkdirAll(home, 0o700); err != nil {
		return nil, err
	}
	o := &tappedOllama{
		cmd: exec.Command(tool, "serve"), done: make(chan struct{}),
		spent: map[string]*work{}, asked: map[string]int{}, paths: map[string]string{},
	}
	o.cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + home, "OLLAMA_MODELS=" + filepath.Join(home, "models"), "OLLAMA_HOST=127.0.0.1:0",
		"OLLAMA_NUM_PARALLEL=4", "OLLAMA_MAX_LOADED_MODELS=1", "OLLAMA_CONTEXT_LENGTH=4096",
	}
	o.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	said, err := o.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := onOwnProcessor(o.cmd.Start); err != nil {
		return nil, err
	}
	address := make(chan string, 1)
	go func() {
		defer close(o.done)
		for in := bufio.NewScanner(said); in.Scan(); {
			if m := listening.FindStringSubmatch(in.Text()); m != nil {
				address <- m[1]
				break
			}
		}
		io.Copy(io.Discard, said)
		o.cmd.Wait()
	}()
	select {
	case a := <-address:
		o.own = "http://" + a
	case <-time.After(time.Minute):
		o.stop()
		return nil, errors.New("the Ollama server does not accept connections")
	}
	if err := o.create(tool, root, home); err != nil {
		o.stop()
		return nil, err
	}
	return o, o.listen()
}

func (o *tappedOllama) create(tool, root, home string) error {
	create := exec.Command(tool, "create", victimModel, "-f", "Modelfile")
	create.Dir = filepath.Join(root, "testdata")
	create.Env = []string{"HOME=" + home, "OLLAMA_HOST=" + o.own}
	if out, err := create.CombinedOutput(); err != nil {
		return fmt.Errorf("ollama create: %w\n%s", err, out)
	}
	if err := o.derive(victimModel, ""); err != nil {
		return err
	}
	for i := range 3 {
		// Another file, because Ollama treats two names of the same file as one model.
		if err := o.derive(cold(i), fmt.Sprintf(`"num_predict":%d,`, 500+i)); err != nil {
			return err
		}
	}
	return nil
}

// derive creates a model from the victims' one. It computes with one thread, because Ollama has one processor of its own.
func (o *tappedOllama) derive(model, parameters string) error {
	body := fmt.Sprintf(`{"model":%q,"from":%q,"parameters":{%s"num_thread":1},"stream":false}`, model, victimModel, parameters)
	res, err := http.Post(o.own+"/api/create", "application/json", strings.NewReader(body))
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("creating %s: %s", model, res.Status)
	}
	return nil
}

// listen puts the tap in front of it.
func (o *tappedOllama) listen() error {
	to, err := url.Parse(o.own)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }, FlushInterval: -1,
		Transport:    &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	o.url = "http://" + l.Addr().String()
	o.tap = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			proxy.ServeHTTP(w, r)
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		began := time.Now()
		c := &counter{ResponseWriter: w}
		defer func() { o.count(r.URL.Path, body, c, time.Since(began)) }()
		defer func() { _ = recover() }() // ReverseProxy panics if its client has left
		proxy.ServeHTTP(c, r)
	})}
	go o.tap.Serve(l)
	return nil
}

// counter counts the records of an answer that have text: these are the generated tokens.
type counter struct {
	http.ResponseWriter
	status int
	pieces int
}

func (c *counter) WriteHeader(status int) {
	c.status = status
	c.ResponseWriter.WriteHeader(status)
}

func (c *counter) Write(p []byte) (int, error) {
	for sign, n := range map[string]int{`"response":"`: 1, `"content":"`: 1, `"done":true`: -1, `"finish_reason":"`: -1} {
		c.pieces += n * bytes.Count(p, []byte(sign))
	}
	return c.ResponseWriter.Write(p)
}

func (c *counter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

func (o *tappedOllama) count(path string, body []byte, c *counter, took time.Duration) {
	mark := markOf(body)
	o.mu.Lock()
	defer o.mu.Unlock()
	w := o.spent[mark]
	if w == nil {
		w = &work{}
		o.spent[mark] = w
	}
	w.longest = max(w.longest, took)
	w.requests++
	if mark == attackerMark && c.status == http.StatusOK { // an answer without a header may be of a prompt that was not read
		w.tokens += c.pieces
		o.asked[string(body)]++
		o.paths[string(body)] = path
	}
}

// books adds the prompts of the attackers' requests: each is sent once more, for Ollama's own count.
func (o *tappedOllama) books(mark string) work {
	o.mu.Lock()
	w := o.spent[mark]
	delete(o.spent, mark)
	asked := o.asked
	if mark == attackerMark {
		o.asked = map[string]int{}
	}
	o.mu.Unlock()
	if w == nil {
		return work{}
	}
	if mark == attackerMark {
		for body, times := range asked {
			w.tokens += times * o.promptTokens(o.paths[body], body)
		}
	}
	return *w
}

func (o *tappedOllama) promptTokens(path, body string) int {
	var fields map[string]any
	if json.Unmarshal([]byte(body), &fields) != nil {
		return 0
	}
	fields["stream"], fields["options"], fields["max_tokens"] = false, map[string]any{"num_predict": 1}, 1
	delete(fields, "format")
	delete(fields, "stream_options")
	short, _ := json.Marshal(fields)
	res, err := http.Post(o.own+path, "application/json", bytes.NewReader(short))
	if err != nil {
		return 0
	}
	defer res.Body.Close()
	var said struct {
		Prompt int `json:"prompt_eval_count"`
		Usage  struct {
			Prompt int `json:"prompt_tokens"`
		}
	}
	_ = json.NewDecoder(res.Body).Decode(&said)
	return max(said.Prompt, said.Usage.Prompt)
}

func (o *tappedOllama) address() string { return o.url }

func (o *tappedOllama) loadsEnded() (ended, aborted int) { return 0, 0 }

func (o *tappedOllama) stop() {
	if o.tap != nil {
		o.tap.Close()
	}
	o.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-o.done:
	case <-time.After(10 * time.Second):
		o.cmd.Process.Kill()
		<-o.done
	}
}
