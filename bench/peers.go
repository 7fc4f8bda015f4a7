//go:build linux

package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// The other gateways for models. The benchmark only runs them.
const (
	oneAPI  = "one-api"
	portkey = "Portkey"
)

// peer is one of them.
type peer struct {
	name, version string
	on            string                                    // what is switched on
	build         func(dir, version string) (string, error) // returns its program
	start         func(b *bench, program, own, addr string) (*running, error)
}

var peers = []peer{
	{
		oneAPI, "v0.6.10",
		"its SQLite database in a file, one channel to the mock as an OpenAI server, one token without a quota of its own, its log of usage " +
			"and its log file. Counting tokens needs files that it downloads at its start; here it has a vocabulary of the 256 bytes instead, " +
			"and counts a token for each byte.",
		installGo("github.com/songquanpeng/one-api"), startOneAPI,
	},
	{
		portkey, "1.15.2",
		"the gateway of the npm package as it starts (without its console): provider “openai” with the mock as its custom host, in headers " +
			"of each request. It has no keys, limits, queue or books; those are in the hosted product.",
		installNPM("@portkey-ai/gateway", "build/start-server.js"), startPortkey,
	},
}

// absentPeers says why others are not measured.
var absentPeers = []string{
	"Olla (github.com/thushan/olla), llama-swap (github.com/mostlygeek/llama-swap), Bifrost (github.com/maximhq/bifrost/transports) and new-api " +
		"(github.com/QuantumNous/new-api): the Go module proxy answered “This module version is not available” for each version that was tried.",
	"LiteLLM is a Python program; only Go modules and npm packages were tried.",
}

// installGo builds a program of a Go module. "go install" would also ask for the newest version.
func installGo(module string) func(dir, version string) (string, error) {
	return func(dir, version string) (string, error) {
		cmd, cancel := limited("go", "mod", "download", "-json", module+"@"+version)
		defer cancel()
		cmd.Dir = dir
		out, err := cmd.Output()
		var got struct{ Dir, Error string }
		if json.Unmarshal(out, &got) != nil || err != nil || got.Dir == "" {
			return "", fmt.Errorf("go mod download: %w %s", err, got.Error)
		}
		program := filepath.Join(dir, filepath.Base(module))
		cmd, cancel = limited("go", "build", "-o", program, ".")
		defer cancel()
		cmd.Dir, cmd.Env = got.Dir, append(os.Environ(), "CGO_ENABLED=1", "GOFLAGS=-mod=readonly")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("go build: %s", lastLine(out))
		}
		return program, nil
	}
}

// installNPM installs an npm package and returns its script, which Node runs.
func installNPM(name, script string) func(dir, version string) (string, error) {
	return func(dir, version string) (string, error) {
		cmd, cancel := limited("npm", "install", "--prefix", dir, "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error", name+"@"+version)
		defer cancel()
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("npm install: %s", lastLine(out))
		}
		return filepath.Join(dir, "node_modules", name, script), nil
	}
}

func limited(program string, args ...string) (*exec.Cmd, func()) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	return exec.CommandContext(ctx, program, args...), cancel
}

// addPeers builds the other gateways and adds them to the contestants.
func (b *bench) addPeers() {
	for _, one := range peers {
		fmt.Printf("building %s %s\n", one.name, one.version)
		dir := filepath.Join(b.dir, "peer-"+one.name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			b.note(one.name, err)
			continue
		}
		program, err := one.build(dir, one.version)
		if err != nil {
			b.note(one.name, err)
			continue
		}
		b.targets = append(b.targets, target{one.name, func(name string, _ int) (*running, error) {
			addr, err := freeAddr()
			if err != nil {
				return nil, err
			}
			own := filepath.Join(b.dir, name)
			if err := os.MkdirAll(own, 0o700); err != nil {
				return nil, err
			}
			return one.start(b, program, own, addr)
		}})
	}
}

