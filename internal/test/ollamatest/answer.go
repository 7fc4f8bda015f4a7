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

// Answer is what the server sends for a request. The zero value is the recorded answer; each field changes one aspect of it.
type Answer struct {
	// The content. At most one of Recording, Tokens, Chunks, Body and Raw is set.

	Recording string   // name of a file in testdata/ollama-0.24.0 without .http
	Tokens    int      // a generated answer with this number of words, in the format for the request's path and stream setting
	Chunks    []string // sent with Transfer-Encoding: chunked, one write for each chunk
	Body      string   // sent with Content-Length
	Raw       string   // sent literally, including the status line

	Status       int         // 0 means 200, or the status of the recording
	Header       http.Header // adds or replaces headers; a nil value removes one
	PromptTokens int         // for Tokens; 0 means 17, as recorded

	// The timing.

	HeaderGate <-chan struct{} // received from before the first byte; nil means no wait
	Gate       <-chan struct{} // received from before each chunk; closing it releases all
	Early      bool            // answer before reading the request's body

	// The faults.

	Informational []string // status lines like "103 Early Hints" sent before the answer
	Split         int      // split chunks into pieces of this number of bytes, one write each
	NoTerminal    bool     // for Tokens: omit the last record (and "[DONE]"), but end the body cleanly
	UntilClose    bool     // neither length nor chunks: the body ends with the connection
	CloseAfter    bool     // complete answer with "Connection: close", then close
	Fault         Fault
	FaultAt       int // bytes of the answer, including the status line, sent before Fault; or AfterHeader, or AtEnd
}

// Fault is how an answer is interrupted.
type Fault int

// The faults. Hang keeps the connection open and never writes again; with FaultAt 0 it never answers.
const (
	NoFault Fault = iota
	Close
	Reset
	Hang
)

// AfterHeader as FaultAt sends the status line and the header but no body. AtEnd sends all chunks but not the end of the chunked body.
const (
	AfterHeader = -1
	AtEnd       = -2
)

// write sends the answer and reports whether the connection can be reused.
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

// wire writes an answer, up to the byte of the fault.
type wire struct {
	server  *Server
	conn    net.Conn
	request *Request
	left    int // bytes until the fault; negative without a fault
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

// pieceSize returns split, or the whole length without it.
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
	// A peer that stops reading must not block the server's shutdown.
	w.conn.SetWriteDeadline(time.Now().Add(2 * patience))
	_, err := w.conn.Write([]byte(text))
	return err == nil
}

// wait returns false if the peer leaves or the server stops before the gate opens.
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

// head returns the status line and the header in the order of Ollama's net/http: sorted by name, framing headers last.
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
