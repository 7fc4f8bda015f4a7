package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"ollama-api-service/internal/api"
)

// keyUse is what the books say of one key, with the names of the HTTP API.
type keyUse struct {
	KeyName string   `json:"key_name"`
	Role    api.Role `json:"role,omitempty"`
	Revoked bool     `json:"revoked,omitempty"`
	api.Statistics
}

type allUse struct {
	Statistics map[string]keyUse `json:"statistics"`
	Total      api.Statistics    `json:"total"`
	TotalKeys  int               `json:"total_keys"`
}

func (p *program) statsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "stats",
		Short: "Show who used how much",
		Long: `Show requests, tokens and response times of each key and of each model, from the database in DATA_DIR. A running service books
within a second or so; what is running now is not in it.`,
		Example: `  ollama-api-service stats
  ollama-api-service stats --json`,
		Args: cobra.NoArgs,
	}
	asJSON := cmd.Flags().Bool("json", false, "print JSON, with the names of the HTTP API")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := p.settings()
		if err != nil {
			return err
		}
		st, err := openDatabase(cmd.Context(), cfg)
		if err != nil {
			return err
		}
		defer st.Close()
		used, err := st.AllStatistics(cmd.Context(), p.now())
		if err != nil {
			return err
		}
		keys, err := st.Keys(cmd.Context())
		if err != nil {
			return err
		}
		all := allUse{Statistics: map[string]keyUse{}, Total: used.Total, TotalKeys: len(keys)}
		for preview, s := range used.ByKey {
			all.Statistics[preview] = keyUse{KeyName: preview, Statistics: s} // a static key has no other name here
		}
		for _, k := range keys {
			all.Statistics[k.Preview] = keyUse{k.Name, k.Role, k.RevokedAt != nil, used.ByKey[k.Preview]}
		}
		if *asJSON {
			return printJSON(p.stdout, all)
		}
		return all.print(p.stdout)
	}
	return cmd
}

func (a *allUse) print(w io.Writer) error {
	previews := slices.SortedFunc(maps.Keys(a.Statistics), func(x, y string) int {
		return cmp.Or(cmp.Compare(a.Statistics[y].TotalRequests, a.Statistics[x].TotalRequests), cmp.Compare(x, y))
	})
	rows := [][]string{{"KEY", "NAME", "ROLE", "REQUESTS", "LAST 24 H", "TOKENS IN", "TOKENS OUT", "AVERAGE", "P95", "LAST REQUEST"}}
	for _, preview := range previews {
		u := a.Statistics[preview]
		name := u.KeyName
		if u.Revoked {
			name += " (revoked)"
		}
		rows = append(rows, append([]string{preview, shorten(name, 32), string(u.Role)}, figures(&u.Statistics)...))
	}
	rows = append(rows, append([]string{"total", "", ""}, figures(&a.Total)...))
	if err := table(w, map[int]bool{3: true, 4: true, 5: true, 6: true, 7: true, 8: true}, rows); err != nil {
		return err
	}
	if len(a.Total.ByModel) == 0 {
		_, err := fmt.Fprintln(w, "\nNo request was booked yet.")
		return err
	}
	fmt.Fprintln(w)
	rows = [][]string{{"MODEL", "REQUESTS"}}
	for _, m := range slices.SortedFunc(maps.Keys(a.Total.ByModel), func(x, y string) int {
		return cmp.Or(cmp.Compare(a.Total.ByModel[y], a.Total.ByModel[x]), cmp.Compare(x, y))
	}) {
		rows = append(rows, []string{cmp.Or(m, "(none)"), strconv.FormatInt(a.Total.ByModel[m], 10)})
	}
	return table(w, map[int]bool{1: true}, rows)
}

func figures(s *api.Statistics) []string {
	last := "never"
	if s.LastRequest != nil {
		last = instant(*s.LastRequest)
	}
	average, p95 := "-", "-"
	if s.TotalRequests > 0 {
		average, p95 = seconds(s.AverageSeconds), seconds(s.Percentiles.P95)
	}
	count := func(n int64) string { return strconv.FormatInt(n, 10) }
	return []string{count(s.TotalRequests), count(s.Last24h), count(s.PromptTokens), count(s.CompletionTokens), average, p95, last}
}

func seconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	if d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}
