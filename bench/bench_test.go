//go:build linux

package main

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/store"
)

const chunkedAnswer = "HTTP/1.1 200 OK\r\nServer: x\r\ntransfer-encoding: chunked\r\n\r\n" +
	"8;ext=1\r\n{\"a\":1}\n\r\nc\r\n{\"done\":\"\n\"}\r\n0\r\n\r\n"

func TestAnswerInAnyPieces(t *testing.T) {
	whole := "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{\"a\":1}\n{}\n\n"
	for name, c := range map[string]struct {
		text  string
		lines int
	}{"length": {whole, 3}, "chunked": {chunkedAnswer, 2}, "empty": {"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 0}} {
		for cut := 1; cut < len(c.text); cut++ {
			var a answer
			done, err := a.feed([]byte(c.text[:cut]))
			if err != nil || done {
				t.Fatalf("%s: done %v, error %v after %d of %d bytes", name, done, err, cut, len(c.text))
			}
			done, err = a.feed([]byte(c.text[cut:]))
			if err != nil || !done || a.status != 200 || a.lines != c.lines {
				t.Fatalf("%s cut at %d: done %v, status %d, %d lines, error %v", name, cut, done, a.status, a.lines, err)
			}
		}
		var a answer
		for i := range len(c.text) {
			if done, err := a.feed([]byte{c.text[i]}); err != nil || done != (i == len(c.text)-1) {
				t.Fatalf("%s byte %d: done %v, error %v", name, i, done, err)
			}
		}
	}
}

func TestAnswerCountsReads(t *testing.T) {
	var a answer
	head := strings.Index(chunkedAnswer, "8;")
	for _, piece := range []string{chunkedAnswer[:head], chunkedAnswer[head : head+10], chunkedAnswer[head+10:]} {
		if _, err := a.feed([]byte(piece)); err != nil {
			t.Fatal(err)
		}
	}
	if a.reads != 2 {
		t.Errorf("%d reads with body bytes, want 2", a.reads)
	}
}

func TestAnswerRefuses(t *testing.T) {
	for _, text := range []string{
		"SSH-2.0-OpenSSH\r\n\r\n",
		"HTTP/1.1 2x0 OK\r\nContent-Length: 1\r\n\r\n",
		"HTTP/1.1 200 OK\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
		"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxHead),
	} {
		var a answer
		if _, err := a.feed([]byte(text)); err == nil {
			t.Errorf("no error for %.60q", text)
		}
	}
}

func TestRequestIsCutOffWhole(t *testing.T) {
	one := string(post("/api/chat", "oas_x", `{"a":1}`))
	for cut := range len(one) {
		if head, _, _, err := request([]byte(one[:cut])); head != nil || err != nil {
			t.Fatalf("a request of %d of %d bytes: head %q, error %v", cut, len(one), head, err)
		}
	}
	head, body, rest, err := request([]byte(one + "POST"))
	if err != nil || string(body) != `{"a":1}` || string(rest) != "POST" || !strings.Contains(string(head), "Bearer oas_x\r\n") {
		t.Errorf("head %q, body %q, rest %q, error %v", head, body, rest, err)
	}
	chunked := "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"a\":\r\n2\r\n1}\r\n0\r\n\r\n"
	for cut := range len(chunked) {
		if head, _, _, err := request([]byte(chunked[:cut])); head != nil || err != nil {
			t.Fatalf("a chunked request of %d of %d bytes: head %q, error %v", cut, len(chunked), head, err)
		}
	}
	head, body, rest, err = request([]byte(chunked + "POST"))
	if err != nil || head == nil || string(body) != `{"a":1}` || string(rest) != "POST" {
		t.Errorf("chunked: head %q, body %q, rest %q, error %v", head, body, rest, err)
	}
	if _, _, _, err := request([]byte("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")); err == nil {
		t.Error("no error for a bad chunk size")
	}
}

// startMock serves the mock inside the test; its loop ends with the test's process.
func startMock(t *testing.T) string {
	t.Helper()
	m := newMock()
	if err := m.load(filepath.Join("..", "testdata", "ollama-0.24.0")); err != nil {
		t.Fatal(err)
	}
	port, err := m.listen()
	if err != nil {
		t.Fatal(err)
	}
	go m.loop()
	return fmt.Sprintf("127.0.0.1:%d", port)
}

func dialTest(t *testing.T, addr string, n int) *load {
	t.Helper()
	l, err := dial(addr, n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.close)
	return l
}

func TestLoadAgainstMock(t *testing.T) {
	addr := startMock(t)
	chat := post("/api/chat", "", smallChat)
	l := dialTest(t, addr, 4)
	n, _, err := l.closed(func() []byte { return chat }, 101, 0, 10*time.Second)
	if err != nil || n != 101 {
		t.Errorf("closed loop: %d answers of 101, error %v", n, err)
	}
	hist, err := l.paced(chat, 1000, 50*time.Millisecond)
	if err != nil || hist.TotalCount() != 50 {
		t.Errorf("open loop: %d latencies of 50, error %v", hist.TotalCount(), err)
	}
	s, err := l.stream(post("/api/chat", "", fmt.Sprintf(streamChat, 7)), 10*time.Second)
	if err != nil || s.records != 4*7 {
		t.Errorf("streams: %d records of 28, error %v", s.records, err)
	}
	// 50 ms and six gaps of 5 ms, which a late tick may shorten a little.
	if s.took < 75*time.Millisecond {
		t.Errorf("streams of 7 records ended after %v: they are not paced", s.took)
	}
	// Each event has two line ends; the last piece has the last event and [DONE].
	s, err = l.stream(post(openaiPath, "", fmt.Sprintf(openaiStream, 7)), 10*time.Second)
	if err != nil || s.records != 4*(2*7+2) {
		t.Errorf("streams of OpenAI: %d line ends of 64, error %v", s.records, err)
	}
	if _, _, err := l.closed(func() []byte { return post("/nothing", "", "{}") }, 1, 0, 10*time.Second); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("error %v for an unknown path, want the 404", err)
	}
	held := dialTest(t, addr, 3)
	if err := held.hold(post("/api/chat", "", fmt.Sprintf(streamChat, 0)), 2, 10*time.Second); err != nil {
		t.Errorf("idle streams: %v", err)
	}
}

