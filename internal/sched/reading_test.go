package sched

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ollama-api-service/internal/backend"
)

// runner is Ollama's: while it reads prompts, answers stand still. Prompts that are read together share its time.
type runner struct {
	mu     sync.Mutex
	active map[*sequence]bool
}

type sequence struct {
	reads, writes time.Duration // still to do
	read, done    chan struct{}
}

const batchTime = 50 * time.Millisecond

// run makes batches until ctx ends.
func (r *runner) run(ctx context.Context) {
	for ctx.Err() == nil {
		time.Sleep(batchTime)
		r.mu.Lock()
		reading := 0
		for s := range r.active {
			if s.reads > 0 {
				reading++
			}
		}
		for s := range r.active {
			switch {
			case s.reads > 0:
				if s.reads -= batchTime / time.Duration(reading); s.reads <= 0 {
					close(s.read)
				}
			case reading == 0:
				s.writes -= batchTime
			}
			if s.reads <= 0 && s.writes <= 0 {
				delete(r.active, s)
				close(s.done)
			}
		}
		r.mu.Unlock()
	}
}

func (r *runner) begin(reads, writes time.Duration) *sequence {
	s := &sequence{reads, writes, make(chan struct{}), make(chan struct{})}
	if reads <= 0 {
		close(s.read)
	}
	r.mu.Lock()
	r.active[s] = true
	r.mu.Unlock()
	return s
}

func (r *runner) leave(s *sequence) {
	r.mu.Lock()
	delete(r.active, s)
	r.mu.Unlock()
}

const (
	readingTokens = 4000
	readingTime   = 4 * time.Second // of that number of tokens
	writingTokens = 10
	writingTime   = time.Second
)

// readingKeys is how keys with long prompts behave.
type readingKeys struct {
	name string
	ask  func(r *runner, l *Lease)
}

var readings = []readingKeys{
	{"read to the end", func(r *runner, l *Lease) {
		began := time.Now()
		s := r.begin(readingTime, batchTime)
		<-s.read
		took := time.Since(began)
		l.NoteFirstByte()
		<-s.done
		l.NoteTokens(Prompt{Estimate: readingTokens, Likely: readingTokens}, readingTokens, 1, 0)
		l.NotePrompt(took)
	}},
	{"without a record", func(r *runner, l *Lease) {
		s := r.begin(readingTime, batchTime)
		<-s.read
		l.NoteFirstByte()
		<-s.done
		l.NoteTokens(Prompt{Estimate: readingTokens, Likely: readingTokens}, readingTokens, 1, 0)
	}},
	{"left at the first byte", func(r *runner, l *Lease) {
		s := r.begin(readingTime, time.Minute)
		<-s.read
		l.NoteFirstByte()
		r.leave(s)
		l.Expected(Prompt{Estimate: readingTokens, Likely: readingTokens}, true)
	}},
	{"left before the first byte", func(r *runner, l *Lease) {
		s := r.begin(readingTime, time.Minute)
		time.Sleep(readingTime * 9 / 10)
		r.leave(s)
		l.Expected(Prompt{Estimate: readingTokens, Likely: readingTokens}, true)
	}},
}

// Long prompts stop the answers of others while they are evaluated. Keys that send them have their share of the server's time, whether they
// read the answers or leave.
func TestLongPromptsPayForTheSlotsThatTheyStop(t *testing.T) {
	for _, kind := range readings {
		t.Run(kind.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := scheduler(4, 1000, 24*time.Hour)
				ctx, stop := context.WithCancel(t.Context())
				r := &runner{active: make(map[*sequence]bool)}
				over, end := context.WithCancel(t.Context())
				var batches sync.WaitGroup
				batches.Go(func() { r.run(over) })
				var served, used, theirs atomic.Int64
				loop := func(key string, ask func(l *Lease)) {
					for ctx.Err() == nil {
						l, err := s.Acquire(ctx, Ask{Key: key, Model: "a"})
						if err != nil {
							return
						}
						ask(l)
						l.Release()
					}
				}
				var all sync.WaitGroup
				for i := range 8 {
					for range 2 {
						all.Go(func() {
							loop(fmt.Sprint("victim", i), func(l *Lease) {
								began := time.Now()
								<-r.begin(batchTime, writingTime).done
								l.NoteFirstByte()
								l.NoteTokens(Prompt{Estimate: 20, Likely: 20}, 20, writingTokens, time.Since(began))
								served.Add(1)
								defer func() { used.Add(int64(l.GPU())) }()
							})
						})
					}
				}
				time.Sleep(time.Minute)
				in := func(d time.Duration) float64 {
					before := served.Load()
					time.Sleep(d)
					return float64(served.Load() - before)
				}
				alone := in(20 * time.Minute)
				for i := range 2 {
					for range 8 {
						all.Go(func() {
							loop(fmt.Sprint("attacker", i), func(l *Lease) {
								kind.ask(r, l)
								l.Release()
								theirs.Add(int64(l.GPU()))
							})
						})
					}
				}
				time.Sleep(5 * time.Minute)
				theirs.Store(0)
				const passed = 2 * time.Hour
				got := in(passed) / passed.Minutes() * 20 / alone
				gpu := time.Duration(theirs.Load()).Seconds() / passed.Seconds()
				t.Logf("the others keep %.3f; the two have %.3f of the server on their rows", got, gpu)
				if want := 0.95 * 8 / 10; got < want {
					t.Errorf("the others keep %.3f, want %.3f", got, want)
				}
				if gpu < 0.12 || gpu > 0.25 {
					t.Errorf("the two have %.3f of the server on their rows, want about 0.2", gpu)
				}
				stop()
				all.Wait()
				end()
				batches.Wait()
				wantEmpty(t, s)
			})
		})
	}
}

