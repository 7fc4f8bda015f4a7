//go:build linux

package e2e

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// trouble is a service whose database or disk fails while its clients continue.
type trouble struct {
	*ledger
	*service
	url, user, strict string
	random            *rand.Rand
}

func inTrouble(t *testing.T, data string) *trouble {
	t.Helper()
	c := &trouble{ledger: newLedger(t), random: chaosRandom(t)}
	s, address := startBare(t, data, c.fake.URL+slots, nil)
	c.service, c.url = s, "http://"+address
	c.user = chaosKey(t, c.url, s.Admin)
	var k madeKey
	call(t, "POST", c.url+"/api/keys", s.Admin, `{"name":"strict","role":"user","rate_limit":null,"strict":true}`).want(t, http.StatusOK).decode(t, &k)
	c.strict = k.Secret
	return c
}

// served sends n requests, four at a time, which must all be served completely. It returns the median time.
func (c *trouble) served(t *testing.T, n int) (median time.Duration) {
	t.Helper()
	var mu sync.Mutex
	var took []time.Duration
	var load sync.WaitGroup
	for i := range 4 {
		dice := rand.New(rand.NewPCG(c.random.Uint64(), uint64(i)))
		load.Go(func() {
			for range n / 4 {
				d, status, err := c.ask(t.Context(), c.url, c.user, dice)
				if err != nil || status != http.StatusOK {
					t.Errorf("a request during the fault: got %d, %v", status, err)
				}
				mu.Lock()
				took = append(took, d)
				mu.Unlock()
			}
		})
	}
	load.Wait()
	slices.Sort(took)
	return took[len(took)/2]
}

// journal returns the journal's state that /health shows an admin.
func (c *trouble) journal(t *testing.T) (j struct {
	Bytes      int64  `json:"journal_bytes"`
	Waiting    int64  `json:"rows_waiting"`
	Open       int64  `json:"requests_open"`
	Unwritten  int64  `json:"records_unwritten"`
	Lost       int64  `json:"rows_lost"`
	StoreError string `json:"store_error"`
	Error      string `json:"journal_error"`
},
) {
	t.Helper()
	var health struct {
		Journal any `json:"journal"`
	}
	health.Journal = &j
	call(t, "GET", c.url+"/health", c.Admin, "").want(t, http.StatusOK).decode(t, &health)
	return j
}

// refused checks that a change of keys is refused with Retry-After.
func (c *trouble) refused(t *testing.T) {
	t.Helper()
	a := call(t, "POST", c.url+"/api/keys", c.Admin, `{"name":"in trouble","role":"user"}`)
	if a.Status != http.StatusServiceUnavailable || a.Header.Get("Retry-After") == "" {
		t.Errorf("creating a key: got %d %s, want 503 with Retry-After", a.Status, redact(a.Body))
	}
}

// recovers waits until all rows are in the books, compares, kills the service and compares again.
func (c *trouble) recovers(t *testing.T) {
	t.Helper()
	poll(t, "rows in the database", func() bool {
		j := c.journal(t)
		return j.Waiting == 0 && j.Unwritten == 0 && j.StoreError == "" && j.Error == ""
	})
	chaosKey(t, c.url, c.Admin)
	c.compare(t, c.Data)
	if j := c.journal(t); j.Lost != 0 {
		t.Errorf("got %d records lost, want 0", j.Lost)
	}
	c.served(t, 20)
	c.kill(t)
	client.CloseIdleConnections()
	s, address := startBare(t, c.Data, c.fake.URL+slots, nil)
	c.url, c.service.cmd, c.service.ended = "http://"+address, s.cmd, s.ended
	t.Logf("%v; integrity_check ok", c.compare(t, c.Data))
	s.stop(t)
}

// While another process locks the database, answers are as fast as before. When it releases the lock, the rows are written.
func TestChaosDatabaseLocked(t *testing.T) {
	c := inTrouble(t, t.TempDir())
	c.served(t, 40)
	before := c.served(t, 200)
	db, err := sql.Open("sqlite", "file:"+filepath.Join(c.Data, databaseName(t, c.Data))+"?_txlock=immediate&_busy_timeout=5000")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	var admin sync.WaitGroup
	admin.Go(func() { c.refused(t) }) // it is refused after it has waited twenty seconds for the lock
	during := c.served(t, 400)
	admin.Wait()
	if j := c.journal(t); j.Waiting < 400 {
		t.Errorf("the journal while the database is locked: %+v", j)
	}
	poll(t, "report of it in /health", func() bool { return c.journal(t).StoreError != "" })
	t.Logf("half of the requests took up to %v before and %v while the database was locked", before, during)
	if during > 3*before+20*time.Millisecond {
		t.Errorf("requests took %v while the database was locked, %v before", during, before)
	}
	if _, status, err := c.ask(t.Context(), c.url, c.strict, c.random); status != http.StatusOK {
		t.Errorf("a strict key while the journal has room: %d, %v", status, err)
	}
	tx.Rollback()
	c.recovers(t)
}

// The disk is full. The service does not crash, no data is damaged, and keys that are not strict are served. When there is space again, all
// requests are in the books. The test mounts its own disk, so it must run as root.
func TestChaosDiskFull(t *testing.T) {
	data := t.TempDir()
	if err := syscall.Mount("tmpfs", data, "tmpfs", 0, "size=8m,mode=0700"); err != nil {
		t.Fatalf("a small disk cannot be mounted: %v (not root? go test -skip TestChaosDiskFull)", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(data, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	c := inTrouble(t, data)
	c.served(t, 100)
	filler := filepath.Join(data, "filler")
	fill(t, filler)
	c.served(t, 400)
	c.refused(t)
	poll(t, "report of it in /health", func() bool { j := c.journal(t); return j.StoreError != "" && j.Error != "" && j.Unwritten > 0 })
	if _, status, err := c.ask(t.Context(), c.url, c.strict, c.random); status != http.StatusServiceUnavailable {
		t.Errorf("a strict key while nothing can be journalled: %d, %v, want 503", status, err)
	}
	c.served(t, 100)
	t.Logf("while the disk was full: %+v", c.journal(t))
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	c.recovers(t)
}

// fill writes until the disk is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// Every fsync fails. The service must not acknowledge anything that is not on the disk.
func TestChaosFsyncFails(t *testing.T) {
	c := inTrouble(t, t.TempDir())
	c.served(t, 40)
	heal := c.breakFsync(t)
	c.served(t, 200)
	c.refused(t)
	poll(t, "report of it in /health", func() bool { j := c.journal(t); return j.StoreError != "" && j.Error != "" })
	c.served(t, 100)
	t.Logf("while fsync failed: %+v", c.journal(t))
	heal()
	c.recovers(t)
}

// breakFsync makes every fsync of the service fail through strace, until the returned function is called.
func (c *trouble) breakFsync(t *testing.T) (heal func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, "strace", "-f", "-p", strconv.Itoa(c.cmd.Process.Pid), "-o", filepath.Join(t.TempDir(), "trace"),
		"-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO")
	out, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		t.Fatalf("strace: %v", err)
	}
	said := make([]byte, 1000)
	n, _ := out.Read(said) // strace writes a line when it has attached
	if !strings.Contains(string(said[:n]), "attached") {
		t.Errorf("strace said %q", said[:n])
	}
	drained := make(chan struct{})
	go func() { io.Copy(io.Discard, out); close(drained) }()
	heal = sync.OnceFunc(func() {
		cmd.Process.Signal(os.Interrupt) // strace detaches and ends
		<-drained
		cmd.Wait()
		cancel()
	})
	t.Cleanup(heal)
	return heal
}
