package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// service is one running binary.
type service struct {
	URL   string
	Admin string // the first admin key, where this start printed one
	Data  string // DATA_DIR

	cmd    *exec.Cmd
	stdout *transcript
	stderr printed
	ended  chan struct{}
	result error
	wire   *wire
}

// transcript keeps what a program prints and tells who waits for a line.
type transcript struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{}
}

// printed is a file that a program prints to: unlike what comes through a pipe, it has all of it as soon as it is printed.
type printed string

func (p printed) String() string {
	text, _ := os.ReadFile(string(p))
	return string(text)
}

func newTranscript() *transcript { return &transcript{more: make(chan struct{})} }

func (t *transcript) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text.Write(p)
	close(t.more)
	t.more = make(chan struct{})
	return len(p), nil
}

func (t *transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.String()
}

// find waits for the pattern's first group, until the deadline or the end of the program.
func (t *transcript) find(pattern *regexp.Regexp, ended <-chan struct{}) (string, error) {
	deadline := time.After(patience)
	for {
		t.mu.Lock()
		m, more := pattern.FindSubmatch(t.text.Bytes()), t.more
		t.mu.Unlock()
		if m != nil {
			return string(m[1]), nil
		}
		select {
		case <-more:
		case <-ended:
			if m := pattern.FindStringSubmatch(t.String()); m != nil {
				return m[1], nil
			}
			return "", errors.New("the program ended")
		case <-deadline:
			return "", fmt.Errorf("no %v within %v", pattern, patience)
		}
	}
}

var (
	addressLine = regexp.MustCompile(`"msg":"listening".*?"addr":"([^"]+)"`)
	secretKey   = regexp.MustCompile(`(oas_[0-9A-Za-z]{10}_[0-9A-Za-z]{38})`)
)

// environment is plain, so that no setting of this machine leaks into a test; of later entries of one name the last stands.
func environment(data, backend string, extra ...string) []string {
	return append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + data, "DATA_DIR=" + data, "OLLAMA_BASE_URL=" + backend, "HOST=127.0.0.1", "PORT=0", "LOG_FORMAT=json",
		"AUTH_FAILURES_PER_MINUTE=0", // many tests of refusals come from one address
		"DEFAULT_MAX_TOKENS=64",      // as the test model itself has it: it never stops of its own will
	}, extra...)
}

// start starts the service on data and waits until it listens. It ends with the test.
func start(t *testing.T, data, backend string, args []string, env ...string) *service {
	t.Helper()
	s, address := startBare(t, data, backend, args, env...)
	if overTLS(env) {
		s.URL = "https://" + address // no one can read it on the way
	} else {
		s.wire = tap(t, address)
		s.URL = "http://" + s.wire.address
	}
	return s
}

// startBare is start without the tap: the address is the service's own.
func startBare(t *testing.T, data, backend string, args []string, env ...string) (*service, string) {
	t.Helper()
	return startCommand(t, data, backend, append([]string{binary, "serve"}, args...), env...)
}

// startCommand is startBare of a command line that becomes the service.
func startCommand(t *testing.T, data, backend string, command []string, env ...string) (*service, string) {
	t.Helper()
	s := &service{Data: data, stdout: newTranscript(), stderr: printed(filepath.Join(t.TempDir(), "stderr")), ended: make(chan struct{})}
	s.cmd = exec.Command(command[0], command[1:]...)
	s.cmd.Env = environment(data, backend, env...)
	dieWithTests(s.cmd)
	s.cmd.Dir = t.TempDir() // without .env
	stderr, err := os.Create(string(s.stderr))
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	s.cmd.Stdout, s.cmd.Stderr = s.stdout, stderr
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		s.result = s.cmd.Wait()
		close(s.ended)
	}()
	t.Cleanup(func() {
		s.cmd.Process.Kill()
		<-s.ended
		if t.Failed() {
			t.Logf("the service said\n%s\n%s", tail(redact(s.stdout.String())), tail(redact(s.stderr.String())))
		}
	})
	address, err := s.stdout.find(addressLine, s.ended)
	if err != nil {
		t.Fatalf("the service does not listen: %v", err)
	}
	if m := secretKey.FindString(s.stderr.String()); m != "" {
		s.Admin = m
	}
	return s, address
}

// overTLS reports whether the settings make the service use HTTPS.
func overTLS(env []string) bool {
	return slices.ContainsFunc(env, func(v string) bool { return strings.HasPrefix(v, "TLS_CERT=") || strings.HasPrefix(v, "ACME_DOMAIN=") })
}

// redact keeps keys out of what a failed test shows.
func redact(s string) string { return secretKey.ReplaceAllString(s, "oas_…") }

func tail(s string) string { return s[max(0, len(s)-4000):] }

// serve is start on a fresh data directory before the real Ollama.
func serve(t *testing.T, env ...string) *service {
	t.Helper()
	s := start(t, t.TempDir(), ollamaURL, nil, env...)
	if s.Admin == "" {
		t.Fatal("the first start printed no admin key")
	}
	return s
}

// stop ends the service in the orderly way.
func (s *service) stop(t *testing.T) {
	t.Helper()
	s.signal(t, syscall.SIGTERM)
	if s.result != nil {
		t.Fatalf("SIGTERM: %v, want exit 0", s.result)
	}
}

// kill ends it as a power cut would end the process.
func (s *service) kill(t *testing.T) {
	t.Helper()
	s.signal(t, syscall.SIGKILL)
}

func (s *service) signal(t *testing.T, sig os.Signal) {
	t.Helper()
	s.cmd.Process.Signal(sig)
	select {
	case <-s.ended:
	case <-time.After(patience):
		t.Fatalf("the service did not end within %v of %v", patience, sig)
	}
}

