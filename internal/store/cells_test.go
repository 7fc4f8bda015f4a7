package store

import (
	"database/sql"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/pressly/goose/v3"

	"ollama-api-service/internal/api"
)

// counted returns the contents of one level in a table of sums, cell by cell, without cells before before.
func counted(t *testing.T, s *Store, k kind, width, since int64) map[string]used {
	t.Helper()
	query := fmt.Sprint(`SELECT start || '|' || model || '|' || endpoint || '|' || backend || '|' || outcome || '|' || key, `, cellSums,
		` FROM usage_sum WHERE kind = `, int64(k), ` AND width = `, width, ` AND start >= `, since)
	if k == byAll {
		query = fmt.Sprint(`SELECT start || '|' || model || '|' || endpoint || '|' || backend || '|' || outcome || '|' || key, `, cellSums,
			` FROM usage_period WHERE width = `, width, ` AND start >= `, since)
	}
	return cellsOf(t, s, query)
}

func cellsOf(t *testing.T, s *Store, query string) map[string]used {
	t.Helper()
	all := map[string]used{}
	err := s.read(t.Context(), func(tx *sql.Tx) error {
		return rows(t.Context(), tx, query, func(r *sql.Rows) error {
			var name string
			var u used
			err := r.Scan(append([]any{&name}, u.into()...)...)
			all[name] = u
			return err
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// inStep compares each level of the sums with the sums of the rows, cell by cell, from since on.
func inStep(t *testing.T, s *Store, since int64) {
	t.Helper()
	all := append([]level{{kind: byAll, width: hourMS}}, levels...)
	for _, k := range []kind{byKey, byOthers} {
		all = append(all, level{kind: k, width: minuteMS})
	}
	for _, l := range all {
		name := fmt.Sprintf("(at - at %% %d) || '|'", l.width)
		if l.width == foreverMS {
			if since > 0 {
				continue
			}
			name = "'0|'"
		}
		for _, n := range []struct {
			kind   kind
			column string
		}{{byModel, "model"}, {byEndpoint, "endpoint"}, {byBackend, "backend"}, {byOutcome, "outcome"}, {byKey, "key"}} {
			if l.kind&n.kind != 0 {
				name += " || " + n.column
			}
			if n.kind != byKey {
				name += " || '|'"
			}
		}
		// Only whole periods: of a period that since cuts, some rows are missing.
		from := up(since, l.width)
		want := cellsOf(t, s, fmt.Sprint(`SELECT name, `, summed, ` FROM (SELECT `, name, ` AS name, `, rowSums, ` FROM requests WHERE at >= `, from, `) AS r GROUP BY name`))
		got := counted(t, s, l.kind, l.width, from)
		if len(got) != len(want) || len(want) == 0 && since == 0 {
			t.Errorf("kind %d by %d ms: %d cells, %d by the rows", l.kind, l.width, len(got), len(want))
		}
		for name, w := range want {
			if got[name] != w {
				t.Fatalf("kind %d by %d ms, %s: %+v, by the rows %+v", l.kind, l.width, name, got[name], w)
			}
		}
	}
}

func TestSumsAreInStepWithTheRows(t *testing.T) {
	s, _ := create(t)
	random := rand.New(rand.NewPCG(11, 12))
	recs := sample(600)
	for i := range recs {
		recs[i].At = recs[i].At.Add(-time.Duration(random.IntN(40)) * 24 * time.Hour)
	}
	for range 12 { // batches of any size, some or parts of them repeatedly
		n, from := random.IntN(120), random.IntN(len(recs))
		addRecords(t, s, recs[from:min(from+n+1, len(recs))]...)
	}
	inStep(t, s, 0)
	addRecords(t, s, recs...)
	addRecords(t, s, recs...)
	inStep(t, s, 0)
	var orphans int
	err := s.reader.QueryRow(`SELECT COUNT(*) FROM requests r LEFT JOIN shapes s ON s.id = r.shape AND s.model = r.model AND s.endpoint = r.endpoint
		AND s.backend = r.backend AND s.outcome = r.outcome WHERE s.id IS NULL`).Scan(&orphans)
	if err != nil || orphans > 0 {
		t.Errorf("%d requests without their shape (%v)", orphans, err)
	}
}

// old creates a database of the first schema with these requests: only its rows and the tables of that version.
func old(t testing.TB, recs ...api.Record) (path string) {
	t.Helper()
	s, full := create(t)
	addRecords(t, s, recs...)
	path = filepath.Join(t.TempDir(), "old.db")
	db := must[*sql.DB](t)(sql.Open("sqlite", dsn(path)))
	defer db.Close()
	db.SetMaxOpenConns(1)
	if err := useLog(t.Context(), db); err != nil { // as the first start does
		t.Fatal(err)
	}
	provider := must[*goose.Provider](t)(goose.NewProvider(goose.DialectSQLite3, db, migrationFiles(), goose.WithDisableGlobalRegistry(true)))
	if _, err := provider.UpTo(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	columns := `id, client_request_id, at, key, model, alias, endpoint, class, backend, outcome, status, error_code, streamed, prompt_tokens, completion_tokens,
		estimated, ttfb_ms, total_ms, slot_ms, ollama_total_ns, ollama_load_ns, ollama_prompt_eval_ns, ollama_eval_ns, bytes_in, bytes_out, client_addr`
	for _, statement := range []string{
		`ATTACH '` + full + `' AS full`,
		`INSERT INTO requests (` + columns + `) SELECT ` + columns + ` FROM full.requests`,
		`INSERT INTO usage_latency SELECT * FROM full.usage_latency`,
	} {
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// A database from before the sums gives the same answers as one that always had them.
func TestMigrationFillsSums(t *testing.T) {
	recs := sample(500)
	for i := range recs {
		recs[i].GPU, recs[i].Queued = -1, -1 // not measured in that version
	}
	path := old(t, recs...)
	s := must[*Store](t)(Create(t.Context(), path))
	defer s.Close()
	var minutes int64
	if err := s.reader.QueryRow(`SELECT since FROM kept WHERE what = 'minutes'`).Scan(&minutes); err != nil || minutes < millis(noon)-50*hourMS {
		t.Fatalf("minutes since %d (%v)", minutes, err)
	}
	inStep(t, s, minutes)
	fresh, _ := create(t)
	addRecords(t, fresh, recs...)
	for _, l := range append([]level{{kind: byAll, width: hourMS}}, levels...) {
		got, want := counted(t, s, l.kind, l.width, 0), counted(t, fresh, l.kind, l.width, 0)
		if !maps.Equal(got, want) {
			t.Errorf("kind %d by %d ms: %d cells, want %d", l.kind, l.width, len(got), len(want))
		}
	}
	addRecords(t, s, recs...)
	list, _, err := s.Requests(t.Context(), RequestQuery{RequestFilter: api.RequestFilter{Outcomes: []string{"client_gone"}}, Limit: 1000})
	want := slices.DeleteFunc(recs, func(r api.Record) bool { return r.Outcome != api.OutcomeClientGone })
	if err != nil || len(list) != len(want) {
		t.Errorf("%d requests listed, want %d (%v)", len(list), len(want), err)
	}
}
