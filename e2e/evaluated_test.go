package e2e

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

var (
	adversarial     = flag.Int("adversarial", 108, "how many requests TestBookedAgainstEvaluated sends")
	adversarialSeed = flag.Uint64("adversarial-seed", 1, "what they are made from")
)

// What one request used is known from Ollama's log, also where its client has left: with OLLAMA_NUM_PARALLEL=1 its runner has one slot, and
// logs for each text how many tokens it has and how many the slot still has of the text before, which are its prompt and the answer. So
// a probe behind each request shows how far Ollama went.
type slotLine struct{ cache, prompt int64 }

var (
	slotPattern   = regexp.MustCompile(`msg="loading cache slot" id=0 cache=(\d+) prompt=(\d+)`)
	runnerPattern = regexp.MustCompile(`msg="Server listening on (127\.0\.0\.1:\d+)"`)
)

const (
	harmContext = 2048
	harmShift   = (harmContext - 5) / 2 // tokens that Ollama drops of a full context; it keeps 4 and the one that begins a text
	probeBody   = `{"model":"harm","raw":true,"prompt":"the","stream":false,"options":{"num_predict":1}}`
	probePrompt = 5 // tokens, the one that begins each text among them: no assault has so few
	// harmModel prints all that a template can print.
	harmModel = `{"model":"harm","from":"tiny","stream":false,"parameters":{"num_ctx":2048,"num_predict":64,"num_thread":1},"template":"` +
		`{{ if .Suffix }}<pre> {{ .Prompt }} <suf> {{ .Suffix }} <mid>{{ else }}{{ if .Tools }} tools : {{ .Tools }}{{ end }}{{ range .Messages }} {{ .Role }} : ` +
		`{{ .Content }}{{ range .ToolCalls }} {{ .Function.Name }} {{ .Function.Arguments }}{{ end }}{{ end }}{{ end }}"}`
)

// watched is a real Ollama whose log is read.
type watched struct {
	url    string
	slots  chan slotLine
	runner atomic.Value // its address
	stuck  int
}

func watchOllama(t *testing.T) *watched {
	t.Helper()
	w := &watched{slots: make(chan slotLine, 100)}
	url, stop, err := startOllama(t.TempDir(), func(line string) {
		if m := slotPattern.FindStringSubmatch(line); m != nil {
			cache, _ := strconv.ParseInt(m[1], 10, 64)
			prompt, _ := strconv.ParseInt(m[2], 10, 64)
			w.slots <- slotLine{cache, prompt}
		} else if m := runnerPattern.FindStringSubmatch(line); m != nil {
			w.runner.Store("http://" + m[1])
		}
	}, "OLLAMA_NUM_PARALLEL=1", "OLLAMA_DEBUG=1")
	t.Cleanup(stop)
	if err != nil {
		t.Fatal(err)
	}
	w.url = url
	call(t, "POST", url+"/api/create", "", harmModel).want(t, http.StatusOK)
	return w
}

// evaluated is what the requests before have used, behind the lines that were seen of them.
func (w *watched) evaluated(t *testing.T, a assault, seen []slotLine) (prompt, answer int64) {
	t.Helper()
	w.probe(t)
	for {
		select {
		case l := <-w.slots:
			if l.prompt != probePrompt {
				seen = append(seen, l)
				continue
			}
			for _, s := range seen {
				prompt += s.prompt
			}
			switch {
			case len(seen) == 0:
			case !a.plain:
				prompt -= int64(len(seen)) // Ollama's own count of embeddings leaves out the token that begins each text
			default:
				answer = l.cache - last(seen).prompt + 1
				if answer < 0 {
					answer += harmShift
				}
			}
			return prompt, answer
		case <-time.After(patience):
			t.Fatalf("Ollama does not log what it evaluates: %v", seen)
		}
	}
}

// probe sends what shows how far Ollama went. Ollama 0.6.5 may lose a slot of the model for good when a client leaves a stream: what passes
// the pieces on waits for a reader that has gone (server/routes.go:342, ollama/ollama#17131), and holds the model's semaphore. Then only the
// runner answers, and only unloading the model brings the slot back.
func (w *watched) probe(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if a, err := tryCall(ctx, "POST", w.url+"/api/generate", "", probeBody); err == nil {
		a.want(t, http.StatusOK)
		return
	}
	w.stuck++
	call(t, "POST", w.runner.Load().(string)+"/completion", "", `{"prompt":"the","options":{"num_predict":1}}`).want(t, http.StatusOK)
	call(t, "POST", w.url+"/api/generate", "", `{"model":"harm","keep_alive":0}`).want(t, http.StatusOK)
	poll(t, "unloading", func() bool { return call(t, "GET", w.url+"/api/ps", "", "").Body == `{"models":[]}` })
}