// longPrompts is a server with a long prompt that is evaluated for two seconds, while three others run.
func longPrompts(t *testing.T, state backend.State) (s *Scheduler, long *Lease, others []*Lease) {
	gpu := server("gpu", 4)
	gpu.Set(state)
	s = New(backend.NewFleet(gpu), Options{MaxQueue: 100, MaxWait: time.Hour})
	for range 3 {
		others = append(others, lease(t, s, Ask{Key: "other", Model: "a"}))
	}
	time.Sleep(time.Second)
	long = lease(t, s, Ask{Key: "long", Model: "a"})
	time.Sleep(2 * time.Second)
	long.NoteTokens(Prompt{Estimate: 2000, Likely: 2000}, 2000, 1, 0)
	long.NotePrompt(2 * time.Second)
	s.mu.Lock()
	long.model.perToken.put("other", 10*time.Millisecond, time.Now())
	s.mu.Unlock()
	return s, long, others
}

// The time in which a prompt is evaluated is on the row of its request, also that of the slots that it stops, and all rows together have
// the time that passed.
func TestThePromptsTimeIsOnItsRow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, long, others := longPrompts(t, stateWith(1, "a"))
		long.Release()
		time.Sleep(time.Second)
		all := long.GPU()
		for i, o := range others {
			o.Release()
			wantGPUAbout(t, fmt.Sprint("other ", i), o, 2*time.Second/3)
			all += o.GPU()
		}
		wantGPUAbout(t, "long", long, 2*time.Second)
		if passed := 4 * time.Second; all > passed || all < passed-time.Millisecond {
			t.Errorf("got %v on all rows, want the %v that passed", all, passed)
		}
		wantEmpty(t, s)
	})
}

func wantGPUAbout(t *testing.T, name string, l *Lease, want time.Duration) {
	t.Helper()
	if got := l.GPU(); got < want*95/100 || got > want*105/100 {
		t.Errorf("%s: got gpu_ms %v, want about %v", name, got, want)
	}
}

// Payers are not charged for the time in which their requests stood still for the prompt of another, also those whose requests have ended
// by then.
func TestStandingStillIsNotService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, long, others := longPrompts(t, stateWith(1, "a"))
		go func() { lease(t, s, Ask{Key: "waits", Model: "a"}).Release() }() // so that service counts
		synctest.Wait()
		s.mu.Lock()
		for _, l := range append(others, long) { // what was not contested would not count
			l.wanted -= l.slotTime(time.Now())
		}
		before := s.payers["other"].counter - s.payers["other"].held
		s.mu.Unlock()
		others[0].Release()
		long.Release()
		others[1].Release()
		others[2].Release()
		s.mu.Lock()
		defer s.mu.Unlock()
		got := time.Duration(s.payers["other"].counter - before)
		if want := 3 * time.Second; got < want*95/100 || got > want*110/100 {
			t.Errorf("the others are charged %v, want about 1 s for each of three", got)
		}
		if got, want := long.delays, 6*time.Second; got < want*95/100 || got > want*105/100 {
			t.Errorf("the long prompt is charged %v for slots of others, want about %v", got, want)
		}
	})
}

