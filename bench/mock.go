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
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// mock is an Ollama that costs almost nothing: one thread, epoll, prepared answers. So the measured CPU is the
// proxy's, and the proxy does not compete with its upstream for the cores.
type mock struct {
	epoll, listener, timer int
	conns                  map[int]*mockConn
	wheels                 map[time.Duration]*wheel
	streaming              int
	fixed                  map[string][]byte // recorded answers by "METHOD path"
	streams                map[string]*recorded
}

// recorded are the pieces of streams.
type recorded struct {
	first, chunk, last []byte // header with first record, a record, the terminal record
	stamped            []byte // a record that says when it was sent; stamp is where
	stamp              int
}

type mockConn struct {
	fd      int
	in      []byte
	as      *recorded
	wheel   *wheel // nil unless it streams
	slot    int    // position in the wheel
	sent    int    // records of the stream
	all     int    // records after which the stream ends; 0 is an idle stream, which has one record and no end
	stamped bool   // records say when they were sent
}

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
	return &mock{conns: map[int]*mockConn{}, fixed: map[string][]byte{}, wheels: map[time.Duration]*wheel{}, streams: map[string]*recorded{}}
}

// load reads the recorded answers.
func (m *mock) load(dir string) error {
	for route, file := range map[string]string{
		"GET /": "root", "GET /api/tags": "tags", "GET /api/ps": "ps", "GET /api/version": "version",
		"POST /api/show": "show", "POST /api/chat": "chat", "POST /v1/chat/completions": "v1-chat",
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
	for path, file := range map[string]string{nativePath: "chat-stream.http", openaiPath: "v1-chat-stream.http"} {
		s, err := readStream(filepath.Join(dir, file))
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		m.streams[path] = s
	}
	return nil
}

// readStream reads the pieces of a recorded stream: of NDJSON or of events.
func readStream(file string) (*recorded, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	i := bytes.Index(text, []byte("\r\n\r\n"))
	if i < 0 {
		return nil, errors.New("no header")
	}
	var records [][]byte
	for rest := text[i+4:]; ; {
		size, after, ok := bytes.Cut(rest, []byte("\r\n"))
		n, err := strconv.ParseUint(string(size), 16, 31)
		if !ok || err != nil || int(n)+2 > len(after) {
			return nil, errors.New("not a chunked answer")
		}
		if n == 0 {
			break
		}
		records = append(records, after[:n])
		rest = after[n+2:]
	}
	if len(records) < 2 {
		return nil, errors.New("no records")
	}
	s := &recorded{chunk: framed(records[0]), last: append(framed(records[len(records)-1]), "0\r\n\r\n"...)}
	s.first = append(slices.Clone(text[:i+4]), s.chunk...)
	content := regexp.MustCompile(`"content":"[^"]*"`)
	s.stamped = framed(content.ReplaceAll(records[0], []byte(stampMark+strings.Repeat("0", stampSize)+`"`)))
	if s.stamp = bytes.Index(s.stamped, []byte(stampMark)) + len(stampMark); s.stamp < len(stampMark) {
		return nil, errors.New("the records have no content")
	}
	return s, nil
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
		m.conns[fd] = &mockConn{fd: fd}
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
			// A large body is not moved each time that the slice grows.
			c.in = slices.Grow(c.in, min(missing(c.in), maxBody))
			return
		}
		m.answer(c, head, body)
		if m.conns[c.fd] != c {
			return // closed while it was answered
		}
		if c.in = append(c.in[:0], rest...); cap(c.in) > 1<<20 {
			c.in = nil
		}
	}
}

// answer serves one request. A chat whose body says "chunks=N" streams N records 5 ms apart; N = 0 sends one and then stays
// idle until the client leaves. With "chunks=N every=M" they are M ms apart and say when they were sent.
func (m *mock) answer(c *mockConn, head, body []byte) {
	method, path, _ := bytes.Cut(head[:bytes.IndexByte(head, '\r')], []byte{' '})
	path, _, _ = bytes.Cut(path, []byte{' '})
	if as := m.streams[string(path)]; as != nil {
		if n, ok := asked(body, "chunks="); ok {
			every, stamped := asked(body, "every=")
			gap := chunkGap
			if stamped {
				gap = time.Duration(every) * time.Millisecond
			}
			m.begin(c, as, n, gap, stamped)
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

// begin puts a stream into the wheel of its gap; its header and first record go out after it has thought.
func (m *mock) begin(c *mockConn, as *recorded, n int, gap time.Duration, stamped bool) {
	if m.streaming == 0 {
		startTimer(m.timer, wheelTick, wheelTick)
	}
	if m.wheels[gap] == nil {
		m.wheels[gap] = newWheel(gap)
	}
	c.as, c.all, c.stamped = as, n, stamped
	m.wheels[gap].add(c)
	m.streaming++
}

func (m *mock) end(c *mockConn) {
	if c.wheel == nil {
		return
	}
	c.wheel.remove(c)
	m.streaming--
	if m.streaming == 0 {
		startTimer(m.timer, 0, 0)
	}
}

// turn moves the wheels.
func (m *mock) turn(ticks int) {
	for _, w := range m.wheels {
		if w.streaming > 0 {
			w.turn(ticks, m.record)
		}
	}
}

// record sends the next record of a stream.
func (m *mock) record(c *mockConn) {
	c.sent++
	switch {
	case c.sent < 1:
	case c.sent == 1:
		if c.all == 0 {
			m.end(c)
		}
		m.write(c, c.as.first)
	case c.sent >= c.all:
		m.end(c)
		m.write(c, c.as.last)
	case c.stamped:
		putStamp(c.as.stamped[c.as.stamp:], monotonic())
		m.write(c, c.as.stamped)
	default:
		m.write(c, c.as.chunk)
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
		body, rest, whole, err := unchunked(p[i+4:])
		if !whole {
			head = nil
		}
		return head, body, rest, err
	}
	if len(p) < len(head)+n {
		return nil, nil, nil, nil
	}
	return head, p[i+4 : i+4+n], p[i+4+n:], nil
}

// unchunked cuts a chunked body off p. Most gateways know the length of a body; some send it in chunks.
func unchunked(p []byte) (body, rest []byte, whole bool, err error) {
	for {
		size, after, ok := bytes.Cut(p, []byte("\r\n"))
		if !ok {
			return nil, nil, false, nil
		}
		n, err := strconv.ParseUint(string(size), 16, 31)
		if err != nil {
			return nil, nil, false, fmt.Errorf("bad chunk size %.20q", size)
		}
		if len(after) < int(n)+2 {
			return nil, nil, false, nil
		}
		body, p = append(body, after[:n]...), after[n+2:]
		if n == 0 {
			return body, p, true, nil
		}
	}
}

// maxBody is the most memory that the mock reserves ahead for a request.
const maxBody = 64 << 20

// missing returns the bytes that an incomplete request still lacks; 0 if that is not known.
func missing(p []byte) int {
	i := bytes.Index(p, []byte("\r\n\r\n"))
	if i < 0 {
		return 0
	}
	v, _ := field(p[:i+4], "content-length")
	n, err := strconv.Atoi(string(v))
	if err != nil {
		return 0
	}
	return max(0, i+4+n-len(p))
}

// asked returns N of "NAME=N" in the beginning of a chat, as in its prompt "chunks=N".
func asked(body []byte, name string) (n int, ok bool) {
	_, after, ok := bytes.Cut(body[:min(len(body), 1024)], []byte(name))
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
