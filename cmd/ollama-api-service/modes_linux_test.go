package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// Kubernetes' fsGroup adds group permissions and setgid to everything in a volume, at every mount.
func TestStartWithTheModesOfAnFSGroup(t *testing.T) {
	dir := t.TempDir()
	p := launch(t, []string{"DATA_DIR=" + dir}, nil, "serve")
	p.line(`"msg":"listening"`)
	p.stop()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			return os.Chmod(path, 0o770|fs.ModeSetgid)
		}
		return os.Chmod(path, 0o660)
	})
	if err != nil {
		t.Fatal(err)
	}
	p = launch(t, []string{"DATA_DIR=" + dir}, nil, "serve")
	p.line(`"level":"WARN".*secret.key can be used by their group`)
	p.line(`"msg":"listening"`)
	p.stop()
	for _, name := range []string{"secret.key", databaseName} {
		path := filepath.Join(dir, name)
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
		launch(t, []string{"DATA_DIR=" + dir}, nil, "serve").exit(exitUsage, path+" can be read by every user", "chmod 600")
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// A volume whose directory is writable for every user (an emptyDir) is a warning.
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	p = launch(t, []string{"DATA_DIR=" + dir}, nil, "serve")
	p.line(`"level":"WARN".*can be written by every user`)
	p.line(`"msg":"listening"`)
	p.stop()
}

// The files of secrets and settings may be on a disk that is mounted later.
func TestStartWaitsForTheSettings(t *testing.T) {
	dir := t.TempDir()
	path, env := filepath.Join(dir, "secret"), filepath.Join(dir, "my.env")
	p := launch(t, []string{"DATA_DIR=" + dir}, nil, "serve", "--env-file", env)
	p.line(waits + ".*settings file .* does not exist")
	if err := os.WriteFile(env, []byte("SECRET_KEY_FILE="+path+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.line(waits + ".*SECRET_KEY_FILE")
	if err := os.WriteFile(path, []byte(testSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.line(`"msg":"listening"`)
	p.stop()
	launch(t, []string{"START_WAIT=0s", "SECRET_KEY_FILE=" + dir + "/absent"}, nil, "serve").exit(exitFailure, "SECRET_KEY_FILE")
	// The wait for the settings does not depend on settings that cannot be read yet.
	launch(t, []string{"PORT=x"}, nil, "serve").exit(exitUsage, "PORT")
}
