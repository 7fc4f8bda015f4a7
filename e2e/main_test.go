// Package e2e drives the built binary before a real Ollama, as its users do: with curl, with the ollama command and with
// the JavaScript clients. Where a test needs an Ollama that stalls or dies, a scripted one stands in.
package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ollama-api-service/internal/test/tool"
)

// patience bounds every wait for a program.
const patience = 30 * time.Second

// What all tests of the package share: made once by TestMain.
var (
	binary     string // the service, built as it is shipped
	ollamaURL  string // the real Ollama, with the models tiny and llama2 (the same, but brief)
	ollamaTool string // the ollama command
)

func TestMain(m *testing.M) {
	code := func() int {
		end, err := setUp()
		defer end()
		if err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			return 1
		}
		return m.Run()
	}()
	client.CloseIdleConnections()
	http.DefaultClient.CloseIdleConnections()
	if code == 0 {
		// What a test has left running may have been looking at the service of another.
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// setUp builds the service and starts Ollama. What it returns ends what it started, also after an error.
func setUp() (end func(), err error) {
	end = func() {}
	dir, err := os.MkdirTemp("", "e2e-")
	if err != nil {
		return end, err
	}
	end = func() { os.RemoveAll(dir) }
	binary = filepath.Join(dir, "ollama-api-service")
	build := exec.Command("go", "build", "-trimpath", "-tags", "grpcnotrace", "-ldflags", "-s -w -X main.version=0.0.0-e2e", "-o", binary, "../cmd/ollama-api-service")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return end, fmt.Errorf("building the service: %w\n%s", err, out)
	}
	if ollamaTool, err = findOllama(); err != nil {
		return end, err
	}
	var stop func()
	ollamaURL, stop, err = startOllama(dir, nil)
	removeDir := end
	end = func() { stop(); removeDir() }
	return end, err
}

// findOllama is the ollama command of PATH or of Go's bin directory; where there is none it is built from the Go module
// proxy. 0.6.5 is the newest that can be built so.
func findOllama() (string, error) {
	path, err := tool.Ollama()
	if !errors.Is(err, fs.ErrNotExist) {
		return path, err
	}
	install := exec.Command("go", "install", "github.com/ollama/ollama@v0.6.5")
	install.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := install.CombinedOutput(); err != nil {
		return "", fmt.Errorf("installing Ollama (needs gcc and g++: apt-get install -y gcc g++): %w\n%s", err, out)
	}
	return path, nil
}

var listening = regexp.MustCompile(`Listening on (127\.0\.0\.1:\d+)`)

// startOllama starts it on a free port with a home of its own, and creates the models. Its url is its address. log gets each line that it
// logs, and may be nil.
func startOllama(dir string, log func(string), env ...string) (url string, stop func(), err error) {
	stop = func() {}
	home := filepath.Join(dir, "ollama")
	if err := os.MkdirAll(home, 0o700); err != nil {
		return url, stop, err
	}
	cmd := exec.Command(ollamaTool, "serve")
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "OLLAMA_MODELS=" + filepath.Join(home, "models"), "OLLAMA_HOST=127.0.0.1:0", "OLLAMA_NUM_PARALLEL=4"}, env...)
	dieWithTests(cmd)
	out, err := cmd.StderrPipe()
	if err != nil {
		return url, stop, err
	}
	if err := cmd.Start(); err != nil {
		return url, stop, err
	}
	stop = func() { terminate(cmd) }
	address := make(chan string, 1)
	go func() {
		in, told := bufio.NewScanner(out), false
		in.Buffer(nil, 1<<20)
		for (!told || log != nil) && in.Scan() {
			if m := listening.FindStringSubmatch(in.Text()); m != nil && !told {
				address <- m[1]
				told = true
			}
			if log != nil {
				log(in.Text())
			}
		}
		io.Copy(io.Discard, out)
	}()
	select {
	case a := <-address:
		url = "http://" + a
	case <-time.After(patience):
		return url, stop, errors.New("Ollama does not listen")
	}
	create := exec.Command(ollamaTool, "create", "tiny", "-f", "Modelfile")
	create.Dir = filepath.Join("..", "testdata")
	create.Env = []string{"HOME=" + home, "OLLAMA_HOST=" + url}
	if out, err := create.CombinedOutput(); err != nil {
		return url, stop, fmt.Errorf("ollama create: %w\n%s", err, out)
	}
	// The documented examples name no limit, and the tiny model's random words find no end by themselves.
	res, err := http.Post(url+"/api/create", "application/json", strings.NewReader(`{"model":"llama2","from":"tiny","parameters":{"num_predict":64},"stream":false}`))
	if err != nil {
		return url, stop, err
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return url, stop, fmt.Errorf("creating llama2 from tiny: %s", res.Status)
	}
	return url, stop, nil
}

// terminate asks a program to end, and ends it if it does not.
func terminate(cmd *exec.Cmd) error {
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-done:
		return err
	case <-time.After(patience):
		cmd.Process.Kill()
		return fmt.Errorf("did not end within %v of SIGTERM: %w", patience, <-done)
	}
}
