package recipe

// Traps that all clients of one vendor have in common.
const (
	baseWithV1    = "The base URL ends in /v1."
	baseWithoutV1 = "The base URL has no /v1: the SDK adds it."
	floats        = "Embeddings: request encoding_format \"float\". Ollama before 0.9 ignores the SDK's own base64 and sends " +
		"numbers, which the SDK decodes to wrong vectors."
	twoKeys = "Unset ANTHROPIC_AUTH_TOKEN: the SDK sends it as a second key, and two different keys of this service in one request are refused."
)

var sdks = []Recipe{
	{
		ID: "ollama-python", Name: "Ollama's Python library", Group: SDKs, Address: "URL",
		Key: "`Authorization` in `headers`, or `OLLAMA_API_KEY`",
		Parts: []Part{{Where: "a program", Language: Python, Text: `from ollama import Client

client = Client(host=<<URL>>, headers={"Authorization": <<Bearer KEY>>})
answer = client.chat(model=<<MODEL>>, messages=[{"role": "user", "content": "Say hello"}])
print(answer.message.content)
`}},
		Tried: Replayed, Version: "its documentation",
	},
	{
		ID: "ollama-js", Name: "Ollama's JavaScript library", Group: SDKs, Address: "URL", Key: "`Authorization` in `headers`",
		Parts: []Part{{Where: "a program", Language: JavaScript, Text: `import { Ollama } from 'ollama'

const client = new Ollama({ host: <<URL>>, headers: { Authorization: <<Bearer KEY>> } })
const answer = await client.chat({ model: <<MODEL>>, messages: [{ role: 'user', content: 'Say hello' }] })
console.log(answer.message.content)
`}},
		Traps: []string{"For a web page, the gateway needs the page's origin in CORS_ORIGINS."},
		Tried: Run, Version: "0.6.4",
	},
	{
		ID: "ollama-go", Name: "Ollama's Go package", Group: SDKs, Address: "URL/k/KEY",
		Key: "in the address, or an `http.RoundTripper` that sets the header",
		Parts: []Part{{Where: "a program", Language: Go, Text: `package main

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"net/url"

	"github.com/ollama/ollama/api"
)

func main() {
	base, err := url.Parse(<<URL/k/KEY>>)
	if err != nil {
		log.Fatal(err)
	}
	client := api.NewClient(base, http.DefaultClient)
	request := &api.ChatRequest{Model: <<MODEL>>, Messages: []api.Message{{Role: "user", Content: "Say hello"}}}
	err = client.Chat(context.Background(), request, func(part api.ChatResponse) error {
		fmt.Print(part.Message.Content)
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
}
`}},
		Traps: []string{
			"The package has no setting for a key. api.ClientFromEnvironment reads the address from OLLAMA_HOST, including /k/KEY.",
		},
		Tried: Run, Version: "0.17.4",
	},
	{
		ID: "openai-python", Name: "OpenAI's Python library", Group: SDKs, Address: "URL/v1", Key: "`api_key`, or `OPENAI_API_KEY`",
		Parts: []Part{{Where: "a program", Language: Python, Text: `from openai import OpenAI

client = OpenAI(base_url=<<URL/v1>>, api_key=<<KEY>>)
answer = client.chat.completions.create(model=<<MODEL>>, messages=[{"role": "user", "content": "Say hello"}])
print(answer.choices[0].message.content)
`}},
		Traps: []string{baseWithV1, floats},
		Tried: Replayed, Version: "its documentation",
	},
	{
		ID: "openai-js", Name: "OpenAI's JavaScript library", Group: SDKs, Address: "URL/v1", Key: "`apiKey`, or `OPENAI_API_KEY`",
		Parts: []Part{{Where: "a program", Language: JavaScript, Text: `import OpenAI from 'openai'

const client = new OpenAI({ baseURL: <<URL/v1>>, apiKey: <<KEY>> })
const answer = await client.chat.completions.create({ model: <<MODEL>>, messages: [{ role: 'user', content: 'Say hello' }] })
console.log(answer.choices[0].message.content)
`}},
		Traps: []string{baseWithV1, floats},
		Tried: Run, Version: "7.59.0",
	},
	{
		ID: "openai-go", Name: "OpenAI's Go library", Group: SDKs, Address: "URL/v1", Key: "`option.WithAPIKey`, or `OPENAI_API_KEY`",
		Parts: []Part{{Where: "a program", Language: Go, Text: `package main

import (
	"context"
	"fmt"
	"log"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
)

func main() {
	client := openai.NewClient(option.WithBaseURL(<<URL/v1>>), option.WithAPIKey(<<KEY>>))
	answer, err := client.Chat.Completions.New(context.Background(), openai.ChatCompletionNewParams{
		Model:    <<MODEL>>,
		Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("Say hello")},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer.Choices[0].Message.Content)
}
`}},
		Traps: []string{baseWithV1, "err.Error() shows only the status of a failure: show Message of *openai.Error."},
		Tried: Run, Version: "3.99.0",
	},
	{
		ID: "openai-java", Name: "OpenAI's Java library", Group: SDKs, Address: "URL/v1", Key: "`apiKey`, or `OPENAI_API_KEY`",
		Parts: []Part{{Where: "a program", Language: Java, Text: `import com.openai.client.OpenAIClient;
import com.openai.client.okhttp.OpenAIOkHttpClient;
import com.openai.models.chat.completions.ChatCompletionCreateParams;

class Hello {
    public static void main(String[] args) {
        OpenAIClient client = OpenAIOkHttpClient.builder().baseUrl(<<URL/v1>>).apiKey(<<KEY>>).build();
        var request = ChatCompletionCreateParams.builder().model(<<MODEL>>).addUserMessage("Say hello").build();
        System.out.println(client.chat().completions().create(request).choices().get(0).message().content().orElse(""));
    }
}
`}},
		Traps: []string{baseWithV1},
		Tried: Replayed, Version: "its documentation",
	},
	{
		ID: "openai-dotnet", Name: "OpenAI's .NET library", Group: SDKs, Address: "URL/v1", Key: "`ApiKeyCredential`",
		Parts: []Part{{Where: "a program", Language: CSharp, Text: `using System.ClientModel;
using OpenAI;
using OpenAI.Chat;

var client = new ChatClient(
    model: <<MODEL>>,
    credential: new ApiKeyCredential(<<KEY>>),
    options: new OpenAIClientOptions { Endpoint = new Uri(<<URL/v1>>) });
Console.WriteLine(client.CompleteChat("Say hello").Value.Content[0].Text);
`}},
		Traps: []string{baseWithV1},
		Tried: Replayed, Version: "its documentation",
	},
	{
		ID: "go-openai", Name: "github.com/sashabaranov/go-openai", Group: SDKs, Address: "URL/v1", Key: "`openai.DefaultConfig`",
		Parts: []Part{{Where: "a program", Language: Go, Text: `package main

import (
	"context"
	"fmt"
	"log"

	"github.com/sashabaranov/go-openai"
)

func main() {
	config := openai.DefaultConfig(<<KEY>>)
	config.BaseURL = <<URL/v1>>
	answer, err := openai.NewClientWithConfig(config).CreateChatCompletion(context.Background(), openai.ChatCompletionRequest{
		Model:    <<MODEL>>,
		Messages: []openai.ChatCompletionMessage{{Role: openai.ChatMessageRoleUser, Content: "Say hello"}},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer.Choices[0].Message.Content)
}
`}},
		Traps: []string{baseWithV1},
		Tried: Run, Version: "1.43.0",
	},
	{
		ID: "anthropic-python", Name: "Anthropic's Python library", Group: SDKs, Address: "URL", Key: "`api_key`, or `ANTHROPIC_API_KEY`",
		Parts: []Part{{Where: "a program", Language: Python, Text: `from anthropic import Anthropic

client = Anthropic(base_url=<<URL>>, api_key=<<KEY>>)
answer = client.messages.create(model=<<MODEL>>, max_tokens=1024, messages=[{"role": "user", "content": "Say hello"}])
print(answer.content[0].text)
`}},
		Traps: []string{baseWithoutV1, twoKeys, needsMessages},
		Tried: Replayed, Version: "its documentation",
	},
	{
		ID: "anthropic-js", Name: "Anthropic's JavaScript library", Group: SDKs, Address: "URL", Key: "`apiKey`, or `ANTHROPIC_API_KEY`",
		Parts: []Part{{Where: "a program", Language: JavaScript, Text: `import Anthropic from '@anthropic-ai/sdk'

const client = new Anthropic({ baseURL: <<URL>>, apiKey: <<KEY>> })
const answer = await client.messages.create({ model: <<MODEL>>, max_tokens: 1024, messages: [{ role: 'user', content: 'Say hello' }] })
console.log(answer.content[0].text)
`}},
		Traps: []string{baseWithoutV1, twoKeys, needsMessages},
		Tried: Run, Version: "1.14.0",
	},
	{
		ID: "anthropic-go", Name: "Anthropic's Go library", Group: SDKs, Address: "URL",
		Key: "`option.WithAPIKey`, or `ANTHROPIC_API_KEY`",
		Parts: []Part{{Where: "a program", Language: Go, Text: `package main

import (
	"context"
	"fmt"
	"log"

	"github.com/anthropics/anthropic-sdk-go"
	"github.com/anthropics/anthropic-sdk-go/option"
)

func main() {
	client := anthropic.NewClient(option.WithBaseURL(<<URL>>), option.WithAPIKey(<<KEY>>))
	answer, err := client.Messages.New(context.Background(), anthropic.MessageNewParams{
		Model:     <<MODEL>>,
		MaxTokens: 1024,
		Messages:  []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock("Say hello"))},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer.Content[0].Text)
}
`}},
		Traps: []string{baseWithoutV1, twoKeys, needsMessages},
		Tried: Run, Version: "1.84.0",
	},
	{
		ID: "anthropic-java", Name: "Anthropic's Java library", Group: SDKs, Address: "URL", Key: "`apiKey`, or `ANTHROPIC_API_KEY`",
		Parts: []Part{{Where: "a program", Language: Java, Text: `import com.anthropic.client.AnthropicClient;
import com.anthropic.client.okhttp.AnthropicOkHttpClient;
import com.anthropic.models.messages.MessageCreateParams;

class Hello {
    public static void main(String[] args) {
        AnthropicClient client = AnthropicOkHttpClient.builder().baseUrl(<<URL>>).apiKey(<<KEY>>).build();
        var request = MessageCreateParams.builder().model(<<MODEL>>).maxTokens(1024).addUserMessage("Say hello").build();
        client.messages().create(request).content().forEach(part -> part.text().ifPresent(text -> System.out.println(text.text())));
    }
}
`}},
		Traps: []string{baseWithoutV1, twoKeys, needsMessages},
		Tried: Replayed, Version: "its documentation",
	},
	{
		ID: "anthropic-dotnet", Name: "Anthropic's .NET library", Group: SDKs, Address: "URL", Key: "`ApiKey`, or `ANTHROPIC_API_KEY`",
		Parts: []Part{{Where: "a program", Language: CSharp, Text: `using Anthropic;
using Anthropic.Models.Messages;

var client = new AnthropicClient { BaseUrl = <<URL>>, ApiKey = <<KEY>> };
var answer = await client.Messages.Create(new MessageCreateParams
{
    Model = <<MODEL>>,
    MaxTokens = 1024,
    Messages = [new() { Role = Role.User, Content = "Say hello" }],
});
Console.WriteLine(answer);
`}},
		Traps: []string{baseWithoutV1, twoKeys, needsMessages},
		Tried: Replayed, Version: "its documentation",
	},
	{
		ID: "python-requests", Name: "Python with requests", Group: SDKs, Address: "URL", Key: "`Authorization: Bearer`",
		Parts: []Part{{Where: "a program", Language: Python, Text: `import requests

answer = requests.post(
    <<URL/api/chat>>,
    headers={"Authorization": <<Bearer KEY>>},
    json={"model": <<MODEL>>, "messages": [{"role": "user", "content": "Say hello"}], "stream": False},
)
answer.raise_for_status()
print(answer.json()["message"]["content"])
`}},
		Tried: Run, Version: "of the system",
	},
}
