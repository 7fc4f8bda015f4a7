package e2e

import (
	"bufio"
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	_ "modernc.org/sqlite"
	"ollama-api-service/internal/test/ollamatest"
)

// ledger has the facts that are known outside the service: the requests that Ollama got, the answers that clients have read, and the
// changes of keys that were acknowledged. The tests compare the books with it.
type ledger struct {
	fake   *ollamatest.Server
	chunks atomic.Int64 // seen by all clients
	next   atomic.Int64

	mu   sync.Mutex
	asks map[string]*fact
	keys map[string]*keyFact // by preview
}

// fact is one request of a client.
type fact struct {
	upstream           bool // Ollama got the request
	status             int
	chunks             int64 // pieces of the answer that the client has read
	whole              bool  // the client has read the end
	prompt, completion int64 // of the end
}

// keyFact is one key. Its state is known unless a change of it was under way when the service died.
type keyFact struct {
	secret, old string // old was replaced by a rotation
	revoked     bool
	uncertain   bool
	fresh       bool // changed since it was last tested
}

// way describes the requests of one dialect, and how to read its answers.
type way struct {
	path, body         string // id, stream
	piece, end         string // the texts that mark a piece of a streamed answer, and its last line
	promptAt, outputAt *regexp.Regexp
	streamed           bool
}

func ways() (all []way) {
	number := func(name string) *regexp.Regexp { return regexp.MustCompile(`"` + name + `":(\d+)`) }
	for _, streamed := range []bool{true, false} {
		s := fmt.Sprintf(`"stream":%v`, streamed)
		usage := ""
		if streamed {
			usage = `,"stream_options":{"include_usage":true}`
		}
		all = append(all,
			way{"/api/chat", `{"model":"tiny","messages":[{"role":"user","content":"%s"}],` + s + `}`, `"done":false`, `"done":true`, number("prompt_eval_count"), number("eval_count"), streamed},
			way{"/api/generate", `{"model":"tiny","prompt":"%s",` + s + `}`, `"done":false`, `"done":true`, number("prompt_eval_count"), number("eval_count"), streamed},
			way{"/v1/chat/completions", `{"model":"tiny","messages":[{"role":"user","content":"%s"}],` + s + usage + `}`, `"finish_reason":null`, `data: [DONE]`, number("prompt_tokens"), number("completion_tokens"), streamed},
			way{"/v1/completions", `{"model":"tiny","prompt":"%s",` + s + usage + `}`, `"finish_reason":null`, `data: [DONE]`, number("prompt_tokens"), number("completion_tokens"), streamed},
			way{"/v1/responses", `{"model":"tiny","input":"%s",` + s + `}`, `"type":"response.output_text.delta"`, `"type":"response.completed"`, number("input_tokens"), number("output_tokens"), streamed},
			way{"/v1/messages", `{"model":"tiny","max_tokens":60,"messages":[{"role":"user","content":"%s"}],` + s + `}`, `"text_delta"`, `"type":"message_stop"`, number("input_tokens"), number("output_tokens"), streamed},
		)
	}
	return all
}

var askID = regexp.MustCompile(`ask-(\d+)-(\d+)-(\d+)`)

// newLedger starts a fake Ollama. Each answer has the token counts that its request asks for: ask-NUMBER-PROMPT-TOKENS.
func newLedger(t *testing.T) *ledger {
	t.Helper()
	l := &ledger{fake: ollamatest.Start(t), asks: map[string]*fact{}, keys: map[string]*keyFact{}}
	// Answers come in pieces, so that a kill interrupts some of them.
	gate, over := make(chan struct{}), make(chan struct{})
	pace := time.NewTicker(300 * time.Microsecond)
	var pacing sync.WaitGroup
	pacing.Go(func() {
		for {
			select {
			case <-pace.C:
			case <-over:
				return
			}
			select {
			case gate <- struct{}{}:
			case <-over:
				return
			}
		}
	})
	t.Cleanup(func() { pace.Stop(); close(over); pacing.Wait() })
	for _, w := range ways()[:6] {
		l.fake.Handle("POST", w.path, func(r *ollamatest.Request) ollamatest.Answer {
			m := askID.FindSubmatch(r.Body)
			if m == nil {
				return ollamatest.Answer{Status: http.StatusBadRequest, Body: `{"error":"no number"}`}
			}
			l.note(func() {
				if f := l.asks[string(m[0])]; f != nil {
					f.upstream = true
				}
			})
			prompt, _ := strconv.Atoi(string(m[2]))
			tokens, _ := strconv.Atoi(string(m[3]))
			return ollamatest.Answer{PromptTokens: prompt, Tokens: tokens, Gate: gate}
		})
	}
	return l
}

