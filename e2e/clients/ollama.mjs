// The npm package "ollama", or the one that the argument names.
import { messages, prompt, run } from './cases.mjs'

const { Ollama } = await import(process.argv[2] ?? 'ollama')

const options = { num_predict: 8, seed: 1 }
const counts = (got, part) => Object.assign(got, { prompt: part.prompt_eval_count, completion: part.eval_count })

await run(({ url, key }) => new Ollama({ host: url, headers: { Authorization: `Bearer ${key}` } }), {
  async chat(client, model, got) {
    const whole = await client.chat({ model, messages, options })
    got.text = whole.message.content
    counts(got, whole)
  },
  async 'chat, streamed'(client, model, got) {
    for await (const part of await client.chat({ model, messages, options, stream: true })) {
      got.text += part.message.content
      counts(got, part)
    }
  },
  async generate(client, model, got) {
    const whole = await client.generate({ model, prompt, options })
    got.text = whole.response
    counts(got, whole)
  },
  async 'generate, streamed'(client, model, got) {
    for await (const part of await client.generate({ model, prompt, options, stream: true })) {
      got.text += part.response
      counts(got, part)
    }
  },
  async embed(client, model, got) {
    const { embeddings } = await client.embed({ model, input: [prompt, 'a dog'] })
    got.text = embeddings.map((e) => e.length).join()
  },
  async list(client, model, got) {
    const { models } = await client.list()
    got.text = models.map((m) => m.name).join()
  },
  async ps(client, model, got) {
    const { models } = await client.ps()
    got.text = models.map((m) => m.name).join()
  },
  async show(client, model, got) {
    got.text = (await client.show({ model })).details.family
  },
  async pull(client, model, got) {
    got.text = (await client.pull({ model })).status
  },
})
