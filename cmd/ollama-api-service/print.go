package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"ollama-api-service/internal/api"
)

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// table prints rows in aligned columns. The columns in right are aligned to the right.
func table(w io.Writer, right map[int]bool, rows [][]string) error {
	widths := []int{}
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	var b strings.Builder
	for _, row := range rows {
		line := ""
		for i, cell := range row {
			pad := strings.Repeat(" ", widths[i]-len([]rune(cell)))
			if right[i] {
				line += pad + cell + "  "
			} else {
				line += cell + pad + "  "
			}
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// reveal prints the text of a key. It is shown only this once.
func (r *keyring) reveal(secret string, k api.Key, about string) error {
	if r.json {
		return printJSON(r.stdout, struct {
			APIKey string `json:"api_key"`
			api.Key
		}{secret, k})
	}
	fmt.Fprint(r.stderr, about)
	if _, err := fmt.Fprintln(r.stdout, secret); err != nil {
		return fmt.Errorf("the key was stored but could not be printed: revoke %s and create another (%w)", k.Preview, err)
	}
	return nil
}

// print shows one key.
func (r *keyring) print(k api.Key) error {
	if r.json {
		return printJSON(r.stdout, k)
	}
	w := tabwriter.NewWriter(r.stdout, 0, 0, 2, ' ', 0)
	for _, line := range [][2]string{
		{"key", k.Preview},
		{"name", k.Name},
		{"role", string(k.Role)},
		{"status", keyStatus(k, r.by.At)},
		{"rate limit", perHour(k.RateLimit)},
		{"concurrent", number(k.MaxConcurrent)},
		{"tokens", tokens(k)},
		{"GPU time", orNone(k.GPUPerDay, " seconds in any 24 hours")},
		{"max tokens per request", orNone(k.MaxOutput, " tokens")},
		{"strict", yesNo(k.Strict)},
		{"share", share(k)},
		{"models", models(k)},
		{"cloud models", yesNo(k.AllowCloud)},
		{"used from", networks(k)},
		{"policy", policyText(k)},
		{"expires", orNever(k.ExpiresAt)},
		{"created", instant(k.CreatedAt)},
		{"note", k.Note},
	} {
		fmt.Fprintf(w, "%s\t%s\n", line[0], line[1])
	}
	return w.Flush()
}

func printKeys(w io.Writer, keys []api.Key, now time.Time) error {
	if len(keys) == 0 {
		_, err := fmt.Fprintf(w, "There are no keys: create one with `%s keys create --name NAME`.\n", programName)
		return err
	}
	rows := [][]string{{"KEY", "NAME", "ROLE", "PER HOUR", "AT ONCE", "BUDGET", "SHARE", "MODELS", "EXPIRES", "STATUS"}}
	for _, k := range keys {
		rows = append(rows, []string{k.Preview, k.Name, string(k.Role), number(k.RateLimit), number(k.MaxConcurrent), budget(k), share(k), shorten(models(k), 40), orNever(k.ExpiresAt), keyStatus(k, now)})
	}
	return table(w, map[int]bool{3: true, 4: true}, rows)
}

func keyStatus(k api.Key, now time.Time) string {
	switch {
	case k.RevokedAt != nil:
		return "revoked " + instant(*k.RevokedAt)
	case !k.Live(now):
		return "expired"
	}
	return "works"
}

func models(k api.Key) string {
	switch {
	case k.Models == nil:
		return "all"
	case len(k.Models) == 0:
		return "none"
	}
	return strings.Join(k.Models, ",")
}

func networks(k api.Key) string {
	if len(k.AllowedIPs) == 0 {
		return "any"
	}
	list := make([]string, len(k.AllowedIPs))
	for i, n := range k.AllowedIPs {
		list[i] = n.String()
	}
	return strings.Join(list, ",")
}

func policyText(k api.Key) string {
	if k.Policy == nil {
		return "the service's"
	}
	var list []string
	for _, field := range slices.Sorted(maps.Keys(k.Policy)) {
		list = append(list, field+"="+k.Policy[field].String())
	}
	return strings.Join(list, ",")
}

func number(n *int64) string {
	if n == nil {
		return "none"
	}
	return strconv.FormatInt(*n, 10)
}

func orNone(n *int64, unit string) string {
	if n == nil {
		return "none"
	}
	return number(n) + unit
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func tokens(k api.Key) string {
	var list []string
	if k.TokensPerHour != nil {
		list = append(list, number(k.TokensPerHour)+" in any 60 minutes")
	}
	if k.TokensPerDay != nil {
		list = append(list, number(k.TokensPerDay)+" in any 24 hours")
	}
	if list == nil {
		return "no limit"
	}
	return strings.Join(list, ", ")
}

// budget formats the limits of tokens and GPU time as one cell of a table.
func budget(k api.Key) string {
	var list []string
	for _, limit := range []struct {
		n    *int64
		unit string
	}{{k.TokensPerHour, "/h"}, {k.TokensPerDay, "/d"}, {k.GPUPerDay, "s/d"}} {
		if limit.n != nil {
			list = append(list, number(limit.n)+limit.unit)
		}
	}
	if list == nil {
		return "none"
	}
	return strings.Join(list, " ")
}

// share formats a key's weight, followed by its class unless that is the default.
func share(k api.Key) string {
	weight := strconv.FormatFloat(k.Weight, 'g', -1, 64)
	if k.Class == api.ClassBatch {
		return weight + " batch"
	}
	return weight
}

func perHour(n *int64) string {
	if n == nil {
		return "no rate limit"
	}
	return strconv.FormatInt(*n, 10) + " requests in any 60 minutes"
}

func title(r api.Role) string { return strings.ToUpper(string(r[:1])) + string(r[1:]) }

func orNever(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return instant(*t)
}

func instant(t time.Time) string { return t.UTC().Format("2006-01-02 15:04Z") }

func shorten(s string, most int) string {
	if r := []rune(s); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return s
}
