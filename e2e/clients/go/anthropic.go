package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/anthropics/anthropic-sdk-go"
	"github.com/anthropics/anthropic-sdk-go/option"
)

func runAnthropic(o order, got *result) error {
	client := anthropic.NewClient(option.WithBaseURL(o.URL), option.WithAPIKey(o.Key))
	ctx := context.Background()
	messages := []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock("the sea"))}
	ask := anthropic.MessageNewParams{Model: o.Model, MaxTokens: 8, Messages: messages}
	switch o.Call {
	case "Messages":
		whole, err := client.Messages.New(ctx, ask)
		if err == nil {
			got.Text = whole.Content[0].Text
			got.Prompt, got.Completion = int(whole.Usage.InputTokens), int(whole.Usage.OutputTokens)
		}
		return err
	case "Messages, streamed":
		stream := client.Messages.NewStreaming(ctx, ask)
		for stream.Next() {
			switch event := stream.Current().AsAny().(type) {
			case anthropic.ContentBlockDeltaEvent:
				got.Text += event.Delta.Text
			case anthropic.MessageDeltaEvent:
				got.Prompt, got.Completion = int(event.Usage.InputTokens), int(event.Usage.OutputTokens)
			}
		}
		return stream.Err()
	case "Messages.CountTokens":
		count, err := client.Messages.CountTokens(ctx, anthropic.MessageCountTokensParams{Model: o.Model, Messages: messages})
		if err == nil {
			got.Text = fmt.Sprint(count.InputTokens)
		}
		return err
	case "Models.List":
		page, err := client.Models.List(ctx, anthropic.ModelListParams{})
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

func anthropicStatus(err error) int {
	if e, ok := errors.AsType[*anthropic.Error](err); ok {
		return e.StatusCode
	}
	return 0
}
