// A person logs in, adds a group, waits until the app sleeps, and sends the next form.
import { browser, check, sleepApp } from '../lib.mjs'

await browser(async (page, url) => {
  await page.goto(`${url}/admin/`)
  await page.fill('input[name=username]', 'admin')
  await page.fill('input[name=password]', 'correct horse')
  await page.click('input[type=submit]')
  await page.waitForSelector('text=Site administration')
  check('style sheets are there', await page.evaluate(() => document.styleSheets.length) > 0)
  await page.goto(`${url}/admin/auth/group/add/`)
  const name = `group-${Date.now()}`
  await page.fill('input[name=name]', name)
  if (process.env.STATE === 'asleep') await sleepApp()
  await page.click('input[name=_save]')
  await page.waitForSelector('text=was added successfully')
  check('added once', await page.locator(`a:text-is("${name}")`).count() >= 1)
  await page.click('button:has-text("Log out"), a:has-text("Log out")')
  await page.waitForSelector('text=Logged out')
})
