// Every client here uses this file. Cases come on stdin as one JSON array of {call, url, key, model, patient}. One JSON line for each case
// goes to stdout: the text and the counts that arrived, or the error message that the client's user sees.
import { readFileSync } from 'node:fs'

export const prompt = 'the sea'
export const messages = [{ role: 'user', content: prompt }]

// run creates a new client for each case, as a user's program would, and does not change the client's defaults. Patient cases, which the
// client repeats with pauses, continue while the others run.
export async function run(client, calls) {
  const one = async (c) => {
    const got = { ok: true, text: '' }
    const from = performance.now()
    try {
      await calls[c.call](client(c), c.model, got)
    } catch (error) {
      Object.assign(got, { ok: false, type: error.constructor.name, says: error.message, status: error.status ?? error.status_code, id: error.requestID })
    }
    got.ms = Math.round(performance.now() - from)
    return got
  }
  const all = []
  for (const c of JSON.parse(readFileSync(0, 'utf8'))) {
    const result = one(c)
    all.push(result)
    if (!c.patient) await result
  }
  for (const got of await Promise.all(all)) console.log(JSON.stringify(got))
}
