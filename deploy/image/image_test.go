package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// tarballs are two images that `make image` built from one source.
var tarballs [2]string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "image-")
		if err != nil {
			log.Fatal(err)
		}
		defer os.RemoveAll(dir)
		for i := range tarballs {
			tarballs[i] = filepath.Join(dir, fmt.Sprint(i), "image.tar")
			build := exec.Command("make", "-C", "../..", "image", "VERSION=v1.0.0", "AT=1795600000", "IMAGE="+tarballs[i])
			if out, err := build.CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "make image: %v\n%s", err, out)
				return 1
			}
		}
		return m.Run()
	}())
}

func image(t *testing.T) (v1.Image, *v1.ConfigFile) {
	t.Helper()
	image, err := tarball.ImageFromPath(tarballs[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(image); err != nil {
		t.Fatal(err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return image, config
}

func TestImageIsReproducible(t *testing.T) {
	a, err := os.ReadFile(tarballs[0])
	b, err2 := os.ReadFile(tarballs[1])
	if err != nil || err2 != nil || !bytes.Equal(a, b) {
		t.Error("two images of one source differ")
	}
}

func TestImageSettings(t *testing.T) {
	_, c := image(t)
	if c.Architecture != runtime.GOARCH || c.OS != "linux" || c.Created.Unix() != 1795600000 {
		t.Errorf("%s/%s of %v, want %v, %q, 1795600000", c.OS, c.Architecture, c.Created, runtime.GOARCH, "linux")
	}
	if user, _, _ := strings.Cut(c.Config.User, ":"); user == "" || user == "0" || user == "root" {
		t.Errorf("it runs as %q, want a text, not %q, not %q", c.Config.User, "0", "root")
	}
	if _, ok := c.Config.ExposedPorts["8000/tcp"]; !ok || len(c.Config.ExposedPorts) != 1 {
		t.Errorf("ports %v", c.Config.ExposedPorts)
	}
	if got := c.Config.Healthcheck; got == nil || strings.Join(got.Test, " ") != "CMD /usr/bin/ollama-api-service healthcheck" {
		t.Errorf("health check %+v", got)
	}
	for _, label := range []string{"title", "description", "licenses", "version", "created"} {
		if c.Config.Labels["org.opencontainers.image."+label] == "" {
			t.Errorf("no label %s, want a text", label)
		}
	}
	if got := c.Config.Labels["org.opencontainers.image.version"]; got != "v1.0.0" {
		t.Errorf("version %q, want %q", got, "v1.0.0")
	}
}

// unpack extracts the layers into a directory, as a container engine does.
func unpack(t *testing.T, image v1.Image) string {
	t.Helper()
	dir := t.TempDir()
	// The container's user must be able to enter the parent directories.
	for up := dir; up != os.TempDir() && up != "/"; up = filepath.Dir(up) {
		if err := os.Chmod(up, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	content := mutate.Extract(image)
	defer content.Close()
	for r := tar.NewReader(content); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, h.Name)
		// The newest layer comes first, the directories of its files later.
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(path, 0o755)
		case tar.TypeReg:
			var content []byte
			if content, err = io.ReadAll(r); err == nil {
				err = os.WriteFile(path, content, 0o600)
			}
		default:
			t.Fatalf("%s is of type %c", h.Name, h.Typeflag)
		}
		if err = errors.Join(err, os.Chown(path, h.Uid, h.Gid), os.Chmod(path, h.FileInfo().Mode())); err != nil {
			t.Fatal(err)
		}
	}
}

// container runs commands as a container engine would: in the image's files, as its user, in its directory, with its environment.
func container(t *testing.T, dir string, c v1.Config, env []string, args ...string) *exec.Cmd {
	t.Helper()
	var uid, gid uint32
	if _, err := fmt.Sscanf(c.User, "%d:%d", &uid, &gid); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env, cmd.Dir = append(c.Env, env...), c.WorkingDir
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: dir, Credential: &syscall.Credential{Uid: uid, Gid: gid}, Pdeathsig: syscall.SIGTERM}
	return cmd
}

var firstKey = regexp.MustCompile(`oas_[0-9A-Za-z]{10}_[0-9A-Za-z]{38}`)

// The service needs only the files of the image: it starts in it, answers, passes its own health check, reaches an Ollama, writes
// only to its volume, and stops at SIGTERM.
func TestInASystemTheImageRuns(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test must run as root, because it runs a program in another root directory")
	}
	image, config := image(t)
	dir := unpack(t, image)
	ollama := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `{"version":"0.24.0","models":[]}`) }))
	defer ollama.Close()
	port := freePort(t)
	env := []string{"PORT=" + port, "OLLAMA_BASE_URL=" + ollama.URL}

	serve := container(t, dir, config.Config, env, append(config.Config.Entrypoint, config.Config.Cmd...)...)
	var said bytes.Buffer
	serve.Stdout, serve.Stderr = &said, &said
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- serve.Wait() }()
	healthy := func() error {
		return container(t, dir, config.Config, env, config.Config.Healthcheck.Test[1:]...).Run()
	}
	for deadline := time.Now().Add(30 * time.Second); healthy() != nil; <-time.After(20 * time.Millisecond) {
		select {
		case err := <-ended:
			t.Fatalf("it ended: %v\n%s", err, firstKey.ReplaceAllString(said.String(), "oas_…"))
		default:
		}
		if time.Now().After(deadline) {
			t.Fatal("it is not healthy after 30 s")
		}
	}
	res, err := http.Get("http://127.0.0.1:" + port + "/readyz")
	if err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("readyz: %v, %v, want %d", res, err, http.StatusOK)
	}
	serve.Process.Signal(syscall.SIGTERM)
	if err := <-ended; err != nil {
		t.Errorf("at SIGTERM: %v", err)
	}
	if healthy() == nil {
		t.Error("it is healthy after it has stopped")
	}
	if !firstKey.MatchString(said.String()) {
		t.Error("the first start printed no admin key")
	}
	if info, err := os.Stat(filepath.Join(dir, "data", "ollama-api-service.db")); err != nil || info.Sys().(*syscall.Stat_t).Uid != user {
		t.Errorf("the database in the volume: %v, %v, want %v", info, err, user)
	}
	// The keys command of the image works on the same volume.
	if out, err := container(t, dir, config.Config, env, config.Config.Entrypoint[0], "keys", "list").CombinedOutput(); err != nil || !bytes.Contains(out, []byte("First admin")) {
		t.Errorf("keys list: %v: %s", err, out)
	}
	untouched(t, image, dir)
}

// untouched compares all files outside the volume with the image.
func untouched(t *testing.T, image v1.Image, dir string) {
	t.Helper()
	want := map[string]bool{".": true}
	content := mutate.Extract(image)
	defer content.Close()
	for r := tar.NewReader(content); ; {
		h, err := r.Next()
		if err != nil {
			break
		}
		want[filepath.Clean(h.Name)] = true
	}
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, path)
		if rel == "data" {
			return filepath.SkipDir
		}
		if !want[rel] {
			t.Errorf("%s was written outside the volume", rel)
		}
		return err
	})
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}
