package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"

	"ollama-api-service/internal/api"
)

// sheet describes the output that a table is written to.
type sheet struct {
	width int
	plain bool // no characters beyond ASCII
}

const (
	leastWidth, standardWidth, mostWidth = 40, 80, 160
	leastBar, mostBar                    = 6, 30
	columnGap                            = "  "
)

// sheet returns the size of the terminal, or 80 columns if stdout is not a terminal.
func (p *program) sheet() sheet {
	set := map[string]string{}
	for _, e := range p.environ {
		name, value, _ := strings.Cut(e, "=")
		set[name] = value
	}
	s := sheet{width: standardWidth}
	if n, err := strconv.Atoi(set["COLUMNS"]); err == nil && n > 0 {
		s.width = n
	} else if f, ok := p.stdout.(*os.File); ok {
		if n := columns(f); n > 0 {
			s.width = n
		}
	}
	s.width = min(max(s.width, leastWidth), mostWidth)
	locale := set["LANG"]
	for _, name := range []string{"LC_CTYPE", "LC_ALL"} {
		if set[name] != "" {
			locale = set[name]
		}
	}
	locale = strings.ReplaceAll(strings.ToLower(locale), "-", "")
	s.plain = set["TERM"] == "dumb" || !strings.Contains(locale, "utf8")
	return s
}

// column is one column of a table with bars.
type column struct {
	head  string
	right bool
	least int // the minimum width; 0 means that the column is not shortened
	bar   bool
	width int
	cells []string
}

