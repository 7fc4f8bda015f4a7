package config

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// settingsFile writes a settings file and returns its path and a function that replaces its text.
func settingsFile(t *testing.T, text string) (path string, replace func(string)) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "settings.env")
	replace = func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	replace(text)
	return path, replace
}

func loadFile(t *testing.T, path string, environ ...string) *Config {
	t.Helper()
	c, err := Load(path, environ)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestReread(t *testing.T) {
	path, replace := settingsFile(t, "LOG_LEVEL=info\nMAX_QUEUE=5\nPORT=9000\nMODEL_ALIASES=a=b\n")
	c := loadFile(t, path, "MAX_QUEUE=7")
	replace("LOG_LEVEL=debug\nMAX_QUEUE=6\nPORT=9001\nMODEL_ALIASES=a=c\nTRUSTED_PROXIES=10.0.0.7\n")
	change, err := c.Reread()
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"MODEL_ALIASES", "TRUSTED_PROXIES", "LOG_LEVEL"}; !slices.Equal(change.Taken, want) {
		t.Errorf("applied: %q, want %q", change.Taken, want)
	}
	if want := []string{"PORT"}; !slices.Equal(change.Restart, want) {
		t.Errorf("for a restart: %q, want %q", change.Restart, want)
	}
	if want := []string{"MAX_QUEUE"}; !slices.Equal(change.Environment, want) {
		t.Errorf("the environment overrides %q, want %q", change.Environment, want)
	}
	n := change.Config
	if got, want := fmt.Sprintln(n.Port, n.MaxQueue, n.LogLevel, len(n.TrustedProxies), n.ModelAliases[0].Model), "9000 7 DEBUG 1 c:latest\n"; got != want {
		t.Errorf("in force: %swant %s", got, want)
	}
	if c.LogLevel.String() != "INFO" || len(c.TrustedProxies) != 0 {
		t.Errorf("the previous settings have changed: %s, want %q, 0 of them", c, "INFO")
	}
	// A setting that needs a restart is named at each reload, one that was applied only once.
	again, err := n.Reread()
	if err != nil || len(again.Taken) != 0 || !slices.Equal(again.Restart, []string{"PORT"}) {
		t.Errorf("again: %v, %q and %q", err, again.Taken, again.Restart)
	}
}

