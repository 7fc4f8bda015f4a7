// The npm package "openai" against the service: a good call, a stream, a wrong key, a limit. The client keeps its own
// defaults, retries included: they must not turn a refusal into minutes of waiting.
import assert from 'node:assert/strict'
import OpenAI from 'openai'

const { BASE_URL, KEY, SPENT_KEY, MODEL } = process.env
const client = (apiKey) => new OpenAI({ baseURL: `${BASE_URL}/v1`, apiKey })
const messages = [{ role: 'user', content: 'the sea' }]
const ask = { model: MODEL, messages, max_tokens: 8, seed: 1 }

const good = client(KEY)
const ids = []
for await (const model of good.models.list()) ids.push(model.id)
assert.ok(ids.includes(`${MODEL}:latest`) || ids.includes(MODEL), `models: ${ids}`)
await good.models.retrieve(MODEL)

const whole = await good.chat.completions.create(ask)
assert.ok(whole.choices[0].message.content.length > 0)
assert.ok(whole.usage.completion_tokens > 0 && whole.usage.prompt_tokens > 0)

const read = async (stream) => {
  let text = ''
  let finish
  let usage
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? ''
    finish = chunk.choices[0]?.finish_reason ?? finish
    if (chunk.usage) usage = chunk.usage
  }
  return { text, finish, usage }
}
const plain = await read(await good.chat.completions.create({ ...ask, stream: true }))
assert.equal(plain.text, whole.choices[0].message.content)
assert.ok(plain.finish, 'the stream has its finish chunk')
assert.equal(plain.usage, undefined, 'no usage without asking')
const counted = await read(await good.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } }))
assert.deepEqual(counted.usage, whole.usage)

const modern = await good.chat.completions.create({ model: MODEL, messages, max_completion_tokens: 3, seed: 1 })
assert.ok(modern.usage.completion_tokens <= 3, 'max_completion_tokens is obeyed')

const completion = await good.completions.create({ model: MODEL, prompt: 'the sea', max_tokens: 8 })
assert.ok(completion.choices[0].text.length > 0)
for await (const chunk of await good.completions.create({ model: MODEL, prompt: 'the sea', max_tokens: 8, stream: true })) {
  assert.equal(chunk.usage, undefined, 'no zero usage without asking')
}
const embedded = await good.embeddings.create({ model: MODEL, input: ['the sea'], encoding_format: 'float' })
assert.ok(embedded.data[0].embedding.length > 0)

const failure = async (work) => {
  const from = Date.now()
  try {
    await work
  } catch (error) {
    return { error, took: Date.now() - from }
  }
  assert.fail('it should have been refused')
}
const wrong = await failure(client('oas_0000000000_00000000000000000000000000000000000000').chat.completions.create(ask))
assert.ok(wrong.error instanceof OpenAI.AuthenticationError, String(wrong.error))
const spent = await failure(client(SPENT_KEY).chat.completions.create(ask))
assert.ok(spent.error instanceof OpenAI.RateLimitError, String(spent.error))
assert.match(spent.error.message, /rate limit exceeded/i)
assert.ok(spent.took < 5000, `the refusal took ${spent.took} ms: the client sleeps out Retry-After`)
const spentStream = await failure(client(SPENT_KEY).chat.completions.create({ ...ask, stream: true }))
assert.ok(spentStream.error instanceof OpenAI.RateLimitError)
const unknown = await failure(good.chat.completions.create({ ...ask, model: 'nope' }))
assert.ok(unknown.error instanceof OpenAI.NotFoundError, String(unknown.error))
console.log('openai: all as it should be')
