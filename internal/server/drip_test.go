package server

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"ollama-api-service/internal/api"
)

// The gateway reads on a refused body only for a bounded time and up to a bounded size, and not while it stops. So a client that sends
// single bytes cannot hold the connection longer.
func TestRefusedBodyThatDrips(t *testing.T) {
	const pause = 500 * time.Millisecond // shorter than drainTime, so the body never pauses long enough
	for _, c := range []struct {
		name        string
		key         *api.Key
		stops       time.Duration // when the service stops; 0 means never
		piece       int           // bytes of the body for each pause
		least, most time.Duration
	}{
		{"an unknown key", nil, 0, 1, readOnUnknown, readOnUnknown + 2*drainTime},
		{"a known key", &api.Key{}, 0, 1, readOnTime, readOnTime + 2*drainTime},
		{"a stop", &api.Key{}, 3 * time.Second, 1, 3 * time.Second, 3*time.Second + 2*drainTime},
		{"a large body", &api.Key{}, 0, 300, 6 * pause, 7*pause + 2*drainTime},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &Server{Options: Options{Bounds: Bounds{MaxRequestTime: time.Hour, MaxBody: 1000}}, writeProgress: writeProgress}
				var stop context.CancelFunc
				s.stopping, stop = context.WithCancel(t.Context())
				defer stop()
				if c.stops > 0 {
					defer time.AfterFunc(c.stops, stop).Stop()
				}
				client, end := overPipe(t, s, func(x *exchange) {
					x.key = c.key
					x.fail(api.Errorf(api.CodeForbidden, "no"))
				})
				defer end()
				began, done := time.Now(), make(chan struct{})
				go func() {
					_, err := io.WriteString(client, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
					for err == nil {
						select {
						case <-done:
							return
						case <-time.After(pause):
							_, err = fmt.Fprintf(client, "%x\r\n%0*d\r\n", c.piece, c.piece, 0)
						}
					}
				}()
				resp, err := http.ReadResponse(bufio.NewReader(client), nil)
				took := time.Since(began)
				close(done)
				if err != nil || resp.StatusCode != http.StatusForbidden || took < c.least || took > c.most {
					t.Errorf("%v %v after %v, want 403 after %v to %v", resp, err, took, c.least, c.most)
				}
				if n := s.bodies.bytes(); n != 0 {
					t.Errorf("got %d bytes held, want 0", n)
				}
			})
		})
	}
}
