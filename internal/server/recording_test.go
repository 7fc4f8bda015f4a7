package server_test

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"testing"

	"ollama-api-service/internal/test/ollamatest"
)

// recorded splits a recording into the records that a client reads.
func recorded(t *testing.T, name string) (int, http.Header, string) {
	t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(ollamatest.Recording(name))), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(body)
}
