//go:build linux

package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"time"
)

// The large requests: sizes of the text that is most of them.
const (
	imageBytes  = 20_000_000
	promptBytes = 1_000_000
)

// large is a request with a large body.
type large struct {
	name string
	size int
	body string
	more int // requests for the CPU, after the first, which is for the memory
}

func (l large) cpu() string    { return "CPU per " + l.name + ", ms" }
func (l large) memory() string { return "memory above idle for one " + l.name + ", MiB" }
func (l large) time() string   { return "time of one " + l.name + ", ms" }

var (
	image  = large{name: "20 MB image", size: imageBytes}
	prompt = large{name: "1 MB prompt", size: promptBytes}
)

// largeBodies makes the bodies: an image is random base64, a prompt is words and line ends.
func (b *bench) largeBodies() []large {
	random := rand.New(rand.NewPCG(1, 2))
	const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	data := make([]byte, imageBytes)
	for i := range data {
		data[i] = digits[random.IntN(len(digits))]
	}
	var text strings.Builder
	for text.Len() < promptBytes {
		fmt.Fprintf(&text, "the sea has %d waves, and each is “one of them”.\\n", random.IntN(1000))
	}
	ask := func(content, images string) string {
		return `{"model":"tiny","messages":[{"role":"user","content":"` + content + `"` + images + `}],"stream":false,"options":{"num_predict":8,"seed":1}}`
	}
	i, p := image, prompt
	p.body, p.more = ask(text.String(), ""), b.work.prompts
	i.body, i.more = ask("the sea", `,"images":["`+string(data)+`"]`), b.work.images
	return []large{p, i}
}

// bodies measures large requests on a freshly started process: the memory of the first one, and the CPU of more.
func (b *bench) bodies(round int) error {
	list := b.largeBodies()
	b.eachFresh(round, "large bodies", func(name string, r *running) error {
		if _, err := settledAfterSome(r); err != nil {
			return err
		}
		for _, l := range list {
			if err := b.bodiesOf(name, r, l); err != nil {
				return fmt.Errorf("%s: %w", l.name, err)
			}
		}
		return nil
	})
	return nil
}

func (b *bench) bodiesOf(name string, r *running, l large) error {
	c, err := net.Dial("tcp", r.addr)
	if err != nil {
		return err
	}
	defer c.Close()
	request := r.first(l.body)
	before, err := settledRSS(r.proc)
	if err != nil {
		return err
	}
	if err := r.resetPeak(); err != nil {
		return err
	}
	if err := upload(c, request); err != nil {
		return err
	}
	peak, err := r.peak()
	if err != nil {
		return err
	}
	mib := float64(peak-before) / (1 << 20)
	begin, took := time.Now(), time.Duration(0)
	us, err := cpuOf(r.proc, func() (int, error) {
		begin = time.Now()
		for range l.more {
			if err := upload(c, request); err != nil {
				return 0, err
			}
		}
		took = time.Since(begin) / time.Duration(l.more)
		return l.more, nil
	})
	if err != nil {
		return err
	}
	b.figures.add(l.cpu(), name, us/1e3)
	b.figures.add(l.memory(), name, mib)
	b.figures.add(l.time(), name, took.Seconds()*1e3)
	progress(name, "%s: %.2f ms of CPU, %.1f MiB above idle (%.2f copies), %.1f ms", l.name, us/1e3, mib, float64(peak-before)/float64(l.size), took.Seconds()*1e3)
	return nil
}

// upload sends a request and reads its answer.
func upload(c net.Conn, request []byte) error {
	c.SetDeadline(time.Now().Add(measureLimit))
	// A proxy that answers early must not be taken for one that reads everything: the mock answers after the last byte.
	if _, err := c.Write(request); err != nil {
		return err
	}
	var a answer
	buf := make([]byte, 16<<10)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return err
		}
		done, err := a.feed(buf[:n])
		if err != nil {
			return err
		}
		if done && a.status != 200 {
			return fmt.Errorf("status %d: %s", a.status, a.excerpt)
		}
		if done {
			return nil
		}
	}
}

// resetPeak makes peak count from now on.
func (p *proc) resetPeak() error {
	for _, pid := range p.pids() {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0o600); err != nil {
			return fmt.Errorf("reset the peak of the memory: %w", err)
		}
	}
	return nil
}

// peak is the most resident memory of the process and its children, in bytes.
func (p *proc) peak() (int64, error) {
	var sum int64
	for _, pid := range p.pids() {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return 0, err
		}
		n, ok := kilobytes(text, "VmHWM:")
		if !ok {
			return 0, errors.New("the kernel does not report the peak of the memory")
		}
		sum += n
	}
	return sum, nil
}
