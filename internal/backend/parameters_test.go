package backend

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/test/ollamatest"
)

// Each digest is asked about once, no matter which server has it and under which name.
func TestParameters(t *testing.T) {
	one, two := ollamatest.Start(t), ollamatest.Start(t)
	tags := func(srv *ollamatest.Server, list string) {
		srv.Script("GET", "/api/tags", ollamatest.Answer{Body: `{"models":[` + list + `]}`})
	}
	tags(one, `{"model":"tiny:latest","digest":"d1"},{"model":"copy:latest","digest":"d1"}`)
	tags(two, `{"model":"tiny:latest","digest":"d1"},{"model":"other:latest","digest":"d2"}`)
	two.Script("POST", "/api/show", ollamatest.Answer{Body: `{"parameters":"stop \"num_predict 5\"\nnum_ctx   2048"}`})
	f := NewFleet(backendAt(t, one.URL, "X-Upstream", "secret"), backendAt(t, two.URL, "", ""))
	f.All()[1].Name = "two"
	f.ProbeAll(t.Context())
	asked := func() int { return len(one.RequestsTo("POST", "/api/show")) + len(two.RequestsTo("POST", "/api/show")) }
	want := func(model string, want api.Parameters, questions int) {
		t.Helper()
		if got := f.Parameters(t.Context(), model); got != want || asked() != questions {
			t.Errorf("%s: got %+v after %d questions, want %+v after %d", model, got, asked(), want, questions)
		}
	}
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() { f.Parameters(t.Context(), "tiny:latest") })
	}
	all.Wait()
	want("tiny:latest", api.Parameters{NumPredict: 64, NumCtx: 512}, 1) // from the recorded answer
	want("copy:latest", api.Parameters{NumPredict: 64, NumCtx: 512}, 1)
	want("other:latest", api.Parameters{NumCtx: 2048}, 2)
	if r := one.RequestsTo("POST", "/api/show")[0]; r.Header.Get("X-Upstream") != "secret" || r.Header.Get("User-Agent") != Agent || string(r.Body) != `{"model":"tiny:latest"}` {
		t.Errorf("got the question %s with %v, want %q, %v, %s", r.Body, r.Header, "secret", Agent, `{"model":"tiny:latest"}`)
	}

	// The model is created again: the next probe finds another digest.
	one.Script("POST", "/api/show", ollamatest.Answer{Body: `{"parameters":"num_predict 7"}`})
	tags(one, `{"model":"tiny:latest","digest":"d3"}`)
	tags(two, ``)
	f.ProbeAll(t.Context())
	want("tiny:latest", api.Parameters{NumPredict: 7}, 3)
	want("tiny:latest", api.Parameters{NumPredict: 7}, 3)

	// No server has it: no server is asked.
	want("unknown:latest", api.Parameters{}, 3)
}

func TestParseParameters(t *testing.T) {
	for text, want := range map[string]api.Parameters{
		"":                                  {},
		"num_predict                    64": {NumPredict: 64},
		"num_predict \"64\"\nnum_ctx 1e+06": {NumPredict: 64, NumCtx: 1000000},
		"num_predict 64\nnum_predict 32":    {NumPredict: 32},
		"num_predict -1\nnum_ctx 0":         {},
		"num_predict -2":                    {},
		"num_predict many":                  {},
		"num_predict NaN\nnum_ctx +Inf":     {NumCtx: 1<<31 - 1},
		"num_predict 1e300":                 {NumPredict: 1<<31 - 1},
		"num_predict":                       {},
		"num_predictable 5":                 {},
		"stop \"a\\nnum_predict 5\"\r\nnum_predict 6\r\n": {NumPredict: 6},
	} {
		if got := parseParameters(text); got != want {
			t.Errorf("%q: %+v, want %+v", text, got, want)
		}
	}
}

