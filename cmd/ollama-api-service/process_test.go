package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// asProgram makes this test binary run the program itself, so that tests have a process with real signals and streams.
const asProgram = "TEST_BINARY_IS_THE_PROGRAM"

const testPatience = 30 * time.Second

const testAdmin = "an-admin-key-for-the-tests-1"

// process is the running program.
type process struct {
	*exec.Cmd
	url   string
	lines *logLines // of standard output, unless the test has set Stdout
	errs  *logLines // of standard error, if they are apart
	ended chan struct{}
	err   error // of Wait, after ended
}

// program prepares the program with args, in an empty working directory, with a free port and its own settings. It does not start it.
func programOf(t *testing.T, environ []string, args ...string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	p := &process{Cmd: exec.Command(self, args...), url: "http://127.0.0.1:" + port, ended: make(chan struct{})}
	dir := t.TempDir()
	p.Dir = dir
	p.Env = append([]string{asProgram + "=1", "DATA_DIR=" + dir + "/data", "PORT=" + port, "ADMIN_API_KEY=" + testAdmin, "SECRET_KEY=" + testSecret}, environ...)
	return p
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// start starts the program and waits until it answers. The program ends with the test.
func (p *process) start(t *testing.T) *process {
	t.Helper()
	p.begin(t)
	p.waitFor(t, func() bool { return p.status("/healthz") == http.StatusOK }, "the service does not answer")
	return p
}

// begin starts the program.
func (p *process) begin(t *testing.T) *process {
	t.Helper()
	if p.Stdout == nil {
		p.lines = &logLines{}
		p.Stdout = p.lines
	}
	if p.Stderr == nil {
		p.Stderr = p.Stdout
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = p.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.Process.Kill()
		<-p.ended
		testClient.CloseIdleConnections()
	})
	return p
}

// waitFor waits until ok returns true. It fails with why if the program ends or the time is up.
func (p *process) waitFor(t *testing.T, ok func() bool, why string) {
	t.Helper()
	deadline := time.After(testPatience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-p.ended:
			if ok() { // with its last lines
				return
			}
			t.Fatalf("%s: the program has ended: %v\n%s%s", why, p.err, p.lines, p.errs)
		case <-deadline:
			t.Fatalf("%s\n%s%s", why, p.lines, p.errs)
		case <-tick.C:
		}
	}
}

// stop ends the program with SIGTERM and returns its exit code.
func (p *process) stop(t *testing.T, within time.Duration) int {
	t.Helper()
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	return p.exit(t, within)
}

func (p *process) exit(t *testing.T, within time.Duration) int {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(within):
		t.Fatalf("the program has not ended after %s\n%s", within, p.lines)
	}
	var exit *exec.ExitError
	switch {
	case p.err == nil:
		return 0
	case errors.As(p.err, &exit):
		return exit.ExitCode() // -1: a signal ended it
	}
	t.Fatal(p.err)
	return 0
}

var testClient = &http.Client{Timeout: testPatience, Transport: &http.Transport{MaxIdleConnsPerHost: 16}}

// status returns the status of GET path with the admin key, or 0 without an answer.
func (p *process) status(path string) int {
	resp, err := p.ask("GET", path, "")
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

func (p *process) ask(method, path, body string, header ...string) (*http.Response, error) {
	r, err := http.NewRequest(method, p.url+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer "+testAdmin)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return testClient.Do(r)
}

// json returns the answer of GET path.
func (p *process) json(t *testing.T, path string) map[string]any {
	t.Helper()
	resp, err := p.ask("GET", path, "")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var v map[string]any
	if err := json.NewDecoder(resp.Body).Decode(&v); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s, %v, want %d", path, resp.Status, err, http.StatusOK)
	}
	return v
}

// logLines collects the lines that a program prints.
type logLines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logLines) String() string {
	if l == nil {
		return ""
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// first returns the first line that is wanted, or "".
func (l *logLines) first(wanted func(line string) bool) string {
	for line := range strings.Lines(l.String()) {
		if line = strings.TrimSuffix(line, "\n"); wanted(line) {
			return line
		}
	}
	return ""
}

// with returns the first line that contains all words, or "".
func (l *logLines) with(words ...string) string {
	return l.first(func(line string) bool {
		return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) })
	})
}

// wait waits for a line that contains all words.
func (p *process) wait(t *testing.T, words ...string) string {
	t.Helper()
	p.waitFor(t, func() bool { return p.lines.with(words...) != "" }, fmt.Sprintf("no log line contains %q", words))
	return p.lines.with(words...)
}

// certificateFiles writes a certificate for a name, and its key.
func certificateFiles(t *testing.T, dir, name string) [2]string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	about := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, about, about, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	files := [2]string{filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")}
	for i, block := range []*pem.Block{{Type: "CERTIFICATE", Bytes: cert}, {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(files[i], pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return files
}
