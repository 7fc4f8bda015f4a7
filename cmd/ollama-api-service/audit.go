package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/store"
)

// auditPage is the number of audit entries read in one query.
const auditPage = 1000

// auditFlags are the options of audit as they were typed.
type auditFlags struct {
	store.AuditQuery
	from, to, zone string
	json           bool
}

func (p *program) auditCommand() *cobra.Command {
	var f auditFlags
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Show who changed which key or server",
		Long: `Show each change of a key or of an Ollama server, the newest first: who made it, when and from where. The command reads the database
		in DATA_DIR. GET /api/admin/audit returns the same entries. They never contain secrets.`,
		Example: `  ollama-api-service audit
  ollama-api-service audit --target oas_8rT2kLmN0q
  ollama-api-service audit --action key.revoke,key.rotate --from 2026-11-01 --tz Europe/Berlin
  ollama-api-service audit --actor command-line --limit 0 --json`,
		Args: cobra.NoArgs,
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&f.Actors, "actor", nil, "only changes by these: previews of keys, command-line, first-start")
	flags.StringSliceVar(&f.Actions, "action", nil, "only changes of these kinds: "+strings.Join(store.Actions, ", "))
	flags.StringSliceVar(&f.Targets, "target", nil, "only changes of these: previews of keys, names of servers")
	flags.StringVar(&f.from, "from", "", "start at this day or time, like 2026-11-01 or 2026-11-01T12:00:00Z")
	flags.StringVar(&f.to, "to", "", "end at this time, or with this day (inclusive)")
	flags.StringVar(&f.zone, "tz", "", "time zone of days and times, like Europe/Berlin or +05:30; the default is UTC")
	flags.IntVar(&f.Limit, "limit", 100, "the maximum number of entries; 0 shows all")
	flags.BoolVar(&f.json, "json", false, "print JSON, with the names of the HTTP API")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		zone, err := f.read()
		if err != nil {
			return err
		}
		st, err := p.database(cmd.Context())
		if err != nil {
			return err
		}
		defer st.Close()
		list, err := f.lines(cmd.Context(), st)
		if err != nil {
			return err
		}
		for i := range list {
			list[i].At = list[i].At.In(zone)
		}
		if f.json {
			return printJSON(p.stdout, map[string]any{"audit": list})
		}
		return p.printAudit(list)
	}
	return cmd
}

// read checks what was typed.
func (f *auditFlags) read() (zone *time.Location, err error) {
	if zone, err = zoneFlag(f.zone); err != nil {
		return nil, err
	}
	for _, action := range f.Actions {
		if !slices.Contains(store.Actions, action) {
			return nil, usagef("--action takes a comma-separated list of %s", strings.Join(store.Actions, ", "))
		}
	}
	if f.Limit < 0 {
		return nil, usagef("--limit must be at least 0 (0 shows all)")
	}
	if f.from != "" {
		if f.From, _, err = api.ParseTime(f.from, zone); err != nil {
			return nil, usagef("--from must be a day like 2026-11-01 or a time like 2026-11-01T12:00:00Z")
		}
	}
	if f.to != "" {
		var day bool
		if f.To, day, err = api.ParseTime(f.to, zone); err != nil {
			return nil, usagef("--to must be a day like 2026-11-30 or a time like 2026-11-30T12:00:00Z")
		}
		if day {
			f.To = api.ByDay.Next(f.To)
		}
		if !f.From.Before(f.To) {
			return nil, usagef("--from must be before --to")
		}
	}
	return zone, nil
}

// lines reads all entries that match, page by page.
func (f *auditFlags) lines(ctx context.Context, st *store.Store) ([]store.AuditEntry, error) {
	all := []store.AuditEntry{}
	for q := f.AuditQuery; ; {
		q.Limit = auditPage
		if f.Limit > 0 {
			q.Limit = min(auditPage, f.Limit-len(all))
		}
		list, next, err := st.Audit(ctx, q)
		if err != nil {
			return nil, err
		}
		if all = append(all, list...); next == 0 || f.Limit > 0 && len(all) >= f.Limit {
			return all, nil
		}
		q.Before = next
	}
}

func (p *program) printAudit(list []store.AuditEntry) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(p.stdout, "No matching changes.")
		return err
	}
	rows := [][]string{{"TIME", "BY", "FROM", "ACTION", "TARGET", "WHAT"}}
	for _, e := range list {
		rows = append(rows, []string{e.At.Format(time.DateTime), e.Actor, e.From, e.Action, e.Target, changeText(e.Detail)})
	}
	return table(p.stdout, nil, rows)
}

// changeText formats the detail of a change on one line. It leaves out fields that are empty in a new key.
func changeText(detail json.RawMessage) string {
	var fields map[string]json.RawMessage
	if json.Unmarshal(detail, &fields) != nil {
		return string(detail)
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		var moved struct{ From, To json.RawMessage }
		switch value := string(fields[name]); {
		case json.Unmarshal(fields[name], &moved) == nil && moved.To != nil:
			parts = append(parts, fmt.Sprintf("%s %s -> %s", name, moved.From, moved.To))
		case !slices.Contains([]string{"null", `""`, "false"}, value):
			parts = append(parts, name+" "+value)
		}
	}
	return strings.Join(parts, ", ")
}