// showing returns a fleet of one server that lists tiny, or nothing, and answers /api/show with show.
func showing(t *testing.T, digest string, show func(*http.Request) (string, error)) *Fleet {
	b := backendAt(t, "http://ollama.test", "", "")
	s := State{Healthy: true}
	if digest != "" {
		s.Installed = map[string]Installed{"tiny:latest": {Digest: digest}}
	}
	b.Set(s)
	b.client.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
		body, err := show(r)
		if err != nil {
			return nil, err
		}
		return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
	})
	return NewFleet(b)
}

// A slow server delays the requests once, by a second. Later requests use its answer.
func TestParametersOfASlowServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		f := showing(t, "d", func(*http.Request) (string, error) {
			asked.Add(1)
			time.Sleep(5 * time.Second)
			return `{"parameters":"num_predict 64"}`, nil
		})
		start := time.Now()
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				if got := f.Parameters(t.Context(), "tiny:latest"); got != (api.Parameters{}) || time.Since(start) != showWait {
					t.Errorf("%+v after %v", got, time.Since(start))
				}
			})
		}
		all.Wait()
		if f.Parameters(t.Context(), "tiny:latest"); time.Since(start) != showWait {
			t.Errorf("a later request waited again: got %v, want no wait", time.Since(start))
		}
		time.Sleep(5 * time.Second)
		if got := f.Parameters(t.Context(), "tiny:latest"); got.NumPredict != 64 || asked.Load() != 1 {
			t.Errorf("got %+v after %d questions, want num_predict 64 after 1", got, asked.Load())
		}
	})
}

// A client that leaves does not cancel the question for the other waiting requests.
func TestParametersWithoutTheFirstClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := showing(t, "d", func(r *http.Request) (string, error) {
			select {
			case <-r.Context().Done():
				return "", r.Context().Err()
			case <-time.After(showWait / 2):
				return `{"parameters":"num_predict 64"}`, nil
			}
		})
		gone, leave := context.WithCancel(t.Context())
		go func() { f.Parameters(gone, "tiny:latest") }()
		synctest.Wait()
		leave()
		if got := f.Parameters(t.Context(), "tiny:latest"); got.NumPredict != 64 {
			t.Errorf("got %+v, want 64", got)
		}
	})
}

// Questions that fail, and questions about unlisted models, are asked again after a pause, and not for each request.
func TestParametersThatAreNotKept(t *testing.T) {
	for name, c := range map[string]struct {
		digest, body string
		err          error
		want         api.Parameters
	}{
		"unreachable": {digest: "d", err: io.ErrUnexpectedEOF},
		"nonsense":    {digest: "d", body: "<html>"},
		"endless":     {digest: "d", body: `{"parameters":"` + strings.Repeat("x", maxList)},
		"not listed":  {body: `{"parameters":"num_predict 64"}`, want: api.Parameters{NumPredict: 64}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var asked atomic.Int32
				f := showing(t, c.digest, func(*http.Request) (string, error) { asked.Add(1); return c.body, c.err })
				for range 5 {
					if got := f.Parameters(t.Context(), "tiny:latest"); got != c.want {
						t.Errorf("got %+v, want %+v", got, c.want)
					}
				}
				if asked.Load() != 1 {
					t.Errorf("got %d questions, want 1", asked.Load())
				}
				time.Sleep(showAgain)
				if f.Parameters(t.Context(), "tiny:latest"); asked.Load() != 2 {
					t.Errorf("got %d questions after %v, want 2", asked.Load(), showAgain)
				}
			})
		})
	}
}

// A server that never answers holds nothing for longer than showTimeout.
func TestParametersOfASilentServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := showing(t, "d", func(r *http.Request) (string, error) { <-r.Context().Done(); return "", r.Context().Err() })
		start := time.Now()
		f.Parameters(t.Context(), "tiny:latest")
		synctest.Wait()
		f.shows.mu.Lock()
		s := f.shows.by["d"]
		f.shows.mu.Unlock()
		if <-s.done; time.Since(start) != showTimeout {
			t.Errorf("the question took %v, want showTimeout", time.Since(start))
		}
	})
}
