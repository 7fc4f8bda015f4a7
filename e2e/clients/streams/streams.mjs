// Readers of event streams. Cases come on stdin as one JSON array of {call, url, key, model}, and one JSON line for each goes to
// stdout: the text that arrived, and the error message that the reader's user sees.
import { readFileSync } from 'node:fs'
import { createAnthropic } from '@ai-sdk/anthropic'
import { createOpenAI } from '@ai-sdk/openai'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { createOpenAICompatible as createOpenAICompatibleOld } from '@ai-sdk/openai-compatible-old'
import Anthropic from '@anthropic-ai/sdk'
import AnthropicOld from '@anthropic-ai/sdk-old'
import { streamText } from 'ai'
import { streamText as streamTextOld } from 'ai-old'
import { createParser } from 'eventsource-parser'
import OpenAI from 'openai'
import OpenAIOld from 'openai-old'

const messages = [{ role: 'user', content: 'the sea' }]
const openai = (SDK, c) => new SDK({ baseURL: `${c.url}/v1`, apiKey: c.key, maxRetries: 0 })
const anthropic = (SDK, c) => new SDK({ baseURL: c.url, apiKey: c.key, maxRetries: 0 })
const answer = (c) => ({ model: c.model, max_tokens: 9, messages })

const chat = (SDK) => async (c, got) => {
  for await (const chunk of await openai(SDK, c).chat.completions.create({ ...answer(c), stream: true })) got.text += chunk.choices[0].delta.content
}
const chatHelper = (SDK) => async (c, got) => {
  const client = openai(SDK, c)
  const stream = (client.chat.completions.stream ? client.chat : client.beta.chat).completions.stream(answer(c))
  got.text = (await stream.finalChatCompletion()).choices[0].message.content
}
const completions = (SDK) => async (c, got) => {
  for await (const chunk of await openai(SDK, c).completions.create({ model: c.model, prompt: 'the sea', stream: true })) got.text += chunk.choices[0].text
}
const responses = (SDK) => async (c, got) => {
  for await (const event of await openai(SDK, c).responses.create({ model: c.model, input: 'the sea', stream: true })) {
    if (event.type === 'response.output_text.delta') got.text += event.delta
  }
}
const responsesHelper = (SDK) => async (c, got) => {
  const stream = openai(SDK, c).responses.stream({ model: c.model, input: 'the sea' })
  stream.on('response.output_text.delta', (event) => { got.text += event.delta })
  await stream.finalResponse()
}
const message = (SDK) => async (c, got) => {
  for await (const event of await anthropic(SDK, c).messages.create({ ...answer(c), stream: true })) {
    if (event.type === 'content_block_delta') got.text += event.delta.text
  }
}
const messageHelper = (SDK) => async (c, got) => {
  const stream = anthropic(SDK, c).messages.stream(answer(c))
  stream.on('text', (text) => { got.text += text })
  await stream.finalMessage()
}
// A program that uses the AI SDK shows the error part of the stream.
const aiSDK = (stream, model) => async (c, got) => {
  let failure
  for await (const part of stream({ model: model(c), prompt: 'the sea', maxRetries: 0, onError() {} }).fullStream) {
    if (part.type === 'text-delta') got.text += part.text ?? part.textDelta
    if (part.type === 'error') failure ??= part.error
  }
  if (failure) throw failure instanceof Error ? failure : new Error(failure.message ?? String(failure))
}

// Readers that programs write for themselves.
const pieces = async function* (c) {
  const headers = { Authorization: `Bearer ${c.key}`, 'Content-Type': 'application/json' }
  const response = await fetch(`${c.url}/v1/chat/completions`, { method: 'POST', headers, body: JSON.stringify({ ...answer(c), stream: true }) })
  const decoder = new TextDecoder()
  for await (const piece of response.body) yield decoder.decode(piece, { stream: true })
}
const take = (data, got) => {
  if (data === '[DONE]') return true
  const chunk = JSON.parse(data)
  if (chunk.error) throw new Error(chunk.error.message)
  got.text += chunk.choices[0].delta.content
}
const split = (end, start) => async (c, got) => {
  let rest = ''
  for await (const piece of pieces(c)) {
    const blocks = (rest + piece).split(end)
    rest = blocks.pop()
    for (const block of blocks) {
      if (!block) continue
      if (!block.startsWith(start)) got.beats = true // the reader skips it
      else if (take(block.slice(start.length).trim(), got)) return
    }
  }
}
const eventSource = async (c, got) => {
  const parser = createParser({ onEvent: ({ data }) => take(data, got) })
  for await (const piece of pieces(c)) parser.feed(piece)
}

const provider = (create) => (c) => create({ name: 'gateway', baseURL: `${c.url}/v1`, apiKey: c.key })
const calls = {
  'openai, chat': chat(OpenAI),
  'openai, chat.stream': chatHelper(OpenAI),
  'openai, completions': completions(OpenAI),
  'openai, responses': responses(OpenAI),
  'openai, responses.stream': responsesHelper(OpenAI),
  'openai 4, chat': chat(OpenAIOld),
  'openai 4, chat.stream': chatHelper(OpenAIOld),
  'openai 4, completions': completions(OpenAIOld),
  'openai 4, responses': responses(OpenAIOld),
  'anthropic, messages': message(Anthropic),
  'anthropic, messages.stream': messageHelper(Anthropic),
  'anthropic 0.27, messages': message(AnthropicOld),
  'anthropic 0.27, messages.stream': messageHelper(AnthropicOld),
  'ai, openai-compatible': aiSDK(streamText, (c) => provider(createOpenAICompatible)(c)(c.model)),
  'ai, openai chat': aiSDK(streamText, (c) => provider(createOpenAI)(c).chat(c.model)),
  'ai, openai responses': aiSDK(streamText, (c) => provider(createOpenAI)(c).responses(c.model)),
  'ai, anthropic': aiSDK(streamText, (c) => provider(createAnthropic)(c)(c.model)),
  'ai 4, openai-compatible': aiSDK(streamTextOld, (c) => provider(createOpenAICompatibleOld)(c)(c.model)),
  'blocks that start with data:': split('\n\n', 'data:'),
  'lines that start with data:': split('\n', 'data:'),
  'eventsource-parser': eventSource,
}
console.error = console.warn = () => {} // the AI SDK also logs the errors that it throws

for (const c of JSON.parse(readFileSync(0, 'utf8'))) {
  const got = { ok: true, text: '' }
  try {
    await calls[c.call](c, got)
  } catch (error) {
    Object.assign(got, { ok: false, type: error.constructor.name, says: error.message })
  }
  console.log(JSON.stringify(got))
}
