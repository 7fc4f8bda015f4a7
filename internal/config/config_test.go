package config

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const goodSecret = "0123456789abcdef0123456789abcdef"

// absent is a .env that does not exist.
func absent(t *testing.T) string { return filepath.Join(t.TempDir(), ".env") }

func write(t *testing.T, text string) string {
	t.Helper()
	path := absent(t)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func load(t *testing.T, environ ...string) *Config {
	t.Helper()
	c, err := Load(absent(t), environ)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// refused checks for an error of one line that names the setting and does not contain the value.
func refused(t *testing.T, err error, name, value string) string {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("error is %v (%T), want a *config.Error", err, err)
	}
	text := e.Error()
	if !strings.Contains(text, name) || strings.Contains(text, "\n") || len(text) < len(name)+20 {
		t.Errorf("got %[2]q, want one line that names %[1]s and how to fix it", name, text)
	}
	if len(value) > 2 && strings.Contains(text, value) {
		t.Errorf("the message contains the value: %q", text)
	}
	return text
}

func TestDefaults(t *testing.T) {
	c := load(t)
	if c.Address() != "127.0.0.1:8000" || c.Ollama.String() != "http://127.0.0.1:11434?name=ollama" {
		t.Errorf("addresses are %s and %s, want %q, %q", c.Address(), c.Ollama, "127.0.0.1:8000", "http://127.0.0.1:11434?name=ollama")
	}
	got := fmt.Sprintln(c.SecretKey, c.AdminAPIKey, c.DemoKeys, c.OllamaAuthHeader.Name, c.TrustedProxies)
	if want := fmt.Sprintln("", "", false, "", Networks(nil)); got != want {
		t.Errorf("got %swant %s", got, want)
	}
	if c.DefaultUserRateLimit != 100 || c.DefaultAdminRateLimit != 1000 || c.MaxBodyBytes != 128<<20 || c.MaxQueue != 1024 {
		t.Errorf("numbers: %s", c)
	}
	got = fmt.Sprintln(c.MaxRequestTime, c.UpstreamFirstByteTimeout, c.UpstreamIdleTimeout, c.MaxQueueWait, c.ShutdownGrace)
	if want := "30m0s 15m0s 5m0s 10m0s 30s\n"; got != want {
		t.Errorf("durations are %swant %s", got, want)
	}
	if c.LogLevel != slog.LevelInfo || c.LogFormat != LogJSON || !filepath.IsAbs(c.DataDir) || filepath.Base(c.DataDir) != "data" {
		t.Errorf("logs or directory: %s", c)
	}
	if len(c.Warnings) != 0 {
		t.Errorf("warnings: %q, want 0 of them", c.Warnings)
	}
}

func TestSeveralServers(t *testing.T) {
	for value, want := range map[string]string{
		"http://gpu1:11434":  "http://gpu1:11434?name=ollama",
		"http://gpu1:11434,": "http://gpu1:11434?name=ollama",
		"http://gpu1?name=a": "http://gpu1?name=a",
		" http://gpu1:11434?slots=2 , https://GPU2?total=8,": "http://gpu1:11434?slots=2&name=gpu1,https://gpu2?total=8&name=gpu2",
		"http://h:11434,http://h:11435?weight=1.5":           "http://h:11434?name=h,http://h:11435?weight=1.5&name=h-11435",
		"http://[::1]:1,http://10.0.0.1:2":                   "http://[::1]:1?name=--1-1,http://10.0.0.1:2?name=10.0.0.1-2",
	} {
		if got := load(t, "OLLAMA_BASE_URL="+value).Ollama.String(); got != want {
			t.Errorf("%s: %s, want %s", value, got, want)
		}
	}
}

func TestGoodValues(t *testing.T) {
	c := load(t,
		"SECRET_KEY="+goodSecret, "SECRET_KEY_PREVIOUS="+goodSecret+"x", "OLLAMA_BASE_URL=https://GPU.example.net:443/?slots=16&name=gpu-1",
		"OLLAMA_AUTH_HEADER=Authorization: Bearer abc:def", "HOST=[::1]", "PORT=0", "DATA_DIR=/var/lib/x", "ADMIN_API_KEY=abcdefghijklmnopqrstuvwx",
		"DEMO_KEYS=true", "DEFAULT_USER_RATE_LIMIT=0", "MAX_BODY_BYTES=10MB", "MAX_REQUEST_TIME=1h30m", "MAX_QUEUE_WAIT=0s",
		"TRUSTED_PROXIES=10.0.0.7, 172.16.0.0/12,fd00::/8,::ffff:192.168.0.0/112", "LOG_LEVEL=warn", "LOG_FORMAT=text", "SHUTDOWN_GRACE=500ms",
		"MODEL_ALIASES=claude-*=qwen3-coder, gpt-4o=llama3.2:3b,", "RATE_LIMT=5", "OLLAMA_HOST=http://elsewhere:1")
	if c.Ollama.String() != "https://gpu.example.net:443?slots=16&name=gpu-1" {
		t.Errorf("Ollama is %s, want %q", c.Ollama, "https://gpu.example.net:443?slots=16&name=gpu-1")
	}
	if c.OllamaAuthHeader != (AuthHeader{"Authorization", "Bearer abc:def"}) || c.Address() != "[::1]:0" || c.DataDir != "/var/lib/x" {
		t.Errorf("%+v", c)
	}
	got := fmt.Sprintln(c.DemoKeys, c.DefaultUserRateLimit, c.MaxBodyBytes, c.MaxRequestTime, c.LogLevel, c.LogFormat)
	if want := "true 0 10000000 1h30m0s WARN text\n"; got != want {
		t.Errorf("got %swant %s", got, want)
	}
	if got := fmt.Sprint(c.ModelAliases); got != "[claude-*=qwen3-coder gpt-4o=llama3.2:3b]" {
		t.Errorf("aliases are %s, want %q", got, "[claude-*=qwen3-coder gpt-4o=llama3.2:3b]")
	}
	if got := fmt.Sprint(c.TrustedProxies); got != "10.0.0.7/32,172.16.0.0/12,fd00::/8,192.168.0.0/16" {
		t.Errorf("proxies are %s, want %q", got, "10.0.0.7/32,172.16.0.0/12,fd00::/8,192.168.0.0/16")
	}
}

func TestTraceSettings(t *testing.T) {
	c := load(t, "OTEL_EXPORTER_OTLP_ENDPOINT=https://collector.example.net/otlp", "OTEL_EXPORTER_OTLP_HEADERS= Authorization=Bearer%20a%2Cb, x-team=one ,",
		"OTEL_RESOURCE_ATTRIBUTES=deployment.environment.name=production,a=b%20c", "OTEL_TRACES_SAMPLER_ARG=0.25", "OTEL_SERVICE_NAME=gateway", "TRACE_UPSTREAM=true")
	headers := HiddenPairs{"Authorization": "Bearer a,b", "x-team": "one"}
	if got, want := c.OTLPEndpoint.String(), "https://collector.example.net/otlp"; got != want || !maps.Equal(c.OTLPHeaders, headers) {
		t.Errorf("got %s with headers %v, want %s with %v", got, c.OTLPHeaders, want, headers)
	}
	got := fmt.Sprintln(c.ResourceAttributes, c.TraceRatio, c.ServiceName, c.TraceUpstream, c.Warnings)
	if want := "a=b%20c,deployment.environment.name=production 0.25 gateway true []\n"; got != want {
		t.Errorf("got %swant %s", got, want)
	}
	if off := load(t); off.OTLPEndpoint.URL != nil || off.OTLPEndpoint.String() != "" || off.TraceRatio != 1 || off.ServiceName != "ollama-api-service" {
		t.Errorf("the defaults are %+v, want nil, none, 1, %q", off, "ollama-api-service")
	}
	if w := load(t, "OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4317").Warnings; len(w) != 1 || !strings.Contains(w[0], "4318") {
		t.Errorf("warnings for the port of gRPC: %q, want 1 of them, %q in it", w, "4318")
	}
	_, err := Load(absent(t), []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318", "OTEL_SERVICE_NAME=a\tb"})
	refused(t, err, "OTEL_SERVICE_NAME", "a\tb")
}

func TestBadValues(t *testing.T) {
	for _, c := range []struct{ name, value string }{
		{"SECRET_KEY", "brief"},
		{"SECRET_KEY", "your-super-secret-key-change-this-in-production"},
		{"SECRET_KEY", "CHANGEME-0123456789abcdef0123456789"},
		{"SECRET_KEY_PREVIOUS", "your-secret-key-here-0123456789abcdef"},
		{"OLLAMA_BASE_URL", "http://a:11434,http://a:11434?name=b"},
		{"OLLAMA_BASE_URL", "file:///etc/passwd"},
		{"OLLAMA_BASE_URL", "localhost:11434"},
		{"OLLAMA_BASE_URL", "10.1.1.1"},
		{"OLLAMA_BASE_URL", "http:///"},
		{"OLLAMA_BASE_URL", "http://user:pw@host:11434"},
		{"OLLAMA_BASE_URL", "http://host:11434/v1"},
		{"OLLAMA_BASE_URL", "http://host:11434#x"},
		{"OLLAMA_BASE_URL", "http://host:11434/#"},
		{"OLLAMA_BASE_URL", "http://host:0"},
		{"OLLAMA_BASE_URL", "http://host:"},
		{"OLLAMA_BASE_URL", "http://host:99999"},
		{"OLLAMA_BASE_URL", "http://host?weight=0"},
		{"OLLAMA_BASE_URL", "http://host?weight=NaN"},
		{"OLLAMA_BASE_URL", "http://host?total=0"},
		{"OLLAMA_BASE_URL", "http://host?speed=2"},
		{"OLLAMA_BASE_URL", "http://a,http://b?name=a"},
		{"OLLAMA_BASE_URL", ","},
		{"OLLAMA_BASE_URL", "http://gpu1,http://169.254.169.254"},
		{"OLLAMA_BASE_URL", "http://gpu1,http://127.0.0.1:8000"},
		{"OLLAMA_BASE_URL", "http://host?slots=0"},
		{"OLLAMA_BASE_URL", "http://host?slots=10001"},
		{"OLLAMA_BASE_URL", "http://host?slots=four"},
		{"OLLAMA_BASE_URL", "http://host?slots=1&slots=2"},
		{"OLLAMA_BASE_URL", "http://host?name=a b"},
		{"OLLAMA_BASE_URL", "http://host?name="},
		{"OLLAMA_BASE_URL", "http://host?name=a;slots=1"},
		{"OLLAMA_BASE_URL", "http://169.254.169.254"},
		{"OLLAMA_BASE_URL", "http://169.254.169.254.:80"},
		{"OLLAMA_BASE_URL", "http://[::ffff:169.254.169.254]"},
		{"OLLAMA_BASE_URL", "http://[fd00:ec2::254]"},
		{"OLLAMA_BASE_URL", "http://metadata.google.internal"},
		{"OLLAMA_BASE_URL", "http://2852039166"},
		{"OLLAMA_BASE_URL", "http://0xa9fea9fe"},
		{"OLLAMA_BASE_URL", "http://169.16689662"},
		{"OLLAMA_BASE_URL", "http://127.0.0.1:8000"},
		{"OLLAMA_BASE_URL", "http://LOCALHOST:8000/"},
		{"OLLAMA_BASE_URL", "ftp://host"},
		{"OLLAMA_BASE_URL", "http://ho st"},
		{"OLLAMA_BASE_URL", "http:host"},
		{"OLLAMA_AUTH_HEADER", "no colon"},
		{"OLLAMA_AUTH_HEADER", "Name:"},
		{"OLLAMA_AUTH_HEADER", "Na me: value"},
		{"OLLAMA_AUTH_HEADER", "Name: a\r\nHost: b"},
		{"OLLAMA_AUTH_HEADER", "Host: elsewhere"},
		{"OLLAMA_AUTH_HEADER", "content-length: 5"},
		{"OLLAMA_CLIENT_CERT", "/client.pem"},
		{"OLLAMA_CLIENT_KEY", "/client.key"},
		{"BASE_PATH", "team"},
		{"BASE_PATH", "/api"},
		{"BASE_PATH", "/Docs/x"},
		{"BASE_PATH", "/a//b"},
		{"BASE_PATH", "/a/../b"},
		{"BASE_PATH", "/a%2Fb"},
		{"BASE_PATH", "/a?b"},
		{"HOST", "127.0.0.1:8000"},
		{"HOST", "unix:relative.sock"},
		{"HOST", "/" + strings.Repeat("x", 100)},
		{"PROXY_PROTOCOL", "optional"},
		{"HOST", "http://127.0.0.1"},
		{"PORT", "99999"},
		{"PORT", "abc"},
		{"PORT", "-1"},
		{"ADMIN_API_KEY", "sk-1234"},
		{"ADMIN_API_KEY", "changeme-changeme-changeme"},
		{"ADMIN_API_KEY", "with a space 0123456789abc"},
		{"ADMIN_API_KEY", "with-a-comma,0123456789abc"},
		{"ADMIN_API_KEY", "umlaut-ü-0123456789abcdefgh"},
		{"ADMIN_API_KEY", strings.Repeat("x", 300)},
		{"DEMO_KEYS", "maybe"},
		{"DEFAULT_USER_RATE_LIMIT", "-1"},
		{"DEFAULT_ADMIN_RATE_LIMIT", "many"},
		{"DEFAULT_ADMIN_RATE_LIMIT", "1.5"},
		{"MAX_BODY_BYTES", "10X"},
		{"MAX_BODY_BYTES", "-5"},
		{"MAX_BODY_BYTES", "99999999999GB"},
		{"MAX_BODY_BYTES", "0"},
		{"MAX_BODY_BYTES", "KiB"},
		{"MAX_REQUEST_TIME", "10"},
		{"MAX_REQUEST_TIME", "0s"},
		{"MAX_REQUEST_TIME", "-5m"},
		{"UPSTREAM_FIRST_BYTE_TIMEOUT", "soon"},
		{"UPSTREAM_IDLE_TIMEOUT", "9999h"},
		{"RETENTION_ROWS", "-1"},
		{"RETENTION_ROWS", "1"},
		{"RETENTION_ROWS", "30d"},
		{"RETENTION_ROWS", "0"}, // the sums would be deleted before the rows
		{"RETENTION_ROLLUPS", "29"},
		{"MAX_QUEUE", "-1"},
		{"MAX_QUEUE", "lots"},
		{"MAX_QUEUE_PER_KEY", "-1"},
		{"PREFIX_AFFINITY", "often"},
		{"MAX_QUEUE_WAIT", "600"},
		{"SHUTDOWN_GRACE", "30"},
		{"TRUSTED_PROXIES", "0.0.0.0/0"},
		{"TRUSTED_PROXIES", "10.0.0.1,::/0"},
		{"TRUSTED_PROXIES", "::ffff:0:0/96"},
		{"TRUSTED_PROXIES", "0.0.0.0/1,128.0.0.0/1"},
		{"TRUSTED_PROXIES", "proxy.example.net"},
		{"MODEL_ALIASES", "sonnet"},
		{"MODEL_ALIASES", "*=tiny"},
		{"MODEL_ALIASES", "a=b=c"},
		{"ACME_DOMAIN", "*.example.net"},
		{"ACME_DOMAIN", "https://gateway.example.net"},
		{"ACME_DOMAIN", "gateway.example.net:443"},
		{"ACME_DOMAIN", "192.0.2.1"},
		{"ACME_DOMAIN", "a..example.net"},
		{"ACME_DOMAIN", "../example.net"},
		{"ACME_EMAIL", "noone"},
		{"ACME_EMAIL", "a@example.net,b@example.net"},
		{"ACME_CA", "http://ca.example.net/dir"},
		{"ACME_CA", "https://user:pw@ca.example.net/dir"},
		{"ACME_CA", "acme.example.org"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT", "grpc://collector:4317"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:pw@collector:4318"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318?key=abc"},
		{"OTEL_EXPORTER_OTLP_HEADERS", "authorization"},
		{"OTEL_EXPORTER_OTLP_HEADERS", "a b=c"},
		{"OTEL_EXPORTER_OTLP_HEADERS", "x=a%0d%0aHost:b"},
		{"OTEL_EXPORTER_OTLP_HEADERS", "content-type=text/html"},
		{"OTEL_EXPORTER_OTLP_HEADERS", "x=%zz"},
		{"OTEL_RESOURCE_ATTRIBUTES", "=production"},
		{"OTEL_TRACES_SAMPLER_ARG", "1.5"},
		{"OTEL_TRACES_SAMPLER_ARG", "-0.1"},
		{"OTEL_TRACES_SAMPLER_ARG", "NaN"},
		{"OTEL_TRACES_SAMPLER_ARG", "half"},
		{"TRACE_UPSTREAM", "maybe"},
		{"LOG_LEVEL", "loud"},
		{"LOG_FORMAT", "xml"},
	} {
		t.Run(c.name+"="+c.value, func(t *testing.T) {
			_, err := Load(absent(t), []string{c.name + "=" + c.value})
			refused(t, err, c.name, c.value)
		})
	}
}

// An origin is not a secret: the error for a wrong one shows the right spelling.
func TestWrongOriginsAreSpelledRight(t *testing.T) {
	for value, want := range map[string]string{
		"http://localhost*": "http://localhost:*", "https://a.example.net,https://*example.net": "https://*.example.net",
		"https://a.example.net/": "https://a.example.net", "localhost:3000": "http://localhost:3000",
	} {
		_, err := Load(absent(t), []string{"CORS_ORIGINS=" + value})
		refused(t, err, "CORS_ORIGINS", "")
		if err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q in it", value, err, want)
		}
	}
	got := load(t, "CORS_ORIGINS=chrome-extension://*, http://localhost:*,app://*,tauri://*,vscode-webview://*,null,https://*.example.net,,").CORSOrigins
	if len(got) != 7 || !got[1].Admits("http://localhost:3000") {
		t.Errorf("%v, want 7 origins", got)
	}
}

func TestSettingsThatDoNotGoTogether(t *testing.T) {
	for name, environ := range map[string][]string{
		"SECRET_KEY_PREVIOUS": {"SECRET_KEY=" + goodSecret, "SECRET_KEY_PREVIOUS=" + goodSecret},
		"DEMO_KEYS":           {"DEMO_KEYS=true", "HOST=0.0.0.0"},
		"OLLAMA_BASE_URL":     {"HOST=0.0.0.0", "PORT=11434"},
		"TLS_CERT is missing": {"TLS_KEY=key.pem"},
		"TLS_KEY is missing":  {"TLS_CERT=cert.pem"},
		"ACME_DOMAIN":         {"ACME_DOMAIN=a.example.net", "TLS_CERT=cert.pem", "TLS_KEY=key.pem"},
		"ACME_EMAIL":          {"ACME_EMAIL=a@example.net"},
		"ACME_CA":             {"ACME_CA=https://ca.example.net/dir"},
		"ACME_CA_ROOT":        {"ACME_CA_ROOT=root.pem"},
	} {
		_, err := Load(absent(t), environ)
		refused(t, err, name, "")
	}
	for _, environ := range [][]string{
		{"HOST=::", "OLLAMA_BASE_URL=http://localhost:8000"},
		{"HOST=10.1.2.3", "OLLAMA_BASE_URL=http://10.1.2.3:8000"},
		{"HOST=gateway.lan", "OLLAMA_BASE_URL=http://gateway.lan", "PORT=80"},
		{"HOST=localhost", "OLLAMA_BASE_URL=http://[::1]:8000"},
		{"OLLAMA_BASE_URL=http://0.0.0.0:8000"},
	} {
		if _, err := Load(absent(t), environ); err == nil {
			t.Errorf("%q accepted its own address as an Ollama server, want an error", environ)
		}
	}
	for _, environ := range [][]string{
		{"PORT=0", "OLLAMA_BASE_URL=http://127.0.0.1:8000"},
		{"HOST=127.0.0.2", "OLLAMA_BASE_URL=http://127.0.0.1:8000"},
		{"HOST=0.0.0.0", "OLLAMA_BASE_URL=http://192.0.2.1:8000"},
		{"HOST=10.1.2.3", "OLLAMA_BASE_URL=http://127.0.0.1:8000"},
	} {
		if _, err := Load(absent(t), environ); err != nil {
			t.Errorf("%q: %v", environ, err)
		}
	}
	c := load(t, "HOST=192.168.1.5")
	refused(t, c.EnableDemo(), "DEMO_KEYS", "")
	if c = load(t, "HOST=localhost"); c.EnableDemo() != nil || !c.DemoKeys {
		t.Error("no demo keys on localhost")
	}
}

func TestWarnings(t *testing.T) {
	for _, c := range []struct {
		environ []string
		about   string
	}{
		{[]string{"HOST=0.0.0.0"}, "HOST"},
		{[]string{"HOST=0.0.0.0", "TRUSTED_PROXIES=10.0.0.1"}, ""},
		{[]string{"HOST=0.0.0.0", "TLS_CERT=a.pem", "TLS_KEY=b.pem"}, ""},
		{[]string{"HOST=0.0.0.0", "ACME_DOMAIN=gateway.example.net"}, ""},
		{[]string{"HOST=127.0.0.2"}, ""},
		{[]string{"OLLAMA_BASE_URL=http://8.8.8.8:11434"}, "OLLAMA_BASE_URL"},
		{[]string{"OLLAMA_BASE_URL=http://192.168.0.9:11434"}, ""},
		{[]string{"OLLAMA_BASE_URL=http://100.99.1.1:11434"}, ""},
		{[]string{"OLLAMA_BASE_URL=http://[2001:4860::1]:11434"}, "OLLAMA_BASE_URL"},
	} {
		w := load(t, c.environ...).Warnings
		if c.about == "" && len(w) > 0 || c.about != "" && (len(w) != 1 || !strings.HasPrefix(w[0], c.about)) {
			t.Errorf("%q: warnings are %q", c.environ, w)
		}
	}
}

func TestNothingSecretIsPrinted(t *testing.T) {
	c := load(t, "SECRET_KEY=canary"+goodSecret, "SECRET_KEY_PREVIOUS=canary2"+goodSecret, "ADMIN_API_KEY=canary-0123456789abcdef0123", "OLLAMA_AUTH_HEADER=X-Key: canary", "OTEL_EXPORTER_OTLP_HEADERS=x-key=canary")
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("settings", "config", c, "key", c.AdminAPIKey, "header", c.OllamaAuthHeader)
	if !strings.Contains(log.String(), `"PORT":"8000"`) || !strings.Contains(log.String(), `"SECRET_KEY":"(set)"`) {
		t.Errorf("log line is %s, want %s in it, %s in it", log.String(), `"PORT":"8000"`, `"SECRET_KEY":"(set)"`)
	}
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{log.String(), string(text), fmt.Sprint(c), fmt.Sprintf("%+v", *c), fmt.Sprintf("%#v", *c), fmt.Sprintf("%s %q", c.SecretKey, c.AdminAPIKey)} {
		if strings.Contains(out, "canary") {
			t.Errorf("printed: %s, want no %q", out, "canary")
		}
	}
}

var update = flag.Bool("update", false, "write .env.example and docs/settings.md again")

// The generated files in the repository match the settings.
func TestExampleAndReferenceAreCurrent(t *testing.T) {
	for path, want := range map[string]string{"../../.env.example": Example(), "../../docs/settings.md": Reference()} {
		if *update {
			if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s is not up to date with the settings (%v): run go test ./internal/config -run Example -update", path, err)
		}
	}
}

// Removing the # from every line that has a default must give the defaults.
func TestExampleIsObeyed(t *testing.T) {
	var lines []string
	for line := range strings.Lines(Example()) {
		if name, value, ok := strings.Cut(strings.TrimPrefix(line, "#"), "="); ok && value != "\n" && plainName.MatchString(name) {
			line = strings.TrimPrefix(line, "#")
		}
		lines = append(lines, line)
	}
	c, err := Load(write(t, strings.Join(lines, "")), nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := load(t); c.String() != want.String() {
		t.Errorf("settings are\n%s\nwant\n%s", c, want)
	}
	for _, s := range settingList() {
		if s.doc == "" || !slices.Contains(lines, s.name+"="+s.standard+"\n") && s.standard != "" {
			t.Errorf("%s has no explanation, or is missing with its default", s.name)
		}
	}
}

// A path as HOST is a Unix socket, however it is written. Settings that need an address conflict with it.
func TestASocketAsHost(t *testing.T) {
	for _, host := range []string{"/run/x.sock", "unix:/run/x.sock", "/run//x.sock"} {
		c := load(t, "HOST="+host, "TRUSTED_PROXIES=unix,10.0.0.7", "PROXY_PROTOCOL=required")
		if c.Socket() != "/run/x.sock" || !bool(c.ProxyProtocol) || c.TrustedProxies.String() != "unix,10.0.0.7/32" || len(c.Warnings) > 0 {
			t.Errorf("%s is %q with %v and %v", host, c.Socket(), c.TrustedProxies, c.Warnings)
		}
	}
	if c := load(t, "HOST=127.0.0.1"); c.Socket() != "" {
		t.Errorf("an address gives the socket %q, want none", c.Socket())
	}
	for what, environ := range map[string][]string{
		"DEMO_KEYS":       {"HOST=/run/x.sock", "DEMO_KEYS=true"},
		"ACME_DOMAIN":     {"HOST=/run/x.sock", "ACME_DOMAIN=gateway.example.net"},
		"TRUSTED_PROXIES": {"TRUSTED_PROXIES=unix"},
		"PROXY_PROTOCOL":  {"PROXY_PROTOCOL=required"},
	} {
		if _, err := Load("", environ); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v: %v, want an error, %v in it", environ, err, what)
		}
	}
}
