'use strict'

// Swagger UI shows an answer only when it is complete. This script reads a stream piece by piece, shows it above the answer as it
// arrives, and passes the whole to Swagger UI at the end.

const streams = new Map() // "POST /api/chat" -> what is arriving there
const watchers = new Set() // of React: called when something arrived

const changed = () => watchers.forEach(tell => tell())
const keyOf = (method, url) => `${method.toUpperCase()} ${new URL(url, document.baseURI).pathname}`
const isStream = type => /^(application\/x-ndjson|text\/event-stream)\b/.test(type ?? '')

// textOf returns the text that a record adds to the answer, in each dialect.
function textOf(record) {
  if (record.status && !record.done) return `${record.status}\n` // a download of a model
  const choice = record.choices?.[0]
  const piece = record.message?.content ?? record.response ?? choice?.delta?.content ?? choice?.text ?? record.delta?.text ?? record.delta
  return typeof piece === 'string' ? piece : ''
}

function take(stream, line) {
  const data = line.replace(/^data: ?/, '').trim()
  if (!data || /^(event|id|retry)?:/.test(data)) return
  stream.count++
  stream.first ??= performance.now() - stream.began
  stream.records = [...stream.records.slice(-499), data]
  try {
    const record = JSON.parse(data)
    stream.text += textOf(record)
    if (record.error) stream.failure = record.error.message ?? record.error
  } catch { /* [DONE] is not JSON */ }
}

async function follow(response, stream) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  let whole = '', rest = ''
  try {
    for (;;) {
      const { value, done } = await reader.read()
      if (done) break
      whole += value
      const lines = (rest + value).split('\n')
      rest = lines.pop()
      lines.forEach(line => take(stream, line))
      changed()
    }
    take(stream, rest)
    stream.end = 'complete'
  } catch (e) {
    stream.end = stream.stop.signal.aborted ? 'stopped' : 'broken off'
    if (!stream.stop.signal.aborted) stream.failure ??= String(e.message ?? e)
  }
  stream.took = performance.now() - stream.began
  changed()
  return whole
}

async function streamingFetch(url, request) {
  const key = keyOf(request.method ?? 'GET', url)
  const stream = { began: performance.now(), text: '', records: [], count: 0, stop: new AbortController() }
  streams.delete(key)
  changed()
  const response = await fetch(url, { ...request, signal: stream.stop.signal })
  if (!response.ok || !isStream(response.headers.get('content-type'))) return response
  streams.set(key, stream)
  changed()
  const whole = await follow(response, stream)
  return new Response(whole, { status: response.status, statusText: response.statusText, headers: response.headers })
}

const seconds = ms => `${(ms / 1000).toFixed(2)} s`

function statusOf(s) {
  const parts = [s.end ? `Stream ${s.end}` : 'Arriving …', `${s.count} ${s.count === 1 ? 'record' : 'records'}`]
  if (s.first !== undefined) parts.push(`first after ${seconds(s.first)}`)
  if (s.took !== undefined) parts.push(`${seconds(s.took)} in all`)
  return parts.join(' · ')
}

function livePlugin({ React }) {
  const h = React.createElement
  function Live({ id }) {
    const [, again] = React.useReducer(n => n + 1, 0)
    const end = React.useRef(null)
    React.useEffect(() => { watchers.add(again); return () => watchers.delete(again) }, [])
    const s = streams.get(id)
    React.useEffect(() => { if (end.current) end.current.scrollTop = end.current.scrollHeight })
    if (!s) return null
    return h('section', { className: 'live', 'aria-label': 'The answer as it arrives', 'data-state': s.end ?? 'arriving' },
      h('div', { className: 'live-head' },
        h('span', { className: 'live-status', role: 'status' }, statusOf(s)),
        !s.end && h('button', { type: 'button', className: 'btn live-stop', onClick: () => s.stop.abort() }, 'Stop')),
      s.failure && h('p', { className: 'live-failure', role: 'alert' }, s.failure),
      s.text && h('div', { className: 'live-text', tabIndex: 0, role: 'log', 'aria-label': 'Text so far' }, s.text.trimStart()),
      h('pre', { className: 'live-records', tabIndex: 0, ref: end, role: 'region', 'aria-label': 'Records as sent' }, s.records.join('\n')))
  }
  return {
    wrapComponents: {
      responses: Original => props => h(React.Fragment, null,
        h(Live, { id: keyOf(props.method, props.path.replace(/^\//, '')) }), h(Original, props)),
    },
  }
}

// Elements that Swagger UI leaves without a name, or that a keyboard cannot reach.
const names = {
  '.close-modal': 'Close', '.auth-btn-wrapper .authorize': 'Authorize', '.auth-btn-wrapper button[aria-label="Remove authorization"]': 'Logout',
  '.body-param__text': 'Request body', '.examples-select-element': 'Example', 'select.content-type': 'Media type', '.operation-filter-input': 'Filter by tag or path',
}
new MutationObserver(() => {
  for (const [selector, name] of Object.entries(names)) document.querySelectorAll(selector).forEach(e => e.setAttribute('aria-label', name))
  document.querySelectorAll('pre.microlight, .microlight code, pre.curl, .opblock-body pre').forEach(e => { e.tabIndex = 0 })
}).observe(document.getElementById('page'), { childList: true, subtree: true })

const dark = matchMedia('(prefers-color-scheme: dark)')
const paint = () => document.documentElement.classList.toggle('dark-mode', dark.matches)
dark.addEventListener('change', paint)
paint()

// This page is for trying requests: it shows only the first paragraph of the introduction. The reference shows all of it.
function introduction(text) {
  return text.split('\n\n')[0] + '\n\nEnter a key under **Authorize**, open a call, **Execute** it. [The reference](redoc) explains keys, limits, streams and errors.'
}

async function show() {
  const spec = await (await fetch('openapi.json')).json()
  spec.info.description = introduction(spec.info.description)
  SwaggerUIBundle({
    spec,
    dom_id: '#page',
    deepLinking: true,
    docExpansion: 'list',
    defaultModelsExpandDepth: -1,
    displayRequestDuration: true,
    filter: true,
    tryItOutEnabled: true,
    validatorUrl: null,
    presets: [SwaggerUIBundle.presets.apis],
    plugins: [livePlugin],
    requestInterceptor: request => {
      request.userFetch = streamingFetch
      return request
    },
  })
}

show().catch(e => { document.querySelector('.wait').textContent = `The documentation could not be loaded: ${e.message}. Reload the page.` })
