//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
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
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// gateway is one running process of the service.
type gateway struct {
	url   string
	addr  string
	admin string
	dir   string
	http  *http.Client // of the harness itself, and of the victims
	trust *tls.Config  // nil without TLS
	cmd   *exec.Cmd
	ended chan struct{}
}

const adminKey = "attack-admin-key-1234567890"

// buildService builds the program in the same way as a release.
func buildService(root, dir string) (string, error) {
	program := filepath.Join(dir, "ollama-api-service")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	shipped := []string{"build", "-trimpath", "-ldflags=-s -w", "-tags=grpcnotrace", "-o", program, "./cmd/ollama-api-service"}
	cmd := exec.CommandContext(ctx, "go", shipped...)
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("cannot build the service: %s", bytes.TrimSpace(out))
	}
	return program, nil
}

// startGateway starts the program with a new data directory in dir and waits until it answers. The program ends with this process.
func startGateway(program, dir, upstream string, settings []string, https bool) (*gateway, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	l.Close()
	g := &gateway{addr: addr, url: "http://" + addr, admin: adminKey, dir: dir, ended: make(chan struct{})}
	if https {
		var files []string
		if g.trust, files, err = certificate(dir); err != nil {
			return nil, err
		}
		settings = slices.Concat(settings, files)
		g.url = "https://" + addr
	}
	pool := &http.Transport{MaxIdleConnsPerHost: 64, TLSClientConfig: g.trust, ForceAttemptHTTP2: https}
	g.http = &http.Client{Transport: pool, Timeout: time.Minute}
	_, port, _ := net.SplitHostPort(addr)
	out, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer out.Close()
	g.cmd = exec.Command(program, "serve")
	g.cmd.Dir, g.cmd.Stdout, g.cmd.Stderr = dir, out, out
	g.cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "OLLAMA_BASE_URL=" + upstream, "HOST=127.0.0.1", "PORT=" + port,
		"DATA_DIR=" + filepath.Join(dir, "data"),
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

// ask sends a request of the harness and decodes the answer into v.
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

// newKey creates a key. fields are more members of the JSON object.
func (g *gateway) newKey(name, fields string) (string, error) {
	var made struct {
		Key string `json:"api_key"`
	}
	err := g.ask("POST", "/api/keys", g.admin, fmt.Sprintf(`{"name":%q,"role":"user","rate_limit":null%s}`, name, fields), &made)
	if err == nil && made.Key == "" {
		err = errors.New("POST /api/keys: the answer has no key")
	}
	return made.Key, err
}

// used is a key's usage in the books.
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

// memory returns a figure of the process's memory in bytes, by its name in the kernel.
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

// certificate creates a certificate for 127.0.0.1 that only the harness trusts, and returns the settings that name its files.
func certificate(dir string) (trust *tls.Config, settings []string, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true,
		BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	secret := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	for name, text := range map[string][]byte{"cert.pem": cert, "key.pem": secret} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			return nil, nil, err
		}
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(cert)
	return &tls.Config{RootCAs: roots}, []string{"TLS_CERT=" + filepath.Join(dir, "cert.pem"), "TLS_KEY=" + filepath.Join(dir, "key.pem")}, nil
}

// cpu returns the processor time that the process has used.
func (g *gateway) cpu() time.Duration {
	var t unix.Timespec
	// MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED) of the kernel's posix-timers.h.
	if unix.ClockGettime(int32(^g.cmd.Process.Pid<<3|2), &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
