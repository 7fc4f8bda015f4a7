// The npm package "openai", or the one that the argument names.
import { messages, prompt, run } from './cases.mjs'

const { default: OpenAI } = await import(process.argv[2] ?? 'openai')

const chat = (model) => ({ model, messages, max_tokens: 8, seed: 1 })
const completion = (model) => ({ model, prompt, max_tokens: 8, seed: 1 })
const counts = (got, usage) => Object.assign(got, { prompt: usage?.prompt_tokens, completion: usage?.completion_tokens })
const responseCounts = (got, usage) => Object.assign(got, { prompt: usage?.input_tokens, completion: usage?.output_tokens })
const counted = { stream: true, stream_options: { include_usage: true } }

await run(({ url, key }) => new OpenAI({ baseURL: `${url}/v1`, apiKey: key }), {
  async chat(client, model, got) {
    const whole = await client.chat.completions.create(chat(model))
    got.text = whole.choices[0].message.content
    counts(got, whole.usage)
  },
  async 'chat, streamed'(client, model, got) {
    for await (const chunk of await client.chat.completions.create({ ...chat(model), ...counted })) {
      got.text += chunk.choices[0]?.delta.content ?? ''
      counts(got, chunk.usage)
    }
  },
  // Without include_usage no chunk of usage may appear: programs index choices[0] of every chunk.
  async 'chat, streamed without usage'(client, model, got) {
    for await (const chunk of await client.chat.completions.create({ ...chat(model), stream: true })) {
      got.text += chunk.choices[0].delta.content
      if (chunk.usage) throw new Error('there is a usage that nobody asked for')
    }
  },
  async 'chat with max_completion_tokens'(client, model, got) {
    const whole = await client.chat.completions.create({ model, messages, max_completion_tokens: 3, seed: 1 })
    got.text = whole.choices[0].message.content
    counts(got, whole.usage)
  },
  async completions(client, model, got) {
    const whole = await client.completions.create(completion(model))
    got.text = whole.choices[0].text
    counts(got, whole.usage)
  },
  async 'completions, streamed'(client, model, got) {
    for await (const chunk of await client.completions.create({ ...completion(model), ...counted })) {
      got.text += chunk.choices[0]?.text ?? ''
      counts(got, chunk.usage)
    }
  },
  // By default the client asks for base64, which Ollama 0.6.5 does not know. The client would then read the numbers as base64.
  async 'embeddings with encoding_format float'(client, model, got) {
    const { data } = await client.embeddings.create({ model, input: [prompt, 'a dog'], encoding_format: 'float' })
    got.text = data.map((d) => d.embedding.length).join()
  },
  async responses(client, model, got) {
    const whole = await client.responses.create({ model, input: prompt, max_output_tokens: 8 })
    got.text = whole.output_text
    responseCounts(got, whole.usage)
  },
  async 'responses, streamed'(client, model, got) {
    for await (const event of await client.responses.create({ model, input: prompt, max_output_tokens: 8, stream: true })) {
      if (event.type === 'response.output_text.delta') got.text += event.delta
      if (event.type === 'response.completed') responseCounts(got, event.response.usage)
    }
  },
  async 'responses.stream'(client, model, got) {
    const stream = client.responses.stream({ model, input: prompt, max_output_tokens: 8 })
    stream.on('response.output_text.delta', (event) => { got.text += event.delta })
    responseCounts(got, (await stream.finalResponse()).usage)
  },
  async 'models.list'(client, model, got) {
    const ids = []
    for await (const m of client.models.list()) ids.push(m.id)
    got.text = ids.join()
  },
  async 'models.retrieve'(client, model, got) {
    got.text = (await client.models.retrieve(model)).id
  },
})
