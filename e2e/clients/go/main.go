// The Go package github.com/ollama/ollama/api: cases on stdin and a line for each on stdout, as cases.mjs has them.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/ollama/ollama/api"
)

type order struct{ Call, URL, Key, Model string }

type result struct {
	OK         bool   `json:"ok"`
	Text       string `json:"text"`
	Prompt     int    `json:"prompt"`
	Completion int    `json:"completion"`
	Type       string `json:"type,omitempty"`
	Says       string `json:"says,omitempty"`
	Status     int    `json:"status,omitempty"`
	Ms         int64  `json:"ms"`
}

func main() {
	var orders []order
	if err := json.NewDecoder(os.Stdin).Decode(&orders); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	out := json.NewEncoder(os.Stdout)
	for _, o := range orders {
		var got result
		from := time.Now()
		err := o.run(&got)
		got.Ms = time.Since(from).Milliseconds()
		if got.OK = err == nil; err != nil {
			got.Type, got.Says = fmt.Sprintf("%T", err), err.Error()
			var status api.StatusError
			if errors.As(err, &status) {
				got.Status = status.StatusCode
			}
		}
		if err := out.Encode(got); err != nil {
			os.Exit(1)
		}
	}
}

// bearer is how a program sends a key with this package: it has no setting for one.
type bearer string

func (key bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+string(key))
	return http.DefaultTransport.RoundTrip(r)
}

// client has the key in the header, or in the address for calls named so.
func (o order) client() (*api.Client, string, error) {
	call, inPath := strings.CutSuffix(o.Call, " through /k/KEY")
	address, client := o.URL, &http.Client{Transport: bearer(o.Key)}
	if inPath {
		address, client = o.URL+"/k/"+o.Key, &http.Client{}
	}
	base, err := url.Parse(address)
	return api.NewClient(base, client), call, err
}

func (o order) run(got *result) error {
	client, call, err := o.client()
	if err != nil {
		return err
	}
	ctx := context.Background()
	call, streamed := strings.CutSuffix(call, ", streamed")
	options := map[string]any{"num_predict": 8, "seed": 1}
	switch call {
	case "Chat":
		ask := &api.ChatRequest{Model: o.Model, Messages: []api.Message{{Role: "user", Content: "the sea"}}, Stream: &streamed, Options: options}
		return client.Chat(ctx, ask, func(part api.ChatResponse) error {
			got.Text += part.Message.Content
			got.Prompt, got.Completion = part.PromptEvalCount, part.EvalCount
			return nil
		})
	case "Generate":
		ask := &api.GenerateRequest{Model: o.Model, Prompt: "the sea", Stream: &streamed, Options: options}
		return client.Generate(ctx, ask, func(part api.GenerateResponse) error {
			got.Text += part.Response
			got.Prompt, got.Completion = part.PromptEvalCount, part.EvalCount
			return nil
		})
	case "Embed":
		embedded, err := client.Embed(ctx, &api.EmbedRequest{Model: o.Model, Input: []string{"the sea", "a dog"}})
		if err != nil {
			return err
		}
		for _, e := range embedded.Embeddings {
			got.Text += fmt.Sprint(len(e), ",")
		}
		return nil
	case "Show":
		shown, err := client.Show(ctx, &api.ShowRequest{Model: o.Model})
		if err == nil {
			got.Text = shown.Details.Family
		}
		return err
	case "List":
		list, err := client.List(ctx)
		if err != nil {
			return err
		}
		for _, m := range list.Models {
			got.Text += m.Name + ","
		}
		return nil
	case "Pull":
		return client.Pull(ctx, &api.PullRequest{Model: o.Model}, func(api.ProgressResponse) error { return nil })
	case "Version":
		got.Text, err = client.Version(ctx)
		return err
	}
	return fmt.Errorf("no such call: %s", o.Call)
}
