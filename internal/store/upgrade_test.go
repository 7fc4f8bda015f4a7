package store

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// upgradeFile names the database to upgrade for a process of this test that is going to be killed.
const upgradeFile = "STORE_TEST_UPGRADE"

// upgrade runs in such a process.
func upgrade(path string) {
	s, err := Create(context.Background(), path)
	if err != nil {
		os.Stderr.WriteString(err.Error())
		os.Exit(1)
	}
	s.Close()
	os.Exit(0)
}

// A kill at any moment of an upgrade leaves a database that the next start upgrades, with each request once and matching sums.
func TestUpgradeIsKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: make test runs it")
	}
	recs := sample(800)
	for i := range recs {
		recs[i].GPU, recs[i].Queued, recs[i].Client = -1, -1, "" // not known in that version
	}
	path := old(t, recs...)
	var errs bytes.Buffer
	killed := 0
	for patience := 15 * time.Millisecond; ; patience += patience / 3 {
		cmd := exec.Command(os.Args[0])
		cmd.Env, cmd.Stderr = append(os.Environ(), upgradeFile+"="+path), &errs
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		kill := time.AfterFunc(patience, func() { cmd.Process.Kill() })
		err := cmd.Wait()
		if kill.Stop(); err == nil {
			break
		}
		if errs.Len() > 0 {
			t.Fatal(errs.String())
		}
		killed++
		// The database has one schema or the other, completely.
		if _, _, err := Examine(t.Context(), path); err != nil {
			t.Fatalf("after %d kills: %v", killed, err)
		}
	}
	if killed < 5 {
		t.Errorf("only %d kills interrupted an upgrade", killed)
	}
	s := must[*Store](t)(Create(t.Context(), path))
	defer s.Close()
	if err := s.convert(t.Context(), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	usageIsExact(t, s, recs)
	if all := must[AllStatistics](t)(s.AllStatistics(t.Context(), noon)); all.Total.TotalRequests != int64(len(recs)) {
		t.Errorf("%d requests of %d after %d kills", all.Total.TotalRequests, len(recs), killed)
	}
}

func TestUpgradeSaysHowItGoes(t *testing.T) {
	path := old(t, sample(10)...)
	synctest.Test(t, func(t *testing.T) {
		var said strings.Builder
		log := slog.New(slog.NewTextHandler(&said, nil))
		s := must[*Store](t)(connect(t.Context(), path))
		defer s.Close()
		// Hold the connection as long as a large upgrade would.
		conn, err := s.writer.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(12*time.Second, func() { conn.Close() })
		if err := migrateLogged(t.Context(), s.writer, path, log); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(said.String(), "upgrading the database"); n != 3 || !strings.Contains(said.String(), "the database is up to date") {
			t.Errorf("%d progress messages in twelve seconds:\n%s", n, said.String())
		}
		said.Reset()
		if err := migrateLogged(t.Context(), s.writer, path, log); err != nil || said.Len() > 0 {
			t.Errorf("with nothing to do: %v %s", err, said.String())
		}
	})
}
