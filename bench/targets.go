//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// The contestants, in the order of the table's columns.
const (
	service = "service"
	reverse = "ReverseProxy"
	nginx   = "nginx"
	direct  = "direct" // the mock itself: what latency and load cost without any gateway
)

// target is one contestant. start starts a fresh process that answers chats, and returns the key for it.
type target struct {
	name  string
	start func(name string) (p *proc, key string, err error)
}

// serveReverseProxy is the plain httputil.ReverseProxy: ten lines with the standard library.
func serveReverseProxy(to string) error {
	base, err := url.Parse(to)
	if err != nil {
		return err
	}
	proxy := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(base) },
		FlushInterval: -1,
		Transport: &http.Transport{
			MaxIdleConns: 4096, MaxIdleConnsPerHost: 512, IdleConnTimeout: 90 * time.Second, DisableCompression: true,
		},
		ErrorLog: log.New(io.Discard, "", 0),
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr())
	return http.Serve(ln, proxy)
}

// startOwn starts a subcommand of this harness, which prints its address first.
func startOwn(dir, name string, args ...string) (*proc, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p, err := startProc(dir, name, nil, self, args...)
	if err != nil {
		return nil, err
	}
	err = p.until(10*time.Second, "listening", func() bool {
		text, _ := os.ReadFile(p.stdout)
		line, _, whole := strings.Cut(string(text), "\n")
		p.addr = line
		return whole
	})
	if err != nil {
		p.stop()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return p, nil
}

// nginxConfig does what the service does, as far as nginx can: a map checks and names the key, with a rate limit per key, a log line
// per request, pooled connections to the upstream, and no buffering. Connections live as long as the measurement.
const nginxConfig = `daemon off;
worker_processes auto;
worker_rlimit_nofile 16384;
pid DIR/nginx.pid;
error_log DIR/nginx-error.log error;
events { worker_connections 8192; }
http {
  access_log DIR/nginx-access.log;
  client_body_temp_path DIR/body; proxy_temp_path DIR/proxy; fastcgi_temp_path DIR/fastcgi; uwsgi_temp_path DIR/uwsgi; scgi_temp_path DIR/scgi;
  map_hash_bucket_size 128;
  map $http_authorization $key_name { default ""; "Bearer KEY" "bench"; }
  limit_req_zone $key_name zone=keys:1m rate=1000000r/s;
  keepalive_requests 1000000000;
  keepalive_timeout 1h;
  upstream ollama { server UPSTREAM; keepalive 512; keepalive_requests 1000000000; keepalive_timeout 1h; }
  server {
    listen ADDR;
    location / {
      if ($key_name = "") { return 401; }
      limit_req zone=keys burst=1000000 nodelay;
      proxy_pass http://ollama;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 10m;
    }
  }
}
`

// nginxProgram finds nginx. Debian installs it in a directory that is not in a user's PATH.
func nginxProgram() (string, error) {
	for _, name := range []string{"nginx", "/usr/sbin/nginx"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("nginx is not installed: apt-get install nginx-light")
}

func nginxTarget(dir, upstream string) target {
	return target{nginx, func(name string) (*proc, string, error) {
		program, err := nginxProgram()
		if err != nil {
			return nil, "", err
		}
		addr, err := freeAddr()
		if err != nil {
			return nil, "", err
		}
		own := filepath.Join(dir, name)
		if err := os.MkdirAll(own, 0o700); err != nil {
			return nil, "", err
		}
		key := "oas_0123456789_" + strings.Repeat("nginx", 7)
		text := strings.NewReplacer("DIR", own, "KEY", key, "UPSTREAM", upstream, "ADDR", addr).Replace(nginxConfig)
		config := filepath.Join(own, "nginx.conf")
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			return nil, "", err
		}
		p, err := startProc(own, name, nil, program, "-p", own, "-c", config, "-e", filepath.Join(own, "nginx-error.log"))
		if err != nil {
			return nil, "", err
		}
		p.addr = addr
		if err := p.until(10*time.Second, "listening", func() bool { return listens(addr) }); err != nil {
			p.stop()
			return nil, "", err
		}
		return p, key, nil
	}}
}

func reverseTarget(dir, upstream string) target {
	return target{reverse, func(name string) (*proc, string, error) {
		p, err := startOwn(dir, name, "reverseproxy", "http://"+upstream)
		return p, "", err
	}}
}

// buildService builds the binary as for a release: static and stripped.
func buildService(root, dir string) (string, error) {
	program := filepath.Join(dir, "ollama-api-service")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-tags=grpcnotrace", "-o", program, "./cmd/ollama-api-service")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("the service does not build: %s", lastLine(out))
	}
	return program, nil
}

// gateway is the service with all features on, with its own data directory.
type gateway struct {
	program, dir, upstream, secret string
	admin                          string   // first admin key, which the first start prints once
	more                           []string // further settings
}

func newGateway(program, dir, upstream string) *gateway {
	secret := make([]byte, 32)
	rand.Read(secret)
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
		"OLLAMA_BASE_URL=http://" + g.upstream + "?slots=2000", "HOST=127.0.0.1", "PORT=" + port, "DATA_DIR=" + g.data(),
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

func serviceTarget(program, dir, upstream string) target {
	return target{service, func(name string) (*proc, string, error) {
		g := newGateway(program, filepath.Join(dir, name), upstream)
		p, err := g.start(name)
		if err != nil {
			return nil, "", err
		}
		key, err := g.newKey(p.addr, "bench")
		if err == nil {
			err = firstAnswer(p, key)
		}
		if err != nil {
			p.stop()
			return nil, "", err
		}
		return p, key, nil
	}}
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

// freeAddr returns an address on which no program listens. If another program takes it before its use, the run reports an error.
func freeAddr() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

func listens(addr string) bool {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}
