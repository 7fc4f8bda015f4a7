package store

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"ollama-api-service/internal/api"
)

// Page by page, with any filter and page size: each selected request appears once, newest first.
func TestRequestsPageByPage(t *testing.T) {
	s, _ := create(t)
	recs := sample(800)
	for i := range 40 { // many in one millisecond, across a page boundary
		r := record(fmt.Sprintf("same-%02d", i), "oas_a", noon.Add(-30*time.Hour).Truncate(24*time.Hour))
		recs = append(recs, r)
	}
	rare := record("rare", "oas_a", noon.Add(-4*24*time.Hour))
	rare.Model = "rare:latest"
	recs = append(recs, rare)
	for i := range recs {
		recs[i].At = recs[i].At.UTC().Truncate(time.Millisecond)
	}
	addRecords(t, s, recs...)
	slices.SortFunc(recs, func(a, b api.Record) int { return -cmp.Or(a.At.Compare(b.At), cmp.Compare(a.ID, b.ID)) })
	for _, f := range []api.RequestFilter{
		{},
		{Keys: []string{"oas_a"}},
		{Models: []string{"rare:latest"}},
		{Models: []string{"nowhere:latest"}},
		{Outcomes: []string{"client_gone"}, Keys: []string{"oas_a", "oas_b"}},
		{From: noon.Add(-50 * time.Hour), To: noon.Add(-20 * time.Hour)},
		{Backends: []string{"gpu2"}, To: noon.Add(-20 * time.Hour)},
		{Endpoints: []string{"/api/chat"}, From: noon.Add(-20 * time.Hour)},
	} {
		var want []string
		for i := range recs {
			if chosenBy(&f, &recs[i]) {
				want = append(want, recs[i].ID)
			}
		}
		for _, limit := range []int{1, 7, 100, 10_000} {
			var got []string
			q := RequestQuery{RequestFilter: f, Limit: limit}
			for {
				list, next, err := s.Requests(t.Context(), q)
				if err != nil || len(list) > limit {
					t.Fatal(len(list), err)
				}
				for _, r := range list {
					got = append(got, r.ID)
				}
				if next == nil || len(got) > len(want) {
					break
				}
				if len(list) != limit {
					t.Fatalf("%+v: a page of %d, with more pages after it", f, len(list))
				}
				q.Before = *next
			}
			if !slices.Equal(got, want) {
				t.Fatalf("%+v in pages of %d:\n%v\nwant\n%v", f, limit, got, want)
			}
		}
	}
}

func TestListedRequestIsTheRecord(t *testing.T) {
	s, _ := create(t)
	full := api.Record{
		Admission: api.Admission{
			ID: "full", ClientRequestID: "theirs", At: noon, Key: "oas_a", Model: "qwen3:latest", Alias: "claude-x",
			Endpoint: "/api/chat", Backend: "gpu1", Class: "inference", Streamed: true, ClientAddr: "10.0.0.7",
		},
		Outcome: api.OutcomeUpstream, Status: 502, ErrorCode: api.CodeUpstreamError, PromptTokens: 1, CompletionTokens: 2, Estimated: true,
		FirstByte: 1500 * time.Microsecond, Total: 2500 * time.Microsecond, Slot: 2*time.Millisecond + 3, GPU: time.Millisecond + 5, Queued: time.Millisecond + 7, Loading: 2 * time.Second,
		OllamaTotal: pointer(4 * time.Nanosecond), OllamaLoad: pointer(time.Duration(0)), OllamaPromptEval: pointer(time.Hour), BytesIn: 8, BytesOut: 9,
	}
	addRecords(t, s, full)
	got, next, err := s.Requests(t.Context(), RequestQuery{Limit: 1})
	if err != nil || next != nil || len(got) != 1 || !reflect.DeepEqual(got[0], full) {
		t.Fatalf("%v, %v\n%+v\nwant\n%+v", err, next, got, full)
	}
	unseen := full
	unseen.ID, unseen.At, unseen.GPU, unseen.Queued, unseen.Loading, unseen.Reserved, unseen.ReservedGPU = "unseen", noon.Add(time.Second), -1, -1, -1, 8200, time.Minute
	addRecords(t, s, unseen)
	if got, _, err := s.Requests(t.Context(), RequestQuery{Limit: 1}); err != nil || !reflect.DeepEqual(got[0], unseen) {
		t.Fatalf("%v\n%+v\nwant\n%+v", err, got, unseen)
	}
}

// Requests that are added while a list is read neither repeat nor displace later entries.
func TestPagesStayWhileRequestsCome(t *testing.T) {
	s, _ := create(t)
	for i := range 6 {
		addRecords(t, s, record(fmt.Sprint("old-", i), "oas_a", noon.Add(time.Duration(i)*time.Second)))
	}
	first, next, err := s.Requests(t.Context(), RequestQuery{Limit: 3})
	if err != nil || next == nil {
		t.Fatal(next, err)
	}
	addRecords(t, s, record("new", "oas_a", noon.Add(time.Minute)))
	second, end, err := s.Requests(t.Context(), RequestQuery{Limit: 3, Before: *next})
	if err != nil || end != nil {
		t.Fatal(end, err)
	}
	var got []string
	for _, r := range append(first, second...) {
		got = append(got, r.ID)
	}
	if want := []string{"old-5", "old-4", "old-3", "old-2", "old-1", "old-0"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
