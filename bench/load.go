//go:build linux

package main

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"
)

// load is a set of persistent connections, driven by one thread with epoll and prepared requests, so that on two cores the
// measurement is not one of the load generator.
type load struct {
	epoll  int
	wires  map[int]*wire
	order  []*wire
	events []unix.EpollEvent
	buf    []byte
	// refused, if not nil, is called for each answer that is not a 200. Otherwise such an answer is an error.
	refused func()
	fail    func(err error) // if not nil, a connection that fails is dropped and reported here, and the others continue
}

type wire struct {
	fd     int
	answer answer
	busy   bool
	err    error     // why it was dropped
	begun  bool      // the answer's first bytes have arrived
	due    time.Time // when the request should have been sent
}

// errLate ends a measurement that takes too long.
var errLate = errors.New("the measurement took too long")

// dial opens n connections to addr ("127.0.0.1:port").
func dial(addr string, n int) (*load, error) {
	_, p, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	port, err := strconv.Atoi(p)
	if err != nil {
		return nil, err
	}
	l := &load{wires: map[int]*wire{}, events: make([]unix.EpollEvent, 512), buf: make([]byte, 64<<10)}
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, err
	}
	for range n {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			l.close()
			return nil, err
		}
		w := &wire{fd: fd}
		l.wires[fd], l.order = w, append(l.order, w)
		if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: port}); err != nil {
			l.close()
			return nil, fmt.Errorf("connect to %s: %w", addr, err)
		}
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		if err := errors.Join(unix.SetNonblock(fd, true), watch(l.epoll, fd, unix.EPOLLIN)); err != nil {
			l.close()
			return nil, err
		}
	}
	return l, nil
}

// give drops a connection that failed.
func (l *load) give(w *wire, err error) {
	w.err = err
	delete(l.wires, w.fd)
	unix.Close(w.fd)
	l.fail(err)
}

func (l *load) close() {
	for _, w := range l.wires {
		unix.Close(w.fd)
	}
	unix.Close(l.epoll)
}

// send begins a request on an idle connection. Requests are small against the socket's buffer.
func (w *wire) send(request []byte, due time.Time) error {
	w.answer.reset()
	w.busy, w.begun, w.due = true, false, due
	if n, err := unix.Write(w.fd, request); err != nil || n < len(request) {
		return fmt.Errorf("send a request: wrote %d of %d bytes: %w", n, len(request), err)
	}
	return nil
}

// receive reads the bytes that have arrived for w and reports whether its answer is complete.
func (l *load) receive(w *wire) (done bool, err error) {
	n, err := unix.Read(w.fd, l.buf)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if n == 0 {
		return false, fmt.Errorf("the server closed the connection (status %d so far)", w.answer.status)
	}
	done, err = w.answer.feed(l.buf[:n])
	if err != nil {
		return false, err
	}
	if done {
		w.busy = false
		if w.answer.status != 200 && l.refused != nil {
			l.refused()
		} else if w.answer.status != 200 {
			return true, fmt.Errorf("status %d: %s", w.answer.status, w.answer.excerpt)
		} else if w.answer.size == 0 {
			return true, errors.New("status 200 without a body")
		}
	}
	return done, nil
}

