package e2e

import (
	"bytes"
	"encoding/base64"
	"net/http"
	"slices"
	"strings"
	"testing"

	"ollama-api-service/internal/test/ollamatest"
)

// With the default settings, each dialect accepts an image of 50 MB.
func TestLargeImagesPass(t *testing.T) {
	const size = 50_000_000
	image := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("\x89PNG"), size/4))
	fake := ollamatest.Start(t)
	s, address := startBare(t, t.TempDir(), fake.URL, nil) // a tap would parse each image
	s.URL = "http://" + address
	key := s.makeKey(t, "").Secret
	for path, content := range map[string]string{
		"/api/generate":             `"prompt":"x","images":["%"]`,
		"/api/chat":                 `"messages":[{"role":"user","content":"x","images":["%"]}]`,
		"/v1/chat/completions":      `"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,%"}}]}]`,
		"/v1/responses":             `"input":[{"role":"user","content":[{"type":"input_image","image_url":"data:image/png;base64,%"}]}]`,
		"/v1/messages":              `"max_tokens":9,"messages":[{"role":"user","content":[{"type":"image","source":{"type":"base64","media_type":"image/png","data":"%"}}]}]`,
		"/v1/messages/count_tokens": `"messages":[{"role":"user","content":[{"type":"image","source":{"type":"base64","media_type":"image/png","data":"%"}}]}]`,
	} {
		body := `{"model":"tiny","stream":false,` + strings.Replace(content, "%", image, 1) + `}`
		a := call(t, "POST", s.URL+path, key, body)
		if a.Status != http.StatusOK {
			t.Errorf("%s: %d %.300s", path, a.Status, a.Body)
		}
		sent := fake.Forget()
		if path == "/v1/messages/count_tokens" {
			continue
		}
		// The gateway's own requests to Ollama continue in the meantime.
		if !slices.ContainsFunc(sent, func(r *ollamatest.Request) bool { return r.Path == path && bytes.Contains(r.Body, []byte(image)) }) {
			t.Errorf("%s: the image did not arrive", path)
		}
	}
}