// startPeer starts a program and waits until it listens on addr.
func startPeer(own, addr string, env []string, program string, args ...string) (*proc, error) {
	p, err := startProc(own, "peer", append(env, "HOME="+own, "PATH="+os.Getenv("PATH")), program, args...)
	if err != nil {
		return nil, err
	}
	p.addr = addr
	if err := p.until(time.Minute, "listening", func() bool { return listens(addr) }); err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

// startPortkey starts Portkey, which gets everything in headers.
func startPortkey(b *bench, program, own, addr string) (*running, error) {
	_, port, _ := net.SplitHostPort(addr)
	env := []string{"TRUSTED_CUSTOM_HOSTS=127.0.0.1,localhost"}
	p, err := startPeer(own, addr, env, "node", program, "--port="+port, "--headless")
	if err != nil {
		return nil, err
	}
	r := &running{proc: p, keys: otherKeys(1), openai: openaiPath}
	r.headers = "x-portkey-provider: openai\r\nx-portkey-custom-host: http://" + b.mock.addr + "/v1\r\n"
	return r, nil
}

// The names of the two vocabularies in the cache of tiktoken, which one-api uses.
var vocabularies = []string{"9b5ad71b2ce5302211f9c61530b329a4922fc6a4", "fb374d419588a4632f3f557e76b4b70aebbca790"}

// startOneAPI starts one-api with a channel to the mock.
func startOneAPI(b *bench, program, own, addr string) (*running, error) {
	var bytes strings.Builder
	for i := range 256 {
		fmt.Fprintf(&bytes, "%s %d\n", base64.StdEncoding.EncodeToString([]byte{byte(i)}), i)
	}
	for _, name := range vocabularies {
		if err := os.WriteFile(filepath.Join(own, name), []byte(bytes.String()), 0o600); err != nil {
			return nil, err
		}
	}
	_, port, _ := net.SplitHostPort(addr)
	token, access := strings.Repeat("bench123", 6), strings.Repeat("bench123", 4)
	p, err := startPeer(own, addr, []string{
		"TIKTOKEN_CACHE_DIR=" + own, "SQLITE_PATH=" + filepath.Join(own, "one-api.db"), "INITIAL_ROOT_TOKEN=" + token, "INITIAL_ROOT_ACCESS_TOKEN=" + access,
		"SESSION_SECRET=bench",
	}, program, "--port", port, "--log-dir", filepath.Join(own, "logs"))
	if err != nil {
		return nil, err
	}
	channel := fmt.Sprintf(`{"type":1,"key":"none","name":"mock","base_url":"http://%s","models":"tiny","group":"default"}`, b.mock.addr)
	if err := addChannel(addr, access, channel); err != nil {
		p.stop()
		return nil, err
	}
	return &running{proc: p, keys: []string{"sk-" + token}, openai: openaiPath}, nil
}

// addChannel tells one-api where the mock is.
func addChannel(addr, access, channel string) error {
	r, err := http.NewRequest("POST", "http://"+addr+"/api/channel/", strings.NewReader(channel))
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", access)
	r.Header.Set("Content-Type", "application/json")
	answer, err := client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 1<<16))
	if err != nil {
		return err
	}
	var did struct {
		Success bool
		Message string
	}
	if err := json.Unmarshal(text, &did); err != nil || !did.Success {
		return errors.New("POST /api/channel/: " + answer.Status + " " + did.Message)
	}
	return nil
}

// peersReport returns the text of PEERS.md.
func peersReport(b *bench, machine string, rounds int) string {
	var s strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&s, format, args...) }
	p("# Compared with other gateways\n\nMeasured by `make bench-peers` on %s.\nEach figure is the median of %d rounds.\n\n", machine, rounds)
	compare(p, b.figures, b.figures.cell, false)
	p(`All contestants were measured in one run in front of the same mock Ollama, which answers at once: the figures are what the gateways
themselves cost. Chunks, first bytes and requests per second are those of OpenAI's API, because not all have Ollama's. [RESULTS.md](RESULTS.md)
explains the figures.

## What was switched on

- service: everything, as in RESULTS.md: a stored key, limits, a slot, journal, database, log line.
- bare ReverseProxy: Go's httputil.ReverseProxy with nothing added.
`)
	for _, one := range peers {
		p("- %s %s: %s\n", one.name, one.version, one.on)
	}
	p("\n## Not measured\n\n")
	for _, text := range append(absentPeers, b.notes...) {
		p("- %s\n", text)
	}
	p("\n## Lowest and highest round\n\n")
	compare(p, b.figures, b.figures.spread, false)
	return s.String()
}
