package main

import (
	"encoding/json"
	"fmt"
	"io"
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
	for _, f := range api.KeyFields {
		if f.Label != "" {
			fmt.Fprintf(w, "%s\t%s\n", f.Label, f.Show(&k, r.by.At))
		}
	}
	return w.Flush()
}

func printKeys(w io.Writer, keys []api.Key, now time.Time) error {
	if len(keys) == 0 {
		_, err := fmt.Fprintf(w, "There are no keys: create one with `%s keys create --name NAME`.\n", programName)
		return err
	}
	rows, right := make([][]string, len(keys)+1), map[int]bool{}
	for _, f := range api.KeyFields {
		if f.Column == "" {
			continue
		}
		right[len(rows[0])] = f.Number()
		rows[0] = append(rows[0], f.Column)
		for n := range keys {
			cell := f.Cell(&keys[n], now)
			if f.Width > 0 {
				cell = shorten(cell, f.Width)
			}
			rows[n+1] = append(rows[n+1], cell)
		}
	}
	rows[0] = append(rows[0], "STATUS")
	for n := range keys {
		rows[n+1] = append(rows[n+1], keys[n].Status(now))
	}
	return table(w, right, rows)
}

func title(r api.Role) string { return strings.ToUpper(string(r[:1])) + string(r[1:]) }

func shorten(s string, most int) string {
	if r := []rune(s); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return s
}