// run handles events until finished returns true or the deadline has passed. It calls each for every connection that received
// data, and tick for the timer fd, if there is one (-1 for none).
func (l *load) run(deadline time.Time, timer int, finished func() bool, each func(w *wire, done bool) error, tick func(n int) error) error {
	for !finished() {
		left := time.Until(deadline)
		if left <= 0 {
			return errLate
		}
		n, err := wait(l.epoll, l.events, int(left/time.Millisecond)+1)
		if err != nil {
			return err
		}
		for _, e := range l.events[:n] {
			if int(e.Fd) == timer {
				err = tick(expirations(timer))
			} else if w := l.wires[int(e.Fd)]; w != nil {
				var done bool
				if done, err = l.receive(w); err != nil && l.fail != nil {
					l.give(w, err)
					done, err = true, nil
				}
				if err == nil {
					err = each(w, done)
				}
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// closed sends requests as fast as they are answered, one at a time on each connection, until total are answered or stop has
// passed (whichever is first; zero means no such bound). It returns the number of answers and the time.
func (l *load) closed(request func() []byte, total int, stop, limit time.Duration) (answered int, took time.Duration, err error) {
	begin := time.Now()
	sent, open := 0, 0
	more := func() bool { return (total == 0 || sent < total) && (stop == 0 || time.Since(begin) < stop) }
	for _, w := range l.order {
		if more() {
			sent, open = sent+1, open+1
			if err := w.send(request(), begin); err != nil {
				return 0, 0, err
			}
		}
	}
	err = l.run(begin.Add(limit), -1, func() bool { return open == 0 }, func(w *wire, done bool) error {
		if !done {
			return nil
		}
		answered++
		if more() {
			sent++
			return w.send(request(), time.Time{})
		}
		open--
		return nil
	}, nil)
	return answered, time.Since(begin), err
}

// paced sends at a fixed rate whether or not the answers keep up (open loop), and measures from the moment at which the request
// was due to the first byte of its answer, so that a stalled server cannot hide its stall. The histogram is in nanoseconds.
func (l *load) paced(request []byte, rate int, span time.Duration) (*hdrhistogram.Histogram, error) {
	hist := hdrhistogram.New(1_000, int64(time.Minute), 3)
	timer, err := newTimer()
	if err != nil {
		return nil, err
	}
	defer unix.Close(timer)
	if err := watch(l.epoll, timer, unix.EPOLLIN); err != nil {
		return nil, err
	}
	every := time.Second / time.Duration(rate)
	total, due, answered := int(span/every), 0, 0
	begin := time.Now()
	startTimer(timer, every, every)
	idle, waiting := append([]*wire(nil), l.order...), []time.Time(nil)
	err = l.run(begin.Add(span+30*time.Second), timer, func() bool { return answered == total },
		func(w *wire, done bool) error {
			if !w.begun {
				w.begun = true
				if err := hist.RecordValue(int64(time.Since(w.due))); err != nil {
					return err
				}
			}
			if !done {
				return nil
			}
			answered++
			if len(waiting) > 0 {
				at := waiting[0]
				waiting = waiting[1:]
				return w.send(request, at)
			}
			idle = append(idle, w)
			return nil
		},
		func(n int) error {
			for ; n > 0 && due < total; n-- {
				due++
				at := begin.Add(time.Duration(due) * every)
				if len(idle) == 0 {
					waiting = append(waiting, at)
					continue
				}
				w := idle[len(idle)-1]
				idle = idle[:len(idle)-1]
				if err := w.send(request, at); err != nil {
					return err
				}
			}
			return nil
		})
	return hist, err
}

// streamed is the result of one streamed request on each connection.
type streamed struct {
	records int
	reads   int // reads with body bytes; fewer than records if one read had several records
	took    time.Duration
}

// stream sends request on each connection and reads the streams to their ends.
func (l *load) stream(request []byte, limit time.Duration) (s streamed, err error) {
	begin := time.Now()
	if err := l.sendAll(request); err != nil {
		return s, err
	}
	open := len(l.order)
	err = l.run(begin.Add(limit), -1, func() bool { return open == 0 }, func(w *wire, done bool) error {
		if done {
			open--
			s.records += w.answer.lines
			s.reads += w.answer.reads
		}
		return nil
	}, nil)
	s.took = time.Since(begin)
	return s, err
}

// hold sends request on each connection, on atOnce of them at the same time, and returns when each stream has had its first record. The
// streams stay open. If all came at once, a proxy would need its cores for longer than the mock thinks, and net/http would drop streams
// (see think).
func (l *load) hold(request []byte, atOnce int, limit time.Duration) error {
	waiting, left := map[*wire]bool{}, l.order
	more := func() error {
		for len(left) > 0 {
			w := left[0]
			left = left[1:]
			err := w.send(request, time.Time{})
			if err == nil {
				waiting[w] = true
				return nil
			}
			if l.fail == nil {
				return err
			}
			l.give(w, err)
		}
		return nil
	}
	for range atOnce {
		if err := more(); err != nil {
			return err
		}
	}
	return l.run(time.Now().Add(limit), -1, func() bool { return len(waiting) == 0 }, func(w *wire, done bool) error {
		if done && w.err == nil {
			return errors.New("a stream that should stay open ended")
		}
		if waiting[w] && (w.answer.lines > 0 || w.err != nil) {
			delete(waiting, w)
			return more()
		}
		return nil
	}, nil)
}

// sendAll begins a request on each connection. It reads nothing meanwhile: an answer waits in its socket.
func (l *load) sendAll(request []byte) error {
	for _, w := range l.order {
		if err := w.send(request, time.Time{}); err != nil {
			return err
		}
	}
	return nil
}

// post returns the bytes of a POST with a JSON body, with a key if there is one, and with further lines of the header.
func post(path, key, body string, headers ...string) []byte {
	auth := strings.Join(headers, "")
	if key != "" {
		auth += "Authorization: Bearer " + key + "\r\n"
	}
	return fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: bench\r\n%sContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", path, auth, len(body), body)
}
