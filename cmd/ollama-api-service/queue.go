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
	queueKey     = "OLLAMA_API_SERVICE_KEY" // a key in the environment, for commands that send requests to the service
	queueTimeout = 5 * time.Second
	queueRefresh = time.Second
	maxQueueBody = 64 << 20
	// clearScreen moves the cursor to the top left and clears the screen.
	clearScreen = "\x1b[H\x1b[J"
)

// queueReport holds the fields of GET /api/queue that are printed.
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
		Short: "Watch the queue for the Ollama servers",
		Long: `Show which requests wait for a slot, how long they are expected to wait, and what each Ollama server does. The view refreshes every
		second until Ctrl-C. It is shown once if standard output is not a terminal, or with --once or --json.

		The command asks the running service, at HOST and PORT of the settings or at --url. An admin key sees all requests, another key its own.
		The key comes from --key-file, from ` + queueKey + ` in the environment, or from ADMIN_API_KEY of the settings. There is no flag
		for the key itself, because other users can read a command line.`,
		Example: `  ollama-api-service queue
  ollama-api-service queue --url https://gateway.example.net --key-file ~/.ollama-api-service.key
  OLLAMA_API_SERVICE_KEY=$(cat key) ollama-api-service queue --json`,
		Args: cobra.NoArgs,
	}
	flags := cmd.Flags()
	flags.StringVar(&f.url, "url", "", "address of the service; the default is HOST and PORT of the settings")
	flags.StringVar(&f.keyFile, "key-file", "", "file that holds the key; - is standard input")
	flags.IntVar(&f.top, "top", 20, "the maximum number of waiting requests to show; 0 shows all")
	flags.BoolVar(&f.once, "once", false, "print once and exit")
	flags.BoolVar(&f.json, "json", false, "print the JSON of the HTTP API once and exit")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if f.top < 0 {
			return usagef("--top must be at least 0 (0 shows all)")
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

// address is the URL of the queue.
func (f *queueFlags) address(cfg *config.Config) (string, error) {
	base, err := serviceAddress(f.url, cfg)
	if err != nil {
		return "", err
	}
	return base.JoinPath("/api/queue").String(), nil
}

// serviceAddress returns the address that was typed or, without one, the address of the settings.
func serviceAddress(typed string, cfg *config.Config) (*url.URL, error) {
	base := typed
	switch {
	case base == "" && cfg.Socket() != "":
		return nil, usagef("HOST is a Unix socket: set --url to the address of the proxy in front of it")
	case base == "" && cfg.Port == 0:
		return nil, usagef("PORT is 0, so the address of the service is not known: set --url")
	case base == "" && cfg.Scheme() == "https":
		return nil, usagef("the service uses HTTPS: set --url https://NAME:%d with the name in its certificate", cfg.Port)
	case base == "":
		base = "http://" + localAddress(cfg) + string(cfg.BasePath)
	}
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, usagef("--url must be an address like https://gateway.example.net, without a key in it")
	}
	return u, nil
}

// ownKey returns the key for requests to the service.
func (p *program) ownKey(cfg *config.Config, file string, stdin io.Reader) (string, error) {
	key, err := p.namedKey(file, stdin)
	if err != nil {
		return "", err
	}
	if key == "" {
		key = string(cfg.AdminAPIKey)
	}
	if key == "" {
		return "", usagef("a key is needed: name its file with --key-file, or set %s; `%s keys create --role admin --name NAME` creates one", queueKey, programName)
	}
	return key, oneWord(key)
}

// namedKey returns the key in the file or, if no file is named, the key in the environment. It returns "" if there is neither.
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
		return "", usagef("the key file is empty: correct --key-file")
	default:
		return key, nil
	}
}

// oneWord refuses text that cannot be a key.
func oneWord(key string) error {
	if strings.ContainsAny(key, " \t\r\n") {
		return usagef("this is not a key: a key has no spaces; correct --key-file or %s", queueKey)
	}
	return nil
}

// askService sends a GET or, with a body, a POST and returns the answer. The key goes only to this address: no redirects, no proxy from
// the environment.
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
		return nil, fmt.Errorf("no answer from %s: check that the service is running there, or correct --url (%w)", at, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxQueueBody))
	switch {
	case err != nil:
		return nil, fmt.Errorf("the answer of %s is incomplete: try again (%w)", at, err)
	case resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden:
		return nil, fmt.Errorf("%s refused the key (%s): give another one with --key-file or %s", at, resp.Status, queueKey)
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

// watch prints the queue at each tick until ctx ends. Once the service has answered, watch waits for it through a restart.
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

// text formats the answer for printing.
func (f *queueFlags) text(body []byte, now time.Time) (string, error) {
	var r queueReport
	if err := json.Unmarshal(body, &r); err != nil || r.Requests == nil {
		return "", fmt.Errorf("the answer is not one of this service: correct --url")
	}
	var b bytes.Buffer
	if f.json {
		err := json.Indent(&b, body, "", "  ")
		return strings.TrimSpace(b.String()) + "\n", err
	}
	fmt.Fprintf(&b, "%s: %s running, %d waiting of at most %d\n",
		now.UTC().Format("15:04:05Z"), plural(int64(r.InFlight), "request"), r.Waiting, r.Limit)
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
		rows = append(rows, []string{
			q.Model, strconv.Itoa(q.Position), q.Key, shorten(q.KeyName, 24), q.Class, waitText(q.Waited), waitText(q.Expected), q.ID,
		})
	}
	if err := table(&b, map[int]bool{1: true, 5: true, 6: true}, rows); err != nil {
		return "", err
	}
	if more := len(r.Requests) + 1 - len(rows); more > 0 {
		fmt.Fprintf(&b, "%d more; --top 0 shows all.\n", more)
	}
	return printable(b.String()), nil
}

// printable removes control characters, which a terminal would obey: the address that was typed may be any server.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' {
			return -1
		}
		return r
	}, text)
}

// backends prints the state of each server.
func (r *queueReport) backends(w io.Writer) error {
	rows := [][]string{{"SERVER", "STATE", "RUNS", "MODELS (RUNNING/SLOTS)"}}
	for _, s := range r.Backends {
		state := "healthy"
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
				text = m.Model + " is loading"
			}
			list = append(list, text)
		}
		rows = append(rows, []string{s.Name, state, strconv.Itoa(s.InFlight), strings.Join(list, ", ")})
	}
	return table(w, map[int]bool{2: true}, rows)
}

// waitText formats a number of milliseconds.
func waitText(ms float64) string {
	d := time.Duration(ms * float64(time.Millisecond))
	if d < 10*time.Second {
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	return d.Round(time.Second).String()
}
