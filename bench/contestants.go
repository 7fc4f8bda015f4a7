//go:build linux

package main

import (
	"fmt"
	"os"
	"strings"
	"time"
)

// The contestants, in the order of the table's columns.
const (
	service = "service"
	before  = "before" // the service built from the commit before
	reverse = "ReverseProxy"
	nginx   = "nginx"
	haproxy = "haproxy"
	caddy   = "Caddy"
	direct  = "direct" // the mock itself: what latency and load cost without any gateway
)

var allContestants = []string{service, before, reverse, nginx, haproxy, caddy}

// target is one contestant. start starts a fresh process that answers chats of n keys.
type target struct {
	name  string
	start func(name string, n int) (*running, error)
}

// running is a started contestant, or the mock itself.
type running struct {
	*proc
	keys           []string
	native, openai string // the paths of chats; empty if it has none
	headers        string // further lines of each request's header
}

// The paths of chats of Ollama, and of everything that passes paths on.
const (
	nativePath = "/api/chat"
	openaiPath = "/v1/chat/completions"
)

func plain(p *proc, keys []string) *running {
	return &running{proc: p, keys: keys, native: nativePath, openai: openaiPath}
}

// first returns a chat of Ollama with the first key.
func (r *running) first(body string) []byte { return post(r.native, r.keys[0], body) }

// inTurn returns a function that returns requests with the first n keys in turn.
func (r *running) inTurn(path, body string, n int) func() []byte {
	list := make([][]byte, n)
	for i := range list {
		list[i] = post(path, r.keys[i], body, r.headers)
	}
	next := -1
	return func() []byte {
		next = (next + 1) % len(list)
		return list[next]
	}
}

// small returns a small chat, and stream one that streams n records. All contestants get those of OpenAI if some only have its API.
func (b *bench) small(r *running) []byte {
	if b.peers {
		return post(r.openai, r.keys[0], openaiChat, r.headers)
	}
	return r.first(smallChat)
}

func (b *bench) stream(r *running, n int) []byte {
	if b.peers {
		return post(r.openai, r.keys[0], fmt.Sprintf(openaiStream, n), r.headers)
	}
	return r.first(fmt.Sprintf(streamChat, n))
}

// otherKeys are n keys for the contestants that do not make their own. They look like those of the service.
func otherKeys(n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprintf("oas_%010d_%038d", i, i)
	}
	return keys
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
