// The npm package "@anthropic-ai/sdk", or the one that the argument names.
import { messages, run } from './cases.mjs'

const { default: Anthropic } = await import(process.argv[2] ?? '@anthropic-ai/sdk')

const ask = (model) => ({ model, messages, max_tokens: 8 })
const counts = (got, usage) => Object.assign(got, { prompt: usage?.input_tokens, completion: usage?.output_tokens })

await run(({ url, key }) => new Anthropic({ baseURL: url, apiKey: key }), {
  async messages(client, model, got) {
    const whole = await client.messages.create(ask(model))
    got.text = whole.content[0].text
    counts(got, whole.usage)
  },
  async 'messages with authToken'(client, model, got) {
    const bearer = new Anthropic({ baseURL: client.baseURL, apiKey: null, authToken: client.apiKey })
    const whole = await bearer.messages.create(ask(model))
    got.text = whole.content[0].text
    counts(got, whole.usage)
  },
  // Claude Code calls /v1/messages?beta=true.
  async 'beta.messages'(client, model, got) {
    const whole = await client.beta.messages.create({ ...ask(model), betas: ['interleaved-thinking-2025-05-14'] })
    got.text = whole.content[0].text
    counts(got, whole.usage)
  },
  async 'messages, streamed'(client, model, got) {
    for await (const event of await client.messages.create({ ...ask(model), stream: true })) {
      if (event.type === 'content_block_delta') got.text += event.delta.text
      if (event.type === 'message_delta') counts(got, event.usage)
    }
  },
  async 'messages.stream'(client, model, got) {
    const stream = client.messages.stream(ask(model)).on('text', (text) => { got.text += text })
    counts(got, (await stream.finalMessage()).usage)
  },
  async 'messages.countTokens'(client, model, got) {
    got.text = String((await client.messages.countTokens({ model, messages })).input_tokens)
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
