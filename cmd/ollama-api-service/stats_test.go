package main

import (
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/api"
)

// spent books n requests of a key, one a minute, ending at at.
func (d *desk) spent(key, model string, at time.Time, n int) {
	d.Helper()
	var recs []api.Record
	for i := range n {
		recs = append(recs, api.Record{
			Admission: api.Admission{ID: fmt.Sprint(key, model, at.UnixNano(), i), At: at.Add(-time.Duration(i) * time.Minute), Key: key, Model: model, Endpoint: "/api/chat", Backend: "ollama", Class: "inference"},
			Outcome:   api.OutcomeOK, Status: 200, PromptTokens: 10, CompletionTokens: 5, Total: 2 * time.Second,
		})
	}
	if _, err := d.store.AddRecords(d.Context(), recs); err != nil {
		d.Fatal(err)
	}
}

func wantLines(t *testing.T, out string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !regexp.MustCompile(`(?m)^` + line + `$`).MatchString(out) {
			t.Errorf("no line like %s in\n%s", line, out)
		}
	}
}

// Yesterday at noon, so that no row is at the boundary of two days.
func yesterday() time.Time { return time.Now().UTC().Truncate(24 * time.Hour).Add(-12 * time.Hour) }

func TestStats(t *testing.T) {
	d := newDesk(t)
	if out := d.run("stats"); !strings.Contains(out, "0 requests") || !strings.Contains(out, "No requests in this time range") {
		t.Errorf("without requests:\n%s", out)
	}
	d.make("--name", "Idle")
	_, busy := d.make("--name", "Busy one")
	_, gone := d.make("--name", "Gone")
	d.run("keys", "revoke", gone)
	noon := yesterday()
	d.spent(busy, "tiny:latest", noon, 4)
	d.spent(gone, "tiny:latest", noon, 2)
	d.spent("env-admin", "", noon.Add(-48*time.Hour), 1)
	d.spent(busy, "big:7b", noon.Add(-40*24*time.Hour), 9)

	d.environ = append(d.environ, "COLUMNS=120")
	out := d.run("stats")
	when := noon.Format("2006-01-02 15:04Z")
	wantLines(t, out,
		`20\d\d-\d\d-\d\d to 20\d\d-\d\d-\d\d \(UTC\): 7 requests, 70 tokens in, 35 tokens out`,
		`KEY +NAME +REQUESTS +TOKENS IN +OUT +AVERAGE +LAST REQUEST`,
		busy+` +Busy one +4  #{30} +40 +20 +2\.00s  `+when,
		gone+`\* +Gone +2  #{15} +20 +10 +2\.00s  `+when,
		`env-admin +1  #{8} +10 +5 +2\.00s  .*`,
		`\* revoked`, `1 more key had no requests\.`,
		`MODEL +REQUESTS +TOKENS IN +OUT +AVERAGE +LAST REQUEST`, `tiny:latest +6  #+ +60 +30 +2\.00s .*`, `\(none\) +1  #+ .*`,
		noon.Format(`2006-01-02 Mon`)+` +6  #+ +60 +30 +2\.00s`,
	)
	if days := regexp.MustCompile(`(?m)^20\d\d-\d\d-\d\d \w{3} `).FindAllString(out, -1); len(days) != 2 || strings.Contains(out, "big:7b") {
		t.Errorf("%d days, want the 2 with requests, and none before:\n%s", len(days), out)
	}
	wantLines(t, d.run("stats", "--days", "60", "--by", "model"), `big:7b +9 .*`)
	wantLines(t, d.run("stats", "--by", "endpoint,outcome,backend"), `ENDPOINT .*`, `/api/chat +7 .*`, `OUTCOME .*`, `ok +7 .*`, `BACKEND .*`, `ollama +7 .*`)
	day := noon.Format(time.DateOnly)
	hours := d.run("stats", "--by", "hour", "--from", day, "--to", day)
	wantLines(t, hours, day+` to `+day+` \(UTC\): 6 requests, .*`, day+` 12:00 +2  #+ .*`, day+` 11:00 +4  #+ .*`)
	if n := strings.Count(hours, day+" "); n != 4 {
		t.Errorf("the day appears %d times, want it in two hours with requests and twice in the headline:\n%s", n, hours)
	}
	year, week := noon.ISOWeek()
	wantLines(t, d.run("stats", "--days", "60", "--by", "month,week"), `MONTH +.*`, noon.Format(`2006-01`)+` +\d+ .*`, `WEEK +.*`, fmt.Sprintf(`%d-W%02d 20\d\d-\d\d-\d\d +[67] .*`, year, week))
	// Twelve hours east, noon is midnight of the next day, and earlier requests belong to the day before.
	east := noon.AddDate(0, 0, 1).Format(time.DateOnly)
	moved := d.run("stats", "--by", "day,hour", "--tz", "+12:00", "--from", day, "--to", east)
	wantLines(t, moved, day+` to `+east+` \(\+12:00\): 6 requests, .*`, noon.Format(`2006-01-02 Mon`)+` +4 .*`, noon.AddDate(0, 0, 1).Format(`2006-01-02 Mon`)+` +2 .*`,
		day+` 23:00 +4  #+ .*`, east+` 00:00 +2  #+ .*`)
	// The clocks of the Azores skip midnight on 29 March 2026.
	d.spent(busy, "tiny:latest", time.Date(2026, 3, 29, 0, 30, 0, 0, time.UTC), 1)
	d.spent(busy, "tiny:latest", time.Date(2026, 3, 29, 1, 0, 0, 0, time.UTC), 1)
	skipped := []string{"stats", "--by", "day", "--tz", "Atlantic/Azores", "--to"}
	wantLines(t, d.run(append(skipped, "2026-03-28", "--from", "2026-03-28")...), `2026-03-28 to 2026-03-28 \(Atlantic/Azores\): 1 request, .*`)
	wantLines(t, d.run(append(skipped, "2026-03-29", "--from", "2026-03-29")...), `2026-03-29 to 2026-03-29 \(Atlantic/Azores\): 1 request, .*`)
	wantLines(t, d.run(append(skipped, "2026-04-04", "--from", "2026-03-20")...), `2026-03-28 Sat +1 .*`, `2026-03-29 Sun +1 .*`)
	if out := d.run("stats", "--by", "key", "--top", "1"); !strings.Contains(out, "2 more; --top 0 shows all.") || strings.Contains(out, "env-admin") {
		t.Errorf("want only the first row:\n%s", out)
	}

	var all statsReport
	if err := json.Unmarshal([]byte(d.run("stats", "--json")), &all); err != nil {
		t.Fatal(err)
	}
	keys := all.By[api.ByKey]
	if len(keys) != 3 {
		t.Fatalf("got %d keys, want 3: %+v", len(keys), keys)
	}
	got := fmt.Sprintln(*keys[0].Key, keys[0].KeyName, keys[0].Requests, keys[1].Revoked, all.Total.Requests, len(all.By[api.ByModel]), len(all.By[api.ByDay]))
	if want := fmt.Sprintln(busy, "Busy one", 4, true, 7, 2, 2); got != want {
		t.Errorf("got %swant %s", got, want)
	}
	for _, args := range [][]string{
		{"--by", "prompt"},
		{"--by", ""},
		{"--days", "0"},
		{"--days", "5000"},
		{"--days", "3", "--from", day},
		{"--from", "yesterday"},
		{"--to", "31.12.2026"},
		{"--from", "2026-11-02", "--to", "2026-11-01"},
		{"--from", "2999-01-01"},
		{"--from", "1000-01-01"},
		{"--by", "hour", "--days", "100"},
		{"--top", "-1"},
		{"--tz", "Local"},
		{"--tz", "Mars/Base"},
	} {
		d.fails(exitUsage, []string{"--"}, append([]string{"stats"}, args...)...)
	}
}