// ask sends one request and records the answer piece by piece. It returns an error if the service cannot be reached or the connection
// breaks.
func (l *ledger) ask(ctx context.Context, url, secret string, random *rand.Rand) (took time.Duration, status int, err error) {
	w := ways()[random.IntN(12)]
	id := fmt.Sprintf("ask-%d-%d-%d", l.next.Add(1), 5+random.IntN(90), 1+random.IntN(60))
	f := &fact{}
	l.note(func() { l.asks[id] = f })
	req, err := http.NewRequestWithContext(ctx, "POST", url+w.path, strings.NewReader(fmt.Sprintf(w.body, id)))
	if err != nil {
		return 0, 0, err
	}
	req.Header.Set("Authorization", "Bearer "+secret)
	req.Header.Set("X-Request-Id", id)
	from := time.Now()
	res, err := client.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer res.Body.Close()
	err = l.read(f, &w, res)
	return time.Since(from), res.StatusCode, err
}

func (l *ledger) read(f *fact, w *way, res *http.Response) error {
	l.note(func() { f.status = res.StatusCode })
	if res.StatusCode != http.StatusOK {
		text, err := io.ReadAll(res.Body)
		return cmp.Or(err, errors.New(redact(string(text))))
	}
	counted := func(text string) {
		for at, into := range map[*regexp.Regexp]*int64{w.promptAt: &f.prompt, w.outputAt: &f.completion} {
			if all := at.FindAllStringSubmatch(text, -1); all != nil {
				*into, _ = strconv.ParseInt(all[len(all)-1][1], 10, 64)
			}
		}
	}
	if !w.streamed {
		text, err := io.ReadAll(res.Body)
		if err == nil {
			l.note(func() { f.whole = true; counted(string(text)) })
		}
		return err
	}
	for in := bufio.NewReader(res.Body); ; {
		line, err := in.ReadString('\n')
		if err == nil {
			l.note(func() {
				counted(line)
				switch {
				case strings.Contains(line, w.end):
					f.whole = true
				case strings.Contains(line, w.piece):
					f.chunks++
					l.chunks.Add(1)
				}
			})
			continue
		}
		if err == io.EOF {
			return nil
		}
		return err
	}
}

// booked is the row of a request in the books.
type booked struct {
	outcome            string
	prompt, completion int64
	estimated          bool
	times              int
}

// books reads the database files on the disk.
func books(t *testing.T, data string) (rows map[string]*booked) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(data, databaseName(t, data))+"?mode=ro&_busy_timeout=5000")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var verdict string
	if err := db.QueryRow(`PRAGMA integrity_check`).Scan(&verdict); err != nil || verdict != "ok" {
		t.Fatalf("integrity_check: %q, %v", verdict, err)
	}
	found, err := db.Query(`SELECT client_request_id, s.outcome, prompt_tokens, completion_tokens, estimated FROM requests r JOIN shapes s ON s.id = r.shape`)
	if err != nil {
		t.Fatal(err)
	}
	defer found.Close()
	rows = map[string]*booked{}
	for found.Next() {
		var id string
		r := &booked{times: 1}
		if err := found.Scan(&id, &r.outcome, &r.prompt, &r.completion, &r.estimated); err != nil {
			t.Fatal(err)
		}
		if before := rows[id]; before != nil {
			r.times += before.times
		}
		rows[id] = r
	}
	if err := found.Err(); err != nil {
		t.Fatal(err)
	}
	return rows
}

func databaseName(t *testing.T, data string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(data, "*.db"))
	if err != nil || len(found) != 1 {
		t.Fatalf("databases %v, %v", found, err)
	}
	return filepath.Base(found[0])
}

// result is the result of a comparison.
type result struct {
	asked, upstream, whole, cut, chunks, lost, doubled, wrong int64
	keys                                                      int
}

func (r result) String() string {
	return fmt.Sprintf("%d requests, %d of them seen by Ollama, %d answers read whole, %d broken off with %d pieces read; lost %d, doubled %d, with other tokens %d; %d keys",
		r.asked, r.upstream, r.whole, r.cut, r.chunks, r.lost, r.doubled, r.wrong, r.keys)
}

