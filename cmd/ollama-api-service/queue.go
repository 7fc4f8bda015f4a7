package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"ollama-api-service/internal/config"
)

const (
	queueKey     = "OLLAMA_API_SERVICE_KEY" // a key in the environment, for commands that ask the service
	queueTimeout = 5 * time.Second
	queueRefresh = time.Second
	maxQueueBody = 64 << 20
	// clearScreen puts the cursor into the corner and clears what is behind it.
	clearScreen = "\x1b[H\x1b[J"
)

// queueReport is what GET /api/queue says, as far as it is printed.
type queueReport struct {
	Waiting  int `json:"waiting"`
	Limit    int `json:"limit"`
	InFlight int `json:"in_flight"`
	Requests []struct {
		ID       string  `json:"request_id"`
		Key      string  `json:"key"`
		KeyName  string  `json:"key_name"`
		Model    string  `json:"model"`
		Class    string  `json:"class"`
		Position int     `json:"position"`
		Waited   float64 `json:"waited_ms"`
		Expected float64 `json:"expected_wait_ms"`
	} `json:"requests"`
	Backends []struct {
		Name     string `json:"name"`
		Healthy  bool   `json:"healthy"`
		Draining bool   `json:"draining"`
		InFlight int    `json:"in_flight"`
		Models   []struct {
			Model    string `json:"model"`
			State    string `json:"state"`
			InFlight int    `json:"in_flight"`
			Slots    int    `json:"slots"`
		} `json:"models"`
	} `json:"backends"`
}

// queueFlags are the options of queue as they were typed.
type queueFlags struct {
	url, keyFile string
	top          int
	once, json   bool
}

func (p *program) queueCommand() *cobra.Command {
	var f queueFlags
	cmd := &cobra.Command{
		Use:   "queue",
		Short: "Watch what waits for the Ollama servers",
		Long: `Show which requests wait for a slot, when it is their turn, and what each Ollama server does: every second anew, until Ctrl-C. Where
standard output is no terminal, or with --once or --json, it is shown once.

The queue lives in the running service, so that is asked: at HOST and PORT of the settings, or at --url. An admin key sees all, another
one its own requests. It is read from --key-file, or from ` + queueKey + ` in the environment, or it is ADMIN_API_KEY of the settings;
never give it on the command line, which others can read.`,
		Example: `  ollama-api-service queue
  ollama-api-service queue --url https://gateway.example.net --key-file ~/.ollama-api-service.key
  OLLAMA_API_SERVICE_KEY=$(cat key) ollama-api-service queue --json`,
		Args: cobra.NoArgs,
	}
	flags := cmd.Flags()
	flags.StringVar(&f.url, "url", "", "where the service is; none is HOST and PORT of the settings")
	flags.StringVar(&f.keyFile, "key-file", "", "file that holds the key; - is standard input")
	flags.IntVar(&f.top, "top", 20, "show this many requests that wait; 0 is all")
	flags.BoolVar(&f.once, "once", false, "show it once")
	flags.BoolVar(&f.json, "json", false, "print JSON as the HTTP API has it, once")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if f.top < 0 {
			return usagef("--top must be 0, which is all, or more")
		}
		cfg, err := p.settings()
		if err != nil {
			return err
		}
		at, err := f.address(cfg)
		if err != nil {
			return err
		}
		key, err := p.ownKey(cfg, f.keyFile, cmd.InOrStdin())
		if err != nil {
			return err
		}
		ask := func() ([]byte, error) { return askService(cmd.Context(), at, key, nil) }
		if f.json || f.once || !terminal(p.stdout) {
			return f.show(p, ask)
		}
		tick := time.NewTicker(queueRefresh)
		defer tick.Stop()
		return f.watch(cmd.Context(), p, ask, tick.C)
	}
	return cmd
}

// address is where the queue is asked for.
func (f *queueFlags) address(cfg *config.Config) (string, error) {
	base, err := serviceAddress(f.url, cfg)
	if err != nil {
		return "", err
	}
	return base.JoinPath("/api/queue").String(), nil
}

// serviceAddress is where a command asks the service: at the address that was typed, or where the settings have it listen if none was.
func serviceAddress(typed string, cfg *config.Config) (*url.URL, error) {
	base := typed
	switch {
	case base == "" && cfg.Socket() != "":
		return nil, usagef("HOST is a Unix socket: set --url to where the proxy in front of it publishes the service")
	case base == "" && cfg.Port == 0:
		return nil, usagef("PORT is 0, so the address of the service is not known: set --url")
	case base == "" && cfg.Scheme() == "https":
		return nil, usagef("the service speaks HTTPS: set --url https://NAME:%d with the name that its certificate is for", cfg.Port)
	case base == "":
		base = "http://" + localAddress(cfg) + string(cfg.BasePath)
	}
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, usagef("--url must be an address like https://gateway.example.net, without a key in it")
	}
	return u, nil
}

// ownKey is the key with which the service is asked.
func (p *program) ownKey(cfg *config.Config, file string, stdin io.Reader) (string, error) {
	key, err := p.namedKey(file, stdin)
	if err != nil {
		return "", err
	}
	if key == "" {
		key = string(cfg.AdminAPIKey)
	}
	if key == "" {
		return "", usagef("a key is needed: name its file with --key-file, or set %s; `%s keys create --role admin --name NAME` makes one", queueKey, programName)
	}
	return key, oneWord(key)
}

