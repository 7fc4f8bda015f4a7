// The npm package "ollama" against the service: a good call, a stream, a wrong key, a limit.
import assert from 'node:assert/strict'
import { Ollama } from 'ollama'

const { BASE_URL, KEY, SPENT_KEY, MODEL } = process.env
const client = (key) => new Ollama({ host: BASE_URL, headers: { Authorization: `Bearer ${key}` } })
const messages = [{ role: 'user', content: 'the sea' }]
const options = { num_predict: 8, seed: 1 }

const good = client(KEY)
const { models } = await good.list()
assert.ok(models.some((m) => m.name === `${MODEL}:latest`), 'list has the model')

const whole = await good.chat({ model: MODEL, messages, options })
assert.equal(whole.done, true)
assert.ok(whole.message.content.length > 0, 'chat answers')
assert.ok(whole.eval_count > 0 && whole.prompt_eval_count > 0, 'chat has its counts')

let text = ''
let last
for await (const part of await good.chat({ model: MODEL, messages, options, stream: true })) {
  text += part.message.content
  last = part
}
assert.equal(last.done, true)
assert.equal(text, whole.message.content, 'the stream says what the whole answer said')
assert.equal(last.eval_count, whole.eval_count)

const generated = await good.generate({ model: MODEL, prompt: 'the sea', options })
assert.ok(generated.response.length > 0)
const embedded = await good.embed({ model: MODEL, input: ['the sea', 'a dog'] })
assert.equal(embedded.embeddings.length, 2)
const shown = await good.show({ model: MODEL })
assert.ok(shown.model_info)
await good.ps()

const failure = async (work) => {
  try {
    await work
  } catch (error) {
    return error
  }
  assert.fail('it should have been refused')
}
const wrong = await failure(client('oas_0000000000_00000000000000000000000000000000000000').chat({ model: MODEL, messages }))
assert.equal(wrong.status_code, 401)
assert.equal(typeof wrong.error, 'string')
const denied = await failure(good.pull({ model: 'x' }))
assert.equal(denied.status_code, 403)
const spent = await failure(client(SPENT_KEY).chat({ model: MODEL, messages }))
assert.equal(spent.status_code, 429)
assert.match(spent.error, /rate limit exceeded/i)
const spentStream = await failure(client(SPENT_KEY).chat({ model: MODEL, messages, stream: true }))
assert.equal(spentStream.status_code, 429)
const unknown = await failure(good.chat({ model: 'nope', messages }))
assert.equal(unknown.status_code, 404)
console.log('ollama: all as it should be')
