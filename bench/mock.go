//go:build linux

package main

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// The wheel that paces the streams: wheelSlots ticks of wheelTick are the 5 ms between two chunks of one stream. Streams are
// spread evenly over the slots, as with independent models, so that no proxy profits from chunks that arrive at the same time.
const (
	wheelSlots = 20
	wheelTick  = 250 * time.Microsecond
	// think is the number of turns before the first record, 50 ms. An immediate answer triggers a race in net/http: a server that
	// begins its answer closes the body of its request, and if Transport has not read that body to EOF by then, it drops the
	// connection in mid-stream. No model is that fast, and ReverseProxy lost one stream in some thousands because of it.
	think = 10
)

// mock is an Ollama that costs almost nothing: one thread, epoll, prepared answers. So the measured CPU is the
// proxy's, and the proxy does not compete with its upstream for the cores.
type mock struct {
	epoll, listener, timer int
	conns                  map[int]*mockConn
	wheel                  [wheelSlots]map[*mockConn]struct{}
	slot, next             int
	fixed                  map[string][]byte // recorded answers by "METHOD path"
	first, chunk, last     []byte            // header with first record, a record, the terminal record of a stream
}

type mockConn struct {
	fd   int
	in   []byte
	slot int // position in the wheel
	sent int // records of the stream
	all  int // records after which the stream ends; 0 is an idle stream, which has one record and no end
}

// streamHead begins each streamed answer.
const streamHead = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nDate: Mon, 23 Nov 2026 12:59:03 GMT\r\nTransfer-Encoding: chunked\r\n\r\n"

// serveMock answers like Ollama, with the recorded answers in dir, until the process is ended. It prints its address first.
func serveMock(dir string) error {
	m := newMock()
	if err := m.load(dir); err != nil {
		return err
	}
	port, err := m.listen()
	if err != nil {
		return err
	}
	fmt.Printf("127.0.0.1:%d\n", port)
	return m.loop()
}

func newMock() *mock {
	m := &mock{conns: map[int]*mockConn{}, fixed: map[string][]byte{}}
	for i := range m.wheel {
		m.wheel[i] = map[*mockConn]struct{}{}
	}
	return m
}

// load reads the recorded answers.
func (m *mock) load(dir string) error {
	for route, file := range map[string]string{
		"GET /": "root", "GET /api/tags": "tags", "GET /api/ps": "ps", "GET /api/version": "version",
		"POST /api/show": "show", "POST /api/chat": "chat",
	} {
		text, err := os.ReadFile(filepath.Join(dir, file+".http"))
		if err != nil {
			return err
		}
		// The file is served as recorded, framing included. A file without its end would let every client wait.
		var a answer
		if done, err := a.feed(text); err != nil || !done {
			return fmt.Errorf("%s.http is not one complete answer (%w)", file, cmp.Or(err, io.ErrUnexpectedEOF))
		}
		m.fixed[route] = text
	}
	text, err := os.ReadFile(filepath.Join(dir, "chat-stream.http"))
	if err != nil {
		return err
	}
	var records [][]byte
	for line := range bytes.Lines(text) {
		if line[0] == '{' {
			records = append(records, line)
		}
	}
	if len(records) < 2 {
		return errors.New("chat-stream.http has no records")
	}
	m.chunk = framed(records[0])
	m.first = append([]byte(streamHead), m.chunk...)
	m.last = append(framed(records[len(records)-1]), "0\r\n\r\n"...)
	return nil
}

func framed(record []byte) []byte {
	return fmt.Appendf(nil, "%x\r\n%s\r\n", len(record), record)
}

func (m *mock) listen() (port int, err error) {
	if m.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return 0, err
	}
	if m.listener, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return 0, err
	}
	if err := unix.Bind(m.listener, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return 0, err
	}
	if err := unix.Listen(m.listener, 4096); err != nil {
		return 0, err
	}
	own, err := unix.Getsockname(m.listener)
	if err != nil {
		return 0, err
	}
	if m.timer, err = newTimer(); err != nil {
		return 0, err
	}
	for _, fd := range []int{m.listener, m.timer} {
		if err := watch(m.epoll, fd, unix.EPOLLIN); err != nil {
			return 0, err
		}
	}
	return own.(*unix.SockaddrInet4).Port, nil
}

func (m *mock) loop() error {
	events := make([]unix.EpollEvent, 256)
	buf := make([]byte, 64<<10)
	for {
		n, err := wait(m.epoll, events, -1)
		if err != nil {
			return err
		}
		for _, e := range events[:n] {
			switch fd := int(e.Fd); fd {
			case m.listener:
				m.accept()
			case m.timer:
				m.turn(expirations(m.timer))
			default:
				if c := m.conns[fd]; c != nil {
					m.read(c, buf)
				}
			}
		}
	}
}

func (m *mock) accept() {
	for {
		fd, _, err := unix.Accept4(m.listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			return
		}
		// Chunks must not wait for an acknowledgement of the previous one.
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		if watch(m.epoll, fd, unix.EPOLLIN|unix.EPOLLRDHUP) != nil {
			unix.Close(fd)
			continue
		}
		m.conns[fd] = &mockConn{fd: fd, slot: -1}
	}
}

