package sched

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"ollama-api-service/internal/backend"
)

// thrownOut is a server that lists the models a and b, and four requests: one for b that runs, and three for a, which Ollama has unloaded.
// The first of these was sent at once and waits for the load of ten seconds, the second is sent a second later, the third when it is
// loaded.
type thrownOut struct {
	s                          *Scheduler
	runs, causes, waits, comes *Lease
}

func throwOut(t *testing.T) *thrownOut {
	gpu := server("gpu", 4)
	state := stateWith(1, "a", "b")
	state.Loaded["b"] = backend.Loaded{}
	gpu.Set(state)
	o := &thrownOut{s: New(backend.NewFleet(gpu), Options{MaxQueue: 100, MaxWait: time.Hour})}
	get := func(key, model string) *Lease { return lease(t, o.s, Ask{Key: key, Model: model, Plain: true}) }
	o.runs = get("runs", "b")
	o.causes = get("causes", "a")
	time.Sleep(time.Second)
	o.waits = get("waits", "a")
	time.Sleep(9 * time.Second)
	o.comes = get("comes", "a")
	time.Sleep(2 * time.Second)
	return o
}

func wantGPU(t *testing.T, name string, l *Lease, want time.Duration) {
	t.Helper()
	if got := l.GPU(); got < want-time.Millisecond || got > want+time.Millisecond {
		t.Errorf("%s: got gpu_ms %v, want %v", name, got, want)
	}
}

// A load that the gateway did not begin is booked with the first request that waited for it. So is the server's time that others had
// meanwhile: their payers are not charged for it, and requests for other models have what they would have had.
func TestALoadThatIsFoundIsItsFirstRequests(t *testing.T) {
	const s, load = time.Second, 10 * time.Second
	for _, order := range []string{"the cause ends first", "the cause ends last"} {
		t.Run(order, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := throwOut(t)
				o.causes.NoteLoad(load)
				o.waits.NoteLoad(load - s)
				o.comes.NoteLoad(20 * time.Millisecond)
				list := []*Lease{o.causes, o.waits, o.comes, o.runs}
				if order == "the cause ends last" {
					list = []*Lease{o.runs, o.comes, o.waits, o.causes}
				}
				for _, l := range list {
					l.Release()
				}
				// Of the first second half is the cause's, of the next nine two thirds, of the last two a fourth.
				wantGPU(t, "the request for another model", o.runs, s/2+9*s/3+2*s/4)
				wantGPU(t, "the cause", o.causes, s/2+2*9*s/3+2*s/4)
				wantGPU(t, "the one that waited with it", o.waits, 2*s/4)
				wantGPU(t, "the one that came later", o.comes, 2*s/4)
				if got := o.causes.FoundLoad(); got != load || o.causes.Loading != load {
					t.Errorf("the cause: found %v, loading %v, want %v", got, o.causes.Loading, load)
				}
				if o.waits.FoundLoad() != 0 || o.comes.FoundLoad() != 0 {
					t.Errorf("found by others: %v, %v, want 0", o.waits.FoundLoad(), o.comes.FoundLoad())
				}
				o.s.mu.Lock()
				defer o.s.mu.Unlock()
				st := o.causes.model
				if st.holds.median > 2*s {
					t.Errorf("a slot is held for %v, want 2 s: the load is not among it", st.holds.median)
				}
				if st.loading.median != load {
					t.Errorf("a load takes %v, want %v", st.loading.median, load)
				}
			})
		})
	}
}

