// The AI SDK (npm package "ai") with the provider that the argument names.
import { generateText, streamText } from 'ai'
import { createAnthropic } from '@ai-sdk/anthropic'
import { createOpenAI } from '@ai-sdk/openai'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { createOllama } from 'ollama-ai-provider-v2'
import { prompt, run } from './cases.mjs'

const providers = {
  'ollama-ai-provider-v2': ({ url, key }) => createOllama({ baseURL: `${url}/api`, headers: { Authorization: `Bearer ${key}` } }),
  '@ai-sdk/openai-compatible': ({ url, key }) => createOpenAICompatible({ name: 'gateway', baseURL: `${url}/v1`, apiKey: key, includeUsage: true }),
  '@ai-sdk/openai': ({ url, key }) => createOpenAI({ baseURL: `${url}/v1`, apiKey: key }),
  '@ai-sdk/anthropic': ({ url, key }) => createAnthropic({ baseURL: `${url}/v1`, apiKey: key }),
}
// ollama-ai-provider-v2 sends maxOutputTokens as a field that Ollama does not know.
const ask = (gateway, model) => ({ model: gateway(model), prompt, maxOutputTokens: 8, seed: 1, providerOptions: { ollama: { options: { num_predict: 8, seed: 1 } } } })
const counts = (got, usage) => Object.assign(got, { prompt: usage.inputTokens, completion: usage.outputTokens })

// The user of a program sees the failure of the last try, which is the cause of the error about the tries.
const plain = async (work) => {
  try {
    await work
  } catch (error) {
    const last = error.lastError ?? error
    throw Object.assign(last, { status: last.statusCode })
  }
}

await run(providers[process.argv[2]], {
  generateText: (gateway, model, got) => plain((async () => {
    const whole = await generateText(ask(gateway, model))
    got.text = whole.text
    counts(got, whole.usage)
  })()),
  streamText: (gateway, model, got) => plain((async () => {
    const stream = streamText({ ...ask(gateway, model), onError() {} })
    for await (const part of stream.fullStream) {
      if (part.type === 'text-delta') got.text += part.text
      if (part.type === 'error') throw part.error instanceof Error ? part.error : Object.assign(new Error(part.error?.message ?? String(part.error)), { cause: part.error })
      if (part.type === 'finish') counts(got, part.totalUsage)
    }
  })()),
})
