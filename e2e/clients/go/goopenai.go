package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/sashabaranov/go-openai"
)

func runGoOpenAI(o order, got *result) error {
	config := openai.DefaultConfig(o.Key)
	config.BaseURL = o.URL + "/v1"
	client := openai.NewClientWithConfig(config)
	ctx := context.Background()
	seed := 1
	ask := openai.ChatCompletionRequest{
		Model: o.Model, MaxCompletionTokens: 8, Seed: &seed, Messages: []openai.ChatCompletionMessage{{Role: openai.ChatMessageRoleUser, Content: "the sea"}},
	}
	switch o.Call {
	case "CreateChatCompletion":
		whole, err := client.CreateChatCompletion(ctx, ask)
		if err == nil {
			got.Text = whole.Choices[0].Message.Content
			got.Prompt, got.Completion = whole.Usage.PromptTokens, whole.Usage.CompletionTokens
		}
		return err
	case "CreateChatCompletionStream":
		ask.StreamOptions = &openai.StreamOptions{IncludeUsage: true}
		stream, err := client.CreateChatCompletionStream(ctx, ask)
		if err != nil {
			return err
		}
		defer stream.Close()
		return readGoOpenAI(stream, got)
	case "CreateEmbeddings":
		made, err := client.CreateEmbeddings(ctx, openai.EmbeddingRequestStrings{Model: openai.EmbeddingModel(o.Model), Input: []string{"the sea", "a dog"}})
		if err != nil {
			return err
		}
		for _, e := range made.Data {
			got.Text += fmt.Sprint(len(e.Embedding), ",")
		}
		return nil
	case "ListModels":
		list, err := client.ListModels(ctx)
		if err != nil {
			return err
		}
		for _, m := range list.Models {
			got.Text += m.ID + ","
		}
		return nil
	}
	return fmt.Errorf("no such call: %s", o.Call)
}

func readGoOpenAI(stream *openai.ChatCompletionStream, got *result) error {
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, c := range part.Choices {
			got.Text += c.Delta.Content
		}
		if part.Usage != nil {
			got.Prompt, got.Completion = part.Usage.PromptTokens, part.Usage.CompletionTokens
		}
	}
}

func goOpenAIStatus(err error) int {
	if e, ok := errors.AsType[*openai.APIError](err); ok {
		return e.HTTPStatusCode
	}
	if e, ok := errors.AsType[*openai.RequestError](err); ok {
		return e.HTTPStatusCode
	}
	return 0
}
