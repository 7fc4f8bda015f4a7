// Go readers of event streams. The program reads cases from stdin and writes a line for each, in the format of streams.mjs. It is built
// twice: with the last OpenAI SDK that reads an empty event as a broken one (go.mod), and with a newer one (newest.mod).
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/anthropics/anthropic-sdk-go"
	anthropicoption "github.com/anthropics/anthropic-sdk-go/option"
	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/responses"
	goopenai "github.com/sashabaranov/go-openai"
	"github.com/tmc/langchaingo/llms"
	langchainanthropic "github.com/tmc/langchaingo/llms/anthropic"
	langchainopenai "github.com/tmc/langchaingo/llms/openai"
)

type order struct{ Call, URL, Key, Model string }

type result struct {
	OK   bool   `json:"ok"`
	Text string `json:"text"`
	Type string `json:"type,omitempty"`
	Says string `json:"says,omitempty"`
}

var calls = map[string]func(context.Context, order, *result) error{
	"openai-go, chat": chat, "openai-go, accumulator": accumulated, "openai-go, completions": completions, "openai-go, responses": respond,
	"anthropic-sdk-go": messages, "go-openai, chat": goOpenAI, "langchaingo, openai": langchain, "langchaingo, anthropic": langchainMessages,
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
		err := calls[o.Call](context.Background(), o, &got)
		if got.OK = err == nil; err != nil {
			got.Type, got.Says = fmt.Sprintf("%T", err), err.Error()
		}
		if err := out.Encode(got); err != nil {
			os.Exit(1)
		}
	}
}

func (o order) openai() openai.Client {
	return openai.NewClient(option.WithBaseURL(o.URL+"/v1/"), option.WithAPIKey(o.Key), option.WithMaxRetries(0))
}

func (o order) chat() openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{Model: o.Model, Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("the sea")}}
}

func chat(ctx context.Context, o order, got *result) error {
	client := o.openai()
	stream := client.Chat.Completions.NewStreaming(ctx, o.chat())
	for stream.Next() {
		got.Text += stream.Current().Choices[0].Delta.Content
	}
	return stream.Err()
}

func accumulated(ctx context.Context, o order, got *result) error {
	client := o.openai()
	stream := client.Chat.Completions.NewStreaming(ctx, o.chat())
	var all openai.ChatCompletionAccumulator
	for stream.Next() {
		if !all.AddChunk(stream.Current()) {
			return errors.New("the accumulator refuses a chunk")
		}
		got.Text = all.Choices[0].Message.Content
	}
	return stream.Err()
}

func completions(ctx context.Context, o order, got *result) error {
	client := o.openai()
	stream := client.Completions.NewStreaming(ctx, openai.CompletionNewParams{
		Model: openai.CompletionNewParamsModel(o.Model), Prompt: openai.CompletionNewParamsPromptUnion{OfString: openai.String("the sea")},
	})
	for stream.Next() {
		got.Text += stream.Current().Choices[0].Text
	}
	return stream.Err()
}

func respond(ctx context.Context, o order, got *result) error {
	client := o.openai()
	stream := client.Responses.NewStreaming(ctx, responses.ResponseNewParams{Model: o.Model, Input: responses.ResponseNewParamsInputUnion{OfString: openai.String("the sea")}})
	for stream.Next() {
		if event := stream.Current(); event.Type == "response.output_text.delta" {
			got.Text += event.AsResponseOutputTextDelta().Delta
		}
	}
	return stream.Err()
}

func messages(ctx context.Context, o order, got *result) error {
	client := anthropic.NewClient(anthropicoption.WithBaseURL(o.URL), anthropicoption.WithAPIKey(o.Key), anthropicoption.WithMaxRetries(0))
	stream := client.Messages.NewStreaming(ctx, anthropic.MessageNewParams{
		Model: anthropic.Model(o.Model), MaxTokens: 9, Messages: []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock("the sea"))},
	})
	var whole anthropic.Message
	for stream.Next() {
		if err := whole.Accumulate(stream.Current()); err != nil {
			return err
		}
		got.Text += stream.Current().Delta.Text
	}
	return stream.Err()
}

func goOpenAI(ctx context.Context, o order, got *result) error {
	config := goopenai.DefaultConfig(o.Key)
	config.BaseURL = o.URL + "/v1"
	ask := goopenai.ChatCompletionRequest{Model: o.Model, Stream: true, Messages: []goopenai.ChatCompletionMessage{{Role: "user", Content: "the sea"}}}
	stream, err := goopenai.NewClientWithConfig(config).CreateChatCompletionStream(ctx, ask)
	if err != nil {
		return err
	}
	defer stream.Close()
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		got.Text += part.Choices[0].Delta.Content
	}
}

func langchain(ctx context.Context, o order, got *result) error {
	model, err := langchainopenai.New(langchainopenai.WithBaseURL(o.URL+"/v1"), langchainopenai.WithToken(o.Key), langchainopenai.WithModel(o.Model))
	if err != nil {
		return err
	}
	return generate(ctx, model, got)
}

func langchainMessages(ctx context.Context, o order, got *result) error {
	model, err := langchainanthropic.New(langchainanthropic.WithBaseURL(o.URL+"/v1"), langchainanthropic.WithToken(o.Key), langchainanthropic.WithModel(o.Model))
	if err != nil {
		return err
	}
	return generate(ctx, model, got)
}

func generate(ctx context.Context, model llms.Model, got *result) error {
	piece := llms.WithStreamingFunc(func(_ context.Context, text []byte) error {
		got.Text += string(text)
		return nil
	})
	_, err := model.GenerateContent(ctx, []llms.MessageContent{llms.TextParts(llms.ChatMessageTypeHuman, "the sea")}, piece)
	return err
}
