package recipe

var frameworks = []Recipe{
	{
		ID: "ai-sdk-ollama", Name: "Vercel AI SDK, ollama-ai-provider-v2", Group: Frameworks, Address: "URL/api",
		Key: "`Authorization` in `headers`",
		Parts: []Part{{Where: "a program", Language: JavaScript, Text: `import { createOllama } from 'ollama-ai-provider-v2'
import { generateText } from 'ai'

const gateway = createOllama({ baseURL: <<URL/api>>, headers: { Authorization: <<Bearer KEY>> } })
const { text } = await generateText({ model: gateway(<<MODEL>>), prompt: 'Say hello' })
console.log(text)
`}},
		Traps: []string{
			"The base URL ends in /api.",
			"For a failure it shows only the status; the message is in responseBody of the error.",
		},
		Tried: Run, Version: "4.0.1 with ai 7.0.173",
	},
	{
		ID: "ai-sdk-openai-compatible", Name: "Vercel AI SDK, @ai-sdk/openai-compatible", Group: Frameworks, Address: "URL/v1",
		Key: "`apiKey`",
		Parts: []Part{{Where: "a program", Language: JavaScript, Text: `import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { generateText } from 'ai'

const gateway = createOpenAICompatible({ name: 'gateway', baseURL: <<URL/v1>>, apiKey: <<KEY>>, includeUsage: true })
const { text } = await generateText({ model: gateway(<<MODEL>>), prompt: 'Say hello' })
console.log(text)
`}},
		Traps: []string{baseWithV1, "Without includeUsage, a stream reports no tokens."},
		Tried: Run, Version: "3.0.92 with ai 7.0.173",
	},
	{
		ID: "ai-sdk-openai", Name: "Vercel AI SDK, @ai-sdk/openai", Group: Frameworks, Address: "URL/v1",
		Key: "`apiKey`, or `OPENAI_API_KEY`",
		Parts: []Part{{Where: "a program", Language: JavaScript, Text: `import { createOpenAI } from '@ai-sdk/openai'
import { generateText } from 'ai'

const gateway = createOpenAI({ baseURL: <<URL/v1>>, apiKey: <<KEY>> })
const { text } = await generateText({ model: gateway.chat(<<MODEL>>), prompt: 'Say hello' })
console.log(text)
`}},
		Traps: []string{baseWithV1, "gateway(MODEL) without .chat uses /v1/responses, which needs Ollama 0.13.3 or newer."},
		Tried: Run, Version: "4.0.118 with ai 7.0.173",
	},
	{
		ID: "ai-sdk-anthropic", Name: "Vercel AI SDK, @ai-sdk/anthropic", Group: Frameworks, Address: "URL/v1",
		Key: "`apiKey`, or `ANTHROPIC_API_KEY`",
		Parts: []Part{{Where: "a program", Language: JavaScript, Text: `import { createAnthropic } from '@ai-sdk/anthropic'
import { generateText } from 'ai'

const gateway = createAnthropic({ baseURL: <<URL/v1>>, apiKey: <<KEY>> })
const { text } = await generateText({ model: gateway(<<MODEL>>), prompt: 'Say hello' })
console.log(text)
`}},
		Traps: []string{"The base URL ends in /v1, unlike that of Anthropic's own libraries.", needsMessages},
		Tried: Run, Version: "4.0.105 with ai 7.0.173",
	},
	{
		ID: "langchain-js", Name: "LangChain in JavaScript", Group: Frameworks, Address: "URL", Key: "`Authorization` in `headers`",
		Parts: []Part{{Where: "a program", Language: JavaScript, Text: `import { ChatOllama } from '@langchain/ollama'

const model = new ChatOllama({ baseUrl: <<URL>>, model: <<MODEL>>, headers: { Authorization: <<Bearer KEY>> } })
console.log((await model.invoke('Say hello')).content)
`}},
		Traps: []string{"OllamaEmbeddings retries every failure for more than a minute, even a wrong key: set maxRetries: 0."},
		Tried: Run, Version: "1.3.0",
	},
	{
		ID: "langchain-python", Name: "LangChain in Python", Group: Frameworks, Address: "URL", Key: "`headers` in `client_kwargs`",
		Parts: []Part{{Where: "a program", Language: Python, Text: `from langchain_ollama import ChatOllama

model = ChatOllama(base_url=<<URL>>, model=<<MODEL>>, client_kwargs={"headers": {"Authorization": <<Bearer KEY>>}})
print(model.invoke("Say hello").content)
`}},
		Traps: []string{
			"With validate_model_on_init it first requests the list of models, so a model that the key may not use fails at the start.",
		},
		Tried: Replayed, Version: "its documentation",
	},
	{
		ID: "llamaindex-js", Name: "LlamaIndex in JavaScript", Group: Frameworks, Address: "URL", Key: "`headers` in `config`",
		Parts: []Part{{Where: "a program", Language: JavaScript, Text: `import { Ollama } from '@llamaindex/ollama'

const model = new Ollama({ model: <<MODEL>>, config: { host: <<URL>>, headers: { Authorization: <<Bearer KEY>> } } })
const answer = await model.chat({ messages: [{ role: 'user', content: 'Say hello' }] })
console.log(answer.message.content)
`}},
		Traps: []string{"Its packages are no longer maintained. @llamaindex/openai works too: baseURL URL/v1 and apiKey."},
		Tried: Run, Version: "0.1.24 with llamaindex 0.12.1",
	},
	{
		ID: "llamaindex-python", Name: "LlamaIndex in Python", Group: Frameworks, Address: "URL/v1", Key: "`api_key`",
		Parts: []Part{{Where: "a program", Language: Python, Text: `from llama_index.llms.openai_like import OpenAILike

model = OpenAILike(api_base=<<URL/v1>>, api_key=<<KEY>>, model=<<MODEL>>, is_chat_model=True, context_window=64000)
print(model.complete("Say hello"))
`}},
		Traps: []string{
			baseWithV1,
			"Use OpenAILike: the class OpenAI knows only OpenAI's models.",
			"Its class Ollama has no setting for a key; it works with base_url URL/k/KEY.",
		},
		Tried: Replayed, Version: "its documentation",
	},
}
