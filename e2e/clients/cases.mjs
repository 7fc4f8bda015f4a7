// What every client here is driven by: cases come on stdin as one JSON array of {call, url, key, model, patient}, and one JSON
// line for each goes to stdout: the text and the counts that arrived, or the sentence that the client's user reads instead.
import { readFileSync } from 'node:fs'

export const prompt = 'the sea'
export const messages = [{ role: 'user', content: prompt }]

// run makes the case's client anew each time, as a user's program would, and leaves the client's own defaults alone. Patient
// cases, which the client repeats with pauses, go on while the others run.
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
