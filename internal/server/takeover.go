package server

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"
)

// A stream without TLS takes its connection over from net/http once the header and the first piece are sent: for a connection that
// waits for the next piece, net/http keeps three buffers and a goroutine that reads, together more than the rest of a stream. At the end
// of the stream the connection returns to net/http as a new one. So net/http reads all requests and writes all headers.

// wire is the connection of an answer that is a stream.
type wire struct {
	flushed bool               // net/http holds nothing back of what was written
	direct  *arrival           // the connection, if the pieces of the answer can be written to it: see sendPiece
	chunks  *[]byte            // chunks that are not sent yet, in a buffer from chunkBuffers
	taken   bool               // direct was taken over from net/http
	leave   func()             // ends the context of the request: the client has left; nil if only net/http notices that
	unwatch func() (gone bool) // of the client that may leave
}

// takenOver are the connections that net/http does not know at the moment: those of streams, and those that came back and have not sent
// the first byte of their next request.
type takenOver struct {
	back    chan net.Conn
	closed  context.Context
	close   context.CancelFunc
	streams sync.Map // *arrival
	waiting sync.Map // *arrival
}

func newTakenOver() *takenOver {
	t := &takenOver{back: make(chan net.Conn)}
	t.closed, t.close = context.WithCancel(context.Background())
	return t
}

// returning is the listener from which net/http takes connections that come back. Closing it closes those that wait.
type returning struct {
	*takenOver
	net.Listener
}

func (l returning) Accept() (net.Conn, error) {
	select {
	case c := <-l.back:
		return c, nil
	case <-l.closed.Done():
		return nil, net.ErrClosed
	}
}

func (l returning) Close() error {
	l.close()
	l.waiting.Range(func(a, _ any) bool { _ = a.(*arrival).Close(); return true })
	return nil
}

// awaitRequests waits for the requests that net/http does not know, because their connections were taken over.
func (s *Server) awaitRequests(ctx context.Context) error {
	select {
	case <-s.requests.none():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// closeStreams ends the streams that still run.
func (t *takenOver) closeStreams() {
	t.streams.Range(func(a, _ any) bool { _ = a.(*arrival).Close(); return true })
}

// sendPiece lets the client have a piece of a stream at once. When net/http has sent the header and holds nothing back, the piece goes to
// the connection in one write, as a chunk like those of net/http, which needs three copies and two locks for it.
func (x *exchange) sendPiece(p []byte) (int, error) {
	x.beat.lock()
	defer x.beat.unlock()
	if x.direct != nil && x.flushed {
		x.appendChunk(p)
		return len(p), x.sendChunks()
	}
	if x.status == 0 {
		x.commit(cmp.Or(x.planned, http.StatusOK))
	}
	n, err := x.put(p)
	if err == nil {
		err = x.flush()
	}
	if err == nil && x.direct == nil && x.chunked() {
		if x.direct, _ = x.r.Context().Value(arrivalKey{}).(*arrival); x.direct != nil {
			x.takeOver()
		}
	}
	return n, err
}

// chunked reports whether net/http sends the answer in chunks.
func (x *exchange) chunked() bool {
	return x.r.ProtoMajor == 1 && x.r.ProtoMinor == 1 && x.r.Method != http.MethodHead && len(x.Header()["Content-Length"]) == 0
}

// chunkBuffers are lent to exchanges while they write.
var chunkBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 2<<10); return &b }}

// appendChunk frames p as a chunk that sendChunks sends. The chunk without content is the end of the answer.
func (x *exchange) appendChunk(p []byte) {
	if x.chunks == nil {
		x.chunks = chunkBuffers.Get().(*[]byte)
	}
	b := strconv.AppendInt(*x.chunks, int64(len(p)), 16)
	*x.chunks = append(append(append(b, "\r\n"...), p...), "\r\n"...)
	x.sent += int64(len(p))
}

func (x *exchange) sendChunks() error {
	if x.chunks == nil {
		return nil
	}
	x.boundWrites()
	_, err := x.direct.outer.Write(*x.chunks)
	if cap(*x.chunks) <= 64<<10 {
		*x.chunks = (*x.chunks)[:0]
		chunkBuffers.Put(x.chunks)
	}
	x.chunks = nil
	if err != nil {
		_ = x.direct.Close() // nothing may follow half a chunk
	}
	return err
}

// takeOver takes the connection of a stream from net/http, if that is possible.
func (x *exchange) takeOver() {
	a := x.direct
	if a.outer != a || x.leave == nil {
		return // TLS has buffers of its own, and of transfers there are few
	}
	_, buf, err := http.NewResponseController(x.ResponseWriter).Hijack()
	if err != nil {
		return // it can write to the connection all the same
	}
	early, _ := buf.Peek(buf.Reader.Buffered())
	a.early = slices.Concat(early, a.early)
	*buf.Reader, *buf.Writer = bufio.Reader{}, bufio.Writer{} // net/http still refers to them, but does not need what they hold
	x.bounded = time.Time{}                                   // net/http has removed the deadline
	x.s.taken.streams.Store(a, nil)
	x.unwatch = a.watch(x.leave)
	x.taken = true
}

// watch calls left if the client closes the connection. stop ends that and reports whether it did. Like net/http, it reads one byte of
// what the client sends early, and does not see a close behind that.
func (a *arrival) watch(left func()) (stop func() (gone bool)) {
	gone, done := false, make(chan struct{})
	go func() {
		defer close(done)
		var next [1]byte // the goroutine's stack stays at 2 KiB
		n, err := a.Conn.Read(next[:])
		a.early = append(a.early, next[:n]...)
		if gone = err != nil && !errors.Is(err, os.ErrDeadlineExceeded); gone {
			left()
		}
	}()
	return func() bool {
		_ = a.SetReadDeadline(time.Unix(1, 0))
		<-done
		_ = a.SetReadDeadline(time.Time{})
		return gone
	}
}

// returnConnection ends a stream on a connection that was taken over, in order or not, and returns the connection to net/http or closes it.
func (x *exchange) returnConnection(inOrder bool) {
	if !x.taken {
		return
	}
	a := x.direct
	gone := x.unwatch()
	if inOrder {
		x.appendChunk(nil)
		inOrder = x.sendChunks() == nil
	}
	x.s.taken.streams.Delete(a) // before its next stream
	if !inOrder || gone || x.r.Close || x.Header().Get("Connection") == "close" || x.s.stopping.Err() != nil {
		_ = a.Close()
		return
	}
	x.s.refusals.follow(a, http.StateIdle)
	a.waits.Store(&x.s.taken.waiting)
	x.s.taken.waiting.Store(a, nil)
	select {
	case x.s.taken.back <- a:
	case <-x.s.taken.closed.Done():
		_ = a.Close()
	}
}

// SetReadDeadline gives a connection that came back the time of an idle one, because net/http takes it for a new one.
func (a *arrival) SetReadDeadline(t time.Time) error {
	if a.waits.Load() != nil && !t.IsZero() {
		t = time.Now().Add(keepAlive)
	}
	return a.Conn.SetReadDeadline(t)
}

// readNext reads the next bytes, of which some may have come during a stream. After the first of them the connection waits no more.
func (a *arrival) readNext(p []byte) (n int, err error) {
	if n = copy(p, a.early); n > 0 {
		a.early = a.early[n:]
	} else {
		n, err = a.Conn.Read(p)
	}
	if waiting := a.waits.Load(); waiting != nil {
		a.waits.Store(nil)
		waiting.Delete(a)
		_ = a.Conn.SetReadDeadline(time.Now().Add(headerTimeout)) // the next read reports that the connection is closed
	}
	return n, err
}
