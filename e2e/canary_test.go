package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ollama-api-service/internal/test/ollamatest"
)

// Whatever happens to a request, no file or output of the service contains its text or a key afterwards.
func TestNoSecretIsWrittenAnywhere(t *testing.T) {
	const (
		prompt   = "CANARYPROMPT4711"
		reply    = "CANARYREPLY4712"
		password = "CANARYHEADER4713"
		setting  = "CANARYSECRETKEY4714-0123456789abcdef"
	)
	fake := ollamatest.Start(t)
	data := t.TempDir()
	s := start(t, data, fake.URL, nil, "SECRET_KEY="+setting, "LOG_LEVEL=debug", "OLLAMA_AUTH_HEADER=X-Upstream-Token: "+password)
	s.wire.nonsense.Store(true)
	user := s.makeKey(t, `,"rate_limit":30`).Secret
	old := s.makeKey(t, "")
	var rotated madeKey
	call(t, "POST", s.URL+"/api/keys/"+old.Preview+"/rotate", s.Admin, `{"grace_seconds":60}`).want(t, http.StatusOK).decode(t, &rotated)
	revoked := s.makeKey(t, "")
	call(t, "DELETE", s.URL+"/api/keys/"+revoked.Preview, s.Admin, "").want(t, http.StatusOK)

	chat := `{"model":"tiny","messages":[{"role":"user","content":"` + prompt + `"}]`
	native := ollamatest.ChatLines("tiny", 17, 3)
	native[1] = strings.Replace(native[1], ollamatest.Word(1), reply, 1)
	ways := []ollamatest.Answer{
		{},
		{Tokens: 3},
		{Chunks: native},
		{Chunks: native, Fault: ollamatest.Close, FaultAt: 400},
		{Fault: ollamatest.Reset},
		{Tokens: 2, NoTerminal: true},
		{Chunks: []string{reply + " not json\n"}},
		{Status: 500, Body: `{"error":"` + reply + `"}`},
		{Status: 401, Body: `{"error":"unauthorized","signin_url":"` + reply + `"}`},
		{Raw: reply + " is no HTTP at all\r\n\r\n"},
		{Body: `{"message":{"content":"` + reply + `"},"done":true}`, Header: http.Header{"Set-Cookie": {reply}}},
	}
	for i, a := range ways {
		fake.Script("POST", "/api/chat", a)
		fake.Script("POST", "/v1/chat/completions", a)
		for _, c := range []string{"/api/chat ", "/api/chat ,\"stream\":false", "/v1/chat/completions ", "/v1/chat/completions ,\"stream\":true"} {
			path, fields, _ := strings.Cut(c, " ")
			if _, err := tryCall(t.Context(), "POST", s.URL+path, user, chat+fields+"}"); err != nil && i == 0 {
				t.Fatal(err)
			}
		}
	}
	fake.Script("POST", "/api/chat")
	fake.Script("POST", "/v1/chat/completions")
	// A client that leaves, every way to send a key, and every kind of refused request.
	gate := make(chan struct{})
	fake.Script("POST", "/api/generate", ollamatest.Answer{Tokens: 9, Gate: gate})
	ctx, leave := context.WithCancel(t.Context())
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		tryCall(ctx, "POST", s.URL+"/api/generate", rotated.Secret, `{"model":"tiny","prompt":"`+prompt+`"}`)
	}()
	r := fake.WaitRequestTo(1, "POST", "/api/generate")
	leave()
	<-gone
	r.WaitClosed()
	fake.Script("POST", "/api/generate")
	for _, key := range []string{s.Admin, user, old.Secret, rotated.Secret, revoked.Secret, user[:len(user)-1], user + password, password} {
		for _, target := range []string{"/api/tags", "/api/keys", "/api/stats", "/k/" + key + "/api/tags", "/k/" + key + "/", "/k/" + key + "/nothing", "/api/tags?api_key=" + key, "/v1/models", "/" + prompt, "/v1/models/" + prompt} {
			tryCall(t.Context(), "GET", s.URL+target, key, "")
		}
	}
	for _, body := range []string{
		chat, chat + `} ` + prompt, `{"model":"` + prompt + `"}`, `{"` + prompt + `":1,"` + prompt + `":2}`, prompt, `{"model":"tiny","prompt":"` + prompt + `","PROMPT":"x"}`,
		`{"name":"` + strings.Repeat(prompt, 20) + `","role":"user"}`, `{"name":"x","role":"` + prompt + `"}`,
	} {
		for _, path := range []string{"/api/chat", "/api/generate", "/v1/chat/completions", "/api/keys", "/api/keys/" + prompt, "/api/pull", "/api/embed", "/v1/embeddings"} {
			tryCall(t.Context(), "POST", s.URL+path, s.Admin, body)
			tryCall(t.Context(), "PATCH", s.URL+path, s.Admin, body)
		}
	}
	for name, value := range map[string]string{"Cookie": "a=" + password, "X-Api-Key": user + "x", "Authorization": "Basic " + password, "X-Request-Id": "fine", "Origin": "http://" + password} {
		req, _ := http.NewRequestWithContext(t.Context(), "POST", s.URL+"/api/chat", strings.NewReader(chat+"}"))
		req.Header.Set(name, value)
		if res, err := client.Do(req); err == nil {
			res.Body.Close()
		}
	}
	for fullHour := range 40 { // until the limit is reached
		if a := call(t, "POST", s.URL+"/api/chat", user, chat+"}"); a.Status == http.StatusTooManyRequests {
			break
		} else if fullHour == 39 {
			t.Fatal("the limit was never reached")
		}
	}
	if out, _, exit := s.command(t, "keys", "list"); exit != 0 || strings.Contains(out, user) {
		t.Errorf("keys list: exit %d, %s", exit, out)
	}

	shown := map[string]string{}
	for _, path := range []string{"/metrics", "/api/admin/usage?group_by=key,model", "/api/admin/requests?limit=1000", "/api/admin/requests?format=csv", "/api/admin/stats", "/api/keys", "/health"} {
		shown[path] = call(t, "GET", s.URL+path, s.Admin, "").want(t, http.StatusOK).Body
	}
	if rows := shown["/api/admin/requests?limit=1000"]; !strings.Contains(rows, old.Preview) || !strings.Contains(rows, "upstream_error") || strings.Contains(shown["/metrics"], "oas_") {
		t.Errorf("admins see %.600s", rows)
	}
	running := files(t, data)
	s.kill(t)
	killed := files(t, data)
	again := start(t, data, fake.URL, nil, "SECRET_KEY="+setting, "LOG_LEVEL=debug")
	again.stop(t)

	if len(running) < 2 || !bytes.Contains(bytes.Join([][]byte{[]byte(s.stdout.String())}, nil), []byte(old.Preview)) {
		t.Fatalf("the search would prove nothing: got only %d files, log %.300s", len(running), s.stdout.String())
	}
	// The admin key is printed once, on the terminal and nowhere else.
	if got := strings.Count(s.stderr.String(), s.Admin); got != 1 {
		t.Errorf("the first admin key was printed %d times, want once", got)
	}
	canaries := map[string]string{
		"a prompt": prompt, "an answer": reply, "a foreign credential": password, "SECRET_KEY": setting,
		"a user's key": user, "the old secret": old.Secret, "the rotated secret": rotated.Secret, "a revoked key": revoked.Secret, "the admin key": s.Admin,
	}
	for name, key := range canaries {
		if strings.HasPrefix(key, "oas_") {
			canaries[name+" without its id"] = key[len("oas_0123456789_"):]
		}
	}
	places := map[string][]byte{
		"log": []byte(s.stdout.String()), "stderr": []byte(strings.Replace(s.stderr.String(), s.Admin, "", 1)),
		"second log": []byte(again.stdout.String()), "second stderr": []byte(again.stderr.String()),
	}
	for path, body := range shown {
		places[path] = []byte(body)
	}
	for moment, found := range map[string]map[string][]byte{"running": running, "killed": killed, "stopped": files(t, data)} {
		for path, content := range found {
			places[fmt.Sprintf("%s, %s", strings.TrimPrefix(path, data), moment)] = content
		}
	}
	for what, canary := range canaries {
		for place, content := range places {
			if i := bytes.Index(content, []byte(canary)); i >= 0 {
				t.Errorf("%s was found in %s: …%q", what, place, bytes.ReplaceAll(content[max(0, i-120):i], []byte(canary), nil))
			}
		}
	}
}

// Only the owner can read the secret that the service creates for itself.
func TestFilesAreForTheOwnerAlone(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	s := start(t, data, ollamaURL, nil)
	s.stop(t)
	if info, err := os.Stat(data); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("DATA_DIR: %v, %v", info.Mode(), err)
	}
	err := filepath.WalkDir(data, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if info, err := d.Info(); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v, %v", path, info.Mode(), err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
