package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ollama-api-service/internal/test/ollamatest"
)

// load keeps the service busy with the key until stop is called, which returns how many requests were answered.
func load(t *testing.T, s *service, key string, clients int) (answered *atomic.Int64, stop func() int64) {
	t.Helper()
	answered = new(atomic.Int64)
	done := make(chan struct{})
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if a, err := tryCall(t.Context(), "POST", s.URL+"/api/chat", key, `{`+ask+`,"stream":false}`); err != nil || a.Status != http.StatusOK {
					t.Errorf("a request during the backup: got %d, %v", a.Status, err)
					return
				}
				answered.Add(1)
			}
		})
	}
	var once sync.Once
	stop = func() int64 {
		once.Do(func() { close(done) })
		all.Wait()
		return answered.Load()
	}
	t.Cleanup(func() { stop() })
	return answered, stop
}

// A backup that was made under load starts another service. Its keys work, and its statistics are those of one moment during the backup.
func TestBackupWhileServing(t *testing.T) {
	fake := ollamatest.Start(t)
	s := start(t, t.TempDir(), fake.URL, nil)
	key := s.makeKey(t, `,"rate_limit":null`)
	answered, stop := load(t, s, key.Secret, 4)
	poll(t, "50 answers", func() bool { return answered.Load() >= 50 })
	least := s.stats(t, key.Secret, 50).Total
	file := filepath.Join(t.TempDir(), "b.tar")
	out, errs, exit := s.command(t, "backup", "--json", file)
	most := stop()
	if exit != 0 {
		t.Fatalf("exit %d: %s%s", exit, out, errs)
	}
	var m struct {
		Contents struct{ Keys, Requests int64 }
	}
	if err := json.Unmarshal([]byte(out), &m); err != nil || m.Contents.Keys != 2 {
		t.Fatalf("%s: %v", out, err)
	}
	final := s.stats(t, key.Secret, most)
	if n := m.Contents.Requests; n < least || n > final.Total {
		t.Errorf("the backup has %d requests; before it there were %d, after it %d", n, least, final.Total)
	}

	data := filepath.Join(t.TempDir(), "restored")
	if out, errs, exit := run(t, environment(data, fake.URL), "restore", file); exit != 0 {
		t.Fatalf("exit %d: %s%s", exit, out, errs)
	}
	r := start(t, data, fake.URL, nil)
	if r.Admin != "" {
		t.Error("an admin key was created although the backup has one")
	}
	if st := r.stats(t, key.Secret, 0); st.Total != m.Contents.Requests || st.Prompt != st.Total*(final.Prompt/final.Total) {
		t.Errorf("got %+v after the restore, want %d requests as in the backup", st, m.Contents.Requests)
	}
	call(t, "GET", r.URL+"/api/keys", s.Admin, "").want(t, http.StatusOK)
	call(t, "POST", r.URL+"/api/chat", key.Secret, `{`+ask+`}`).want(t, http.StatusOK)

	// A restore is refused while a service runs on the directory.
	if _, errs, exit := r.command(t, "restore", "--force", file); exit != 2 || !strings.Contains(errs, "stop it") {
		t.Errorf("restore with a running service: got exit %d, %s", exit, errs)
	}
	call(t, "GET", r.URL+"/api/keys", s.Admin, "").want(t, http.StatusOK)
}

// Whenever a backup is killed, its file name has either a whole backup or nothing, and the next backup works.
func TestAKilledBackupLeavesNoHalfFile(t *testing.T) {
	s := serve(t)
	s.makeKey(t, "")
	dir := t.TempDir()
	whole, killed := 0, 0
	for i := range 40 {
		file := filepath.Join(dir, fmt.Sprintf("%d.tar", i%2))
		os.Remove(file)
		cmd := exec.Command(binary, "backup", file)
		cmd.Env, cmd.Dir = s.cmd.Env, t.TempDir()
		dieWithTests(cmd)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		kill := time.AfterFunc(time.Duration(i)*3*time.Millisecond, func() { cmd.Process.Signal(syscall.SIGKILL) })
		if cmd.Wait() != nil {
			killed++
		}
		kill.Stop()
		if _, err := os.Stat(file); err != nil {
			continue
		}
		whole++
		out, errs, exit := run(t, environment(filepath.Join(t.TempDir(), "d"), ollamaURL), "restore", file)
		if exit != 0 {
			t.Errorf("after %d ms there is half a backup: exit %d: %s%s", i*3, exit, out, errs)
		}
	}
	if killed == 0 {
		t.Error("no backup was killed, want some")
	}
	t.Logf("%d killed, %d whole backups", killed, whole)
	for _, name := range []string{"0.tar", "1.tar"} {
		if out, errs, exit := s.command(t, "backup", "--force", filepath.Join(dir, name)); exit != 0 {
			t.Errorf("after the kills: exit %d: %s%s", exit, out, errs)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 2 {
		t.Errorf("got the leftover files %v, want none", left)
	}
}

// systemd stores the output of a service, so the output must not contain a key.
func TestTheFirstKeyIsNotInSystemdsJournal(t *testing.T) {
	data := t.TempDir()
	stderr, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	info, err := stderr.Stat()
	if err != nil {
		t.Fatal(err)
	}
	id := info.Sys().(*syscall.Stat_t)
	stdout := newTranscript()
	cmd := exec.Command(binary, "serve")
	cmd.Env = environment(data, ollamaURL, fmt.Sprintf("JOURNAL_STREAM=%d:%d", id.Dev, id.Ino))
	cmd.Dir, cmd.Stdout, cmd.Stderr = t.TempDir(), stdout, stderr
	dieWithTests(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	address, err := stdout.find(addressLine, nil)
	if err != nil {
		t.Error(err)
	}
	file := filepath.Join(data, "first-admin.key")
	key, err := os.ReadFile(file)
	if err != nil || !secretKey.Match(key) {
		t.Errorf("no key in the file: %v", err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	call(t, "GET", "http://"+address+"/api/keys", strings.TrimSpace(string(key)), "").want(t, http.StatusOK)
	if err := terminate(cmd); err != nil {
		t.Error(err)
	}
	printed, _ := os.ReadFile(stderr.Name())
	if secretKey.Match(printed) || secretKey.MatchString(stdout.String()) || !strings.Contains(string(printed), file) {
		t.Errorf("printed: %s", redact(string(printed)))
	}
}
