// The npm package "@langchain/ollama".
import { ChatOllama, OllamaEmbeddings } from '@langchain/ollama'
import { prompt, run } from './cases.mjs'

const counts = (got, usage) => usage && Object.assign(got, { prompt: usage.input_tokens, completion: usage.output_tokens })
const chat = (settings, model) => new ChatOllama({ ...settings, model, numPredict: 8, seed: 1 })

await run(({ url, key }) => ({ baseUrl: url, headers: { Authorization: `Bearer ${key}` } }), {
  async 'ChatOllama.invoke'(settings, model, got) {
    const whole = await chat(settings, model).invoke(prompt)
    got.text = whole.content
    counts(got, whole.usage_metadata)
  },
  async 'ChatOllama.stream'(settings, model, got) {
    for await (const chunk of await chat(settings, model).stream(prompt)) {
      got.text += chunk.content
      counts(got, chunk.usage_metadata)
    }
  },
  // It does not find the status in its client's error, so it repeats every failure, including 401 and 404, for more than a minute.
  async 'OllamaEmbeddings with maxRetries 0'(settings, model, got) {
    const embedded = await new OllamaEmbeddings({ ...settings, model, maxRetries: 0 }).embedDocuments([prompt, 'a dog'])
    got.text = embedded.map((e) => e.length).join()
  },
})
