//go:build linux

package main

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// buildService builds the binary dir/name from the module in root, as for a release: static and stripped.
func buildService(root, dir, name string) (string, error) {
	program := filepath.Join(dir, name)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-tags=grpcnotrace", "-o", program, "./cmd/ollama-api-service")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("the service does not build: %s", lastLine(out))
	}
	return program, nil
}

// buildBefore builds the binary of another commit from a worktree in dir. It returns the commit's short name and subject too.
func buildBefore(root, dir, revision string) (program, commit string, err error) {
	tree := filepath.Join(dir, "commit-before")
	git := func(args ...string) (string, error) {
		out, err := exec.Command("git", append([]string{"-C", root}, args...)...).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("git %s: %s", args[0], lastLine(out))
		}
		return strings.TrimSpace(string(out)), nil
	}
	if commit, err = git("log", "-1", "--format=%h (%s)", revision); err != nil {
		return "", "", err
	}
	if _, err = git("worktree", "add", "--detach", "--force", tree, revision); err != nil {
		return "", "", err
	}
	defer git("worktree", "remove", "--force", tree)
	program, err = buildService(tree, dir, "ollama-api-service-before")
	return program, commit, err
}

// gateway is the service with all features on, with its own data directory.
type gateway struct {
	program, dir, upstream, secret string
	admin                          string   // first admin key, which the first start prints once
	more                           []string // further settings
}

func newGateway(program, dir, upstream string) *gateway {
	secret := make([]byte, 32)
	crand.Read(secret)
	return &gateway{program: program, dir: dir, upstream: upstream, secret: hex.EncodeToString(secret)}
}

func (g *gateway) data() string { return filepath.Join(g.dir, "data") }

// launch starts the service and returns without waiting for it.
func (g *gateway) launch(name string) (*proc, error) {
	if err := os.MkdirAll(g.data(), 0o700); err != nil {
		return nil, err
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(addr)
	p, err := startProc(g.dir, name, append([]string{
		"OLLAMA_BASE_URL=http://" + g.upstream + "?slots=10000", "HOST=127.0.0.1", "PORT=" + port, "DATA_DIR=" + g.data(),
		"SECRET_KEY=" + g.secret, "LOG_LEVEL=info", "LOG_FORMAT=json", "HOME=" + g.dir, "PATH=" + os.Getenv("PATH"),
	}, g.more...), g.program, "serve")
	if err != nil {
		return nil, err
	}
	p.addr = addr
	return p, nil
}

// start starts the service and waits until it answers.
func (g *gateway) start(name string) (*proc, error) {
	p, err := g.launch(name)
	if err != nil {
		return nil, err
	}
	if err := p.until(30*time.Second, "listening", func() bool { return listens(p.addr) }); err != nil {
		p.stop()
		return nil, err
	}
	if g.admin == "" {
		err := p.until(5*time.Second, "printing the first admin key", func() bool {
			text, _ := os.ReadFile(p.stderr)
			g.admin = keyIn(text)
			return g.admin != ""
		})
		if err != nil {
			p.stop()
			return nil, err
		}
	}
	return p, nil
}

var client = http.Client{Timeout: 10 * time.Second}

// newKey creates a user key over HTTP. Its limits are the highest possible and not null, because null would skip the counting,
// which is part of the measurement.
func (g *gateway) newKey(addr, name string) (string, error) {
	body := fmt.Sprintf(`{"name":%q,"role":"user","rate_limit":1000000000,"max_concurrent":100000}`, name)
	r, err := http.NewRequest("POST", "http://"+addr+"/api/keys", strings.NewReader(body))
	if err != nil {
		return "", err
	}
	r.Header.Set("Authorization", "Bearer "+g.admin)
	r.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var made struct {
		Key string `json:"api_key"`
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err != nil {
		return "", err
	}
	if err := json.Unmarshal(text, &made); err != nil || made.Key == "" {
		return "", fmt.Errorf("POST /api/keys: %s without a key", resp.Status)
	}
	return made.Key, nil
}

// serviceTarget is the service itself or, under another name, the one of the commit before.
func serviceTarget(as, program, dir, upstream string) target {
	return target{as, func(name string, n int) (*running, error) {
		g := newGateway(program, filepath.Join(dir, name), upstream)
		p, err := g.start(name)
		if err != nil {
			return nil, err
		}
		keys, err := g.newKeys(p.addr, n)
		if err == nil {
			err = firstAnswer(p, keys[0])
		}
		if err != nil {
			p.stop()
			return nil, err
		}
		return plain(p, keys), nil
	}}
}

// newKeys creates n keys.
func (g *gateway) newKeys(addr string, n int) ([]string, error) {
	keys := make([]string, n)
	for i := range keys {
		var err error
		if keys[i], err = g.newKey(addr, fmt.Sprintf("bench %d", i)); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

// firstAnswer waits until a chat is answered. Immediately after its start the service may not know the backend's models yet.
func firstAnswer(p *proc, key string) error {
	request := post("/api/chat", key, smallChat)
	var last error
	err := p.until(30*time.Second, "answering a chat", func() bool {
		l, err := dial(p.addr, 1)
		if err != nil {
			last = err
			return false
		}
		defer l.close()
		_, _, last = l.closed(func() []byte { return request }, 1, 0, 5*time.Second)
		return last == nil
	})
	if err != nil {
		return fmt.Errorf("%w: %w", err, last)
	}
	return nil
}

var keyPattern = regexp.MustCompile(`oas_[0-9A-Za-z]{10}_[0-9A-Za-z]{38}\b`)

// keyIn finds a whole key in what the service printed.
func keyIn(text []byte) string { return string(keyPattern.Find(bytes.TrimSpace(text))) }

// freeAddr returns an address on whose port no program listens. The port is below those that the kernel gives to outgoing connections, because
// one of the many connections of a run could have it by the time that the contestant listens.
func freeAddr() (string, error) {
	var last error
	for range 100 {
		port := 10_000 + rand.IntN(20_000)
		ln, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			last = err
			continue
		}
		ln.Close()
		return fmt.Sprintf("127.0.0.1:%d", port), nil
	}
	return "", last
}

func listens(addr string) bool {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}
