// Drives the documentation pages in a real browser, as a person does who enters a key and tries calls. Each step prints a
// line; the Go test beside this directory holds the answers of Ollama back until it has read that their beginning shows.
import { AxeBuilder } from '@axe-core/playwright'
import { chromium } from 'playwright-core'
import { createInterface } from 'node:readline'
import assert from 'node:assert/strict'

const { BASE_URL: base, KEY: key, SHOTS: shots, CHROMIUM: executablePath } = process.env
const patience = 20_000

// What axe finds in the libraries themselves. Everything else that is serious is ours to mend.
const theirs = {
  'nested-interactive': 'Swagger UI puts links and buttons of its own into the head of an operation, which is a button',
}

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]()
// say tells the test where we are; ask waits until it has done its part.
const say = word => console.log(`>> ${word}`)
async function ask(word) {
  say(word)
  assert.equal((await lines.next()).value, 'go', `no answer to ${word}`)
}

const browser = await chromium.launch({
  executablePath,
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
})

const complaints = []

async function open(path, { width = 1280, height = 900, colorScheme = 'light' } = {}) {
  const context = await browser.newContext({ viewport: { width, height }, colorScheme, reducedMotion: 'reduce' })
  const page = await context.newPage()
  page.setDefaultTimeout(patience)
  const where = `${path} at ${width} px, ${colorScheme}`
  // A failed policy check is an error of the console, and so is a file that is missing.
  page.on('console', m => { if (['error', 'warning'].includes(m.type())) complaints.push(`${where}: ${m.text()}`) })
  page.on('pageerror', e => complaints.push(`${where}: ${e.message}`))
  page.on('request', r => { if (!/^(blob|data):/.test(r.url()) && !r.url().startsWith(base)) complaints.push(`${where}: asks for ${r.url()}`) })
  await page.goto(base + path)
  await page.locator(path === '/docs' ? '.opblock' : '.api-content [id^="operation/"], .api-content [id^="tag/"]').first().waitFor()
  return page
}

// inspect looks at the page as it is; with thorough also through the eyes of axe, which takes its time.
async function inspect(page, name, thorough = false) {
  const over = await page.evaluate(() => {
    const width = document.documentElement.clientWidth
    if (document.documentElement.scrollWidth <= width) return []
    return [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > width).map(e => `${e.tagName}.${e.className}`)
  })
  assert.deepEqual(over.slice(0, 20), [], `${name} is wider than the window`)
  await page.screenshot({ path: `${shots}/${name}.png` })
  if (!thorough) return
  // The reference shows every operation in the same way: axe needs minutes for all of them, and finds as much in one.
  const axe = new AxeBuilder({ page })
  if (name.startsWith('redoc')) axe.include('.bar').include('.menu-content').include('[id="tag/Ollama"]').include('[id$="operation/chat"]').include('.foot')
  const { violations } = await axe.analyze()
  for (const v of violations.filter(v => ['serious', 'critical'].includes(v.impact) && !theirs[v.id])) {
    for (const n of v.nodes.slice(0, 3)) complaints.push(`${name}: axe ${v.id} (${v.impact}), ${v.nodes.length} in all: ${n.target.join(' ')}: ${n.failureSummary.replace(/\s+/g, ' ')}`)
  }
}

async function authorize(page) {
  await page.locator('.btn.authorize').first().click()
  const dialog = page.locator('.dialog-ux')
  await dialog.locator('input').first().fill(key)
  await dialog.locator('button[type=submit]').first().click()
  await inspect(page, `docs-authorize-${page.viewportSize().width}`, page.viewportSize().width > 1000)
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
  await ask(`first ${path}`) // one piece passes, and no more
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
await page.context().close()

const phone = await open('/docs', { width: 390, height: 844 })
await inspect(phone, 'docs-phone')
await authorize(phone)
await tryStream(phone, 'post', '/api/chat', chat, 'docs-phone-chat')
await phone.context().close()

const dark = await open('/docs', { colorScheme: 'dark' })
await inspect(dark, 'docs-dark')
await operation(dark, 'post', '/api/chat')
await inspect(dark, 'docs-dark-operation', true)
await dark.context().close()

for (const [name, options] of [['desktop', {}], ['phone', { width: 390, height: 844 }], ['dark', { colorScheme: 'dark' }]]) {
  const reference = await open('/redoc', options)
  await inspect(reference, `redoc-${name}`, true)
  const first = reference.locator('[id="operation/chat"], [id$="/operation/chat"]').first()
  await first.scrollIntoViewIfNeeded()
  await inspect(reference, `redoc-${name}-operation`)
  await reference.context().close()
}

await browser.close()
if (complaints.length) {
  console.error([...new Set(complaints)].join('\n'))
  process.exit(1)
}
say('done')
