package e2e

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	chaosRounds = flag.Int("rounds", 10, "how often TestChaosKill kills the service")
	chaosSeed   = flag.Uint64("seed", 0, "what TestChaosKill and its kind draw their randomness from; 0 is another each time")
)

func chaosRandom(t *testing.T) *rand.Rand {
	seed := *chaosSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// slots are enough to serve all clients of a test at the same time.
const slots = "?slots=8"

// TestChaosKill repeatedly kills the service under load on the same data, and compares its books and keys with the facts that its clients
// know. Everything that was acknowledged must be there exactly once.
func TestChaosKill(t *testing.T) {
	random := chaosRandom(t)
	l := newLedger(t)
	data := t.TempDir()
	s, address := startBare(t, data, l.fake.URL+slots, nil)
	admin, url := s.Admin, "http://"+address
	users := []string{chaosKey(t, url, admin), chaosKey(t, url, admin), chaosKey(t, url, admin)}
	var all result
	for round := range *chaosRounds {
		l.killUnderLoad(t, s, url, admin, users, random)
		l.fake.Forget()
		client.CloseIdleConnections()
		// At its start, the service moves the journal's records to the books before it listens.
		s, address = startBare(t, data, l.fake.URL+slots, nil)
		url = "http://" + address
		all = l.compare(t, data)
		l.tryKeys(t, url, round == *chaosRounds-1)
		if t.Failed() {
			t.Fatalf("round %d: %v", round, all)
		}
	}
	t.Logf("%d rounds: %v; integrity_check ok after each", *chaosRounds, all)
	var stats struct {
		Total struct {
			Requests int64 `json:"total_requests"`
		} `json:"total"`
	}
	call(t, "GET", url+"/api/admin/stats", admin, "").want(t, http.StatusOK).decode(t, &stats)
	if rows := len(books(t, data)); int64(rows) != stats.Total.Requests {
		t.Errorf("%d rows, and %d requests in the statistics", rows, stats.Total.Requests)
	}
	s.stop(t)
}

func chaosKey(t *testing.T, url, admin string) string {
	t.Helper()
	var k madeKey
	call(t, "POST", url+"/api/keys", admin, `{"name":"chaos","role":"user","rate_limit":null}`).want(t, http.StatusOK).decode(t, &k)
	return k.Secret
}

// killUnderLoad runs clients and changes of keys, and kills the service after a random number of answer pieces.
func (l *ledger) killUnderLoad(t *testing.T, s *service, url, admin string, users []string, random *rand.Rand) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	goal := l.chunks.Load() + 20 + random.Int64N(1500)
	enough := make(chan struct{})
	var dead atomic.Bool
	var load sync.WaitGroup
	for i := range 8 {
		dice := rand.New(rand.NewPCG(random.Uint64(), uint64(i)))
		load.Go(func() {
			for ctx.Err() == nil {
				if _, _, err := l.ask(ctx, url, users[i%len(users)], dice); err != nil && dead.Load() {
					return
				} else if err != nil {
					t.Errorf("a request before the kill: %v", err)
					return
				}
			}
		})
	}
	dice := rand.New(rand.NewPCG(random.Uint64(), 99))
	load.Go(func() { l.changeKeys(ctx, url, admin, dice) })
	load.Go(func() {
		for ; l.chunks.Load() < goal && ctx.Err() == nil; <-time.After(time.Millisecond) {
		}
		close(enough)
	})
	<-enough
	if ctx.Err() != nil {
		t.Fatal(fmt.Errorf("the load did not produce enough answers: %w", ctx.Err()))
	}
	dead.Store(true)
	s.kill(t)
	load.Wait()
}
