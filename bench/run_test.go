//go:build linux

package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestMain lets this test binary be the harness' own children, which it starts as its subcommands.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && slices.Contains([]string{"mock", "reverseproxy", "awake", "busy"}, os.Args[1]) {
		if err := run(os.Args[1:]); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// Each part gives its figures for all contestants that are installed.
func TestShortRun(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the service and starts all contestants")
	}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	o := options{
		work: work{
			chats: 100, chatConns: 4, streams: 8, chunks: 5, rate: 200, span: 200 * time.Millisecond, rpsConns: 4, rpsSpan: 100 * time.Millisecond,
			idle: 8, steady: 8, steadySpan: time.Second, enduring: 16, endure: 500 * time.Millisecond, prompts: 1, images: 1, keys: 100, uses: 20,
		},
		parts: slices.DeleteFunc(slices.Clone(parts), func(p part) bool { return p.name == "books" }), contestants: allContestants,
	}
	o.work.short = true
	b, err := newBench(root, t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	b.rounds(o.parts, 1, 0)
	for _, note := range b.notes {
		if !strings.Contains(note, errMissing.Error()) {
			t.Error(note)
		}
	}
	rows := compared()
	for _, name := range []string{service, reverse} {
		for _, row := range rows {
			if len(b.figures[row][name]) != 1 {
				t.Errorf("%s: %v of %s", name, b.figures[row][name], row)
			}
		}
	}
	for _, row := range []string{steadyErrors, manyErrors} {
		if got, ok := b.figures.median(row, service); got != 0 || !ok {
			t.Errorf("%s: %v, want 0", row, got)
		}
	}
	if most, measured := lost(b.endured); most != 0 || !measured || len(b.endured) != 3 {
		t.Errorf("%d rows lost in %d sustained loads, want 0 in 3", most, len(b.endured))
	}
	for _, e := range b.endured {
		if e.answered == 0 || e.rows != e.answered || e.cpu <= 0 || e.peak == 0 {
			t.Errorf("sustained load: %v", e.cells())
		}
	}
	text := report(b, "a machine", 1, nil)
	if strings.Contains(text, "not measured") {
		t.Errorf("a target is not measured:\n%s", text)
	}
}

func TestOptions(t *testing.T) {
	o, err := readOptions([]string{"-only", "chats,books", "-contestants", "service,nginx", "-before", "", "-sustained", "10m"}, "/root")
	if err != nil || len(o.parts) != 2 || o.parts[1].name != "books" || len(o.contestants) != 2 || o.out != "" || o.work.endure != 10*time.Minute {
		t.Errorf("%+v, error %v", o, err)
	}
	if o, err = readOptions(nil, "/root"); err != nil || o.out != "/root/bench/RESULTS.md" || o.before != "HEAD~1" {
		t.Errorf("a whole run: %+v, error %v", o, err)
	}
	for _, bad := range [][]string{{"-only", "x"}, {"-contestants", "x"}, {"x"}, {"-rounds", "0"}} {
		if _, err := readOptions(bad, "/root"); err == nil {
			t.Errorf("no error for %v", bad)
		}
	}
}

func TestPeersReport(t *testing.T) {
	b := &bench{figures: figures{}, notes: []string{"Portkey: npm install: no network"}}
	b.figures.add(throughput, service, 5000)
	b.figures.add(throughput, oneAPI, 200)
	text := peersReport(b, "a machine", 1)
	for _, want := range []string{"|  | service | one-api |", "| requests per second | 5000 | 200 |", "- one-api v", "- Portkey: npm install: no network", "- Olla"} {
		if !strings.Contains(text, want) {
			t.Errorf("the report lacks %q:\n%s", want, text)
		}
	}
}

func TestStamps(t *testing.T) {
	stamp := make([]byte, stampSize)
	const sent = 1 << 40
	putStamp(stamp, sent)
	record := `{"message":{` + stampMark + string(stamp) + `"}}` + "\n"
	var ages []time.Duration
	stampsIn([]byte(record+record+`{`+stampMark+`no stamp, longer"}`+record[:len(record)-8]), sent+int64(time.Millisecond), func(age time.Duration) { ages = append(ages, age) })
	if want := []time.Duration{time.Millisecond, time.Millisecond}; !slices.Equal(ages, want) {
		t.Errorf("got ages %v, want %v", ages, want)
	}
}

func TestWheel(t *testing.T) {
	w := newWheel(4 * wheelTick)
	conns := []*mockConn{{}, {}, {}, {}, {}}
	for _, c := range conns {
		w.add(c)
	}
	turns := map[*mockConn]int{}
	w.turn(4, func(c *mockConn) { turns[c]++ })
	w.turn(100, func(c *mockConn) { turns[c]++ }) // late by more than a turn
	for i, c := range conns {
		if turns[c] != 2 || c.slot != i%4 {
			t.Errorf("stream %d: slot %d, %d turns of 2", i, c.slot, turns[c])
		}
	}
	w.remove(conns[0])
	w.turn(4, func(c *mockConn) { turns[c]++ })
	if turns[conns[0]] != 2 || turns[conns[4]] != 3 || w.streaming != 4 {
		t.Errorf("after one was removed: %v, %d streams", turns, w.streaming)
	}
}

// A stream that breaks is counted, and the others continue.
func TestCrowdCountsFailures(t *testing.T) {
	l := dialTest(t, startMock(t), 3)
	failed := 0
	l.fail = func(error) { failed++ }
	if err := l.hold(post(nativePath, "", `{"messages":[{"content":"chunks=1000 every=10"}]}`), 3, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	records := 0
	if err := l.listen(200*time.Millisecond, func(time.Duration) { records++ }); err != nil || failed > 0 || records < 3*10 {
		t.Errorf("%d records of about 60, %d failures, error %v", records, failed, err)
	}
	if err := l.order[0].send([]byte("nonsense\r\n\r\n"), time.Time{}); err != nil {
		t.Fatal(err)
	}
	if err := l.listen(100*time.Millisecond, nil); err != nil || failed != 1 {
		t.Errorf("%d failures of 1, error %v", failed, err)
	}
}
