package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/store"
)

const (
	mostDays  = 3660
	mostHours = 92 * 24 * time.Hour // the same limit as the HTTP API
	mostRows  = 100_000
)

// statsReport is what stats prints with --json, with the names of the HTTP API.
type statsReport struct {
	From  time.Time                          `json:"from"`
	To    time.Time                          `json:"to"`
	Total api.Usage                          `json:"total"`
	By    map[api.Dimension][]api.UsageGroup `json:"by"`

	order []api.Dimension
	zone  *time.Location
	idle  int // active keys without requests
}

// statsFlags are the options of stats as they were typed.
type statsFlags struct {
	by       []string
	days     int
	from, to string
	zone     string
	top      int
	json     bool
}

func (p *program) statsCommand() *cobra.Command {
	var f statsFlags
	cmd := &cobra.Command{
		Use:   "stats",
		Short: "Show usage by key, model and day",
		Long: `Show usage from the database in DATA_DIR: requests, tokens and response times, by key, by model and by day. A running service
		writes usage within a second or so; requests that are still running are not included. Days, weeks and months are those of --tz, or of
		UTC without it. Those without requests are left out.`,
		Example: `  ollama-api-service stats
  ollama-api-service stats --by model --days 7
  ollama-api-service stats --by hour --from 2026-11-25
  ollama-api-service stats --by month,week --tz Europe/Berlin --days 365
  ollama-api-service stats --from 2026-10-01 --to 2026-10-31 --json`,
		Args: cobra.NoArgs,
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&f.by, "by", []string{"key", "model", "day"}, "one table for each of: "+dimensionList())
	flags.IntVar(&f.days, "days", 30, "the number of days to show, including today")
	flags.StringVar(&f.from, "from", "", "start at this day or time, like 2026-11-01 or 2026-11-01T12:00:00Z")
	flags.StringVar(&f.to, "to", "", "end at this time, or with this day (inclusive)")
	flags.StringVar(&f.zone, "tz", "", "time zone of days and times, like Europe/Berlin or +05:30; the default is UTC")
	flags.IntVar(&f.top, "top", 20, "the maximum number of rows in each table; 0 shows all")
	flags.BoolVar(&f.json, "json", false, "print JSON, with the names of the HTTP API")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		r, err := f.report(p.now(), cmd.Flags().Changed("days"))
		if err != nil {
			return err
		}
		st, err := p.database(cmd.Context())
		if err != nil {
			return err
		}
		defer st.Close()
		if err := r.read(cmd.Context(), st, p.now()); err != nil {
			return err
		}
		if f.json {
			return printJSON(p.stdout, r)
		}
		return r.print(p.stdout, p.sheet(), f.top)
	}
	return cmd
}

func dimensionList() string {
	var names []string
	for _, d := range api.Dimensions() {
		names = append(names, string(d))
	}
	return strings.Join(names, ", ")
}

// zoneFlag parses --tz.
func zoneFlag(text string) (*time.Location, error) {
	zone, err := api.ParseZone(text)
	if err != nil {
		return nil, usagef("--tz must be the name of a time zone like Europe/Berlin, or an offset from UTC like +05:30")
	}
	return zone, nil
}

// report returns an empty report for the flags.
func (f *statsFlags) report(now time.Time, daysGiven bool) (*statsReport, error) {
	zone, err := zoneFlag(f.zone)
	if err != nil {
		return nil, err
	}
	r := &statsReport{By: map[api.Dimension][]api.UsageGroup{}, To: now.In(zone), zone: zone}
	for _, name := range f.by {
		d := api.Dimension(strings.TrimSpace(name))
		if !slices.Contains(api.Dimensions(), d) {
			return nil, usagef("--by takes a comma-separated list of %s", dimensionList())
		}
		if !slices.Contains(r.order, d) {
			r.order = append(r.order, d)
		}
	}
	switch {
	case len(r.order) == 0:
		return nil, usagef("--by is empty: leave it out, or give key, model or day")
	case daysGiven && (f.from != "" || f.to != ""):
		return nil, usagef("give either --days, or --from and --to")
	case f.days < 1 || f.days > mostDays:
		return nil, usagef("--days must be from 1 to %d", mostDays)
	case f.top < 0:
		return nil, usagef("--top must be at least 0 (0 shows all)")
	}
	if f.to != "" {
		to, day, err := api.ParseTime(f.to, zone)
		if err != nil {
			return nil, usagef("--to must be a day like 2026-11-30 or a time like 2026-11-30T12:00:00Z")
		}
		if day {
			to = api.ByDay.Next(to)
		}
		r.To = to
	}
	y, m, d := r.To.Add(-time.Nanosecond).Date()
	r.From = api.Midnight(y, m, d+1-f.days, zone)
	if f.from != "" {
		from, _, err := api.ParseTime(f.from, zone)
		if err != nil {
			return nil, usagef("--from must be a day like 2026-11-01 or a time like 2026-11-01T12:00:00Z")
		}
		r.From = from
	}
	switch span := r.To.Sub(r.From); {
	case span <= 0:
		return nil, usagef("--from must be before --to, and before now")
	case span > mostDays*24*time.Hour:
		return nil, usagef("--from and --to must be at most %d days apart", mostDays)
	case span > mostHours && slices.Contains(r.order, api.ByHour):
		return nil, usagef("--by hour shows at most %d days: give a smaller --days, or --from and --to", mostHours/(24*time.Hour))
	}
	return r, nil
}

// read fills the report from the database.
func (r *statsReport) read(ctx context.Context, st *store.Store, now time.Time) error {
	keys, err := st.Keys(ctx)
	if err != nil {
		return err
	}
	span := api.RequestFilter{From: r.From}
	newest, err := st.Newest(ctx)
	if err != nil {
		return err
	}
	if r.To.Before(now) || newest.After(now) {
		span.To = r.To // without rows after To no upper bound is needed, and whole days are faster to read
	}
	for _, d := range r.order {
		used, err := st.Usage(ctx, store.UsageQuery{RequestFilter: span, By: []api.Dimension{d}, Limit: mostRows, Zone: r.zone})
		if err != nil {
			return err
		}
		// Each query reads the same range, because each has one dimension.
		if r.From = used.From.In(r.zone); !used.To.IsZero() {
			r.To = used.To.In(r.zone)
		}
		for i := range used.Rows {
			if at := used.Rows[i].Start; at != nil {
				*at = at.In(r.zone)
			}
		}
		r.By[d], r.Total = append([]api.UsageGroup{}, used.Rows...), used.Total
	}
	names := make(map[string]*api.Key, len(keys))
	for i := range keys {
		names[keys[i].Preview] = &keys[i]
		if keys[i].Live(now) {
			r.idle++
		}
	}
	for i := range r.By[api.ByKey] {
		g := &r.By[api.ByKey][i]
		k := names[*g.Key]
		if k == nil {
			continue // a key of the settings, which has no name in the database
		}
		g.KeyLabel, g.Revoked = k.Label(), k.RevokedAt != nil
		if k.Live(now) {
			r.idle--
		}
	}
	return nil
}

// headline describes the range and the totals.
func (r *statsReport) headline() string {
	form := "2006-01-02 15:04"
	last := r.To
	if r.From.Equal(api.ByDay.Begin(r.From)) {
		form = time.DateOnly
		last = r.To.Add(-time.Nanosecond)
	}
	return fmt.Sprintf("%s to %s (%s): %s, %s tokens in, %s tokens out", r.From.Format(form), last.Format(form), r.zone,
		plural(r.Total.Requests, "request"), amount(r.Total.PromptTokens), amount(r.Total.CompletionTokens))
}
