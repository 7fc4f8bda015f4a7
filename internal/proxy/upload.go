package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net/http/httputil"
	"os"
	"time"
)

// sendUpload streams a body of any size upstream: with its length where the client gave one, in chunks otherwise.
func sendUpload(c *conn, r *Request, head []byte) error {
	if r.UploadLength >= 0 {
		head = fmt.Appendf(head, "Content-Length: %d\r\n\r\n", r.UploadLength)
	} else {
		head = append(head, "Transfer-Encoding: chunked\r\n\r\n"...)
	}
	if _, err := c.Conn.Write(head); err != nil {
		return err
	}
	// A transfer may take hours: each write has its own deadline instead of one for all.
	w := progressWriter{c: c, idle: r.FirstByte, end: r.Deadline}
	if r.UploadLength >= 0 {
		n, err := io.Copy(w, io.LimitReader(r.Upload, r.UploadLength))
		if err == nil && n < r.UploadLength {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	buffered := bufio.NewWriterSize(w, 32<<10)
	chunks := httputil.NewChunkedWriter(buffered)
	if _, err := io.Copy(chunks, r.Upload); err != nil {
		return err
	}
	if err := chunks.Close(); err != nil {
		return err
	}
	if _, err := io.WriteString(buffered, "\r\n"); err != nil {
		return err
	}
	return buffered.Flush()
}

type progressWriter struct {
	c    *conn
	idle time.Duration
	end  time.Time
}

func (w progressWriter) Write(p []byte) (int, error) {
	if err := w.c.SetDeadline(earlier(w.idle, time.Now(), w.end)); err != nil {
		return 0, err
	}
	return w.c.Conn.Write(p)
}

// answersEarly says whether upstream answered an upload before reading it whole, as Ollama does for a blob it has: then a
// failed write is no failure.
func (c *conn) answersEarly() bool {
	if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return false
	}
	_, err := c.br.Peek(1)
	return err == nil || !os.IsTimeout(err) && c.br.Buffered() > 0
}
