//go:build linux

package main

import (
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/store"
)

// The size of the books: rows of bookDays, by bookKeys keys, on bookModels models and bookBackends Ollama servers.
const (
	bookDays     = 35
	bookKeys     = 1000
	bookModels   = 20
	bookBackends = 5
	bookBatch    = 250_000 // rows in a transaction while filling
	liveBatch    = 2000    // the most rows that the service writes in a transaction
)

// booked has the measurements of the books.
type booked struct {
	rows                int
	perSecond, rowBytes float64
	kinds               []string
	questions           map[string]int
	median, slowest     map[string]time.Duration
	first               map[string]time.Duration // the longest time of a query that runs for the first time
	cpu                 map[string]time.Duration // of the slowest query: its time on an idle machine
	slowestQuestion     map[string]string
}

// statistics is the part that measures the books.
func (b *bench) statistics(int) (err error) {
	if b.program != "" {
		b.booked, err = b.books(b.rows, b.kept)
	}
	return err
}

// books fills a database in the same way as the service, and queries each kind of statistics from the service. If dir already has
// such a database, it only queries.
func (b *bench) books(rows int, dir string) (*booked, error) {
	r := &booked{rows: rows, questions: map[string]int{}, median: map[string]time.Duration{}, slowest: map[string]time.Duration{}, first: map[string]time.Duration{}, cpu: map[string]time.Duration{}, slowestQuestion: map[string]string{}}
	if dir == "" {
		dir = filepath.Join(b.dir, "books")
	}
	g := newGateway(b.program, dir, b.mock.addr)
	g.more = []string{"RETENTION_ROWS=0", "RETENTION_ROLLUPS=0"}
	keys, err := g.bookKeys()
	if err != nil {
		return nil, err
	}
	file, err := database(g.data())
	if err != nil {
		return nil, err
	}
	if err := r.fill(file, keys); err != nil {
		return nil, err
	}
	p, err := g.start("books")
	if err != nil {
		return nil, err
	}
	defer p.stop()
	if err := r.ask(p, g.admin, keys); err != nil {
		return nil, err
	}
	return r, r.askCommand(g)
}

// bookKeys makes the keys, or reads those that an earlier run has made.
func (g *gateway) bookKeys() ([]string, error) {
	kept := filepath.Join(g.dir, "keys.txt")
	if text, err := os.ReadFile(kept); err == nil {
		lines := strings.Fields(string(text))
		g.secret, g.admin = lines[0], lines[1]
		return lines[2:], nil
	}
	keys, err := g.keysOf(bookKeys)
	if err != nil {
		return nil, err
	}
	return keys, os.WriteFile(kept, []byte(strings.Join(append([]string{g.secret, g.admin}, keys...), "\n")), 0o600)
}

// fill books rows up to now until there are as many as wanted.
func (r *booked) fill(file string, keys []string) error {
	s, err := store.Open(context.Background(), file)
	if err != nil {
		return err
	}
	defer s.Close()
	// As in the service.
	summing, stop := context.WithCancel(context.Background())
	var summer sync.WaitGroup
	summer.Go(func() { s.SumUp(summing, time.Now, slog.New(slog.DiscardHandler)) })
	defer summer.Wait()
	defer stop()
	all, err := s.AllStatistics(context.Background(), time.Now())
	if err != nil {
		return err
	}
	have := int(all.Total.TotalRequests)
	live := max(10*liveBatch, r.rows/50)
	random, now := rand.New(rand.NewPCG(1, 2)), time.Now()
	step := bookDays * 24 * time.Hour / time.Duration(r.rows)
	var took time.Duration // of the last batches, which show the rate
	added := 0
	for have < r.rows {
		batch := min(bookBatch, r.rows-have-live)
		if r.rows-have <= live {
			batch = liveBatch
		}
		recs := make([]api.Record, min(batch, r.rows-have))
		for i := range recs {
			recs[i] = bookRecord(random, keys, now.Add(-step*time.Duration(r.rows-have-i)))
		}
		clock := time.Now()
		if _, err := s.AddRecords(context.Background(), recs); err != nil {
			return err
		}
		have += len(recs)
		if batch != liveBatch {
			progress(service, "%d of %d rows, %.0f a second", have, r.rows, float64(len(recs))/time.Since(clock).Seconds())
		} else {
			took += time.Since(clock)
			added += len(recs)
			r.perSecond = float64(added) / took.Seconds()
		}
	}
	size, err := s.Bytes(context.Background())
	r.rowBytes = float64(size) / float64(have)
	return err
}