// compare compares the books with the ledger. The service must have restarted since the last request, or its journal must be empty.
func (l *ledger) compare(t *testing.T, data string) (r result) {
	t.Helper()
	rows := books(t, data)
	l.mu.Lock()
	defer l.mu.Unlock()
	r.keys = len(l.keys)
	for id, f := range l.asks {
		r.asked++
		b := rows[id]
		delete(rows, id)
		if f.upstream {
			r.upstream++
		}
		switch {
		case f.whole:
			r.whole++
		case f.chunks > 0:
			r.cut++
			r.chunks += f.chunks
		}
		switch {
		case b == nil:
			if f.upstream || f.whole || f.chunks > 0 {
				r.lost++
				t.Errorf("%s is not on the books: %+v", id, *f)
			}
		case b.times > 1:
			r.doubled++
			t.Errorf("%s is on the books %d times", id, b.times)
		case f.whole && (b.outcome != "ok" || b.estimated || b.prompt != f.prompt || b.completion != f.completion),
			f.chunks > b.completion, b.outcome == "interrupted" && (!b.estimated || b.prompt == 0):
			r.wrong++
			t.Errorf("%s: the client has %+v, the books %+v", id, *f, *b)
		}
	}
	for id := range rows {
		r.doubled++
		t.Errorf("the books have %q, which no client requested", id)
	}
	return r
}

// changeKeys creates, rotates and revokes keys until a call fails, and records the acknowledged changes.
func (l *ledger) changeKeys(ctx context.Context, url, admin string, random *rand.Rand) {
	for ctx.Err() == nil {
		preview, k := l.aKey(random)
		var err error
		var a answer
		switch n := random.IntN(4); {
		case k == nil || n < 2:
			a, err = tryCall(ctx, "POST", url+"/api/keys", admin, `{"name":"chaos","role":"user"}`)
			var made madeKey
			if err != nil || a.Err != nil || a.Status != http.StatusOK || json.Unmarshal([]byte(a.Body), &made) != nil {
				return
			}
			l.note(func() { l.keys[made.Preview] = &keyFact{secret: made.Secret, fresh: true} })
		case n == 2:
			l.note(func() { k.uncertain = true })
			a, err = tryCall(ctx, "POST", url+"/api/keys/"+preview+"/rotate", admin, `{"grace_seconds":0}`)
			var made madeKey
			if err != nil || a.Err != nil || a.Status != http.StatusOK || json.Unmarshal([]byte(a.Body), &made) != nil {
				return
			}
			l.note(func() { k.old, k.secret, k.uncertain, k.fresh = k.secret, made.Secret, false, true })
		default:
			l.note(func() { k.uncertain = true })
			a, err = tryCall(ctx, "DELETE", url+"/api/keys/"+preview, admin, "")
			if err != nil || a.Err != nil || a.Status >= 300 {
				return
			}
			l.note(func() { k.revoked, k.uncertain, k.fresh = true, false, true })
		}
	}
}

func (l *ledger) note(do func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	do()
}

// aKey returns a working key, or nil.
func (l *ledger) aKey(random *rand.Rand) (string, *keyFact) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var live []string
	for preview, k := range l.keys {
		if !k.revoked && !k.uncertain {
			live = append(live, preview)
		}
	}
	if len(live) == 0 {
		return "", nil
	}
	preview := live[random.IntN(len(live))]
	return preview, l.keys[preview]
}

// tryKeys checks that keys work as their acknowledged state requires. It tests all keys, or only those that changed since the last test.
func (l *ledger) tryKeys(t *testing.T, url string, all bool) {
	t.Helper()
	l.mu.Lock()
	keys := make(map[string]keyFact)
	for preview, k := range l.keys {
		if k.fresh || all {
			keys[preview] = *k
			k.fresh = false
		}
	}
	l.mu.Unlock()
	works := func(secret string) bool {
		switch a := call(t, "GET", url+"/api/models", secret, ""); a.Status {
		case http.StatusOK:
			return true
		case http.StatusUnauthorized:
			return false
		default:
			t.Fatalf("a list of models: %d %s", a.Status, redact(a.Body))
			return false
		}
	}
	for preview, k := range keys {
		if k.uncertain {
			continue
		}
		if works(k.secret) == k.revoked {
			t.Errorf("the key %s, with acknowledged revoked=%v, behaves differently", preview, k.revoked)
		}
		if k.old != "" && works(k.old) {
			t.Errorf("the old secret of %s works after its rotation", preview)
		}
	}
}