func TestLoadGivesUp(t *testing.T) {
	l := dialTest(t, startMock(t), 1)
	_, err := l.stream(post("/api/chat", "", fmt.Sprintf(streamChat, 0)), 150*time.Millisecond)
	if !errors.Is(err, errLate) {
		t.Errorf("error %v for a stream that does not end, want %v", err, errLate)
	}
}

func TestProcFiles(t *testing.T) {
	pid, parent, err := parents([]byte("4711 (a) b (c) S 42 4711 4711 0 -1"))
	if err != nil || pid != 4711 || parent != 42 {
		t.Errorf("pid %d, parent %d, error %v", pid, parent, err)
	}
	for _, bad := range []string{"", "1 (x", "1 (x) S", "x (x) S 1"} {
		if _, _, err := parents([]byte(bad)); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
	for text, want := range map[string]int64{
		"5555-7777 ---p 00000000 00:00 0 [rollup]\nRss:                1600 kB\nPss: 354 kB\n": 1600 << 10,
		"Name:\tx\nVmHWM:\t    20 kB\nVmRSS:\t    12 kB\n":                                     12 << 10,
	} {
		if got, err := resident([]byte(text)); err != nil || got != want {
			t.Errorf("resident %d, error %v, want %d", got, err, want)
		}
	}
	if _, err := resident([]byte("Pss: 1 kB\n")); err == nil {
		t.Error("no error without a line for resident memory")
	}
}

func TestOwnProcessIsMeasured(t *testing.T) {
	// A child that uses a limited amount of CPU: the shell's loop ends by itself.
	p, err := startProc(t.TempDir(), "child", nil, "/bin/sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; exec sleep 20")
	if err != nil {
		t.Fatal(err)
	}
	defer p.kill()
	err = p.until(10*time.Second, "using CPU", func() bool {
		cpu, err := p.cpu()
		return err == nil && cpu > time.Millisecond
	})
	if err != nil {
		t.Error(err)
	}
	if rss, err := p.rss(); err != nil || rss < 100<<10 {
		t.Errorf("resident %d bytes, error %v", rss, err)
	}
}

func TestStatistics(t *testing.T) {
	for want, v := range map[float64][]float64{0: nil, 3: {3}, 2: {3, 1, 2}, 2.5: {4, 1, 3, 2}} {
		before := slices.Clone(v)
		if got := median(v); got != want || !slices.Equal(before, v) {
			t.Errorf("median of %v is %v, want %v and the list as it was", before, got, want)
		}
	}
	if got := turned([]int{1, 2, 3}, 4); !slices.Equal(got, []int{2, 3, 1}) {
		t.Errorf("turned: %v", got)
	}
	for want, v := range map[string]float64{"0.60": 0.6, "12.3": 12.34, "-12.3": -12.34, "1235": 1234.6} {
		if got := number(v); got != want {
			t.Errorf("number(%v) is %s, want %s", v, got, want)
		}
	}
}

func TestReport(t *testing.T) {
	f := figures{}
	one, many := variant{keys: 1}.row(), variant{keys: manyInTurn}.row()
	for _, v := range []float64{50, 40, 60} {
		f.add(one, service, v)
		f.add(one, before, v)
		f.add(one, reverse, 2*v)
		f.add(many, service, 1.5*v)
		f.add(many, before, 1.2*v)
	}
	f.add(chunkCPU, service, 13)
	f.add(chunkCPU, before, 10)
	f.add(chunkCPU, nginx, 10)
	f.add(throughput, service, 90)
	f.add(throughput, before, 100)
	f.add(cachedFew, service, 10)
	f.add(cachedMany, service, 11)
	b := &bench{figures: f, notes: []string{"nginx: not there"}, commit: "1234567 (Subject)", work: fullWork}
	text := report(b, "a machine", 3, map[string]string{chunkCPU: "it checks more"})
	for _, want := range []string{
		"| " + one + " | 50.0 | 50.0 | 100 |  | 0.50 |  | 1.00 |",
		"| " + one + " | 40.0 … 60.0 | 40.0 … 60.0 | 80.0 … 120 |  |",
		"| " + one + " | at most 0.65 of ReverseProxy | 0.50 | reached |",
		"| " + many + " | at most 1.2 of “" + one + "” | 1.50 | **missed** |",
		"| " + chunkCPU + " | at most 1.2 of nginx | 1.30 | **missed** |",
		"| " + idleStream + " | at most 40.0 |  | not measured |",
		"- " + many + ": 25 % worse: **no reason is given** (the rounds of both overlap)\n",
		"- " + chunkCPU + ": 30 % worse: it checks more\n",
		"- " + throughput + ": 11 % worse: **no reason is given**\n",
		"| 10.0 | 11.0 | 1.10 |",
		"- nginx: not there",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the report lacks %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "- "+one) {
		t.Errorf("a figure that is the same is named as worse:\n%s", text)
	}
}

func TestReasons(t *testing.T) {
	if _, err := readReasons("reasons.txt"); err != nil {
		t.Error(err)
	}
	file := filepath.Join(t.TempDir(), "reasons.txt")
	for text, want := range map[string]string{"# x\n" + chunkCPU + " = y = z\n": "y = z", "no figure = y\n": "", chunkCPU + "\n": ""} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := readReasons(file)
		if (err == nil) != (want != "") || got[chunkCPU] != want {
			t.Errorf("%q: reasons %v, error %v", text, got, err)
		}
	}
}