// bookRecord returns a request as a thousand people would send them: some more than others, mostly to their three models.
func bookRecord(random *rand.Rand, keys []string, at time.Time) api.Record {
	key := int(bookKeys * math.Pow(random.Float64(), 1.5))
	model := (key + random.IntN(3)) % bookModels
	if random.IntN(5) == 0 {
		model = random.IntN(bookModels)
	}
	total := time.Duration(math.Exp(random.NormFloat64()*1.2) * float64(time.Second))
	eval, load, prompt := total*3/4, 20*time.Millisecond, total/8
	rec := api.Record{
		Admission: api.Admission{
			ID: fmt.Sprintf("%08x-%04x-7%03x-%04x-%012x", at.UnixMilli()>>16, at.UnixMilli()&0xffff, random.IntN(0xfff), 0x8000|random.IntN(0x3fff), random.Int64N(1<<48)),
			At: at, Key: keys[key][:len("oas_0123456789")], Model: fmt.Sprintf("model-%d:latest", model), Backend: fmt.Sprintf("gpu%d", 1+random.IntN(bookBackends)),
			Endpoint: "/api/chat", Class: "inference", Streamed: true, ClientAddr: fmt.Sprintf("10.0.%d.%d", key/250, key%250),
		},
		Outcome: api.OutcomeOK, Status: 200, PromptTokens: random.Int64N(2000), CompletionTokens: random.Int64N(1000), FirstByte: total / 4, Total: total, Slot: total,
		OllamaTotal: &total, OllamaLoad: &load, OllamaPromptEval: &prompt, OllamaEval: &eval, BytesIn: random.Int64N(5000), BytesOut: random.Int64N(50_000),
	}
	switch n := random.IntN(100); {
	case n < 40:
		rec.Endpoint, rec.OllamaTotal, rec.OllamaLoad, rec.OllamaPromptEval, rec.OllamaEval = "/v1/chat/completions", nil, nil, nil, nil
	case n < 45:
		rec.Endpoint = "/api/generate"
	case n < 50:
		rec.Endpoint = "/v1/embeddings"
	}
	switch n := random.IntN(1000); {
	case n < 30:
		rec.Outcome, rec.ErrorCode, rec.Estimated = api.OutcomeClientGone, "client_gone", true
	case n < 45:
		rec.Outcome, rec.Status = api.OutcomeRefused, 404
	case n < 49:
		rec.Outcome, rec.ErrorCode, rec.Status = api.OutcomeUpstream, api.CodeUpstreamError, 502
	case n < 50:
		rec.Outcome, rec.Status = api.OutcomeTimeout, 504
	}
	return rec
}

// question is one query of statistics. The report has one line for each kind.
type question struct{ kind, key, path string }