func TestRereadRefusesWhole(t *testing.T) {
	for name, c := range map[string]struct {
		before, after, want string
		environ             []string
	}{
		"an invalid value":               {"PORT=1\n", "LOG_LEVEL=debug\nMAX_NUM_CTX=-5\n", "MAX_NUM_CTX", nil},
		"an unknown name":                {"PORT=1\n", "LOG_LEVEL=debug\nLOG_LEVLE=info\n", "line 2", nil},
		"no settings":                    {"PORT=1\n", "<<<<", "line 1", nil},
		"demo keys, after HOST changes":  {"HOST=0.0.0.0\n", "HOST=127.0.0.1\nDEMO_KEYS=true\n", "DEMO_KEYS", nil},
		"demo keys of the file only":     {"PORT=1\n", "DEMO_KEYS=true\n", "DEMO_KEYS", []string{"HOST=0.0.0.0"}},
		"a certificate without its key":  {"TLS_CERT=/a\nTLS_KEY=/b\n", "TLS_CERT=/a\n", "TLS_KEY", nil},
		"an admin key that is too short": {"PORT=1\n", "ADMIN_API_KEY=hunter2\n", "ADMIN_API_KEY", nil},
	} {
		t.Run(name, func(t *testing.T) {
			path, replace := settingsFile(t, c.before)
			before := loadFile(t, path, c.environ...)
			replace(c.after)
			change, err := before.Reread()
			if err == nil || !strings.Contains(err.Error(), c.want) || change.Config != nil {
				t.Errorf("%v, %+v: want an error with %s", err, change, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error contains a secret: %v", err)
			}
		})
	}
	path, _ := settingsFile(t, "PORT=1\n")
	c := loadFile(t, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Reread(); err == nil || !strings.Contains(err.Error(), "no longer exists") {
		t.Errorf("a deleted file: %v, want an error, because its settings would become the defaults", err)
	}
}

// A listener cannot switch TLS on or off.
func TestRereadOfCertificates(t *testing.T) {
	path, replace := settingsFile(t, "TLS_CERT=/a\nTLS_KEY=/b\n")
	c := loadFile(t, path)
	replace("TLS_CERT=/c\nTLS_KEY=/b\n")
	if change, err := c.Reread(); err != nil || !slices.Equal(change.Taken, []string{"TLS_CERT"}) {
		t.Errorf("another file: %v, %+v", err, change)
	}
	replace("")
	if change, err := c.Reread(); err != nil || !slices.Equal(change.Restart, []string{"TLS_CERT", "TLS_KEY"}) || len(change.Taken) != 0 {
		t.Errorf("none: %v, %+v", err, change)
	}
}

// --demo belongs to the command line, which does not change. DEMO_KEYS belongs to the file.
func TestRereadKeepsTheCommandLine(t *testing.T) {
	path, replace := settingsFile(t, "PORT=1\n")
	c := loadFile(t, path)
	if err := c.EnableDemo(); err != nil {
		t.Fatal(err)
	}
	if change, err := c.Reread(); err != nil || len(change.Taken) != 0 || !change.Config.DemoKeys {
		t.Errorf("--demo: %v, %+v", err, change)
	}
	replace("DEMO_KEYS=true\n")
	c = loadFile(t, path)
	replace("PORT=1\n")
	if change, err := c.Reread(); err != nil || !slices.Contains(change.Taken, "DEMO_KEYS") || change.Config.DemoKeys {
		t.Errorf("DEMO_KEYS: %v, %+v", err, change)
	}
}

func TestInForce(t *testing.T) {
	const secret = "a secret of these tests that is long enough"
	path, _ := settingsFile(t, "# a comment\nPORT=9000\nLOG_LEVEL=\"warn\"\nPORT=9001\nSECRET_KEY='"+secret+"'\nMAX_QUEUE=5\n"+
		"OLLAMA_AUTH_HEADER='Authorization: Bearer abc'\nOTEL_EXPORTER_OTLP_HEADERS=b=2hidden,a=1hidden\n")
	c := loadFile(t, path, "MAX_QUEUE=7", "HOST=LOCALHOST")
	got := map[string]InForce{}
	for _, s := range c.InForce() {
		got[s.Name] = s
		if strings.Contains(s.Value, "secret") || strings.Contains(s.Value, "abc") || strings.Contains(s.Value, "hidden") {
			t.Errorf("%s contains its secret, want no %q, no %q, no %q", s.Name, "secret", "abc", "hidden")
		}
	}
	if len(got) != len(settingList()) {
		t.Errorf("%d settings, want %d", len(got), len(settingList()))
	}
	for _, want := range []InForce{
		{"PORT", "9001", path + ":4", "", false},
		{"LOG_LEVEL", "warn", path + ":3", "", true},
		{"SECRET_KEY", "set", path + ":5", "", false},
		{"MAX_QUEUE", "7", "environment", path + ":6", false},
		{"HOST", "localhost", "environment", "", false},
		{"MAX_QUEUE_WAIT", "10m", "default", "", false},
		{"ADMIN_API_KEY", "", "default", "", true},
		{"OLLAMA_AUTH_HEADER", "Authorization: (set)", path + ":7", "", false},
		{"OTEL_EXPORTER_OTLP_HEADERS", "a=(set),b=(set)", path + ":8", "", false},
	} {
		if got[want.Name] != want {
			t.Errorf("%s: %+v, want %+v", want.Name, got[want.Name], want)
		}
	}
}

// A socket from systemd replaces HOST and PORT in everything that depends on them.
func TestListenAt(t *testing.T) {
	path, replace := settingsFile(t, "OLLAMA_BASE_URL=http://127.0.0.1:9000\nDEMO_KEYS=true\n")
	c := loadFile(t, path)
	at := func(addr string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr)) }
	if err := c.ListenAt(at("127.0.0.1:9000")); err == nil || !strings.Contains(err.Error(), "own address") {
		t.Errorf("the service as its own server: %v, want an error, %q in it", err, "own address")
	}
	if err := c.ListenAt(at("[::]:8000")); err == nil || !strings.Contains(err.Error(), "DEMO_KEYS") {
		t.Errorf("demo keys for everyone: %v, want an error, %q in it", err, "DEMO_KEYS")
	}
	replace("HOST=0.0.0.0\n")
	c = loadFile(t, path)
	if err := c.ListenAt(at("192.0.2.1:8080")); err != nil || c.Address() != "192.0.2.1:8080" || len(c.Warnings) != 1 {
		t.Errorf("%v, %s, %q, want %q, 1 of them", err, c.Address(), c.Warnings, "192.0.2.1:8080")
	}
	// HOST and PORT have no effect, so a change of them needs no restart.
	replace("HOST=127.0.0.1\nPORT=9999\n")
	if change, err := c.Reread(); err != nil || len(change.Restart) != 0 || change.Config.Address() != "192.0.2.1:8080" {
		t.Errorf("%v, %+v, want 0 of them, %q", err, change, "192.0.2.1:8080")
	}
}
