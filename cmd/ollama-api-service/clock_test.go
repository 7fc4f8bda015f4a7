package main

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/clock"
	"ollama-api-service/internal/limit"
	"ollama-api-service/internal/store"
)

// A machine that boots with its clock behind has rows dated in the future. They must not use up the limits of the present.
func TestRowsOfTheFutureUseNoLimit(t *testing.T) {
	st, err := store.Create(t.Context(), filepath.Join(t.TempDir(), "test.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	most := int64(10)
	key := &api.Key{Preview: "oas_8rT2kLmN0q", RateLimit: &most, TokensPerDay: &most}
	book := func(name string, at time.Time) {
		r := api.Record{Admission: api.Admission{ID: name, At: at, Key: key.Preview}, Outcome: api.OutcomeOK, CompletionTokens: 1, Total: time.Second}
		if _, err := st.AddRecords(t.Context(), []api.Record{r}); err != nil {
			t.Fatal(err)
		}
	}
	for i, ahead := range []time.Duration{2 * time.Minute, 30 * time.Minute, time.Hour, 24 * time.Hour, 5 * 365 * 24 * time.Hour} {
		for n := range 10 {
			book(fmt.Sprint(i, "-", n), time.Now().Add(ahead))
		}
	}
	left := func() (requestsLeft, tokensLeft int64) {
		limits := limit.NewMemory(clock.Start())
		if err := restoreLimits(t.Context(), st, limits, 10*time.Minute); err != nil {
			t.Fatal(err)
		}
		return limits.State(key).Remaining, limits.Tokens(key).Remaining
	}
	if r, tk := left(); r != 10 || tk != 10 {
		t.Errorf("%d requests and %d tokens are left, want 10 of each", r, tk)
	}
	book("before", time.Now().Add(-2*time.Minute))
	if r, tk := left(); r != 9 || tk != 9 {
		t.Errorf("%d requests and %d tokens are left after one past request, want 9 of each", r, tk)
	}
}

// A row counts against limits alike, whether it is in the database or still in the journal.
func TestRowsInTheJournalUseLimits(t *testing.T) {
	const longest = 10 * time.Minute
	st, err := store.Create(t.Context(), filepath.Join(t.TempDir(), "test.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	now, most := time.Now(), int64(1_000_000)
	key := &api.Key{Preview: "oas_8rT2kLmN0q", RateLimit: &most, TokensPerDay: &most, TokensPerHour: &most, GPUPerDay: &most}
	inJournal := limit.NewMemory(clock.Start())
	for i, r := range []api.Record{
		{Total: time.Second, GPU: time.Second, PromptTokens: 1, CompletionTokens: 2},
		{GPU: -1, ReservedGPU: time.Hour, Reserved: 100, PromptTokens: 10, Outcome: api.OutcomeInterrupted},
		{GPU: -1, PromptTokens: 1000},
		{Total: time.Second, GPU: time.Minute, PromptTokens: 10_000, ErrorCode: api.CodeNoBackend},
		{Total: time.Second, GPU: time.Minute, PromptTokens: 20_000, Admission: api.Admission{At: now.Add(time.Hour)}},
		{Total: time.Second, GPU: time.Minute, PromptTokens: 40_000, Admission: api.Admission{At: now.Add(-30 * time.Hour)}},
		{Total: time.Second, GPU: 2 * time.Second, PromptTokens: 4, Admission: api.Admission{At: now.Add(-3 * time.Hour)}},
	} {
		if r.At.IsZero() {
			r.At = now.Add(-2 * time.Minute)
		}
		r.ID, r.Key = fmt.Sprint(i), key.Preview
		if _, err := st.AddRecords(t.Context(), []api.Record{r}); err != nil {
			t.Fatal(err)
		}
		restoreLater(inJournal, &r, now, longest)
	}
	inDatabase := limit.NewMemory(clock.Start())
	if err := restoreLimits(t.Context(), st, inDatabase, longest); err != nil {
		t.Fatal(err)
	}
	shown := func(m *limit.Memory) string {
		text := fmt.Sprint(m.State(key).Remaining)
		for _, b := range m.Budgets(key) {
			text += fmt.Sprint(" ", b.Limit, b.Used)
		}
		return text
	}
	if got, want := shown(inJournal), shown(inDatabase); got != want {
		t.Errorf("rows in the journal leave %s, want %s as in the database", got, want)
	}
	if got := inJournal.State(key).Remaining; got != most-3 {
		t.Errorf("got %d requests left, want %d", got, most-3)
	}
}
