// What the checks for Node.js share. The same variables as in lib.sh.
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { chromium } from 'playwright-core'

export const url = process.env.URL
// socket.io-client takes it as an option; everything else by NODE_EXTRA_CA_CERTS.
export const ca = process.env.CA ? readFileSync(process.env.CA) : undefined

export function check(what, holds) {
  if (!holds) throw new Error(`FAILED: ${what}`)
  console.log(`ok: ${what}`)
}

// Only where the app is to be asleep: once it is, the next request finds it so.
export async function sleepApp() {
  if (process.env.STATE !== 'asleep') return
  const { status } = spawnSync(process.env.SLEEP, { stdio: 'inherit' })
  if (status !== 0) throw new Error('FAILED: it does not fall asleep')
}

// The authority is of this run only and no browser's: its certificate is not asked for.
export async function browser(run) {
  const args = process.env.VERSION === '1.1' ? ['--no-sandbox', '--disable-http2'] : ['--no-sandbox']
  const chrome = await chromium.launch({ executablePath: process.env.CHROMIUM, args })
  try {
    const page = await (await chrome.newContext({ ignoreHTTPSErrors: true })).newPage()
    page.setDefaultTimeout(40_000)
    page.setDefaultNavigationTimeout(40_000)
    await run(page, url)
  } finally {
    await chrome.close()
  }
}
