//go:build linux

package main

import (
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

func reverseTarget(dir, upstream string) target {
	return target{reverse, func(name string, n int) (*running, error) {
		p, err := startOwn(dir, name, "reverseproxy", "http://"+upstream)
		return plain(p, otherKeys(n)), err
	}}
}

// otherProxy is a proxy of another project, which does what the service does as far as it can. In its files and arguments DIR is its
// directory, ADDR where it listens with its PORT, UPSTREAM the mock, and KEYS a line for each key, in which KEY is the key and NAME its name.
type otherProxy struct {
	name, debian string
	ask          string // argument that makes it print its version
	files        map[string]string
	key          string
	args         []string
}

// nginx: a map checks and names the key, with a rate limit per key, a log line per request, pooled connections to the upstream, and no
// buffering. Connections live as long as the measurement.
var nginxProxy = otherProxy{nginx, "nginx-light", "-v", map[string]string{"nginx.conf": `daemon off;
worker_processes auto;
worker_rlimit_nofile 65536;
pid DIR/nginx.pid;
error_log DIR/nginx-error.log error;
events { worker_connections 32768; }
http {
  access_log DIR/nginx-access.log;
  client_max_body_size 64m;
  client_body_temp_path DIR/body; proxy_temp_path DIR/proxy; fastcgi_temp_path DIR/fastcgi; uwsgi_temp_path DIR/uwsgi; scgi_temp_path DIR/scgi;
  map_hash_bucket_size 128; map_hash_max_size 65536;
  map $http_authorization $key_name { default "";
KEYS  }
  limit_req_zone $key_name zone=keys:8m rate=1000000r/s;
  keepalive_requests 1000000000;
  keepalive_timeout 1h;
  upstream ollama { server UPSTREAM; keepalive 512; keepalive_requests 1000000000; keepalive_timeout 1h; }
  server {
    listen ADDR backlog=4096;
    location / {
      if ($key_name = "") { return 401; }
      limit_req zone=keys burst=1000000 nodelay;
      proxy_pass http://ollama;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_request_buffering off;
      proxy_read_timeout 10m;
    }
  }
}
`}, `    "Bearer KEY" "NAME";`, []string{"-p", "DIR", "-c", "DIR/nginx.conf", "-e", "DIR/nginx-error.log"}}

// haproxy: the same with a map file and a stick table. A write goes out at once.
var haproxyProxy = otherProxy{haproxy, "haproxy", "-v", map[string]string{"keys.map": "KEYS", "haproxy.cfg": `global
  no strict-limits
  maxconn 30000
  log stdout format raw local0
defaults
  mode http
  log global
  option httplog
  option http-no-delay
  http-reuse always
  timeout connect 10s
  timeout client 1h
  timeout server 1h
frontend api
  bind ADDR backlog 4096
  http-request set-var(txn.key) http_auth_bearer,map_str(DIR/keys.map)
  http-request deny deny_status 401 unless { var(txn.key) -m found }
  stick-table type string len 32 size 100k expire 1h store http_req_rate(1m)
  http-request track-sc0 var(txn.key)
  http-request deny deny_status 429 if { sc_http_req_rate(0) gt 1000000000 }
  default_backend ollama
backend ollama
  server mock UPSTREAM pool-purge-delay 1h
`}, `KEY NAME`, []string{"-db", "-f", "DIR/haproxy.cfg"}}

// Caddy: a map and a JSON log line. It has no rate limit of its own.
var caddyProxy = otherProxy{caddy, "caddy", "version", map[string]string{"Caddyfile": `{
  admin off
  auto_https off
}
http://:PORT {
  bind 127.0.0.1
  log {
    output file DIR/access.log
    format json
  }
  map {http.request.header.Authorization} {key_name} {
KEYS    default ""
  }
  @unknown vars {key_name} ""
  respond @unknown 401
  reverse_proxy UPSTREAM {
    flush_interval -1
    transport http {
      keepalive 1h
      keepalive_idle_conns 4096
      keepalive_idle_conns_per_host 512
      compression off
    }
  }
}
`}, `    "Bearer KEY" "NAME"`, []string{"run", "--config", "DIR/Caddyfile", "--adapter", "caddyfile"}}

// program finds the proxy. Debian installs some of them in a directory that is not in a user's PATH.
func (o otherProxy) program() (string, error) {
	command := strings.ToLower(o.name)
	for _, name := range []string{command, "/usr/sbin/" + command} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: apt-get install %s", errMissing, o.debian)
}

// version is the proxy's version, empty if it is not installed.
func (o otherProxy) version() string {
	program, err := o.program()
	if err != nil {
		return ""
	}
	text, err := exec.Command(program, o.ask).CombinedOutput()
	if err != nil {
		return ""
	}
	return versionPattern.FindString(string(text))
}

var versionPattern = regexp.MustCompile(`\d+\.\d+\.\d+`)

// errMissing means that a proxy is not installed, which is no failure of the run.
var errMissing = errors.New("it is not installed")

func (o otherProxy) target(dir, upstream string) target {
	return target{o.name, func(name string, n int) (*running, error) {
		program, err := o.program()
		if err != nil {
			return nil, err
		}
		addr, err := freeAddr()
		if err != nil {
			return nil, err
		}
		_, port, _ := net.SplitHostPort(addr)
		own := filepath.Join(dir, name)
		if err := os.MkdirAll(own, 0o700); err != nil {
			return nil, err
		}
		keys := otherKeys(n)
		var lines strings.Builder
		for i, key := range keys {
			lines.WriteString(strings.NewReplacer("KEY", key, "NAME", fmt.Sprintf("key-%d", i)).Replace(o.key) + "\n")
		}
		fill := strings.NewReplacer("DIR", own, "KEYS", lines.String(), "UPSTREAM", upstream, "ADDR", addr, "PORT", port)
		for file, text := range o.files {
			if err := os.WriteFile(filepath.Join(own, file), []byte(fill.Replace(text)), 0o600); err != nil {
				return nil, err
			}
		}
		args := make([]string, len(o.args))
		for i, arg := range o.args {
			args[i] = fill.Replace(arg)
		}
		p, err := startProc(own, name, []string{"HOME=" + own, "PATH=" + os.Getenv("PATH")}, program, args...)
		if err != nil {
			return nil, err
		}
		p.addr = addr
		if err := p.until(10*time.Second, "listening", func() bool { return listens(addr) }); err != nil {
			p.stop()
			return nil, err
		}
		return plain(p, keys), nil
	}}
}