func TestKeyIsFoundInOutput(t *testing.T) {
	key := "oas_" + strings.Repeat("a", 10) + "_" + strings.Repeat("Z9", 19)
	if got := keyIn([]byte("first admin key (oas_aaaaaaaaaa), shown once:\n\n  " + key + "\n")); got != key {
		t.Errorf("found %q", got)
	}
	if got := keyIn([]byte("oas_aaaaaaaaaa and " + key + "x")); got != "" {
		t.Errorf("found %q in a text that is not a key", got)
	}
}

func TestRowsAreAdded(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "journal"), []byte("not a database"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "x.db")
	db, err := sql.Open("sqlite", file)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	_, err = db.Exec(`CREATE TABLE keys (preview TEXT PRIMARY KEY, name TEXT NOT NULL, mac BLOB NOT NULL UNIQUE) STRICT;
		INSERT INTO keys VALUES ('oas_real', 'bench', x'00')`)
	if err != nil {
		t.Fatal(err)
	}
	found, err := database(dir)
	if err != nil || found != file {
		t.Fatalf("found %q, error %v", found, err)
	}
	if err := addRows(file, "oas_real", 1000); err != nil {
		t.Fatal(err)
	}
	var n, length int
	if err := db.QueryRow(`SELECT count(*), min(length(preview)) FROM keys WHERE name = 'bench' AND preview <> 'oas_real'`).Scan(&n, &length); err != nil || n != 1000 || length != 14 {
		t.Errorf("%d rows, shortest preview of %d characters, error %v", n, length, err)
	}
	if err := addRows(file, "oas_nobody", 1); err == nil {
		t.Error("no error for a missing key")
	}
}