// namedKey is the key of the file, or that of the environment if no file is named; "" if there is neither.
func (p *program) namedKey(file string, stdin io.Reader) (string, error) {
	if file == "" {
		for _, e := range p.environ {
			if name, value, _ := strings.Cut(e, "="); name == queueKey && value != "" {
				return value, nil
			}
		}
		return "", nil
	}
	var text []byte
	var err error
	if file == "-" {
		text, err = io.ReadAll(io.LimitReader(stdin, 4096))
	} else {
		text, err = os.ReadFile(file)
	}
	switch key := strings.TrimSpace(string(text)); {
	case err != nil:
		return "", usagef("the key cannot be read: %w; correct --key-file", err)
	case key == "":
		return "", usagef("there is no key in it: correct --key-file")
	default:
		return key, nil
	}
}

// oneWord refuses what cannot be a key.
func oneWord(key string) error {
	if strings.ContainsAny(key, " \t\r\n") {
		return usagef("that is no key: it must be one word; correct --key-file or %s", queueKey)
	}
	return nil
}

// askService returns the answer of the service to a GET, or to a POST if there is a body. The key goes only to this address: no redirects,
// no proxy of the environment.
func askService(ctx context.Context, at, key string, question []byte) ([]byte, error) {
	client := &http.Client{
		Timeout:       queueTimeout,
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	method := http.MethodGet
	if question != nil {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(ctx, method, at, bytes.NewReader(question))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+key)
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("no answer from %s: see that the service runs there, or correct --url (%w)", at, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxQueueBody))
	switch {
	case err != nil:
		return nil, fmt.Errorf("the answer of %s broke off: try again (%w)", at, err)
	case resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden:
		return nil, fmt.Errorf("%s does not take the key (%s): give another one with --key-file or %s", at, resp.Status, queueKey)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s answers %s: look at the log of the service, or correct --url", at, resp.Status)
	}
	return body, nil
}

// show prints the queue once.
func (f *queueFlags) show(p *program, ask func() ([]byte, error)) error {
	body, err := ask()
	if err != nil {
		return err
	}
	text, err := f.text(body, p.now())
	if err != nil {
		return err
	}
	_, err = io.WriteString(p.stdout, text)
	return err
}

// watch prints it anew at each tick until ctx ends. A service that does not answer may be starting again: once it was seen, it is
// waited for.
func (f *queueFlags) watch(ctx context.Context, p *program, ask func() ([]byte, error), tick <-chan time.Time) error {
	for seen := false; ; seen = true {
		text := ""
		body, err := ask()
		if err == nil {
			text, err = f.text(body, p.now())
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !seen:
			return err
		case err != nil:
			text = programName + ": " + err.Error() + "\n"
		}
		if _, err := io.WriteString(p.stdout, clearScreen+text); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick:
		}
	}
}

// text is the answer as it is printed.
func (f *queueFlags) text(body []byte, now time.Time) (string, error) {
	var r queueReport
	if err := json.Unmarshal(body, &r); err != nil || r.Requests == nil {
		return "", fmt.Errorf("what answers is not this service: correct --url")
	}
	var b bytes.Buffer
	if f.json {
		err := json.Indent(&b, body, "", "  ")
		return strings.TrimSpace(b.String()) + "\n", err
	}
	fmt.Fprintf(&b, "%s: %s running, %d waiting of at most %d\n", now.UTC().Format("15:04:05Z"), plural(int64(r.InFlight), "request"), r.Waiting, r.Limit)
	if len(r.Backends) > 0 {
		b.WriteString("\n")
		if err := r.backends(&b); err != nil {
			return "", err
		}
	}
	if len(r.Requests) == 0 {
		return printable(b.String()), nil
	}
	b.WriteString("\n")
	rows := [][]string{{"MODEL", "TURN", "KEY", "NAME", "CLASS", "WAITED", "EXPECTED", "REQUEST"}}
	for i, q := range r.Requests {
		if i == f.top && f.top > 0 {
			break
		}
		rows = append(rows, []string{q.Model, strconv.Itoa(q.Position), q.Key, shorten(q.KeyName, 24), q.Class, span(q.Waited), span(q.Expected), q.ID})
	}
	if err := table(&b, map[int]bool{1: true, 5: true, 6: true}, rows); err != nil {
		return "", err
	}
	if more := len(r.Requests) + 1 - len(rows); more > 0 {
		fmt.Fprintf(&b, "%d more: --top 0 shows all.\n", more)
	}
	return printable(b.String()), nil
}

// printable takes out control characters, which a terminal would obey: any server may answer at an address that was typed.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' {
			return -1
		}
		return r
	}, text)
}

// backends prints what each server does.
func (r *queueReport) backends(w io.Writer) error {
	rows := [][]string{{"SERVER", "STATE", "RUNS", "MODELS (RUNNING/SLOTS)"}}
	for _, s := range r.Backends {
		state := "well"
		switch {
		case !s.Healthy:
			state = "no answer"
		case s.Draining:
			state = "drained"
		}
		var list []string
		for _, m := range s.Models {
			text := fmt.Sprintf("%s %d/%d", m.Model, m.InFlight, m.Slots)
			if m.State == "loading" {
				text = m.Model + " is being loaded"
			}
			list = append(list, text)
		}
		rows = append(rows, []string{s.Name, state, strconv.Itoa(s.InFlight), strings.Join(list, ", ")})
	}
	return table(w, map[int]bool{2: true}, rows)
}

// span is a time in milliseconds as people read it.
func span(ms float64) string {
	d := time.Duration(ms * float64(time.Millisecond))
	if d < 10*time.Second {
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	return d.Round(time.Second).String()
}
