package ollamatest

import (
	"bytes"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Answer is what the server sends for a request. The zero value is the recorded answer; every field changes one thing of it.
type Answer struct {
	// What is sent. At most one of Recording, Tokens, Chunks, Body and Raw is given.

	Recording string   // name of a file in testdata/ollama-0.24.0 without .http
	Tokens    int      // a generated answer of that many words, in the shape of the request's path and stream setting
	Chunks    []string // sent with Transfer-Encoding: chunked, one chunk and one write each
	Body      string   // sent with Content-Length
	Raw       string   // sent as it is, status line and all

	Status       int         // 0 is 200, or what the recording says
	Header       http.Header // added to, or in place of, what the answer has anyway; a nil value takes a header away
	PromptTokens int         // for Tokens; 0 is 17, as recorded

	// When it is sent.

	HeaderGate <-chan struct{} // received from before the first byte; nil does not wait
	Gate       <-chan struct{} // received from before each chunk; closing it lets all go
	Early      bool            // answer before the request's body is read

	// What is wrong with it.

	Informational []string // status lines like "103 Early Hints" sent before the answer
	Split         int      // cut chunks into pieces of so many bytes, a write each
	NoTerminal    bool     // for Tokens: leave out the last record (and "[DONE]"), but end the body cleanly
	UntilClose    bool     // neither length nor chunks: the end of the connection is the end of the body
	CloseAfter    bool     // whole answer with "Connection: close", then close
	Fault         Fault
	FaultAt       int // bytes of the answer, status line included, that go out before Fault; or AfterHeader, or AtEnd
}

// Fault is how an answer is broken off.
type Fault int

// The faults. Hang keeps the connection and never writes again: with FaultAt 0 it never answers.
const (
	NoFault Fault = iota
	Close
	Reset
	Hang
)

// AfterHeader as FaultAt lets the status line and the header out and nothing of the body; AtEnd lets all chunks out and not the end
// of them.
const (
	AfterHeader = -1
	AtEnd       = -2
)

// write sends the answer and says whether the connection can be used again.
func (s *Server) write(c net.Conn, r *Request, a Answer) bool {
	w := &wire{server: s, conn: c, request: r, left: -1}
	if a.Fault != NoFault && a.FaultAt >= 0 {
		w.left = a.FaultAt
	}
	whole := w.wait(a.HeaderGate) && w.all(&a)
	if whole && a.Fault == NoFault {
		close(r.Answered)
		if a.UntilClose || a.CloseAfter || strings.EqualFold(r.Header.Get("Connection"), "close") {
			c.Close()
			return false
		}
		return true
	}
	switch a.Fault {
	case Reset:
		if tcp, ok := c.(*net.TCPConn); ok {
			tcp.SetLinger(0)
		}
	case Hang:
		select {
		case <-r.Closed:
		case <-s.stop:
		}
	}
	c.Close()
	return false
}

// wire writes an answer, up to the byte where it is to break.
type wire struct {
	server  *Server
	conn    net.Conn
	request *Request
	left    int // bytes until the fault; negative for none
}

func (w *wire) all(a *Answer) bool {
	for _, line := range a.Informational {
		if !w.send("HTTP/1.1 " + line + "\r\n\r\n") {
			return false
		}
	}
	if a.Raw != "" {
		return w.send(a.Raw)
	}
	chunked := a.Chunks != nil && !a.UntilClose
	if !w.send(a.head(w.request.Method, chunked)) || a.Fault != NoFault && a.FaultAt == AfterHeader {
		return false
	}
	if w.request.Method == http.MethodHead {
		return true
	}
	if a.Chunks == nil {
		return w.wait(a.Gate) && (a.Body == "" || w.pieces(a.Body, a.Split))
	}
	for _, chunk := range a.Chunks {
		if !w.wait(a.Gate) || !w.chunk(chunk, a.Split, chunked) {
			return false
		}
	}
	if a.Fault != NoFault && a.FaultAt == AtEnd {
		return false
	}
	return !chunked || w.send("0\r\n\r\n")
}

func (w *wire) chunk(text string, split int, chunked bool) bool {
	if !chunked {
		return w.pieces(text, split)
	}
	for part := range slices.Chunk([]byte(text), pieceSize(split, len(text))) {
		if !w.send(fmt.Sprintf("%x\r\n%s\r\n", len(part), part)) {
			return false
		}
	}
	return true
}

func (w *wire) pieces(text string, split int) bool {
	for part := range slices.Chunk([]byte(text), pieceSize(split, len(text))) {
		if !w.send(string(part)) {
			return false
		}
	}
	return true
}

// pieceSize is split, or all in one.
func pieceSize(split, all int) int {
	if split > 0 {
		return split
	}
	return max(all, 1)
}

func (w *wire) send(text string) bool {
	if w.left >= 0 && len(text) >= w.left {
		w.conn.Write([]byte(text[:w.left]))
		w.left = 0
		return false
	}
	if w.left >= 0 {
		w.left -= len(text)
	}
	// A peer that reads no more must not hold the server's end for ever.
	w.conn.SetWriteDeadline(time.Now().Add(2 * patience))
	_, err := w.conn.Write([]byte(text))
	return err == nil
}

// wait is false when the peer left or the server ends before the gate opens.
func (w *wire) wait(gate <-chan struct{}) bool {
	if gate == nil {
		return true
	}
	select {
	case <-gate:
		return true
	case <-w.request.Closed:
	case <-w.server.stop:
	}
	return false
}

// head is status line and header, in the order in which Ollama's net/http writes them: sorted by name, the framing last.
func (a *Answer) head(method string, chunked bool) string {
	var b bytes.Buffer
	status := a.Status
	if status == 0 {
		status = http.StatusOK
	}
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\n", status, http.StatusText(status))
	h := a.Header.Clone()
	if h == nil {
		h = http.Header{}
	}
	if _, given := h["Date"]; !given {
		h.Set("Date", recordedDate)
	}
	if a.CloseAfter || a.UntilClose {
		h.Set("Connection", "close")
	}
	bodiless := status == http.StatusNoContent || status == http.StatusNotModified || status < 200
	if h.Get("Content-Length") == "" && !chunked && !a.UntilClose && !bodiless && method != http.MethodHead {
		h["Content-Length"] = []string{fmt.Sprint(len(a.Body))}
	}
	length := h["Content-Length"]
	delete(h, "Content-Length")
	for _, name := range slices.Sorted(maps.Keys(h)) {
		for _, v := range h[name] {
			fmt.Fprintf(&b, "%s: %s\r\n", name, v)
		}
	}
	for _, v := range length {
		fmt.Fprintf(&b, "Content-Length: %s\r\n", v)
	}
	if chunked && method != http.MethodHead {
		b.WriteString("Transfer-Encoding: chunked\r\n")
	}
	b.WriteString("\r\n")
	return b.String()
}
