// Its page lives on a WebSocket: a button is pressed twice.
import { browser, check } from '../lib.mjs'

await browser(async (page, url) => {
  await page.goto(url)
  await page.waitForSelector('text=It is 0.')
  await page.click('button:has-text("Add")')
  await page.waitForSelector('text=It is 1.')
  await page.click('button:has-text("Add")')
  await page.waitForSelector('text=It is 2.')
  check('a button over the socket', true)
})
