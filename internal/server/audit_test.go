package server_test

import (
	"encoding/csv"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/test/ollamatest"
)

type auditAnswer struct {
	Audit []struct {
		ID                          int64
		At                          time.Time
		Actor, Action, Target, From string
		ActorName                   string `json:"actor_name"`
		TargetName                  string `json:"target_name"`
		Detail                      map[string]any
	}
	NextCursor *string `json:"next_cursor"`
}

func TestAuditIsReadable(t *testing.T) {
	b := start(t, setup{})
	secret, preview := b.key(`{"name":"=Anna","role":"user","rate_limit":500}`)
	admin, adminPreview := b.key(`{"name":"second admin","role":"admin"}`)
	b.do("PATCH", "/api/keys/"+preview, admin, `{"rate_limit":1000}`)
	b.do("PATCH", "/api/keys/"+adminPreview+"?force=true", admin, `{"allowed_ips":["10.0.0.0/8"]}`)
	rotated := b.do("POST", "/api/keys/"+preview+"/rotate", adminSecret, "").json(t)["api_key"].(string)
	b.do("POST", "/api/admin/backends", adminSecret, `{"name":"added","url":"`+ollamatest.Start(t).URL+`"}`)
	b.do("DELETE", "/api/keys/"+preview, adminSecret, "")

	all := b.do("GET", "/api/admin/audit", adminSecret, "")
	for _, text := range []string{secret, rotated} {
		if strings.Contains(all.body, text[len(preview)+1:]) {
			t.Error("a secret is in the audit table")
		}
	}
	got := ask[auditAnswer](b, "/api/admin/audit")
	if len(got.Audit) != 7 || got.Audit[1].Action != "backend.add" || got.Audit[1].Target != "added" || got.NextCursor != nil || got.Audit[0].Action != "key.revoke" || got.Audit[0].TargetName != "=Anna" || got.Audit[0].ActorName != "ADMIN_API_KEY" {
		t.Fatalf("got %s, want the 7 entries of this test", all.body)
	}
	changed := ask[auditAnswer](b, "/api/admin/audit?action=key.change&actor="+adminPreview)
	if len(changed.Audit) != 2 || changed.Audit[0].Detail["forced"] != true || fmt.Sprint(changed.Audit[1].Detail) != "map[rate_limit:map[from:500 to:1000]]" ||
		changed.Audit[1].From != "127.0.0.1" || changed.Audit[1].Target != preview {
		t.Errorf("got %+v, want the two changes of the key, the newest forced", changed.Audit)
	}
	// The pages stay consistent when entries are added in the meantime.
	var ids []int64
	for cursor := ""; ; {
		page := ask[auditAnswer](b, "/api/admin/audit?limit=2&cursor="+url.QueryEscape(cursor))
		for _, row := range page.Audit {
			ids = append(ids, row.ID)
		}
		if page.NextCursor == nil {
			break
		}
		cursor = *page.NextCursor
		b.key(`{"name":"meanwhile","role":"user"}`)
	}
	if len(ids) != len(got.Audit) || ids[0] != got.Audit[0].ID || ids[len(ids)-1] != got.Audit[len(ids)-1].ID {
		t.Errorf("got the entries %v page by page", ids)
	}
	today, yesterday := time.Now().UTC().Format(time.DateOnly), time.Now().UTC().AddDate(0, 0, -1).Format(time.DateOnly)
	for query, none := range map[string]bool{
		"from=" + today: false, "to=" + today: false, "to=" + yesterday: true, "target=gpu9": true, "actor=command-line": true, "action=key.revoke,key.rotate": false,
		"from=" + today + "&to=" + today + "&tz=Pacific/Kiritimati&target=" + preview: time.Now().UTC().Hour() >= 10,
	} {
		if page := ask[auditAnswer](b, "/api/admin/audit?"+query); (len(page.Audit) == 0) != none {
			t.Errorf("%s: %d lines, want %v", query, len(page.Audit), none)
		}
	}
	r := b.do("GET", "/api/admin/audit?format=csv&limit=3&target="+preview, adminSecret, "")
	rows, err := csv.NewReader(strings.NewReader(r.body)).ReadAll()
	if err != nil || len(rows) != 4 || r.header.Get("X-Next-Cursor") == "" || !strings.HasPrefix(r.header.Get("Content-Type"), "text/csv") || !strings.Contains(r.body, "'=Anna") {
		t.Errorf("%v: %v %s", err, r.header, r.body)
	}
	for _, query := range []string{"action=key.read", "limit=0", "limit=1001", "from=yesterday", "tz=Mars/Base", "cursor=x", "cursor=WyJrZXlzIiwiMSJd", "cursor=WyJhdWRpdCIsIi0xIl0", "from=2026-11-02&to=2026-11-01", "q=x"} {
		if r := b.do("GET", "/api/admin/audit?"+query, adminSecret, ""); r.status != http.StatusBadRequest {
			t.Errorf("%s: %d %s, want %d", query, r.status, r.body, http.StatusBadRequest)
		}
	}
	if r := b.do("GET", "/api/admin/audit", b.user(), ""); r.status != http.StatusForbidden {
		t.Errorf("a user's key: got %d, want 403", r.status)
	}
}