// print writes one table for each dimension.
func (r *statsReport) print(w io.Writer, s sheet, top int) error {
	if r.Total.Requests == 0 {
		_, err := fmt.Fprintln(w, r.headline()+"\nNo requests in this time range.")
		return err
	}
	var b strings.Builder
	b.WriteString(r.headline() + "\n")
	for _, d := range r.order {
		groups := r.By[d]
		shown := groups
		if top > 0 && len(shown) > top && !d.IsTime() {
			shown = shown[:top]
		}
		b.WriteString("\n" + s.table(d, shown))
		if n := len(groups) - len(shown); n > 0 {
			fmt.Fprintf(&b, "%d more; --top 0 shows all.\n", n)
		}
		if d == api.ByKey {
			b.WriteString(r.aboutKeys(shown))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *statsReport) aboutKeys(shown []api.UsageGroup) string {
	text := ""
	for _, g := range shown {
		if g.Revoked {
			text = revokedMark + " revoked\n"
		}
	}
	if r.idle > 0 {
		text += plural(int64(r.idle), "more key") + " had no requests.\n"
	}
	return text
}

// revokedMark follows the name of a revoked key.
const revokedMark = "*"

// table writes groups as a table that fits the sheet. On a narrow sheet it drops columns, the rightmost first.
func (s sheet) table(d api.Dimension, groups []api.UsageGroup) string {
	cols := s.columns(d, groups)
	for len(cols) > 3 && leastOf(cols) > s.width {
		cols = cols[:len(cols)-1]
	}
	left := s.width - leastOf(cols)
	kept := min(max(left, 0), s.width/8-leastBar) // reserved for the bars, so that long names do not take all the space
	left -= max(kept, 0)
	for i := range cols {
		c := &cols[i]
		if c.least > 0 && !c.bar {
			more := min(max(left, 0), max(0, c.width-c.least))
			c.width = min(c.width, c.least) + more
			left -= more
		}
	}
	most := int64(0)
	for _, g := range groups {
		most = max(most, g.Requests)
	}
	for i := range cols {
		if c := &cols[i]; c.bar {
			c.width = min(leastBar+max(kept, 0)+max(left, 0), mostBar)
			for _, g := range groups {
				c.cells = append(c.cells, s.bar(g.Requests, most, c.width))
			}
		}
	}
	var b strings.Builder
	for row := -1; row < len(groups); row++ {
		line := ""
		for i := range cols {
			line += cols[i].cell(s, row) + columnGap
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	return b.String()
}

// leastOf returns the width of a table whose columns all have their minimum width.
func leastOf(cols []column) int {
	n := len(columnGap) * (len(cols) - 1)
	for _, c := range cols {
		if c.least > 0 {
			n += min(c.least, c.width)
		} else {
			n += c.width
		}
	}
	return n
}

func (c *column) cell(s sheet, row int) string {
	text := c.head
	if row >= 0 {
		text = c.cells[row]
	}
	if !c.bar {
		text = s.fit(text, c.width)
	}
	pad := strings.Repeat(" ", max(0, c.width-displayWidth(text)))
	if c.right {
		return pad + text
	}
	return text + pad
}

// columns returns the columns for a dimension, at their natural width.
func (s sheet) columns(d api.Dimension, groups []api.UsageGroup) []column {
	var cols []column
	add := func(c column, text func(*api.UsageGroup) string) {
		c.width = displayWidth(c.head)
		for i := range groups {
			c.cells = append(c.cells, text(&groups[i]))
			c.width = max(c.width, displayWidth(c.cells[i]))
		}
		cols = append(cols, c)
	}
	add(column{head: strings.ToUpper(string(d)), least: 16}, func(g *api.UsageGroup) string { return label(d, g) })
	if d == api.ByKey {
		add(column{head: "NAME", least: 5}, func(g *api.UsageGroup) string { return g.KeyName })
	}
	add(column{head: "REQUESTS", right: true}, func(g *api.UsageGroup) string { return amount(g.Requests) })
	cols = append(cols, column{bar: true, least: leastBar, width: mostBar})
	add(column{head: "TOKENS IN", right: true}, func(g *api.UsageGroup) string { return amount(g.PromptTokens) })
	add(column{head: "OUT", right: true}, func(g *api.UsageGroup) string { return amount(g.CompletionTokens) })
	add(column{head: "AVERAGE", right: true}, func(g *api.UsageGroup) string {
		if g.AverageSeconds == nil {
			return "-"
		}
		return seconds(*g.AverageSeconds)
	})
	if !d.IsTime() {
		add(column{head: "LAST REQUEST"}, func(g *api.UsageGroup) string { return api.ShowTime(*g.LastRequest) })
	}
	return cols
}

func label(d api.Dimension, g *api.UsageGroup) string {
	text := ""
	if name := g.Name(d); name != nil {
		text = **name
	}
	switch {
	case d == api.ByDay:
		return g.Start.Format("2006-01-02 Mon")
	case d == api.ByHour:
		return g.Start.Format("2006-01-02 15:04")
	case d == api.ByWeek:
		year, week := g.Start.ISOWeek()
		return fmt.Sprintf("%d-W%02d %s", year, week, g.Start.Format(time.DateOnly))
	case d == api.ByMonth:
		return g.Start.Format("2006-01")
	case text == "":
		return "(none)"
	case g.Revoked:
		return text + revokedMark
	}
	return text
}

// eighths are the block characters that end a bar, in steps of an eighth.
var eighths = []rune("▏▎▍▌▋▊▉█")

// bar draws n as a part of most, where most is width characters wide. A value above zero is always visible.
func (s sheet) bar(n, most int64, width int) string {
	if n <= 0 {
		return ""
	}
	part := float64(n) / float64(most) * float64(width)
	if s.plain {
		return strings.Repeat("#", max(1, int(math.Round(part))))
	}
	units := max(1, int(math.Round(part*8)))
	text := strings.Repeat("█", units/8)
	if rest := units % 8; rest > 0 {
		text += string(eighths[rest-1])
	}
	return text
}

// fit shortens a text in its middle, because the names of models differ at both ends.
func (s sheet) fit(text string, width int) string {
	if displayWidth(text) <= width {
		return text
	}
	dots := "…"
	if s.plain {
		dots = ".."
	}
	room := width - len([]rune(dots))
	runes := []rune(text)
	head, used := 0, 0
	for head < len(runes) && used+runeWidth(runes[head]) <= (room+1)/2 {
		used += runeWidth(runes[head])
		head++
	}
	tail := len(runes)
	for tail > head && used+runeWidth(runes[tail-1]) <= room {
		tail--
		used += runeWidth(runes[tail])
	}
	return string(runes[:head]) + dots + string(runes[tail:])
}

func displayWidth(s string) int {
	n := 0
	for _, r := range s {
		n += runeWidth(r)
	}
	return n
}

// runeWidth is the number of cells that a terminal uses for a character: 2 for East Asian characters and emoji, 0 for combining marks.
func runeWidth(r rune) int {
	switch {
	case unicode.In(r, unicode.Mn, unicode.Me):
		return 0
	case r >= 0x1100 && unicode.In(r, unicode.Han, unicode.Hangul, unicode.Hiragana, unicode.Katakana),
		r >= 0x1f300 && r <= 0x1faff, r >= 0xff01 && r <= 0xff60:
		return 2
	}
	return 1
}

// amount formats a number in at most seven characters. Numbers below a million are exact.
func amount(n int64) string {
	for _, unit := range []struct {
		size int64
		name string
	}{{1e12, "T"}, {1e9, "G"}, {1e6, "M"}} {
		if n >= unit.size {
			return strconv.FormatFloat(float64(n)/float64(unit.size), 'f', 2, 64) + unit.name
		}
	}
	return strconv.FormatInt(n, 10)
}

func plural(n int64, what string) string {
	if n != 1 {
		what += "s"
	}
	return amount(n) + " " + what
}

func seconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return fmt.Sprintf("%.2fs", s)
	}
	return d.Round(time.Second).String()
}
