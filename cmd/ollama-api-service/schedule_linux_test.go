package main

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A service with BACKUP_EVERY makes its first backup immediately and reports it in its metrics, and restore reads it.
func TestBackupsOfAService(t *testing.T) {
	dir := t.TempDir()
	environ := []string{"DATA_DIR=" + dir, "ADMIN_API_KEY=" + testAdmin, "BACKUP_EVERY=24h"}
	p := launch(t, environ, nil, "serve")
	var made struct{ File string }
	if err := json.Unmarshal([]byte(p.line(`"msg":"wrote a scheduled backup"`)), &made); err != nil || filepath.Dir(made.File) != filepath.Join(dir, "backups") {
		t.Fatalf("%v: the backup is %s, want it in DATA_DIR/backups", err, made.File)
	}
	m := regexp.MustCompile(`"url":"([^"]+)"`).FindStringSubmatch(p.line(`"msg":"listening"`))
	req, err := http.NewRequestWithContext(t.Context(), "GET", m[1]+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+testAdmin)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	text, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil || !regexp.MustCompile(`(?m)^ollama_api_last_backup_timestamp_seconds 1\.\d+e\+09$`).Match(text) {
		t.Errorf("%v: /metrics has no time of the last backup", err)
	}
	p.stop()
	restored := t.TempDir()
	if _, errs, exit := call(t, []string{"DATA_DIR=" + restored}, "restore", made.File); exit != exitOK {
		t.Errorf("restore: exit %d: %s, want %v", exit, errs, exitOK)
	}
	// The backup of the previous run counts: the next one is due tomorrow.
	p = launch(t, environ, nil, "serve")
	p.line(`"msg":"listening"`)
	p.stop()
	if files, err := filepath.Glob(filepath.Join(dir, "backups", "*")); err != nil || len(files) != 1 {
		t.Errorf("%q, %v, want the one backup", files, err)
	}
}

// A backup does not fill a disk with little free space, and existing backups stay.
func TestNoRoomForABackup(t *testing.T) {
	dir := tmpfs(t, "8m")
	old := filepath.Join(dir, "ollama-api-service-20200101-000000.tar")
	if err := os.WriteFile(old, []byte("an older one"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := launch(t, []string{"DATA_DIR=" + t.TempDir(), "BACKUP_EVERY=1h", "BACKUP_KEEP=1", "BACKUP_DIR=" + dir}, nil, "serve")
	if line := p.line(`"msg":"the scheduled backup failed`); !strings.Contains(line, "not enough space") || !strings.Contains(line, `"hint"`) {
		t.Errorf("the line is %s, want its cause and a hint", line)
	}
	p.stop()
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Errorf("%v, %v, want only the older backup", files, err)
	}
}
