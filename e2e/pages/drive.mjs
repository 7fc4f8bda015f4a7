// Uses the documentation pages in a real browser, like a person who enters a key and tries calls. Each step prints a line. The Go test next
// to this directory holds Ollama's answers back until it has read that the page shows their beginning.
import { AxeBuilder } from '@axe-core/playwright'
import { chromium } from 'playwright-core'
import { createInterface } from 'node:readline'
import assert from 'node:assert/strict'

const { BASE_URL: base, KEY: key, SHOTS: shots, CHROMIUM: executablePath } = process.env
const patience = 60_000

// axe finds these faults in the libraries themselves. We must fix every other serious one.
const theirs = [
  { rule: 'nested-interactive', at: /opblock-summary-control/, why: 'Swagger UI makes the head of an operation a button, and puts a link into it' },
  { rule: 'label-content-name-mismatch', at: /^li\[(data-item-id|aria-label)=/, why: 'ReDoc names an entry of its menu without the method and the entries below it' },
]

const parts = [
  '.bar', '.foot', '.information-container', '.scheme-container', '.filter', '.dialog-ux', '#operations-Ollama-chat', '#operations-Ollama-embed',
  '.menu-content', '[id="tag/Ollama"]', '[id="operation/chat"]',
]

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]()
// say reports a step to the test. ask also waits until the test has done its part.
const say = word => console.log(`>> ${word}`)
const began = performance.now()
async function ask(word) {
  say(word)
  assert.equal((await lines.next()).value, 'go', `no answer to ${word}`)
}

const browser = await chromium.launch({
  executablePath,
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
})

const complaints = []

const desktop = { width: 1280, height: 900 }
const phone = { width: 390, height: 844 }

async function open(path, colorScheme = 'light') {
  const context = await browser.newContext({ viewport: desktop, colorScheme, reducedMotion: 'reduce' })
  const page = await context.newPage()
  page.setDefaultTimeout(patience)
  const where = `${path}, ${colorScheme}`
  // The console reports a violated content policy and a missing file as errors.
  page.on('console', m => { if (['error', 'warning'].includes(m.type())) complaints.push(`${where}: ${m.text()}`) })
  page.on('pageerror', e => complaints.push(`${where}: ${e.message}`))
  page.on('request', r => { if (!/^(blob|data):/.test(r.url()) && !r.url().startsWith(base)) complaints.push(`${where}: asks for ${r.url()}`) })
  await page.goto(base + path)
  await page.locator(path === '/docs' ? '.opblock' : '.api-content [id^="operation/"], .api-content [id^="tag/"]').first().waitFor()
  return page
}

// inspect checks the current page. With thorough, it also runs axe, which is slow.
async function inspect(page, name, thorough = false) {
  const over = await page.evaluate(() => {
    const width = document.documentElement.clientWidth
    if (document.documentElement.scrollWidth <= width) return []
    return [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > width).map(e => `${e.tagName}.${e.className}`)
  })
  assert.deepEqual(over.slice(0, 20), [], `${name} is wider than the window`)
  await page.screenshot({ path: `${shots}/${name}.png`, mask: [page.locator('.curl-command')], maskColor: '#333' }) // it contains the key
  console.log(`${((performance.now() - began) / 1000).toFixed(1)} s ${name}`)
  if (!thorough) return
  // Operations look alike. axe needs minutes for all of them and finds as much in one.
  const axe = new AxeBuilder({ page })
  for (const part of parts) if (await page.locator(part).count()) axe.include(part)
  const { violations } = await axe.analyze()
  for (const v of violations.filter(v => ['serious', 'critical'].includes(v.impact))) {
    const ours = v.nodes.filter(n => !theirs.some(t => t.rule === v.id && t.at.test(n.target.join(' '))))
    for (const n of ours.slice(0, 3)) complaints.push(`${name}: axe ${v.id} (${v.impact}), ${ours.length} in all: ${n.target.join(' ')}: ${n.failureSummary.replace(/\s+/g, ' ')}`)
  }
}

async function authorize(page) {
  await page.locator('.btn.authorize').first().click()
  const dialog = page.locator('.dialog-ux')
  await dialog.locator('input').first().fill(key)
  await dialog.locator('button[type=submit]').first().click()
  await inspect(page, 'docs-authorize', true)
  await dialog.locator('.btn-done').first().click()
}

