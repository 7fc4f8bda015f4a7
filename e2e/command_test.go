package e2e

import (
	"bytes"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The ollama command, as far as TestClients does not cover it: its requests are in the books, an admin may use its commands for models, and
// a key in the address does not get into the log.
func TestTheOllamaCommand(t *testing.T) {
	s := serve(t)
	key := s.makeKey(t, "").Secret
	if out, errs, err := ollama(t, s.URL+"/k/"+key, "run", "tiny", "the sea"); err != nil || strings.TrimSpace(out) == "" {
		t.Errorf("ollama run: %v\n%s%s", err, out, errs)
	}
	if st := s.stats(t, key, 1); st.ByEndpoint["/api/generate"] != 1 || st.Completion == 0 {
		t.Errorf("books %+v", st)
	}
	for _, args := range [][]string{{"stop", "tiny"}, {"cp", "tiny", "copied"}, {"rm", "copied"}} {
		if out, errs, err := ollama(t, s.URL+"/k/"+s.Admin, args...); err != nil {
			t.Errorf("ollama %v with an admin's key: %v\n%s%s", args, err, out, errs)
		}
	}
	if log := s.stdout.String() + s.stderr.String(); strings.Contains(log, key) {
		t.Error("the key of the path is in the log")
	}
}

// An admin can create a model with the standard command: it uploads blobs and shows the progress of the creation.
func TestTheOllamaCommandCreatesAModel(t *testing.T) {
	s := serve(t)
	cmd := exec.CommandContext(t.Context(), ollamaTool, "create", "brought", "-f", "Modelfile")
	cmd.Dir = filepath.Join("..", "testdata")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "OLLAMA_HOST=" + s.URL + "/k/" + s.Admin}
	if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("success")) {
		t.Fatalf("%v\n%s", err, out)
	}
	call(t, "POST", s.URL+"/api/generate", s.Admin, strings.Replace(oneToken, "tiny", "brought", 1)).want(t, http.StatusOK)
	call(t, "DELETE", s.URL+"/api/delete", s.Admin, `{"model":"brought"}`).want(t, http.StatusOK)
}