// again starts the service again on the same data.
func (s *service) again(t *testing.T, backend string, env ...string) *service {
	t.Helper()
	n := start(t, s.Data, backend, nil, env...)
	if n.Admin != "" {
		t.Fatal("an admin key was made though there is one")
	}
	n.Admin = s.Admin
	return n
}

// command runs another subcommand of the binary with the service's settings.
func (s *service) command(t *testing.T, args ...string) (stdout, stderr string, exit int) {
	t.Helper()
	return run(t, s.cmd.Env, args...)
}

func run(t *testing.T, env []string, args ...string) (stdout, stderr string, exit int) {
	t.Helper()
	return runIn(t, t.TempDir(), env, args...)
}

func runIn(t *testing.T, dir string, env []string, args ...string) (stdout, stderr string, exit int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env, cmd.Dir = env, dir
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var status *exec.ExitError
	switch {
	case ctx.Err() != nil:
		t.Fatalf("%v did not end within %v", args, patience)
	case errors.As(err, &status):
		return out.String(), errs.String(), status.ExitCode()
	case err != nil:
		t.Fatal(err)
	}
	return out.String(), errs.String(), 0
}

// answer is one HTTP answer, read whole.
type answer struct {
	Status int
	Header http.Header
	Body   string
	Err    error // reading the body broke off
}

func (a answer) decode(t *testing.T, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(a.Body), into); err != nil {
		t.Fatalf("%d with %q: %v", a.Status, a.Body, err)
	}
}

// object is the body as a JSON object.
func (a answer) object(t *testing.T) map[string]any {
	t.Helper()
	var m map[string]any
	a.decode(t, &m)
	return m
}

func call(t *testing.T, method, url, key, body string) answer {
	t.Helper()
	a, err := tryCall(t.Context(), method, url, key, body)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// client opens as many connections as it is asked to, and leaves none behind that a stopping service would wait for.
var client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1000}, Timeout: 2 * time.Minute}

func tryCall(ctx context.Context, method, url, key, body string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	if body != "" && method != http.MethodGet {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return answer{Status: res.StatusCode, Header: res.Header, Body: string(b), Err: err}, nil
}

// want fails the test unless the answer has the status.
func (a answer) want(t *testing.T, status int) answer {
	t.Helper()
	if a.Status != status || a.Err != nil {
		t.Fatalf("got %d, %v, want %d: %s", a.Status, a.Err, status, redact(a.Body))
	}
	return a
}

type madeKey struct {
	Secret  string `json:"api_key"`
	Preview string `json:"key_preview"`
}

// makeKey makes a user key; fields is more JSON, like `,"rate_limit":5`.
func (s *service) makeKey(t *testing.T, fields string) madeKey {
	t.Helper()
	var k madeKey
	call(t, "POST", s.URL+"/api/keys", s.Admin, `{"name":"test","role":"user"`+fields+`}`).want(t, http.StatusOK).decode(t, &k)
	if !secretKey.MatchString(k.Secret) || !strings.HasPrefix(k.Secret, k.Preview+"_") {
		t.Fatalf("what was made is no key of preview %q", k.Preview)
	}
	return k
}

// stats are the key's own statistics, as soon as total_requests has reached at least n: rows reach the books in batches.
func (s *service) stats(t *testing.T, key string, n int64) statistics {
	t.Helper()
	var st statistics
	poll(t, fmt.Sprintf("%d requests in /api/stats", n), func() bool {
		st = statistics{}
		call(t, "GET", s.URL+"/api/stats", key, "").want(t, http.StatusOK).decode(t, &st)
		return st.Total >= n
	})
	return st
}

type statistics struct {
	Total      int64            `json:"total_requests"`
	ByModel    map[string]int64 `json:"requests_by_model"`
	ByEndpoint map[string]int64 `json:"requests_by_endpoint"`
	ByOutcome  map[string]int64 `json:"requests_by_outcome"`
	Average    *float64         `json:"average_response_time"`
	Last24h    int64            `json:"last_24h_requests"`
	Prompt     int64            `json:"prompt_tokens"`
	Completion int64            `json:"completion_tokens"`
	Estimated  int64            `json:"estimated_requests"`
}

// poll asks until yes: for what another process does without telling.
func poll(t *testing.T, what string, yes func() bool) {
	t.Helper()
	over := patienceOver()
	for !yes() {
		if over() {
			t.Fatalf("no %s within %v", what, patience)
		}
	}
}

// patienceOver pauses between looks at a program, and says when there were enough.
func patienceOver() (over func() bool) {
	deadline := time.Now().Add(patience)
	return func() bool {
		<-time.After(10 * time.Millisecond)
		return time.Now().After(deadline)
	}
}

// files are all files below the directories, with their content.
func files(t *testing.T, dirs ...string) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			all[path], err = os.ReadFile(path)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// lines are the JSON lines of a stream, or the data of its events.
func lines(t *testing.T, body string) []map[string]any {
	t.Helper()
	var all []map[string]any
	for in := bufio.NewScanner(strings.NewReader(body)); in.Scan(); {
		text := strings.TrimPrefix(in.Text(), "data: ")
		if text == "" || text == "[DONE]" {
			continue
		}
		var m map[string]any
		if err := json.Unmarshal([]byte(text), &m); err != nil {
			t.Fatalf("line %q: %v", text, err)
		}
		all = append(all, m)
	}
	if len(all) == 0 {
		t.Fatalf("an empty stream: %q", body)
	}
	return all
}

func last[T any](s []T) T { return s[len(s)-1] }