// operation opens one by its path and method, and returns its block.
async function operation(page, method, path) {
  const block = page.locator(`.opblock-${method}`).filter({ has: page.locator(`[data-path="${path}"]`) })
  await block.locator('.opblock-summary-control').click()
  await block.locator('.btn.execute').waitFor()
  return block
}

async function tryStream(page, method, path, body, name) {
  const block = await operation(page, method, path)
  await block.locator('.body-param__text').fill(JSON.stringify(body))
  await block.locator('.btn.execute').click()
  await ask(`first ${path}`) // the test lets only one piece pass
  const live = block.locator('.live')
  await live.locator('.live-text').filter({ hasText: /\S/ }).waitFor()
  assert.equal(await live.getAttribute('data-state'), 'arriving', `${path}: the stream is over already`)
  await live.scrollIntoViewIfNeeded()
  await inspect(page, `${name}-arriving`)
  const early = await live.locator('.live-text').innerText()
  await ask(`rest ${path}`)
  await block.locator('.live[data-state=complete]').waitFor()
  const whole = await live.locator('.live-text').innerText()
  assert.ok(whole.startsWith(early) && whole.length > early.length, `${path}: ${early} became ${whole}`)
  await block.locator('.live-response, .responses-table .response-col_status').first().waitFor()
  await live.scrollIntoViewIfNeeded()
  await inspect(page, `${name}-complete`, path === '/api/chat')
  say(`text ${path} ${JSON.stringify(whole)}`)
  await block.locator('.opblock-summary-control').click()
}

async function tryStop(page) {
  const block = await operation(page, 'post', '/api/generate')
  await block.locator('.body-param__text').fill('{"model":"tiny","prompt":"the sea"}')
  await block.locator('.btn.execute').click()
  await ask('first /api/generate')
  await block.locator('.live-text').filter({ hasText: /\S/ }).waitFor()
  await block.locator('.live-stop').click()
  await block.locator('.live[data-state=stopped]').waitFor()
  await ask('stopped /api/generate')
}

const chat = { model: 'tiny', messages: [{ role: 'user', content: 'the sea' }] }

const page = await open('/docs')
assert.equal(await page.evaluate(() => document.documentElement.lang), 'en')
await inspect(page, 'docs-desktop')
await authorize(page)
const models = await operation(page, 'get', '/api/models')
await models.locator('.btn.execute').click()
await models.locator('.live-responses-table .response-col_status').filter({ hasText: '200' }).waitFor()
assert.match(await models.locator('.live-responses-table').innerText(), /tiny:latest/)
await models.locator('.live-responses-table').scrollIntoViewIfNeeded()
await inspect(page, 'docs-models')
await models.locator('.opblock-summary-control').click()
await tryStream(page, 'post', '/api/chat', chat, 'docs-chat')
await tryStream(page, 'post', '/v1/chat/completions', { ...chat, stream: true }, 'docs-openai')
await tryStop(page)

await page.setViewportSize(phone)
await page.evaluate(() => scrollTo(0, 0))
await inspect(page, 'docs-phone')
await page.locator('.btn.authorize').first().click()
await inspect(page, 'docs-phone-authorize')
await page.locator('.btn-done').first().click()
await tryStream(page, 'post', '/api/chat', chat, 'docs-phone-chat')

await page.setViewportSize(desktop)
await page.emulateMedia({ colorScheme: 'dark' })
await operation(page, 'post', '/api/chat')
await inspect(page, 'docs-dark-operation', true)
await page.evaluate(() => scrollTo(0, 0))
await inspect(page, 'docs-dark')
await page.context().close()

for (const colorScheme of ['light', 'dark']) {
  const reference = await open('/redoc', colorScheme)
  for (const [name, size] of Object.entries({ desktop, phone })) {
    await reference.setViewportSize(size)
    await reference.evaluate(() => scrollTo(0, 0))
    await inspect(reference, `redoc-${colorScheme}-${name}`)
    await reference.locator('[id="operation/chat"]').evaluate(e => e.scrollIntoView())
    await inspect(reference, `redoc-${colorScheme}-${name}-operation`, size === desktop)
  }
  await reference.context().close()
}

await browser.close()
if (complaints.length) {
  console.error([...new Set(complaints)].join('\n'))
  process.exit(1)
}
say('done')
process.stdin.destroy() // an open stdin would keep node running
