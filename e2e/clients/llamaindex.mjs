// The npm package "llamaindex" with "@llamaindex/ollama" and "@llamaindex/openai".
import { Ollama } from '@llamaindex/ollama'
import { OpenAI } from '@llamaindex/openai'
import { messages, run } from './cases.mjs'

const ollama = ({ url, key }, model) =>
  new Ollama({ model, config: { host: url, headers: { Authorization: `Bearer ${key}` } }, options: { num_predict: 8, seed: 1 } })
// By default it repeats a failed request ten times.
const openai = ({ url, key }, model) => new OpenAI({ model, baseURL: `${url}/v1`, apiKey: key, maxTokens: 8, maxRetries: 2, additionalChatOptions: { seed: 1 } })
const counts = (got, raw) => raw && Object.assign(got, { prompt: raw.prompt_eval_count, completion: raw.eval_count })

const whole = async (llm, got) => {
  const answer = await llm.chat({ messages })
  got.text = answer.message.content
  counts(got, answer.raw)
}
const streamed = async (llm, got) => {
  for await (const part of await llm.chat({ messages, stream: true })) {
    got.text += part.delta
    counts(got, part.raw)
  }
}

await run((c) => c, {
  'Ollama.chat': (c, model, got) => whole(ollama(c, model), got),
  'Ollama.chat, streamed': (c, model, got) => streamed(ollama(c, model), got),
  'OpenAI.chat': (c, model, got) => whole(openai(c, model), got),
  'OpenAI.chat, streamed': (c, model, got) => streamed(openai(c, model), got),
})
