package e2e

import (
	"net/http"
	"sync"
	"testing"
	"time"
)

// bookedRow is a row of /api/admin/requests.
type bookedRow struct {
	ID         string   `json:"id"`
	Client     string   `json:"client_request_id"`
	Endpoint   string   `json:"endpoint"`
	Outcome    string   `json:"outcome"`
	ErrorCode  string   `json:"error_code"`
	Prompt     int64    `json:"prompt_tokens"`
	Completion int64    `json:"completion_tokens"`
	Estimated  bool     `json:"estimated"`
	SlotMS     float64  `json:"slot_ms"`
	GPUMS      *float64 `json:"gpu_ms"`
	LoadMS     *float64 `json:"load_ms"`
	LoadingMS  float64  `json:"loading_ms"`
	Reserved   int64    `json:"reserved_tokens"`
}

// rows are a key's booked requests, the newest first, as soon as there are n.
func (s *service) rows(t *testing.T, preview string, n int) []bookedRow {
	t.Helper()
	var list struct {
		Requests []bookedRow `json:"requests"`
	}
	poll(t, "rows of the key", func() bool {
		list.Requests = nil
		call(t, "GET", s.URL+"/api/admin/requests?limit=1000&key="+preview, s.Admin, "").want(t, http.StatusOK).decode(t, &list)
		return len(list.Requests) >= n
	})
	return list.Requests
}

// Requests that run at one time on the slots of a real Ollama share its time: what they are charged together is never more than
// the time that passed, while the slots they held are.
func TestTheGPUIsChargedOnce(t *testing.T) {
	s := start(t, t.TempDir(), ollamaURL+"?slots=4", nil)
	key := s.makeKey(t, `,"rate_limit":null`)
	const clients, each = 4, 2
	from := time.Now()
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			for range each {
				path, body := "/api/generate", `{"model":"tiny","prompt":"x","options":{"num_predict":16}}`
				if i%2 == 1 {
					path, body = "/v1/chat/completions", `{`+ask+`,"max_tokens":16,"stream":true}`
				}
				a, err := tryCall(t.Context(), "POST", s.URL+path, key.Secret, body)
				if err != nil || a.Status != http.StatusOK {
					t.Errorf("%s: %d, %v", path, a.Status, err)
				}
			}
		})
	}
	all.Wait()
	wall := time.Since(from)
	var gpu, slot float64
	rows := s.rows(t, key.Preview, clients*each)
	for _, r := range rows {
		if r.GPUMS == nil || *r.GPUMS <= 0 || *r.GPUMS > r.SlotMS {
			t.Fatalf("a row: %+v", r)
		}
		if v1 := r.Endpoint != "/api/generate"; v1 != (r.LoadMS == nil) {
			t.Errorf("%s: load_ms is %v; the dialects of /v1 have none", r.Endpoint, r.LoadMS)
		}
		gpu += *r.GPUMS
		slot += r.SlotMS
	}
	t.Logf("%d requests in %v: gpu_ms %.0f, slot_ms %.0f", len(rows), wall.Round(time.Millisecond), gpu, slot)
	if most := float64(wall.Microseconds()) / 1000; gpu > most || gpu < most/4 {
		t.Errorf("gpu_ms add up to %.1f in %.1f ms", gpu, most)
	}
	if slot < 1.5*gpu {
		t.Errorf("slots were held for %.1f ms and the backend used for %.1f: nothing ran at one time", slot, gpu)
	}
	// The same in the statistics of the key and of everybody.
	var own struct {
		GPUMS float64 `json:"gpu_ms"`
	}
	call(t, "GET", s.URL+"/api/stats", key.Secret, "").want(t, http.StatusOK).decode(t, &own)
	var used struct {
		Usage []struct {
			GPUMS float64 `json:"gpu_ms"`
		} `json:"usage"`
	}
	call(t, "GET", s.URL+"/api/admin/usage?group_by=model&key="+key.Preview, s.Admin, "").want(t, http.StatusOK).decode(t, &used)
	if near := func(v float64) bool { return v > gpu-0.1 && v < gpu+0.1 }; !near(own.GPUMS) || len(used.Usage) != 1 || !near(used.Usage[0].GPUMS) {
		t.Errorf("rows have %v, /api/stats %v, usage %+v", gpu, own.GPUMS, used.Usage)
	}
}