// bookQuestions returns all kinds of queries of the books, with spans that end at odd times and with whole days.
func bookQuestions(admin string, keys []string, now time.Time) (all []question) {
	add := func(kind, path string) { all = append(all, question{kind, admin, path}) }
	for _, i := range []int{0, 500, 999} {
		all = append(all, question{"own statistics (/api/stats)", keys[i], "/api/stats"})
	}
	add("statistics of all keys (/api/admin/stats)", "/api/admin/stats")
	t := func(d time.Duration) string { return url.QueryEscape(now.Add(-d).UTC().Format(time.RFC3339)) }
	const day = 24 * time.Hour
	preview := keys[10][:len("oas_0123456789")]
	filters := []string{"", "&key=" + preview, "&model=model-3", "&endpoint=/api/chat", "&backend=gpu2", "&outcome=client_gone"}
	for _, span := range []struct{ name, query string }{
		{"last hour", "&from=" + t(time.Hour)},
		{"last day", "&from=" + t(day)},
		{"an hour of two weeks ago", "&from=" + t(14*day) + "&to=" + t(14*day-time.Hour)},
		{"last 30 days", "&from=" + t(30*day)},
		{"30 days as they are without from", ""},
		{"a month of odd ends", "&from=" + t(33*day-5*time.Hour) + "&to=" + t(3*day-3*time.Hour)},
		{"last year", "&from=" + t(365*day)},
	} {
		for _, by := range []string{"key", "model", "endpoint", "backend", "outcome", "hour", "day", "model,day"} {
			if by == "hour" && span.name == "last year" {
				continue
			}
			for _, f := range filters {
				kind := "usage by one name"
				if f != "" {
					kind = "usage by one name, of one name"
				}
				if by == "hour" || by == "day" || by == "model,day" {
					kind = strings.Replace(kind, "by one name", "by hour or day", 1)
				}
				add(kind, "/api/admin/usage?group_by="+by+span.query+f)
			}
		}
	}
	for _, by := range []string{"key,model", "key,outcome", "key,day", "key,model,day", "model,endpoint,backend,outcome", "model,hour"} {
		add("usage by two names or more", "/api/admin/usage?group_by="+by)
	}
	for _, q := range []string{"group_by=day&tz=Europe/Berlin", "group_by=model,day&tz=America/New_York", "group_by=day&tz=Asia/Kolkata", "group_by=day,outcome&tz=Asia/Kathmandu&model=model-3", "group_by=day&tz=Europe/Berlin&key=" + preview} {
		add("usage by day of another zone", "/api/admin/usage?"+q)
	}
	for _, f := range append(filters, "&model=model-3&outcome=timeout", "&endpoint=/v1/embeddings&backend=gpu1&outcome=ok", "&model=never-ran", "&key="+preview+"&model=model-3", "&key="+preview+"&outcome=timeout") {
		add("requests, the first page", "/api/admin/requests?limit=100"+f)
		// The cursor of a page three weeks deep.
		cursor := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "1.%d.00000000", now.Add(-21*day).UnixMilli()))
		add("requests, a deep page", "/api/admin/requests?limit=100"+f+"&cursor="+cursor)
		add("requests, the first 1,000", "/api/admin/requests?limit=1000"+f)
	}
	add("tables as CSV", "/api/admin/usage?group_by=key&format=csv")
	add("tables as CSV", "/api/admin/requests?format=csv&limit=1000")
	return all
}

// ask sends each query several times.
func (r *booked) ask(p *proc, admin string, keys []string) error {
	const times = 3
	took := map[string][]time.Duration{}
	for _, q := range bookQuestions(admin, keys, time.Now()) {
		var own []time.Duration
		before, err := p.cpu()
		if err != nil {
			return err
		}
		for range times {
			begun := time.Now()
			req, err := http.NewRequest("GET", "http://"+p.addr+q.path, nil)
			if err != nil {
				return err
			}
			req.Header.Set("Authorization", "Bearer "+q.key)
			answer, err := client.Do(req)
			if err != nil {
				return err
			}
			text, err := io.ReadAll(answer.Body)
			answer.Body.Close()
			if err != nil || answer.StatusCode != 200 {
				return fmt.Errorf("GET %s: %s %.200s %w", q.path, answer.Status, text, err)
			}
			own = append(own, time.Since(begun))
		}
		after, err := p.cpu()
		if err != nil {
			return err
		}
		r.count(took, q.kind, q.path, own, (after-before)/times)
	}
	r.sum(took)
	return nil
}