// A short prompt that is evaluated in the batches of a long one has little of that time, and a prompt from the cache stops no slot and
// makes no other prompt cheaper.
func TestAPromptPaysOnlyForItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, long, others := longPrompts(t, stateWith(1, "a"))
		st := long.model
		long.Release()
		if got := st.perRead.median; got < 900*time.Microsecond || got > time.Millisecond {
			t.Errorf("got %v for a token of a prompt, want somewhat less than 1 ms", got)
		}
		ask := func(tokens int64, took time.Duration) time.Duration {
			l := lease(t, s, Ask{Key: "long", Model: "a"})
			time.Sleep(2 * time.Second)
			l.NoteTokens(Prompt{Estimate: tokens, Likely: tokens}, tokens, 1, 0)
			l.NotePrompt(took)
			l.Release()
			return l.delays
		}
		if got := ask(20, 2*time.Second); got > 3*20*time.Millisecond {
			t.Errorf("a short prompt with a long one: got %v for slots of others, want no more than 20 ms for each", got)
		}
		for range 50 {
			if got := ask(2000, 10*time.Millisecond); got != 0 {
				t.Errorf("a cached prompt: got %v for slots of others, want none", got)
			}
		}
		if got := ask(2000, 2*time.Second); got < 5*time.Second {
			t.Errorf("after cached prompts: got %v for slots of others, want about 6 s", got)
		}
		for _, o := range others {
			o.Release()
		}
		wantEmpty(t, s)
	})
}

// Whatever records say of prompts and loads, all rows together never have more than the time that passed, and none has less than nothing.
func TestPromptsNeverBookMoreThanPassed(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			gpu := server("gpu", 4)
			gpu.Set(stateWith(2, "a", "b"))
			s := New(backend.NewFleet(gpu), Options{MaxQueue: 1000, MaxWait: 1000 * time.Hour})
			began := time.Now()
			var sum atomic.Int64
			var all sync.WaitGroup
			for i := range 20 {
				dice := rand.New(rand.NewPCG(seed, uint64(i)))
				part := func(d time.Duration) time.Duration { return time.Duration(dice.Int64N(int64(d))) }
				all.Go(func() {
					for range 50 {
						a := embedding(fmt.Sprint(i%6), dice.IntN(6))
						a.Model, a.Embeds = string("ab"[i%2]), dice.IntN(2) == 0
						l := lease(t, s, a)
						time.Sleep(part(5 * time.Second))
						l.NoteFirstByte()
						time.Sleep(part(5 * time.Second))
						if dice.IntN(4) == 0 {
							l.NoteLoad(part(3 * time.Second))
						}
						tokens := 1 + dice.Int64N(4000)
						switch p := (Prompt{Estimate: tokens, Likely: tokens}); dice.IntN(3) {
						case 0:
							l.NoteTokens(p, tokens, 20, part(3*time.Second))
							l.NotePrompt(part(20 * time.Second))
						case 1:
							l.NoteTokens(p, tokens, 20, part(3*time.Second))
						default:
							l.Expected(p, true)
						}
						l.Release()
						if l.GPU() < 0 {
							t.Errorf("seed %d: got %v of the server for one request", seed, l.GPU())
						}
						sum.Add(int64(l.GPU()))
					}
				})
			}
			all.Wait()
			passed := time.Since(began)
			if got := time.Duration(sum.Load()); got > passed || got < passed*9/10 {
				t.Errorf("seed %d: got %v on all rows, want the %v that passed", seed, got, passed)
			}
			for name, c := range s.payers {
				if c.counter < 0 {
					t.Errorf("seed %d: the counter of %s is %v", seed, name, c.counter)
				}
			}
			wantEmpty(t, s)
		})
	}
}

// A prompt whose client leaves is still evaluated for the rest of the expected time. Of embeddings, only the texts with a slot are.
func TestTheRestOfAPromptIsExpected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(4, 100, time.Hour)
		p := Prompt{Estimate: 100, Likely: 100, Text: 100, Most: 100, Unknown: 100}
		chat := lease(t, s, Ask{Key: "chat", Model: "a"})
		if got := chat.ReadingLeft(p); got != 0 {
			t.Errorf("got %v before any prompt was measured, want 0: not known", got)
		}
		s.mu.Lock()
		chat.model.perRead.put("chat", 10*time.Millisecond, time.Now())
		s.mu.Unlock()
		for _, c := range []struct{ after, want time.Duration }{{0, time.Second}, {400 * time.Millisecond, 600 * time.Millisecond}, {time.Second, 0}} {
			time.Sleep(c.after)
			if got := chat.ReadingLeft(p); got != c.want {
				t.Errorf("%v later: got %v, want %v", c.after, got, c.want)
			}
		}
		chat.Release()
		embeds := lease(t, s, embedding("embeds", 16))
		if got, want := embeds.ReadingLeft(p), 250*time.Millisecond; got != want {
			t.Errorf("embeddings of 16 texts in 4 slots: got %v, want %v", got, want)
		}
		embeds.Release()
		if got := (&Lease{}).ReadingLeft(p); got != 0 {
			t.Errorf("a lease without a slot: got %v, want 0", got)
		}
	})
}