// At every width, lines fit, columns are aligned, and bars use block characters only in locales that have them.
func TestStatsFitTheTerminal(t *testing.T) {
	d := newDesk(t)
	_, key := d.make("--name", "A name that is far too long for any table of eighty columns, really")
	_, wide := d.make("--name", "北京研究所の鍵 with blanks")
	d.spent(key, "registry.example.com/some-namespace/a-very-long-model-name:70b-instruct-q4_K_M", yesterday(), 30)
	d.spent(wide, "tiny:latest", yesterday().Add(-24*time.Hour), 1)
	environ := d.environ
	for _, columns := range []int{10, 40, 60, 80, 100, 120, 160, 1000} {
		for _, locale := range []string{"LANG=C", "LANG=en_US.UTF-8"} {
			d.environ = append(environ[:len(environ):len(environ)], fmt.Sprint("COLUMNS=", columns), locale)
			out := d.run("stats")
			bars := []int{}
			for line := range strings.Lines(out[strings.Index(out, "\n\n"):]) {
				line = strings.TrimRight(line, "\n")
				if w := displayWidth(line); w > min(max(columns, leastWidth), mostWidth) {
					t.Errorf("%d columns, %s: a line of %d: %s", columns, locale, w, line)
				}
				if i := strings.IndexAny(line, "#█▏▎▍▌▋▊▉"); i >= 0 && strings.HasPrefix(line, "oas_") {
					bars = append(bars, displayWidth(line[:i]))
				}
				for _, r := range line {
					if locale == "LANG=C" && r > 127 && !strings.Contains(line, "北") {
						t.Errorf("%d columns: %q in plain text: %s", columns, r, line)
					}
				}
			}
			if len(bars) != 2 || bars[0] != bars[1] {
				t.Errorf("%d columns, %s: bars begin at %v:\n%s", columns, locale, bars, out)
			}
		}
	}
	d.environ = append(environ[:len(environ):len(environ)], "COLUMNS=80", "LC_ALL=C.UTF-8", "LANG=C")
	wantLines(t, d.run("stats", "--by", "model"), `regist\S+…\S+q4_K_M +30  █+ .*`)
	d.environ = append(environ[:len(environ):len(environ)], "TERM=dumb", "LANG=C.UTF-8")
	wantLines(t, d.run("stats", "--by", "model"), `regist\S+\.\.\S+q4_K_M +30  #+ .*`)
	// Output that is not a terminal has 80 columns.
	p := &program{stdout: io.Discard}
	if got := p.sheet(); got.width != 80 || !got.plain {
		t.Errorf("%+v", got)
	}
}

func TestAmounts(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 999_999: "999999", 1_000_000: "1.00M", 1_234_567: "1.23M", 45_600_000_000: "45.60G", 7e12: "7.00T"} {
		if got := amount(n); got != want {
			t.Errorf("%d is %s, want %s", n, got, want)
		}
	}
}