func TestCPUModel(t *testing.T) {
	if got := cpuModel("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: other\n"); got != "Some CPU @ 2 GHz" {
		t.Errorf("%q", got)
	}
}

func TestKeepBooks(t *testing.T) {
	section := func(size, text string) string { return "\n" + booksTitle + size + " rows\n\n" + text + "\n" }
	before := "# Old\n" + section("500", "old small") + section("10000", "large")
	if got, want := keepBooks(before, "# New\n"+section("500", "new small")), "# New\n"+section("500", "new small")+section("10000", "large"); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := keepBooks("", "# New\n"), "# New\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := keepBooks(before, before+section("10000", "larger")); strings.Count(got, booksTitle) != 2 || !strings.Contains(got, "larger") || strings.Contains(got, "large\n") {
		t.Errorf("replacing one: %q", got)
	}
}

// The measured books have the expected number of rows and keys, and sums that agree with the rows.
func TestFillBooks(t *testing.T) {
	file := filepath.Join(t.TempDir(), "books.db")
	s, err := store.Create(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	keys := make([]string, bookKeys)
	for i := range keys {
		keys[i] = fmt.Sprintf("oas_%010d_secret", i)
	}
	const n = 6_000
	r := &booked{rows: n}
	if err := r.fill(file, keys); err != nil {
		t.Fatal(err)
	}
	if r.perSecond <= 0 || r.rowBytes < 100 {
		t.Errorf("%.0f rows a second, %.0f bytes a row", r.perSecond, r.rowBytes)
	}
	if s, err = store.Open(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	all, err := s.AllStatistics(t.Context(), time.Now())
	if err != nil || all.Total.TotalRequests != n || len(all.ByKey) < bookKeys*9/10 || len(all.Total.ByModel) != bookModels || len(all.Total.ByOutcome) != 5 {
		t.Errorf("%d requests of %d keys and %d models: %v", all.Total.TotalRequests, len(all.ByKey), len(all.Total.ByModel), err)
	}
	for _, by := range []api.Dimension{api.ByKey, api.ByBackend, api.ByDay} {
		used, err := s.Usage(t.Context(), store.UsageQuery{By: []api.Dimension{by}, Limit: 10_000})
		if err != nil || used.Total.Requests != n || by == api.ByBackend && used.Groups != bookBackends || by == api.ByDay && used.Groups < bookDays {
			t.Errorf("by %s: %d requests in %d groups: %v", by, used.Total.Requests, used.Groups, err)
		}
	}
}