func (m *mock) read(c *mockConn, buf []byte) {
	n, err := unix.Read(c.fd, buf)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return
	}
	if err != nil || n == 0 {
		m.drop(c)
		return
	}
	c.in = append(c.in, buf[:n]...)
	for {
		head, body, rest, err := request(c.in)
		if err != nil {
			m.drop(c)
			return
		}
		if head == nil {
			return
		}
		m.answer(c, head, body)
		if m.conns[c.fd] != c {
			return // closed while it was answered
		}
		c.in = append(c.in[:0], rest...)
	}
}

// answer serves one request. A chat whose body says "chunks=N" streams N records 5 ms apart; N = 0 sends one and then stays
// idle until the client leaves.
func (m *mock) answer(c *mockConn, head, body []byte) {
	method, path, _ := bytes.Cut(head[:bytes.IndexByte(head, '\r')], []byte{' '})
	path, _, _ = bytes.Cut(path, []byte{' '})
	if string(path) == "/api/chat" {
		if n, ok := askedChunks(body); ok {
			m.begin(c, n)
			return
		}
	}
	isHead := string(method) == "HEAD"
	if isHead {
		method = []byte("GET")
	}
	text, ok := m.fixed[string(method)+" "+string(path)]
	if !ok {
		text = []byte("HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 18\r\n\r\n404 page not found")
	}
	if isHead {
		text = text[:bytes.Index(text, []byte("\r\n\r\n"))+4]
	}
	m.write(c, text)
}

// write sends at once or drops the connection: an answer is small against the socket's buffer, so a full one is a dead client.
func (m *mock) write(c *mockConn, p []byte) {
	if n, err := unix.Write(c.fd, p); err != nil || n < len(p) {
		m.drop(c)
	}
}

func (m *mock) drop(c *mockConn) {
	m.end(c)
	delete(m.conns, c.fd)
	unix.Close(c.fd)
}

// begin puts a stream into the wheel; its header and first record go out after think turns.
func (m *mock) begin(c *mockConn, n int) {
	if m.streams() == 0 {
		startTimer(m.timer, wheelTick, wheelTick)
	}
	c.sent, c.all, c.slot = -think, n, m.next%wheelSlots
	m.next++
	m.wheel[c.slot][c] = struct{}{}
}

func (m *mock) end(c *mockConn) {
	if c.slot < 0 {
		return
	}
	delete(m.wheel[c.slot], c)
	c.slot = -1
	if m.streams() == 0 {
		startTimer(m.timer, 0, 0)
	}
}

func (m *mock) streams() int {
	n := 0
	for _, s := range m.wheel {
		n += len(s)
	}
	return n
}

// turn moves the wheel. It skips records that are late by more than a whole turn, because a model does not send a burst to catch up.
func (m *mock) turn(ticks int) {
	for range min(ticks, wheelSlots) {
		m.slot = (m.slot + 1) % wheelSlots
		for c := range m.wheel[m.slot] {
			c.sent++
			switch {
			case c.sent < 1:
			case c.sent == 1:
				if c.all == 0 {
					m.end(c)
				}
				m.write(c, m.first)
			case c.sent < c.all:
				m.write(c, m.chunk)
			default:
				m.end(c)
				m.write(c, m.last)
			}
		}
	}
}

// request cuts one complete request off p. A nil head means that the request is not complete yet.
func request(p []byte) (head, body, rest []byte, err error) {
	i := bytes.Index(p, []byte("\r\n\r\n"))
	if i < 0 {
		if len(p) > maxHead {
			return nil, nil, nil, errors.New("header too long")
		}
		return nil, nil, nil, nil
	}
	head, n := p[:i+4], 0
	if v, ok := field(head, "content-length"); ok {
		if n, err = strconv.Atoi(string(v)); err != nil || n < 0 {
			return nil, nil, nil, errors.New("bad Content-Length")
		}
	} else if _, ok := field(head, "transfer-encoding"); ok {
		return nil, nil, nil, errors.New("a chunked body: the gateways measured here all know its length")
	}
	if len(p) < len(head)+n {
		return nil, nil, nil, nil
	}
	return head, p[i+4 : i+4+n], p[i+4+n:], nil
}

// askedChunks returns N of "chunks=N" in a chat's prompt.
func askedChunks(body []byte) (n int, ok bool) {
	_, after, ok := bytes.Cut(body, []byte("chunks="))
	if !ok {
		return 0, false
	}
	for _, b := range after {
		if b < '0' || b > '9' {
			break
		}
		n = n*10 + int(b-'0')
	}
	return n, true
}

func newTimer() (int, error) {
	return unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
}

// startTimer fires after first and then at intervals of every; zero stops it.
func startTimer(fd int, first, every time.Duration) {
	unix.TimerfdSettime(fd, 0, &unix.ItimerSpec{
		Value: unix.NsecToTimespec(int64(first)), Interval: unix.NsecToTimespec(int64(every)),
	}, nil)
}

// expirations returns how often a timer has fired since the last call.
func expirations(fd int) int {
	var b [8]byte
	if n, err := unix.Read(fd, b[:]); err != nil || n != 8 {
		return 0
	}
	return int(min(binary.NativeEndian.Uint64(b[:]), 1<<20))
}

func watch(epoll, fd int, events uint32) error {
	return unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)})
}

// wait is epoll_wait that continues after signals; msec -1 waits without a limit.
func wait(epoll int, events []unix.EpollEvent, msec int) (int, error) {
	for {
		n, err := unix.EpollWait(epoll, events, msec)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
		if msec >= 0 {
			return 0, nil
		}
	}
}
