package admin

import (
	"context"
	"encoding/csv"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/store"
)

const csvType = "text/csv; charset=utf-8"

// tabular is a part of bodies that are tables: JSON, or CSV if the caller asked for it.
type tabular struct{ asCSV bool }

// ContentType is what huma asks the body for.
func (b tabular) ContentType(ct string) string {
	if b.asCSV {
		return csvType
	}
	return ct
}

// disposition names the file as which a browser saves the table.
func (b tabular) disposition(name string) string {
	if !b.asCSV {
		return ""
	}
	return `attachment; filename="` + name + `"`
}

// wantsCSV is the answer in the form that format, or else the caller's header, asks for.
func wantsCSV(ctx context.Context, format string) tabular {
	return tabular{asCSV: format == "csv" || format == "" && callerOf(ctx).CSV}
}

// csvFormat writes bodies that are tables.
var csvFormat = huma.Format{Marshal: func(w io.Writer, v any) error {
	table, ok := v.(interface{ table() [][]string })
	if !ok {
		return fmt.Errorf("%T is not a table", v)
	}
	return csv.NewWriter(w).WriteAll(table.table())
}}

func (b usageBody) table() [][]string {
	var head []string
	for _, d := range b.GroupBy {
		head = append(head, string(d))
		if d == api.ByKey {
			head = append(head, "key_name", "revoked")
		}
	}
	rows := [][]string{append(head, "requests", "prompt_tokens", "completion_tokens", "estimated_requests", "slot_ms", "average_response_time",
		"average_time_to_first_byte", "bytes_in", "bytes_out", "last_request", "gpu_ms", "queue_ms")}
	byKey := slices.Contains(b.GroupBy, api.ByKey)
	if byKey {
		rows[0] = append(rows[0], "key_owner") // new columns come last, so that the others keep their positions
	}
	for i := range b.Usage {
		g := &b.Usage[i]
		var row []string
		for _, d := range b.GroupBy {
			row = append(row, dimensionCells(g, d)...)
		}
		row = append(row, cells(g.Requests, g.PromptTokens, g.CompletionTokens, g.Estimated, g.SlotMS, g.AverageSeconds,
			g.AverageFirstByte, g.BytesIn, g.BytesOut, g.LastRequest, g.GPUMS, g.QueueMS)...)
		if byKey {
			row = append(row, cells(g.KeyOwner)...)
		}
		rows = append(rows, row)
	}
	return rows
}

func dimensionCells(g *api.UsageGroup, d api.Dimension) []string {
	switch name := g.Name(d); {
	case name == nil:
		return cells(g.Start)
	case d == api.ByKey:
		return cells(*name, g.KeyName, g.Revoked)
	default:
		return cells(*name)
	}
}

func (b requestsBody) table() [][]string {
	rows := make([][]string, 1, len(b.Requests)+1)
	for _, c := range shownColumns {
		rows[0] = append(rows[0], c.Name)
	}
	for _, r := range b.Requests {
		values := make([]any, len(shownColumns))
		for i, c := range shownColumns {
			values[i] = c.Shown((*api.Record)(r))
		}
		rows = append(rows, cells(values...))
	}
	return rows
}

// cells returns values as CSV cells; nil is an empty cell.
func cells(values ...any) []string {
	out := make([]string, len(values))
	for i, v := range values {
		switch v := v.(type) {
		case string:
			out[i] = noFormula(v)
		case *string:
			if v != nil {
				out[i] = noFormula(*v)
			}
		case int64:
			out[i] = strconv.FormatInt(v, 10)
		case *int64:
			if v != nil {
				out[i] = strconv.FormatInt(*v, 10)
			}
		case float64:
			out[i] = strconv.FormatFloat(v, 'f', -1, 64)
		case *float64:
			if v != nil {
				out[i] = strconv.FormatFloat(*v, 'f', -1, 64)
			}
		case bool:
			out[i] = strconv.FormatBool(v)
		case time.Time:
			out[i] = v.Format(time.RFC3339Nano)
		case *time.Time:
			if v != nil {
				out[i] = v.Format(time.RFC3339Nano)
			}
		}
	}
	return out
}

// noFormula keeps a spreadsheet from running a text: people choose the names of keys and models (owasp.org, CSV injection).
func noFormula(s string) string {
	if s != "" && strings.ContainsRune("=+-@\t\r", rune(s[0])) {
		return "'" + s
	}
	return s
}

// tableResponse describes an answer that is JSON or CSV. huma adds the schema of the JSON.
func tableResponse(example any, asCSV string) map[string]*huma.Response {
	return map[string]*huma.Response{"200": {Description: "OK", Content: map[string]*huma.MediaType{
		"application/json": {Example: example},
		"text/csv":         {Schema: &huma.Schema{Type: huma.TypeString}, Example: asCSV},
	}}}
}

// ExampleTime is the time in all examples.
var ExampleTime = time.Date(2026, 11, 25, 9, 30, 0, 0, time.UTC)

var (
	usageExample = func() usageBody {
		seconds, first := 1.5, 0.25
		day, key := ExampleTime.Truncate(24*time.Hour), "oas_8rT2kLmN0q"
		used := api.Usage{
			Requests: 42, PromptTokens: 1234, CompletionTokens: 5678, SlotMS: 63000, GPUMS: 41000,
			AverageSeconds: &seconds, AverageFirstByte: &first,
			BytesIn: 9876, BytesOut: 54321, LastRequest: &ExampleTime,
		}
		return usageBody{
			From: day, To: ExampleTime, GroupBy: []api.Dimension{api.ByKey, api.ByDay}, Groups: 1, Total: used,
			Usage: []api.UsageGroup{{Start: &day, Key: &key, KeyLabel: api.KeyLabel{KeyName: "Production API Key"}, Usage: used}},
		}
	}()
	requestsExample = func() requestsBody {
		id := "019ab7a2-6f3e-7c51-9d1b-2f0c7e4a8b90"
		next := cursor(store.Place{At: ExampleTime.UnixMilli(), ID: id})
		const us = time.Microsecond
		loaded, prompt, eval := 12750*us, 9*time.Millisecond, 1200*time.Millisecond
		return requestsBody{NextCursor: &next, Requests: []*requestRow{{
			Admission: api.Admission{
				ID: id, At: ExampleTime, Key: "oas_8rT2kLmN0q", Model: "llama3.2:latest", Endpoint: "/api/chat", Class: "inference",
				Backend: "ollama", Streamed: true, ClientAddr: "10.0.0.7",
			},
			KeyLabel: api.KeyLabel{KeyName: "Production API Key"},
			Outcome:  api.OutcomeOK, Status: 200, PromptTokens: 26, CompletionTokens: 120,
			FirstByte: 250500 * us, Total: 1500250 * us, Slot: 1490 * time.Millisecond, GPU: 990500 * us, Queued: -1, Loading: -1,
			OllamaTotal: &eval, OllamaLoad: &loaded, OllamaPromptEval: &prompt, OllamaEval: &eval, BytesIn: 180, BytesOut: 9100,
		}}}
	}()
)