func (r *booked) askCommand(g *gateway) error {
	took := map[string][]time.Duration{}
	for _, args := range [][]string{{"stats"}, {"stats", "--by", "hour", "--days", "7"}, {"stats", "--days", "365", "--json"}} {
		var own []time.Duration
		var cpu time.Duration
		for range 3 {
			cmd := exec.Command(g.program, args...)
			cmd.Env = append(g.more, "DATA_DIR="+g.data(), "SECRET_KEY="+g.secret)
			cmd.Dir = g.dir
			begun := time.Now()
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%v: %w: %s", args, err, lastLine(out))
			}
			own = append(own, time.Since(begun))
			cpu += (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()) / 3
		}
		r.count(took, "the stats command, whole process", strings.Join(args, " "), own, cpu)
	}
	r.sum(took)
	return nil
}

func (r *booked) count(took map[string][]time.Duration, kind, path string, own []time.Duration, cpu time.Duration) {
	if took[kind] == nil {
		r.kinds = append(r.kinds, kind)
	}
	took[kind] = append(took[kind], own...)
	r.questions[kind]++
	r.first[kind] = max(r.first[kind], own[0])
	slices.Sort(own)
	// The slowest query by its median, because a single run may have been disturbed.
	if m := own[len(own)/2]; m > r.slowest[kind] {
		r.slowest[kind], r.slowestQuestion[kind], r.cpu[kind] = m, path, cpu
	}
	if own[len(own)/2] > 100*time.Millisecond {
		progress(service, "%v, of CPU %v, for %s", own, cpu, path)
	}
}

func (r *booked) sum(took map[string][]time.Duration) {
	for kind, all := range took {
		slices.Sort(all)
		r.median[kind] = all[len(all)/2]
	}
}

// report returns the section about the books in RESULTS.md.
func (r *booked) report(machine string) string {
	var s strings.Builder
	fmt.Fprintf(&s, "\n%s%d rows\n\nMeasured on %s. The books have %d days, %d keys, %d models, %d Ollama servers. Each row takes %.0f bytes on the disk, with its indexes and all sums.", booksTitle, r.rows, machine, bookDays, bookKeys, bookModels, bookBackends, r.rowBytes)
	if r.perSecond > 0 {
		fmt.Fprintf(&s, " At the end %.0f rows a second were added, in batches of %d.", r.perSecond, liveBatch)
	}
	s.WriteString("\n\n| over HTTP, ms | queries | median | slowest query | its CPU time | which query | slowest first time |\n|---|---|---|---|---|---|---|\n")
	ms := func(d time.Duration) string { return number(float64(d) / float64(time.Millisecond)) }
	for _, k := range r.kinds {
		fmt.Fprintf(&s, "| %s | %d | %s | %s | %s | `%s` | %s |\n", k, r.questions[k], ms(r.median[k]), ms(r.slowest[k]), ms(r.cpu[k]), readable(r.slowestQuestion[k]), ms(r.first[k]))
	}
	return s.String()
}

const booksTitle = "## Statistics of "

// keepBooks returns the new results plus the earlier sections about books of other sizes, each size once. Larger books take hours to
// fill, so not every run has them.
func keepBooks(before, now string) string {
	var order []string
	sections := map[string]string{}
	head, _, _ := strings.Cut(now, "\n"+booksTitle)
	for _, text := range []string{before, now} {
		for i, section := range strings.Split(text, "\n"+booksTitle) {
			if i == 0 {
				continue
			}
			size, _, _ := strings.Cut(section, "\n")
			if _, known := sections[size]; !known {
				order = append(order, size)
			}
			sections[size] = strings.TrimRight(section, "\n")
		}
	}
	slices.SortFunc(order, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) })
	out := strings.TrimRight(head, "\n") + "\n"
	for _, size := range order {
		out += "\n" + booksTitle + sections[size] + "\n"
	}
	return out
}

// readable returns a query without its key, which means nothing to readers.
func readable(path string) string {
	if text, err := url.QueryUnescape(path); err == nil {
		path = text
	}
	return keyPreview.ReplaceAllString(path, "key=KEY")
}

var keyPreview = regexp.MustCompile(`key=oas_[0-9A-Za-z]{10}`)
