//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// gateway is one running process of the service.
type gateway struct {
	url   string
	addr  string
	admin string
	dir   string
	http  *http.Client // of the harness itself, and of victims
	cmd   *exec.Cmd
	ended chan struct{}
}

const adminKey = "attack-admin-key-1234567890"

// buildService builds the program as it is shipped.
func buildService(root, dir string) (string, error) {
	program := filepath.Join(dir, "ollama-api-service")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-tags=grpcnotrace", "-o", program, "./cmd/ollama-api-service")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("the service does not build: %s", bytes.TrimSpace(out))
	}
	return program, nil
}

// startGateway starts the program on a new data directory in dir and waits until it answers. It ends with this process.
func startGateway(program, dir, upstream string, settings []string) (*gateway, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	l.Close()
	g := &gateway{addr: addr, url: "http://" + addr, admin: adminKey, dir: dir, ended: make(chan struct{})}
	g.http = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: time.Minute}
	_, port, _ := net.SplitHostPort(addr)
	out, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer out.Close()
	g.cmd = exec.Command(program, "serve")
	g.cmd.Dir, g.cmd.Stdout, g.cmd.Stderr = dir, out, out
	g.cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "OLLAMA_BASE_URL=" + upstream, "HOST=127.0.0.1", "PORT=" + port, "DATA_DIR=" + filepath.Join(dir, "data"),
		"ADMIN_API_KEY=" + adminKey, "SHUTDOWN_GRACE=1s",
	}, settings...)
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := g.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		g.cmd.Wait()
		close(g.ended)
	}()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		resp, err := g.http.Get(g.url + "/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return g, nil
			}
		}
		if !g.alive() {
			break
		}
	}
	g.stop()
	text, _ := os.ReadFile(filepath.Join(dir, "log"))
	return nil, fmt.Errorf("the service is not ready: %s", lastLines(text))
}

func lastLines(text []byte) string {
	return string(text[max(0, len(text)-600):])
}

func (g *gateway) alive() bool {
	select {
	case <-g.ended:
		return false
	default:
		return true
	}
}

func (g *gateway) stop() {
	g.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-g.ended:
	case <-time.After(10 * time.Second):
		g.cmd.Process.Kill()
		<-g.ended
	}
	g.http.CloseIdleConnections()
}

// ask sends a request of the harness's own and decodes the answer into v.
func (g *gateway) ask(method, path, key, body string, v any) error {
	r, err := http.NewRequest(method, g.url+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+key)
	resp, err := g.http.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<22))
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s %.200s", method, path, resp.Status, text)
	}
	return json.Unmarshal(text, v)
}

// newKey makes a key; fields are further members of the JSON object.
func (g *gateway) newKey(name, fields string) (string, error) {
	var made struct {
		Key string `json:"api_key"`
	}
	err := g.ask("POST", "/api/keys", g.admin, fmt.Sprintf(`{"name":%q,"role":"user","rate_limit":null%s}`, name, fields), &made)
	if err == nil && made.Key == "" {
		err = errors.New("POST /api/keys: no key")
	}
	return made.Key, err
}

// used is what the books say of a key.
type used struct {
	Requests   int64   `json:"total_requests"`
	Prompt     int64   `json:"prompt_tokens"`
	Completion int64   `json:"completion_tokens"`
	GPU        float64 `json:"gpu_ms"`
	Slot       float64 `json:"slot_ms"`
}

func (g *gateway) used(key string) (used, error) {
	var u used
	err := g.ask("GET", "/api/stats", key, "", &u)
	return u, err
}

// memory is a figure of the process's memory as the kernel names it, in bytes.
func (g *gateway) memory(name string) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", g.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == name+":" {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			return n << 10
		}
	}
	return 0
}
