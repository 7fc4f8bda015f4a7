package proxy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http/httputil"
	"time"

	"ollama-api-service/internal/api"
)

// sendUpload streams a body of any size upstream, with its length if the client gave one, otherwise in chunks.
func sendUpload(c *conn, r *Request, head []byte) error {
	if r.UploadLength >= 0 {
		head = fmt.Appendf(head, "Content-Length: %d\r\n\r\n", r.UploadLength)
	} else {
		head = append(head, "Transfer-Encoding: chunked\r\n\r\n"...)
	}
	if _, err := c.Conn.Write(head); err != nil {
		return err
	}
	// A transfer may take hours, so each write has its own deadline.
	w := progressWriter{c: c, idle: r.FirstByte, end: r.Deadline}
	if err := w.body(r); err != nil {
		return err
	}
	return c.SetReadDeadline(earlier(r.FirstByte, time.Now(), r.Deadline)) // the wait for the answer has its own bound
}

// body sends the body with the framing that the header announced.
func (w progressWriter) body(r *Request) error {
	if r.UploadLength >= 0 {
		n, err := io.Copy(w, uploadReader{io.LimitReader(r.Upload, r.UploadLength)})
		if err == nil && n < r.UploadLength {
			err = brokenOff(io.ErrUnexpectedEOF)
		}
		return err
	}
	buffered := bufio.NewWriterSize(w, 32<<10)
	chunks := httputil.NewChunkedWriter(buffered)
	if _, err := io.Copy(chunks, uploadReader{r.Upload}); err != nil {
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

// uploadReader marks the read errors of an upload, so that an abort by the client is not taken for a failure of upstream.
type uploadReader struct{ r io.Reader }

func (u uploadReader) Read(p []byte) (int, error) {
	n, err := u.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = brokenOff(err)
	}
	return n, err
}

func brokenOff(err error) error {
	var named *api.Error
	if errors.As(err, &named) {
		return named
	}
	return api.Wrap(api.CodeClientGone, err, "the client aborted its upload")
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

const earlyWait = time.Second

// answersEarly reports whether upstream answered without reading the whole body. Ollama does so for a blob that it has, and a proxy for a
// body that is too large. Then a failed write is not a failure of the request. If the client aborted its upload, there is no answer.
func (c *conn) answersEarly(failed error) bool {
	var named *api.Error
	if errors.As(failed, &named) {
		return false
	}
	if err := c.SetReadDeadline(time.Now().Add(earlyWait)); err != nil {
		return false
	}
	_, err := c.br.Peek(1)
	return err == nil
}