// A payer is not charged for the time in which its request waited for a load that another has caused.
func TestWaitingForALoadOfOthersIsNotService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gpu := server("gpu", 2)
		gpu.Set(stateWith(1, "a"))
		s := New(backend.NewFleet(gpu), Options{MaxQueue: 100, MaxWait: time.Hour})
		causes := lease(t, s, Ask{Key: "causes", Model: "a"})
		waits := lease(t, s, Ask{Key: "waits", Model: "a"})
		go func() { lease(t, s, Ask{Key: "other", Model: "a"}).Release() }() // so that service counts
		time.Sleep(12 * time.Second)
		for _, l := range []*Lease{causes, waits} {
			l.NoteLoad(10 * time.Second)
			l.Release()
		}
		synctest.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		for key, want := range map[string]time.Duration{"causes": 12 * time.Second, "waits": 2 * time.Second} {
			if got := time.Duration(s.payers[key].counter); got != want {
				t.Errorf("%s is charged %v, want %v", key, got, want)
			}
		}
	})
}

// A dialect whose record has no load: a plain request that was alone tells by its first byte, once it is known what a load takes and how
// fast answers begin. One that was answered while it waited shows that the model was there.
func TestALoadIsFoundByTheFirstByte(t *testing.T) {
	for name, c := range map[string]struct {
		plain, answered bool
		late            time.Duration
		want            time.Duration
	}{
		"a load":                      {true, false, 9 * time.Second, 9*time.Second - 200*time.Millisecond},
		"a prompt that is not plain":  {false, false, 9 * time.Second, 0},
		"shorter than a load":         {true, false, 5 * time.Second, 0},
		"another was answered by now": {true, true, 9 * time.Second, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gpu := server("gpu", 4)
				gpu.Set(stateWith(1, "a"))
				s := New(backend.NewFleet(gpu), Options{MaxQueue: 100, MaxWait: time.Hour})
				for i := range 3 {
					l := lease(t, s, Ask{Key: fmt.Sprint("usual", i), Model: "a", Plain: true})
					time.Sleep(200 * time.Millisecond)
					l.NoteFirstByte()
					time.Sleep(time.Second)
					l.Release()
				}
				s.serverLocked(gpu).model("a").loading.put("usual0", 10*time.Second, time.Now())
				l := lease(t, s, Ask{Key: "k", Model: "a", Plain: c.plain})
				var other *Lease
				if c.answered {
					other = lease(t, s, Ask{Key: "other", Model: "a", Plain: true})
					time.Sleep(time.Second)
					other.NoteFirstByte()
					time.Sleep(c.late - time.Second)
				} else {
					time.Sleep(c.late)
				}
				l.NoteFirstByte()
				time.Sleep(time.Second)
				l.Release()
				if got := l.FoundLoad(); got != c.want {
					t.Errorf("found %v, want %v", got, c.want)
				}
				if other != nil {
					other.Release()
				}
			})
		})
	}
}

// What a lease had of a server at a time is exact between the changes that are kept, and between its beginning and them otherwise.
func TestShareAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gpu := server("gpu", 0)
		gpu.Set(stateWith(1, "a"))
		s := New(backend.NewFleet(gpu), Options{MaxQueue: 100, MaxWait: time.Hour})
		srv := s.serverLocked(gpu)
		began := time.Now()
		l := lease(t, s, Ask{Key: "k", Model: "a"})
		time.Sleep(10 * time.Second)
		for range 2 * maxMarks {
			o := lease(t, s, Ask{Key: "o", Model: "a"})
			time.Sleep(2 * time.Second)
			o.Release()
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		srv.count(time.Now(), 0)
		now := time.Now()
		for _, c := range []struct {
			at   time.Time
			want time.Duration
		}{
			{now, 10*time.Second + 2*maxMarks*time.Second},
			{now.Add(-3 * time.Second), 10*time.Second + (2*maxMarks-1)*time.Second - time.Second/2},
			{began, 0},
		} {
			if got := srv.shareAt(c.at, l.start()) - l.share; got != c.want {
				t.Errorf("after %v it had %v, want %v", c.at.Sub(began), got, c.want)
			}
		}
		if early := srv.shareAt(began.Add(20*time.Second), l.start()) - l.share; early <= 0 || early > 20*time.Second {
			t.Errorf("before the marks: got %v, want more than 0 and at most 20 s", early)
		}
	})
}
