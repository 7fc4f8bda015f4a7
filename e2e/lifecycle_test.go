package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/test/ollamatest"
)

// A request that runs when the process is killed gets its own row, because it used the backend.
func TestAKillLosesNothing(t *testing.T) {
	fake := ollamatest.Start(t)
	gate := make(chan struct{}, 1)
	s := start(t, t.TempDir(), fake.URL, nil)
	key := s.makeKey(t, `,"rate_limit":3`).Secret
	call(t, "POST", s.URL+"/api/chat", key, `{`+ask+`}`).want(t, http.StatusOK)

	fake.Script("POST", "/api/chat", ollamatest.Answer{Tokens: 5, Gate: gate})
	broken := make(chan error, 1)
	gate <- struct{}{} // for one token; there is no second one
	res := open(t, s.URL+"/api/chat", key)
	in := bufio.NewReader(res.Body)
	if line, err := in.ReadString('\n'); err != nil || !strings.Contains(line, ollamatest.Word(0)) {
		t.Fatalf("first line %q, %v", line, err)
	}
	go func() {
		_, err := in.ReadString('\n')
		broken <- err
	}()
	s.kill(t)
	if err := <-broken; err == nil {
		t.Error("the stream continued after the kill")
	}
	res.Body.Close()

	fake.Script("POST", "/api/chat")
	s = s.again(t, fake.URL)
	st := s.stats(t, key, 2)
	if st.Total != 2 || st.ByOutcome["ok"] != 1 || st.ByOutcome["interrupted"] != 1 || st.Estimated != 1 {
		t.Errorf("books after the kill: %+v", st)
	}
	// The interrupted request counts towards the limit too: of 3 requests, one remains.
	call(t, "POST", s.URL+"/api/chat", key, `{`+ask+`}`).want(t, http.StatusOK)
	call(t, "POST", s.URL+"/api/chat", key, `{`+ask+`}`).want(t, http.StatusTooManyRequests)
}