// try sends an assault and leaves when it says so. It returns what Ollama has logged until then, and whether the answer came to its end.
func (w *watched) try(t *testing.T, s *service, key, id string, a assault) (seen []slotLine, status int, whole bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if a.leave == atOnce {
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { cancel() }})
	}
	req, err := http.NewRequestWithContext(ctx, "POST", s.URL+a.path, strings.NewReader(a.body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("X-Request-Id", id)
	done := make(chan struct{})
	go func() {
		defer close(done)
		res, err := client.Do(req)
		if err != nil {
			return
		}
		defer res.Body.Close()
		status = res.StatusCode
		in := bufio.NewReader(res.Body)
		for records := 0; ; {
			line, err := in.ReadString('\n')
			if err != nil {
				whole = err == io.EOF
				return
			}
			if strings.TrimSpace(line) != "" {
				records++
			}
			if !a.silent && a.leave >= afterFew && records == a.after {
				return
			}
		}
	}()
	for {
		select {
		case l := <-w.slots:
			seen = append(seen, l)
			if a.leave == inPrompt || a.silent && a.leave >= afterFew {
				defer time.AfterFunc(time.Duration(a.after)*time.Millisecond/2, cancel).Stop()
			}
		case <-done:
			return seen, status, whole
		}
	}
}

// bill is what was booked and evaluated of some requests.
type bill struct {
	requests, left, idle int // idle: Ollama evaluated nothing of them, so what was booked of them is not in the sum
	booked, evaluated    int64
	worst                float64
}

func (b *bill) add(booked, evaluated int64, left bool) {
	b.requests++
	if left {
		b.left++
	}
	if evaluated == 0 {
		b.idle++
		return
	}
	b.booked += booked
	b.evaluated += evaluated
	if part := float64(booked) / float64(evaluated); b.worst == 0 || part < b.worst {
		b.worst = part
	}
}

// aftermath is what came of an assault.
type aftermath struct {
	assault
	status         int
	whole          bool
	prompt, answer int64 // tokens that Ollama evaluated
}

// check holds a row against what Ollama evaluated. One whose client stayed must be exact; of another, the text of a single prompt may be
// denser than its key's prompts were, and Ollama generates up to a few tokens after the client has left.
func (o *aftermath) check(t *testing.T, row bookedRow) {
	t.Helper()
	if o.whole && o.plain && o.status == http.StatusOK && !row.Estimated && (row.Prompt != o.prompt || row.Completion != o.answer) {
		t.Errorf("%s: Ollama counted %d and %d tokens, and its log says %d and %d", o.form, row.Prompt, row.Completion, o.prompt, o.answer)
	}
	if booked, evaluated := row.Prompt+row.Completion, o.prompt+o.answer; float64(booked) < 0.8*float64(evaluated)-8 {
		t.Errorf("%s, left %s: booked %d and %d tokens, and Ollama evaluated %d and %d", o.form, leaveNames[o.leave], row.Prompt, row.Completion, o.prompt, o.answer)
	}
}

// Whatever an adversary sends and whenever it leaves, it is booked at least 0.95 of what Ollama has evaluated for it.
func TestBookedAgainstEvaluated(t *testing.T) {
	t.Parallel()
	w := watchOllama(t)
	s, address := startBare(t, t.TempDir(), w.url+"?slots=1", nil)
	s.URL = "http://" + address
	a := &adversary{Rand: rand.New(rand.NewPCG(*adversarialSeed, 14))}
	key := s.makeKey(t, `,"rate_limit":null,"policy":{"template":"pass"}`)
	all := make(map[string]aftermath, *adversarial)
	ended := regexp.MustCompile(`"msg":"request[^\n]*"key":"` + key.Preview + `"`)
	for i := range *adversarial {
		o := aftermath{assault: a.next("harm")}
		id := fmt.Sprintf("assault-%d", i)
		var seen []slotLine
		seen, o.status, o.whole = w.try(t, s, key.Secret, id, o.assault)
		poll(t, "end of "+id, func() bool { return len(ended.FindAllString(s.stdout.String(), -1)) > i }) // the gateway may read on
		o.prompt, o.answer = w.evaluated(t, o.assault, seen)
		all[id] = o
	}
	rows := s.bookedUntil(t, key)
	bills := map[string]*bill{}
	for id, o := range all {
		row := rows[id] // none where Ollama got nothing
		o.check(t, row)
		for _, name := range []string{"all", "form: " + o.form, "left: " + leaveNames[o.leave]} {
			if bills[name] == nil {
				bills[name] = new(bill)
			}
			bills[name].add(row.Prompt+row.Completion, o.prompt+o.answer, !o.whole)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(bills)) {
		b := bills[name]
		part := float64(b.booked) / float64(max(b.evaluated, 1))
		t.Logf("%-30s %4d requests, %4d left, %4d not begun: booked %7d, evaluated %7d: %.2f, of one at least %.2f", name, b.requests, b.left, b.idle, b.booked, b.evaluated, part, b.worst)
		if part < 0.95 && b.evaluated > 0 {
			t.Errorf("%s: booked %d of %d tokens that Ollama evaluated, want at least 0.95 of them", name, b.booked, b.evaluated)
		}
	}
	t.Logf("Ollama lost its slot %d times", w.stuck)
}

// bookedUntil is all that is booked of a key's requests until now, by the ids that it sent.
func (s *service) bookedUntil(t *testing.T, key madeKey) map[string]bookedRow {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "POST", s.URL+"/api/generate", strings.NewReader(probeBody))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key.Secret)
	req.Header.Set("X-Request-Id", "last")
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	rows := map[string]bookedRow{}
	poll(t, "row of the last request", func() bool {
		for cursor := ""; ; {
			var page struct {
				Requests []bookedRow `json:"requests"`
				Next     string      `json:"next_cursor"`
			}
			call(t, "GET", s.URL+"/api/admin/requests?limit=1000&key="+key.Preview+cursor, s.Admin, "").want(t, http.StatusOK).decode(t, &page)
			for _, r := range page.Requests {
				rows[r.Client] = r
			}
			if page.Next == "" {
				break
			}
			cursor = "&cursor=" + page.Next
		}
		_, booked := rows["last"]
		return booked
	})
	return rows
}
