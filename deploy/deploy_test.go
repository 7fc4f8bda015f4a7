// Package deploy_test checks the systemd unit, the compose file, the Kubernetes manifest, the alert rules and the dashboard.
package deploy_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
)

// leastExposure is systemd's score: 0 is fully restricted, 10 is unprotected.
const leastExposure = 2.0

func TestUnitIsLockedIn(t *testing.T) {
	threshold := strconv.Itoa(int(leastExposure * 10))
	out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold="+threshold, "ollama-api-service.service").CombinedOutput()
	m := regexp.MustCompile(`Overall exposure level for ollama-api-service.service: ([0-9.]+)`).FindSubmatch(out)
	if err != nil || m == nil {
		t.Fatalf("%v\n%s", err, out)
	}
	score, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil || score > leastExposure {
		t.Errorf("exposure %s, want at most %v", m[1], leastExposure)
	}
	t.Logf("systemd's exposure score: %s", m[1])
}

// systemd-analyze verify needs the program and its manual at the paths of the unit, so deploy/package runs it on the installed unit.
// This test reads only the unit file.
func TestUnitIsRight(t *testing.T) {
	text, err := os.ReadFile("ollama-api-service.service")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	alone := strings.ReplaceAll(string(text), "/usr/bin/ollama-api-service ", "/bin/true ")
	alone = regexp.MustCompile(`(?m)^Documentation=.*\n`).ReplaceAllString(alone, "")
	unit := filepath.Join(dir, "ollama-api-service.service")
	if err := os.WriteFile(unit, []byte(alone), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemd-analyze", "verify", unit).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
	// A restart does not help after exit 2 and 3. SHUTDOWN_GRACE and the last rows must fit into the time to stop.
	for _, line := range []string{
		"Type=notify", "WatchdogSec=2min", "Restart=always", "LimitCORE=0", "StartLimitIntervalSec=0", "RequiresMountsFor=/var/lib/ollama-api-service", `ExecReload=/bin/sh -c 'kill -HUP "$MAINPID"'`,
		"RestartPreventExitStatus=2 3", "TimeoutStopSec=60s", "User=ollama-api-service", "MemoryMax=1536M", "StateDirectory=ollama-api-service",
	} {
		if !strings.Contains(string(text), "\n"+line+"\n") {
			t.Errorf("the unit has no line %s", line)
		}
	}
}

// compose returns the compose file as Docker's own loader reads it.
func compose(t *testing.T) *types.Project {
	t.Helper()
	options, err := cli.NewProjectOptions([]string{"compose.yaml"})
	if err != nil {
		t.Fatal(err)
	}
	project, err := options.LoadProject(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return project
}

func TestComposeShowsTheGatewayAlone(t *testing.T) {
	p := compose(t)
	for name, s := range p.Services {
		if s.Privileged || s.NetworkMode != "" || s.Pid != "" || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s has more rights than it needs", name)
		}
		if s.HealthCheck == nil || s.Restart != "unless-stopped" {
			t.Errorf("%s has no health check or is not restarted", name)
		}
		if name == "gateway" {
			continue
		}
		if len(s.Ports) > 0 {
			t.Errorf("%s is reachable from outside", name)
		}
	}
	gateway, ollama := p.Services["gateway"], p.Services["ollama"]
	if len(gateway.Ports) != 1 || gateway.Ports[0].HostIP != "127.0.0.1" || gateway.Ports[0].Published != "8000" || gateway.Ports[0].Target != 8000 {
		t.Errorf("the gateway's ports: %+v, want 1 of them, %q, %q, 8000", gateway.Ports, "127.0.0.1", "8000")
	}
	if !gateway.ReadOnly || !slices.Equal(gateway.CapDrop, []string{"ALL"}) {
		t.Error("the gateway's container can be written to, or has capabilities")
	}
	if len(gateway.Volumes) != 1 || gateway.Volumes[0].Target != "/data" || gateway.Volumes[0].Type != types.VolumeTypeVolume {
		t.Errorf("the gateway's volumes: %+v, want 1 of them, %q, %v", gateway.Volumes, "/data", types.VolumeTypeVolume)
	}
	if got := strings.Join(gateway.HealthCheck.Test, " "); got != "CMD /usr/bin/ollama-api-service healthcheck" {
		t.Errorf("the gateway's health check: %s, want %q", got, "CMD /usr/bin/ollama-api-service healthcheck")
	}
	if got := int64(gateway.MemLimit); got < 1<<30+150_000_000 {
		t.Errorf("the gateway's memory limit is %d, want MAX_BODY_MEMORY (1 GiB) and 150 MB at least", got)
	}
	if gateway.DependsOn["ollama"].Condition != types.ServiceConditionHealthy {
		t.Error("the gateway does not wait for Ollama")
	}
	// They share a network that leads nowhere. Only Ollama has another one, to pull models.
	inside := p.Networks["inside"]
	_, a := gateway.Networks["inside"]
	_, b := ollama.Networks["inside"]
	_, out := gateway.Networks["outbound"]
	if !inside.Internal || !a || !b || out {
		t.Errorf("the networks are %v and %v; inside is internal: %v", gateway.Networks, ollama.Networks, inside.Internal)
	}
	if !regexp.MustCompile(`:\d+\.\d+\.\d+$`).MatchString(ollama.Image) {
		t.Errorf("Ollama's image %s has no version", ollama.Image)
	}
	build, err := filepath.Abs("..")
	if err != nil || gateway.Build.Context != build || gateway.Build.Dockerfile != "deploy/Dockerfile" {
		t.Errorf("built from %s, %s, want %v, %q", gateway.Build.Context, gateway.Build.Dockerfile, build, "deploy/Dockerfile")
	}
}

// The operator's gateway.env overrides everything in the compose file and the image.
func TestGatewayEnvWins(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"compose.yaml", "gateway-defaults.env"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]string{"OLLAMA_BASE_URL": "http://gpu1:11434", "HOST": "127.0.0.9", "PORT": "9000", "DATA_DIR": "/elsewhere", "LOG_FORMAT": "text"}
	lines := ""
	for name, value := range want {
		lines += name + "=" + value + "\n"
	}
	load := func() types.MappingWithEquals {
		options, err := cli.NewProjectOptions([]string{filepath.Join(dir, "compose.yaml")})
		if err != nil {
			t.Fatal(err)
		}
		p, err := options.LoadProject(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return p.Services["gateway"].Environment
	}
	if env := load(); len(env) != 1 || *env["OLLAMA_BASE_URL"] != "http://ollama:11434?slots=4" {
		t.Errorf("without gateway.env the environment is %v, want only the Ollama next to it", env)
	}
	if err := os.WriteFile(filepath.Join(dir, "gateway.env"), []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	env := load()
	for name, value := range want {
		if got := env[name]; got == nil || *got != value {
			t.Errorf("%s is %v, want %s of gateway.env", name, got, value)
		}
	}
	// Settings that are in neither file come from the image.
	image, err := os.ReadFile("Dockerfile")
	if err != nil || !strings.Contains(string(image), "\nENV HOST=0.0.0.0 PORT=8000 DATA_DIR=/data\n") {
		t.Errorf("the image sets no HOST, PORT and DATA_DIR: %v", err)
	}
}

// settings returns the names in .env.example.
func settings(t *testing.T) map[string]bool {
	t.Helper()
	text, err := os.ReadFile("../.env.example")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^#([A-Z_]+)=`).FindAllSubmatch(text, -1) {
		names[string(m[1])] = true
	}
	return names
}

func TestComposeSetsWhatExists(t *testing.T) {
	known := settings(t)
	p := compose(t)
	slots := ""
	for name, value := range p.Services["gateway"].Environment {
		if !known[name] || value == nil {
			t.Errorf("%s is not a setting, or has no value", name)
		}
		if name == "OLLAMA_BASE_URL" {
			_, slots, _ = strings.Cut(*value, "?slots=")
		}
	}
	if parallel := p.Services["ollama"].Environment["OLLAMA_NUM_PARALLEL"]; parallel == nil || *parallel != slots {
		t.Errorf("OLLAMA_NUM_PARALLEL is %v, and the gateway's slots are %s; want the same", parallel, slots)
	}
}
