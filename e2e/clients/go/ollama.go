package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/ollama/ollama/api"
)

// bearer sends the key, because this package has no setting for one.
type bearer string

func (key bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+string(key))
	return http.DefaultTransport.RoundTrip(r)
}

// client returns a client that sends the key in the header, or in the address if the call's name asks for that.
func (o order) ollama() (*api.Client, string, error) {
	call, inPath := strings.CutSuffix(o.Call, " through /k/KEY")
	address, client := o.URL, &http.Client{Transport: bearer(o.Key)}
	if inPath {
		address, client = o.URL+"/k/"+o.Key, &http.Client{}
	}
	base, err := url.Parse(address)
	return api.NewClient(base, client), call, err
}

func runOllama(o order, got *result) error {
	client, call, err := o.ollama()
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

// ollamaStatus returns the status of a failure, if the package reports it.
func ollamaStatus(err error) int {
	if e, ok := errors.AsType[api.StatusError](err); ok {
		return e.StatusCode
	}
	return 0
}