// open starts a streamed chat and returns when the header has arrived.
func open(t *testing.T, url, key string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "POST", url, strings.NewReader(`{`+ask+`}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	answered := make(chan *http.Response, 1)
	failed := make(chan error, 1)
	go func() {
		res, err := client.Do(req)
		if err != nil {
			failed <- err
			return
		}
		answered <- res
	}()
	select {
	case res := <-answered:
		t.Cleanup(func() { res.Body.Close() })
		return res
	case err := <-failed:
		t.Fatal(err)
	case <-time.After(patience):
		t.Fatal("no header came")
	}
	return nil
}

// pass opens the gate for one chunk of a fake answer, when the answer has come to the gate.
func pass(t *testing.T, gate chan<- struct{}) {
	t.Helper()
	select {
	case gate <- struct{}{}:
	case <-time.After(patience):
		t.Fatal("the fake Ollama did not come to the next chunk")
	}
}

// SIGTERM lets a running answer finish.
func TestAnOrderlyStopLetsAnswersFinish(t *testing.T) {
	fake := ollamatest.Start(t)
	gate := make(chan struct{})
	fake.Script("POST", "/api/chat", ollamatest.Answer{Tokens: 3, Gate: gate})
	s := start(t, t.TempDir(), fake.URL, nil)
	key := s.makeKey(t, "").Secret
	done := make(chan answer, 1)
	go func() {
		a, err := tryCall(t.Context(), "POST", s.URL+"/api/chat", key, `{`+ask+`}`)
		if err != nil {
			a.Err = err
		}
		done <- a
	}()
	pass(t, gate)
	s.cmd.Process.Signal(os.Interrupt)
	close(gate)
	a := (<-done).want(t, http.StatusOK)
	if last(lines(t, a.Body))["done"] != true {
		t.Errorf("the answer was cut: %s", a.Body)
	}
	select {
	case <-s.ended:
	case <-time.After(patience):
		t.Fatal("the service did not end")
	}
	if s.result != nil {
		t.Errorf("exit: %v", s.result)
	}
}

// A client that leaves must not keep the GPU busy: its connection to Ollama is closed.
func TestALeavingClientClosesUpstream(t *testing.T) {
	for _, c := range []struct {
		name, path, body string
		chunks           int // sent before the client leaves
	}{
		{"in a native stream", "/api/chat", `{` + ask + `}`, 2},
		{"in an OpenAI stream", "/v1/chat/completions", `{` + ask + `,"stream":true}`, 2},
		{"before the first byte", "/api/chat", `{` + ask + `}`, 0},
		{"without a stream", "/api/chat", `{` + ask + `,"stream":false}`, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			fake := ollamatest.Start(t)
			gate := make(chan struct{})
			a := ollamatest.Answer{Tokens: 50, Gate: gate}
			if c.chunks == 0 {
				a = ollamatest.Answer{Fault: ollamatest.Hang}
			}
			fake.Script("POST", c.path, a)
			s := start(t, t.TempDir(), fake.URL, nil)
			key := s.makeKey(t, "").Secret
			ctx, leave := context.WithCancel(t.Context())
			gone := make(chan struct{})
			go func() {
				defer close(gone)
				tryCall(ctx, "POST", s.URL+c.path, key, c.body)
			}()
			r := fake.WaitRequestTo(1, "POST", c.path)
			for range c.chunks {
				pass(t, gate)
			}
			leave()
			<-gone
			r.WaitClosed()
			if st := s.stats(t, key, 1); st.ByOutcome["client_gone"] != 1 {
				t.Errorf("books %+v", st)
			}
		})
	}
}

// The command line changes keys directly in the database. The running service applies the change within a second.
func TestKeysOnTheCommandLineTakeEffectAtOnce(t *testing.T) {
	s := serve(t)
	out, errs, exit := s.command(t, "keys", "create", "--name", "from the shell", "--role", "user", "--rate-limit", "5", "--json")
	if exit != 0 {
		t.Fatalf("exit %d: %s%s", exit, out, errs)
	}
	var k madeKey
	if err := json.Unmarshal([]byte(out), &k); err != nil || !secretKey.MatchString(k.Secret) {
		t.Fatalf("%q: %v", out, err)
	}
	within(t, time.Second, "a new key works", func() bool {
		return call(t, "GET", s.URL+"/api/models", k.Secret, "").Status == http.StatusOK
	})
	if out, _, _ := s.command(t, "keys", "list", "--json"); !strings.Contains(out, k.Preview) || strings.Contains(out, k.Secret) {
		t.Errorf("the list: %s", out)
	}
	out, errs, exit = s.command(t, "keys", "revoke", k.Preview)
	if exit != 0 {
		t.Fatalf("exit %d: %s%s", exit, out, errs)
	}
	within(t, time.Second, "a revoked key is refused", func() bool {
		return call(t, "GET", s.URL+"/api/models", k.Secret, "").Status == http.StatusUnauthorized
	})
	if out, _, exit := s.command(t, "stats"); exit != 0 || strings.TrimSpace(out) == "" {
		t.Errorf("stats: exit %d: %s", exit, out)
	}
}

func within(t *testing.T, limit time.Duration, what string, yes func() bool) {
	t.Helper()
	for from := time.Now(); !yes(); <-time.After(5 * time.Millisecond) {
		if time.Since(from) > limit {
			t.Fatalf("%s: not within %v", what, limit)
		}
	}
}

func TestABadStartSaysWhatToDo(t *testing.T) {
	made := t.TempDir()
	first := start(t, made, ollamaURL, nil, "SECRET_KEY=the-first-of-two-different-secrets-0001")
	first.stop(t)
	empty := filepath.Join(t.TempDir(), "nothing-here")
	dotenv := t.TempDir()
	if err := os.WriteFile(filepath.Join(dotenv, ".env"), []byte("PORT=0\nRATE_LIMT=5\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	canary := "a-value-that-must-not-be-printed-7731"
	for _, c := range []struct {
		name string
		dir  string
		env  []string
		args []string
		exit int
		says []string
	}{
		{"another SECRET_KEY", "", environment(made, ollamaURL, "SECRET_KEY="+canary+canary), []string{"serve"}, 3, []string{"SECRET_KEY"}},
		{"a SECRET_KEY from the example", "", environment(t.TempDir(), ollamaURL, "SECRET_KEY=your-super-secret-key-change-this-in-production"), []string{"serve"}, 2, []string{"SECRET_KEY"}},
		{"an unknown name in .env", dotenv, environment(t.TempDir(), ollamaURL), []string{"serve"}, 2, []string{"RATE_LIMT", "2"}},
		{"a bad port", "", environment(t.TempDir(), ollamaURL, "PORT=99999"), []string{"serve"}, 2, []string{"PORT"}},
		{"no address of Ollama", "", environment(t.TempDir(), "file:///etc/passwd"), []string{"serve"}, 2, []string{"OLLAMA_BASE_URL"}},
		{"a short admin key", "", environment(t.TempDir(), ollamaURL, "ADMIN_API_KEY=changeme"), []string{"serve"}, 2, []string{"ADMIN_API_KEY"}},
		{"demo keys for the whole network", "", environment(t.TempDir(), ollamaURL, "HOST=0.0.0.0"), []string{"serve", "--demo"}, 2, []string{"HOST"}},
		{"keys without a database", "", environment(empty, ollamaURL), []string{"keys", "list"}, 2, []string{"DATA_DIR", empty}},
		{"stats without a database", "", environment(empty, ollamaURL), []string{"stats"}, 2, []string{"DATA_DIR", empty}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := c.dir
			if dir == "" {
				dir = t.TempDir()
			}
			out, errs, exit := runIn(t, dir, c.env, c.args...)
			if exit != c.exit {
				t.Errorf("exit %d, want %d", exit, c.exit)
			}
			for _, s := range c.says {
				if !strings.Contains(errs, s) {
					t.Errorf("want %s in %q", s, errs)
				}
			}
			if strings.Contains(out+errs, canary) {
				t.Errorf("the value is printed: %q", out+errs)
			}
		})
	}
	if _, err := os.Stat(empty); !os.IsNotExist(err) {
		t.Errorf("a command that only reads created %s", empty)
	}
}

// Containers run healthcheck. It exits with 0 as long as the service answers.
func TestHealthcheck(t *testing.T) {
	s := serve(t)
	_, port, _ := strings.Cut(strings.TrimPrefix(s.URL, "http://"), ":")
	env := environment(s.Data, ollamaURL, "PORT="+port)
	if out, errs, exit := run(t, env, "healthcheck"); exit != 0 {
		t.Errorf("exit %d: %s%s", exit, out, errs)
	}
	s.stop(t)
	if _, errs, exit := run(t, env, "healthcheck"); exit == 0 || errs == "" {
		t.Errorf("healthcheck of a stopped service: got exit %d, %q", exit, errs)
	}
	if out, _, exit := run(t, env, "version"); exit != 0 || !strings.Contains(out, "0.0.0-e2e") {
		t.Errorf("version: exit %d, %q", exit, out)
	}
}
