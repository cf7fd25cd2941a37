// A page that hydrates, and a form with a server action, also when the app fell asleep in between.
import { browser, check, sleepApp } from '../lib.mjs'

await browser(async (page, url) => {
  await page.goto(url)
  await page.waitForLoadState('networkidle')
  await page.click('#count')
  await page.waitForFunction(() => document.querySelector('#count').textContent === '1')
  check('it hydrates', true)
  await page.fill('input[name=word]', 'ünïcode')
  if (process.env.STATE === 'asleep') await sleepApp()
  await page.click('#send')
  await page.waitForSelector('#said')
  check('a server action', await page.textContent('#said') === 'ünïcode')
})
