// Package tool has what the programs of this repository (bench, attack) and the end-to-end tests need to find and start others.
package tool

import (
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

// ModuleRoot returns the directory with go.mod: the working directory or one of its parents.
func ModuleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("run it inside the repository: this directory and its parents have no go.mod")
		}
		dir = up
	}
}

// RemoveOnSignal removes the files of a run when it is interrupted. The children end with this process.
func RemoveOnSignal(dir string) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, os.Interrupt, syscall.SIGTERM)
	<-c
	os.RemoveAll(dir)
	os.Exit(130)
}

// Ollama returns the path of the ollama command in PATH or in Go's bin directory. If it is in neither, the error is fs.ErrNotExist, and path
// is where "go install" puts it.
func Ollama() (path string, err error) {
	if path, err := exec.LookPath("ollama"); err == nil {
		return path, nil
	}
	out, err := exec.Command("go", "env", "GOBIN", "GOPATH").Output()
	if err != nil {
		return "", err
	}
	bin, gopath, _ := strings.Cut(strings.TrimRight(string(out), "\n"), "\n")
	if bin == "" {
		bin = filepath.Join(gopath, "bin")
	}
	path = filepath.Join(bin, "ollama")
	_, err = os.Stat(path)
	return path, err
}
