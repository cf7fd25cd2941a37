// An upload in parts of 1 MB that is broken off, goes on after the app slept, and is read back.
import { randomBytes } from 'node:crypto'
import { check, sleepApp, url } from '../lib.mjs'
import * as tus from 'tus-js-client'

const data = randomBytes(5_000_000)
const options = { endpoint: `${url}/files`, chunkSize: 1_000_000, retryDelays: [500, 1000, 2000] }
const first = await new Promise((done, failed) => {
  const upload = new tus.Upload(data, {
    ...options,
    onError: failed,
    onSuccess: () => failed(new Error('it was not broken off')),
    onChunkComplete: (size, sent) => { if (sent >= 2_000_000) upload.abort().then(() => done(upload.url), failed) },
  })
  upload.start()
})
check('its address is the one that the client used', first.startsWith(`${url}/files/`))
await sleepApp()
await new Promise((done, failed) => {
  new tus.Upload(data, { ...options, uploadUrl: first, onError: failed, onSuccess: done }).start()
})
const back = Buffer.from(await (await fetch(first)).arrayBuffer())
check('the same bytes', back.equals(data))
