package proxy

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
)

// unframe reads the body of an answer that comes in pieces of size bytes, and then the end of the connection.
func unframe(t testing.TB, answer string, size int) (body []byte, f framing, err error) {
	t.Helper()
	b := bufio.NewReader(strings.NewReader(answer))
	resp, err := http.ReadResponse(b, &http.Request{Method: "POST"})
	if err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(b)
	f = framingOf(resp)
	for len(rest) > 0 {
		p := bytes.Clone(rest[:min(size, len(rest))])
		rest = rest[len(p):]
		n, err := f.strip(p)
		body = append(body, p[:n]...)
		if err != nil {
			return body, f, err
		}
	}
	return body, f, f.ended()
}

// The body of an answer is what net/http reads, however it is cut into pieces.
func TestFraming(t *testing.T) {
	const chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
	for name, answer := range map[string]string{
		"length":                chunkedLess("Content-Length: 5\r\n", "hello"),
		"length of zero":        chunkedLess("Content-Length: 0\r\n", ""),
		"cut length":            chunkedLess("Content-Length: 5\r\n", "hell"),
		"until the end":         chunkedLess("", "hello"),
		"chunks":                chunked + "5\r\nhello\r\n1\r\n,\r\n00\r\n\r\n",
		"no chunks":             chunked + "0\r\n\r\n",
		"capital size":          chunked + "A\r\n0123456789\r\n0\r\n\r\n",
		"long size":             chunked + "000000000000005\r\nhello\r\n0\r\n\r\n",
		"too long size":         chunked + "00000000000000005\r\nhello\r\n0\r\n\r\n",
		"extension":             chunked + "5;a=\"b\"\r\nhello\r\n0;c\r\n\r\n",
		"space after the size":  chunked + "5 \t\r\nhello\r\n0\r\n\r\n",
		"text after the size":   chunked + "5 a\r\nhello\r\n0\r\n\r\n",
		"space before the size": chunked + " 5\r\nhello\r\n0\r\n\r\n",
		"trailers":              chunked + "5\r\nhello\r\n0\r\nA: b\r\nC: d\r\n\r\n",
		"line ends in chunks":   chunked + "4\r\n\r\n\r\n\r\n0\r\n\r\n",
		"bare line end":         chunked + "5\nhello\n0\n\n",
		"bare end of chunk":     chunked + "5\r\nhello\n0\r\n\r\n",
		"more than its size":    chunked + "5\r\nhello!\r\n0\r\n\r\n",
		"no size":               chunked + "\r\nhello\r\n0\r\n\r\n",
		"not a size":            chunked + "five\r\nhello\r\n0\r\n\r\n",
		"negative size":         chunked + "-5\r\nhello\r\n0\r\n\r\n",
		"CR in an extension":    chunked + "5;a\rb\r\nhello\r\n0\r\n\r\n",
		"cut in a size":         chunked + "5\r\nhello\r\n1",
		"cut in a chunk":        chunked + "5\r\nhel",
		"cut after a chunk":     chunked + "5\r\nhello\r\n",
		"cut after the last":    chunked + "5\r\nhello\r\n0\r\n",
		"endless extension":     chunked + "5;" + strings.Repeat("x", maxFramingLine) + "\r\nhello\r\n0\r\n\r\n",
	} {
		resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(answer)), &http.Request{Method: "POST"})
		if err != nil {
			t.Fatal(err)
		}
		want, wantErr := io.ReadAll(resp.Body)
		resp.Body.Close()
		for size := 1; size <= len(answer); size++ {
			got, f, err := unframe(t, answer, size)
			if string(got) != string(want) || errors.Is(err, io.EOF) != (wantErr == nil) || f.surplus {
				t.Errorf("%s, in pieces of %d: got %q, %v; want %q, %v", name, size, got, err, want, wantErr)
				break
			}
			if errors.Is(err, io.EOF) != f.done {
				t.Errorf("%s: done is %v with %v", name, f.done, err)
			}
		}
	}
}

func chunkedLess(header, body string) string { return "HTTP/1.1 200 OK\r\n" + header + "\r\n" + body }

// What comes after the end of a body belongs to no request.
func TestFramingSeesWhatIsTooMuch(t *testing.T) {
	for _, answer := range []string{
		chunkedLess("Content-Length: 5\r\n", "hello!"),
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n!",
	} {
		for size := 1; size <= 40; size++ {
			if got, f, err := unframe(t, answer, size); string(got) != "hello" || !errors.Is(err, io.EOF) || !f.surplus {
				t.Errorf("in pieces of %d: got %q, %v, surplus %v; want hello, EOF, true", size, got, err, f.surplus)
			}
		}
	}
}
