//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
)

// maxHead bounds an answer's header, so that a broken server cannot fill memory.
const maxHead = 16 << 10

// answer reads one HTTP/1.1 answer in the pieces in which it arrives: enough of the protocol for Ollama's answers (Content-Length
// or chunked, no trailers that matter) and no more, so that reading costs the load generator next to nothing.
type answer struct {
	status  int
	lines   int            // newlines of the body: one for each record of an NDJSON stream
	size    int            // bytes of the body
	reads   int            // calls of feed with body bytes
	body    func(p []byte) // if not nil, gets the body in the pieces in which it arrives
	excerpt []byte         // beginning of the body of an answer that is not a 200, for the error message

	part    answerPart
	head    []byte // the part of the header, or of the line with a chunk's size, that has arrived
	left    int    // remaining bytes of the body or of the chunk
	chunked bool
}

type answerPart int

const (
	partHead answerPart = iota
	partBody            // left bytes, then the end or the next chunk
	partSize            // a line with the size of a chunk
	partSkip            // the CRLF after a chunk
	partLast            // the empty line after the last chunk
	partEnd
)

// reset prepares a for the next answer on the same connection and keeps its memory.
func (a *answer) reset() {
	*a = answer{head: a.head[:0], excerpt: a.excerpt[:0], body: a.body}
}

// feed takes the next bytes of the connection and reports whether the answer is complete. Bytes after a complete answer are an
// error, because the load generator does not pipeline.
func (a *answer) feed(p []byte) (done bool, err error) {
	counted := false
	for len(p) > 0 {
		switch a.part {
		case partHead:
			p, err = a.readHead(p)
		case partBody:
			n := min(a.left, len(p))
			a.take(p[:n])
			if !counted {
				a.reads, counted = a.reads+1, true
			}
			p = p[n:]
			if a.left -= n; a.left == 0 {
				a.part = partEnd
				if a.chunked {
					a.part, a.head = partSkip, a.head[:0]
				}
			}
		case partSize:
			p, err = a.readSize(p)
		case partSkip, partLast:
			p, err = a.readEmpty(p)
		case partEnd:
			return true, fmt.Errorf("%d bytes after the end of the answer", len(p))
		}
		if err != nil {
			return false, err
		}
	}
	return a.part == partEnd, nil
}

func (a *answer) take(body []byte) {
	a.size += len(body)
	a.lines += bytes.Count(body, []byte{'\n'})
	if a.body != nil {
		a.body(body)
	}
	if a.status != 200 && len(a.excerpt) < 300 {
		a.excerpt = append(a.excerpt, body[:min(len(body), 300)]...)
	}
}

func (a *answer) readHead(p []byte) ([]byte, error) {
	// The end of the header may be split across two reads: search from three bytes back.
	from := max(0, len(a.head)-3)
	a.head = append(a.head, p...)
	i := bytes.Index(a.head[from:], []byte("\r\n\r\n"))
	if i < 0 {
		if len(a.head) > maxHead {
			return nil, errors.New("the header of the answer has no end")
		}
		return nil, nil
	}
	end := from + i + 4
	rest := p[len(p)-(len(a.head)-end):]
	head := a.head[:end]
	if len(head) < 12 || !bytes.HasPrefix(head, []byte("HTTP/1.1 ")) {
		return nil, fmt.Errorf("not an HTTP/1.1 answer: %.40q", head)
	}
	status, err := strconv.Atoi(string(head[9:12]))
	if err != nil {
		return nil, fmt.Errorf("not an HTTP/1.1 answer: %.40q", head)
	}
	a.status = status
	if v, ok := field(head, "content-length"); ok {
		a.left, err = strconv.Atoi(string(v))
		if err != nil || a.left < 0 {
			return nil, fmt.Errorf("bad Content-Length %q", v)
		}
		a.part = partBody
		if a.left == 0 {
			a.part = partEnd
		}
	} else if v, ok := field(head, "transfer-encoding"); ok && bytes.EqualFold(v, []byte("chunked")) {
		a.chunked, a.part = true, partSize
	} else {
		return nil, fmt.Errorf("status %d without Content-Length and not chunked", a.status)
	}
	a.head = a.head[:0]
	return rest, nil
}

func (a *answer) readSize(p []byte) ([]byte, error) {
	line, rest, complete := a.line(p)
	if !complete {
		return nil, lineError(a.head)
	}
	size, _, _ := bytes.Cut(line, []byte{';'})
	n, err := strconv.ParseUint(string(bytes.TrimSpace(size)), 16, 31)
	if err != nil {
		return nil, fmt.Errorf("bad chunk size %.20q", line)
	}
	a.head, a.left, a.part = a.head[:0], int(n), partBody
	if n == 0 {
		a.part = partLast
	}
	return rest, nil
}

func (a *answer) readEmpty(p []byte) ([]byte, error) {
	line, rest, complete := a.line(p)
	if !complete {
		return nil, lineError(a.head)
	}
	if len(line) > 0 {
		return nil, fmt.Errorf("%.20q where a chunk should end", line)
	}
	a.head = a.head[:0]
	if a.part == partLast {
		a.part = partEnd
	} else {
		a.part = partSize
	}
	return rest, nil
}

// line collects in a.head up to a newline; it returns the line without its CRLF.
func (a *answer) line(p []byte) (line, rest []byte, complete bool) {
	i := bytes.IndexByte(p, '\n')
	if i < 0 {
		a.head = append(a.head, p...)
		return nil, nil, false
	}
	a.head = append(a.head, p[:i]...)
	return bytes.TrimSuffix(a.head, []byte{'\r'}), p[i+1:], true
}

func lineError(line []byte) error {
	if len(line) > 64 {
		return fmt.Errorf("no end of the chunk's line %.20q", line)
	}
	return nil
}

// field finds a header field by its lower-case name and returns its value.
func field(head []byte, name string) ([]byte, bool) {
	for line := range bytes.Lines(head) {
		k, v, ok := bytes.Cut(line, []byte{':'})
		if ok && len(k) == len(name) && bytes.EqualFold(k, []byte(name)) {
			return bytes.TrimSpace(v), true
		}
	}
	return nil, false
}
