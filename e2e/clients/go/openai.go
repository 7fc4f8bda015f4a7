package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/responses"
)

func runOpenAI(o order, got *result) error {
	client := openai.NewClient(option.WithBaseURL(o.URL+"/v1"), option.WithAPIKey(o.Key))
	return openAISentence(playOpenAI(client, o, got))
}

func playOpenAI(client openai.Client, o order, got *result) error {
	ctx := context.Background()
	call, streamed := strings.CutSuffix(o.Call, ", streamed")
	switch {
	case call == "Chat" && streamed:
		stream := client.Chat.Completions.NewStreaming(ctx, chatOpenAI(o, true))
		for stream.Next() {
			part := stream.Current()
			for _, c := range part.Choices {
				got.Text += c.Delta.Content
			}
			got.Prompt, got.Completion = int(part.Usage.PromptTokens), int(part.Usage.CompletionTokens)
		}
		return stream.Err()
	case call == "Chat":
		whole, err := client.Chat.Completions.New(ctx, chatOpenAI(o, false))
		if err == nil {
			got.Text = whole.Choices[0].Message.Content
			got.Prompt, got.Completion = int(whole.Usage.PromptTokens), int(whole.Usage.CompletionTokens)
		}
		return err
	case call == "Responses" && streamed:
		stream := client.Responses.NewStreaming(ctx, responseOpenAI(o))
		for stream.Next() {
			switch event := stream.Current().AsAny().(type) {
			case responses.ResponseTextDeltaEvent:
				got.Text += event.Delta
			case responses.ResponseCompletedEvent:
				got.Prompt, got.Completion = int(event.Response.Usage.InputTokens), int(event.Response.Usage.OutputTokens)
			case responses.ResponseErrorEvent:
				return fmt.Errorf("error event: %s", event.Message)
			case responses.ResponseFailedEvent:
				return fmt.Errorf("response.failed event: %s", event.Response.Error.Message)
			}
		}
		return stream.Err()
	case call == "Responses":
		whole, err := client.Responses.New(ctx, responseOpenAI(o))
		if err == nil {
			got.Text = whole.OutputText()
			got.Prompt, got.Completion = int(whole.Usage.InputTokens), int(whole.Usage.OutputTokens)
		}
		return err
	case call == "Models.List":
		page, err := client.Models.List(ctx)
		if err != nil {
			return err
		}
		for _, m := range page.Data {
			got.Text += m.ID + ","
		}
		return nil
	}
	return fmt.Errorf("no such call: %s", o.Call)
}

func chatOpenAI(o order, counted bool) openai.ChatCompletionNewParams {
	ask := openai.ChatCompletionNewParams{
		Model:     o.Model,
		Messages:  []openai.ChatCompletionMessageParamUnion{openai.UserMessage("the sea")},
		MaxTokens: openai.Int(8), Seed: openai.Int(1),
	}
	if counted {
		ask.StreamOptions.IncludeUsage = openai.Bool(true)
	}
	return ask
}

func responseOpenAI(o order) responses.ResponseNewParams {
	return responses.ResponseNewParams{
		Model: o.Model, MaxOutputTokens: openai.Int(8), Input: responses.ResponseNewParamsInputUnion{OfString: openai.String("the sea")},
	}
}

func openAIStatus(err error) int {
	if e, ok := errors.AsType[*openai.Error](err); ok {
		return e.StatusCode
	}
	return 0
}

// openAISentence returns the message that recent versions leave out of Error(). A program that shows the message reads Message.
func openAISentence(err error) error {
	if e, ok := errors.AsType[*openai.Error](err); ok {
		return fmt.Errorf("%w; Message: %s", err, e.Message)
	}
	return err
}
