package books

import (
	"strings"
	"sync"
	"time"

	"ollama-api-service/internal/api"
)

const (
	// othersName counts everything beyond the limits, so that a flood from many addresses fills neither memory nor disk.
	othersName = "(other)"
	mostWho    = 10_000  // distinct names in one minute
	mostWaits  = 100_000 // distinct names in all minutes that wait for the store
	maxWho     = 128     // in bytes; the longest address has 45
)

// tallies count by minute, who and what. The zero value is ready to use.
type tallies struct {
	mu      sync.Mutex
	minutes map[int64]map[string]map[string]int64 // minute since 1970, who, what
	waits   int
}

func (t *tallies) add(minute int64, who, what string, n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	whos := t.minutes[minute]
	if whos == nil {
		if t.minutes == nil {
			t.minutes = make(map[int64]map[string]map[string]int64)
		}
		whos = make(map[string]map[string]int64)
		t.minutes[minute] = whos
	}
	counts := whos[who]
	if counts == nil {
		if len(whos) >= mostWho || t.waits >= mostWaits || len(who) > maxWho {
			who = othersName
			counts = whos[who]
		}
		if counts == nil {
			counts = make(map[string]int64)
			whos[strings.Clone(who)] = counts // who may be part of a longer string
			t.waits++
		}
	}
	if _, known := counts[what]; !known {
		what = strings.Clone(what)
	}
	counts[what] += n
}

// take returns the counters and empties them.
func (t *tallies) take() []api.Tally {
	t.mu.Lock()
	minutes := t.minutes
	t.minutes, t.waits = nil, 0
	t.mu.Unlock()
	var all []api.Tally
	for minute, whos := range minutes {
		for who, counts := range whos {
			for what, n := range counts {
				all = append(all, api.Tally{Minute: time.Unix(minute*60, 0).UTC(), Who: who, What: what, Count: n})
			}
		}
	}
	return all
}

func minuteOf(t time.Time) int64 { return t.Unix() / 60 }
