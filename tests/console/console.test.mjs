// The console in a headless Chromium, over a real edge with the sample app. What is sent has to be
// found as a trace, with the steps and truths of the seed's own page.

import assert from "node:assert/strict";
import http from "node:http";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { chromium } from "playwright-core";
import { HOST, startEdge } from "./edge.mjs";

const PATIENCE = 15_000;
const LIVE = { connection: "Upgrade", upgrade: "websocket", "sec-websocket-version": "13", "sec-websocket-key": "dmFuZ28tZWRnZS1rZXkhIQ==" };

let browser;
before(async () => {
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox"] });
});
after(() => browser?.close());

/** A page that fails the test if anything goes wrong in it: the policy refuses, a script throws. */
async function open(edge, hash, options = {}) {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE);
  const wrong = [];
  page.on("pageerror", (e) => wrong.push(String(e)));
  page.on("console", (m) => m.type() === "error" && !/status of 40[13]/.test(m.text()) && wrong.push(m.text()));
  await page.goto(`${edge.admin}/#/${hash}`);
  return { page, wrong, close: () => context.close() };
}

/** The steps that are drawn: actor, action, truth, its value. */
const drawn = (page) =>
  page.locator(".step").evaluateAll((steps) =>
    steps.map((s) => [
      s.querySelector(".actor").textContent,
      s.querySelector(".action").textContent,
      s.querySelector(".truth .name").textContent.replace("Truth: ", ""),
      s.querySelector(".truth code").textContent,
    ]),
  );

describe("requests and their traces", () => {
  let edge;
  before(async () => (edge = await startEdge()));
  after(() => edge?.stop());

  /** Sends, finds the newest row with that path in the list, opens it. */
  async function follow(method, path, headers, body, host) {
    const { page, wrong, close } = await open(edge, "traces");
    await page.locator("#link[data-state=live]").waitFor();
    const answer = await edge.send(method, path, headers, body, host);
    const id = answer.headers["x-request-id"];
    const link = page.locator(`a[href="#/traces/${id}"]`);
    await link.click();
    await page.locator(".steps").waitFor();
    const found = { answer, title: await page.locator("h1").innerText(), steps: await drawn(page), text: await page.locator("main").innerText() };
    assert.deepEqual(wrong, []);
    await close();
    return found;
  }
  /** Each `[actor, action, truth]` is among the steps, in that order. */
  function inOrder(steps, wanted) {
    let from = 0;
    for (const [actor, action, truth] of wanted) {
      const at = steps.findIndex((s, i) => i >= from && s[0] === actor && s[1] === action && s[2] === truth);
      assert.ok(at >= 0, `${actor}: ${action} (${truth}) after step ${from} in ${JSON.stringify(steps, null, 1)}`);
      from = at + 1;
    }
  }

  test("a page while it sleeps", async () => {
    const { answer, title, steps, text } = await follow("GET", "/dashboard");
    assert.equal(answer.status, 200);
    assert.match(title, /^GET Page While Sleeping/);
    inOrder(steps, [
      ["Edge", "Load route owner and current epoch.", "RouteOwner"],
      ["Edge", "Classify request as safe/idempotent.", "Route policy"],
      ["Edge", "Create or attach to wake operation.", "Operation table"],
      ["Runner", "Start allocation from immutable artifact.", "Artifact digest"],
      ["Edge", "Hold within wake budget, then route when ready.", "Wake operation state"],
      ["Allocation", "Run Vango route/render and return HTML or patches.", "Vango session loop"],
    ]);
    const value = (truth) => steps.find((s) => s[2] === truth)[3];
    assert.match(value("RouteOwner"), /^studylab\/production epoch 1$/);
    assert.match(value("Operation table"), /^op-/);
    assert.match(value("Artifact digest"), /^sha256:/);
    assert.match(text, /held while the app started/);
    assert.match(text, /Wake and hold within budget/);
    assert.match(text, /medium risk/);
  });

  test("a page while it is hot", async () => {
    const { title, steps, text } = await follow("GET", "/dashboard");
    assert.match(title, /^GET Page While Hot/);
    inOrder(steps, [
      ["Edge", "Load route owner and current epoch.", "RouteOwner"],
      ["Edge", "Select ready allocation with session affinity if present.", "Regional runtime registry"],
      ["Allocation", "Run Vango route/render and return HTML or patches.", "Vango session loop"],
      ["Control plane", "No mutation required; logs are observability only.", "Operation table unchanged"],
    ]);
    assert.match(steps[1][3], /^al-/);
    assert.match(text, /Serve directly/);
  });

  test("an action with a key while it is cold", async () => {
    edge.cli("sleep", "studylab");
    const { answer, title, steps, text } = await follow("POST", "/actions/save", { "content-type": "application/x-www-form-urlencoded", "idempotency-key": "console-1" }, "text=hello");
    assert.equal(answer.status, 200);
    assert.match(title, /^POST Action While Cold/);
    inOrder(steps, [
      ["Edge", "Classify request as unsafe to blindly replay.", "Route class policy"],
      ["Edge", "Check idempotency key and route contract.", "Idempotency store binding"],
      ["Control plane", "Wake if policy allows but do not buffer arbitrary body forever.", "Wake operation"],
      ["App", "Attach retry to original mutation only with idempotency.", "App/product DB"],
    ]);
    assert.match(text, /high risk/);
    assert.match(text, /Do not silently replay/);
  });

  test("a webhook", async () => {
    const { title, steps, text } = await follow("POST", "/webhooks/stripe", { "content-type": "application/json" }, "{}");
    assert.match(title, /^Webhook/);
    inOrder(steps, [["Edge", "Verify route class and signature policy.", "Webhook route contract"]]);
    assert.match(text, /Never turn a provider webhook into an invisible replay buffer/);
  });

  test("a live socket", async () => {
    const { answer, title, steps } = await follow("GET", "/vango/live", LIVE);
    assert.equal(answer.status, 101);
    assert.match(title, /^WebSocket/);
    inOrder(steps, [
      ["Edge", "Find prior session affinity if resumable cookie/session id exists.", "Session routing record"],
      ["Runtime service", "Check durable session store if cross-allocation resume is promised.", "Session store"],
      ["Allocation", "Hydrate declared state or start fresh session.", "Vango state schema"],
      ["Edge", "Keep live socket pinned after accept.", "Allocation affinity"],
    ]);
  });

  test("an asset wakes nobody", async () => {
    edge.cli("sleep", "studylab");
    const { answer, title, steps, text } = await follow("GET", "/assets/app.css");
    assert.equal(answer.status, 200);
    assert.match(title, /^Immutable Asset Request/);
    inOrder(steps, [
      ["Edge", "Recognize immutable asset path/digest.", "Artifact asset manifest"],
      ["Object store/CDN", "Serve bytes without app compute.", "Artifact store"],
      ["Allocation", "No app allocation needed.", "No session state"],
    ]);
    assert.match(text, /Do not wake the app/);
    assert.match(edge.cli("routes"), /asleep/);
  });

  test("a request that nobody owns", async () => {
    const { answer, title, steps } = await follow("GET", "/", {}, undefined, "nobody.localhost");
    assert.equal(answer.status, 404);
    assert.match(title, /Nobody Owns/);
    assert.equal(steps[0][3], "none");
  });

  test("explaining sends nothing and shows the same steps", async () => {
    const { page, wrong, close } = await open(edge, "explain");
    await page.getByRole("button", { name: "Action with a key" }).click();
    await page.locator(".steps").waitFor();
    inOrder(await drawn(page), [["Edge", "Check idempotency key and route contract.", "Idempotency store binding"]]);
    await page.getByLabel("URL").fill("not a url");
    await page.getByRole("button", { name: "Explain", exact: true }).click();
    await page.getByRole("alert").waitFor();
    assert.deepEqual(wrong.filter((w) => !/status of 400/.test(w)), []);
    await close();
  });

  test("sleep asks first, says what will happen, and the page follows", async () => {
    await edge.send("GET", "/dashboard");
    const { page, wrong, close } = await open(edge, "apps");
    const card = page.locator('[data-environment="studylab/production"]');
    await card.getByText("ready").waitFor();
    const dialog = page.getByRole("dialog");
    await card.getByRole("button", { name: "Sleep…" }).click();
    assert.match(await dialog.innerText(), /1 allocation will take no new requests/);
    await dialog.getByRole("button", { name: "Cancel" }).click();
    assert.equal((await edge.send("GET", "/dashboard")).status, 200);
    await card.getByRole("button", { name: "Sleep…" }).click();
    await dialog.getByRole("button", { name: "Put to sleep" }).click();
    await card.locator("header .badge", { hasText: "asleep" }).waitFor();
    await card.getByRole("button", { name: "Wake…" }).click();
    await dialog.getByRole("button", { name: "Wake" }).click();
    await card.locator("header .badge", { hasText: "hot" }).waitFor();
    assert.deepEqual(wrong, []);
    await close();
  });

  test("operations show each wake's phases", async () => {
    const { page, wrong, close } = await open(edge, "operations");
    const text = await page.locator(".wake").first().innerText();
    assert.match(text, /reserve .*artifact .*start .*ready /s);
    await page.getByText("owns its hosts").waitFor();
    assert.deepEqual(wrong, []);
    await close();
  });

  test("filters, pause and the keyboard", async () => {
    const { page, wrong, close } = await open(edge, "traces");
    await page.locator("#link[data-state=live]").waitFor();
    await page.getByLabel("Class").selectOption("webhook");
    await page.locator("tbody tr").first().waitFor();
    const classes = await page.locator('tbody td[data-label="Class"]').allInnerTexts();
    assert.ok(classes.length > 0 && classes.every((c) => c === "webhook"), classes.join());
    await page.getByLabel("Class").selectOption("");
    await page.getByLabel("Host or path has").fill("dashboard");
    await page.waitForFunction(() => [...document.querySelectorAll("tbody .what")].every((e) => e.textContent.includes("dashboard")));
    await page.getByRole("button", { name: "Pause" }).click();
    const rows = await page.locator("tbody tr").count();
    await edge.send("GET", "/dashboard");
    await page.getByText(/paused; 1 request since/).waitFor();
    assert.equal(await page.locator("tbody tr").count(), rows);
    await page.locator("tbody a").first().focus();
    await page.keyboard.press("Enter");
    await page.locator(".steps").waitFor();
    assert.deepEqual(wrong, []);
    await close();
  });

  test("what a request carries is never markup", async () => {
    const { page, wrong, close } = await open(edge, "traces");
    await page.locator("#link[data-state=live]").waitFor();
    const answer = await edge.send("GET", "/dashboard/%3Cimg%20src=x%20onerror=alert(1)%3E", {}, undefined, HOST);
    await page.locator(`a[href="#/traces/${answer.headers["x-request-id"]}"]`).click();
    await page.locator(".steps").waitFor();
    assert.equal(await page.locator("main img").count(), 0);
    assert.deepEqual(wrong, []);
    await close();
  });

  test("thousands of requests do not freeze the page", async () => {
    const { page, wrong, close } = await open(edge, "traces");
    await page.locator("#link[data-state=live]").waitFor();
    // The longest time in which the page did nothing, by its own frames.
    await page.evaluate(() => {
      window.longest = 0;
      let last = performance.now();
      const look = (now) => {
        window.longest = Math.max(window.longest, now - last);
        last = now;
        requestAnimationFrame(look);
      };
      requestAnimationFrame(look);
    });
    const begun = Date.now();
    const sent = await flood(edge, 6000);
    const rate = Math.round((sent / (Date.now() - begun)) * 1000);
    await page.getByText(/left out: more than can be read/).waitFor();
    assert.ok((await page.locator("tbody tr").count()) <= 200);
    const longest = await page.evaluate(() => window.longest);
    console.log(`# ${sent} requests at ${rate} a second; the page's longest pause was ${Math.round(longest)} ms`);
    // An idle machine shows a tenth of it; a busy one makes every page wait.
    assert.ok(longest < 2500, `the page stood still for ${longest} ms`);
    assert.deepEqual(wrong, []);
    await close();
  });

  test("text can be read in light and in dark (WCAG 2.2, 1.4.3)", async () => {
    for (const colorScheme of ["light", "dark"]) {
      const { page, close } = await open(edge, "traces", { colorScheme });
      await page.locator("h1").waitFor();
      const pairs = [["ink", "ground"], ["ink", "card"], ["quiet", "ground"], ["quiet", "card"], ["link", "ground"], ["link", "card"], ["accent-ink", "accent"], ["ink", "grey-bg"],
        ...["green", "amber", "red", "grey"].map((c) => [c, `${c}-bg`]),
        ...["edge", "runner", "allocation", "control-plane", "app", "object-store", "runtime-service", "user"].map((c) => [c, "card"])];
      const colours = await page.evaluate(() => {
        const style = getComputedStyle(document.documentElement);
        return Object.fromEntries([...style].filter((n) => n.startsWith("--")).map((n) => [n.slice(2), style.getPropertyValue(n).trim()]));
      });
      const all = Object.keys(colours).length > 0 ? colours : await page.evaluate((names) => Object.fromEntries(names.map((n) => [n, getComputedStyle(document.documentElement).getPropertyValue(`--${n}`).trim()])), [...new Set(pairs.flat())]);
      for (const [text, ground] of pairs) {
        const ratio = contrast(all[text], all[ground]);
        assert.ok(ratio >= 4.5, `${colorScheme}: ${text} on ${ground} is ${ratio.toFixed(2)}`);
      }
      await close();
    }
  });
});

describe("tokens", () => {
  let edge;
  before(async () => {
    const tokens = 'tokens = [{ role = "operate", env = "CONSOLE_OPERATE" }, { role = "read", env = "CONSOLE_READ" }]';
    process.env.CONSOLE_OPERATE = "operate-operate-operate";
    process.env.CONSOLE_READ = "read-read-read-read-read";
    edge = await startEdge({ admin: tokens, cli: { VANGO_EDGE_TOKEN: process.env.CONSOLE_OPERATE } });
  });
  after(() => edge?.stop());

  test("the console asks for one, and a reader changes nothing", async () => {
    const { page, close } = await open(edge, "apps");
    await page.getByRole("textbox", { name: "Token" }).fill("not-the-right-token-at-all");
    await page.getByRole("button", { name: "Use it" }).click();
    await page.getByText("It does not know the one it was given").waitFor();
    await page.getByRole("textbox", { name: "Token" }).fill(process.env.CONSOLE_READ);
    await page.getByRole("button", { name: "Use it" }).click();
    const card = page.locator('[data-environment="studylab/production"]');
    await card.getByRole("button", { name: "Wake…" }).click();
    await page.getByRole("dialog").getByRole("button", { name: "Wake" }).click();
    await page.getByText("a token of the role read may look").waitFor();
    await card.locator("header .badge", { hasText: "asleep" }).waitFor();
    await close();
  });

  test("a token file is as good, and neither role is in a log or an error", async () => {
    const file = join(edge.dir, "token");
    writeFileSync(file, "operate-operate-operate\n");
    assert.match(edge.cli("--token-file", file, "routes"), /studylab\.localhost/);
    writeFileSync(file, "wrong-wrong-wrong-wrong\n");
    assert.throws(() => edge.cli("--token-file", file, "routes"), (e) => /does not know that token/.test(e.stderr) && !/wrong-wrong/.test(e.stderr));
    assert.doesNotMatch(edge.log(), /operate-operate|read-read/);
  });

  test("foreign names and origins change nothing, whatever they carry", async () => {
    const ask = (headers) =>
      new Promise((resolve, reject) => {
        const url = new URL(edge.admin);
        const request = http.request({ host: url.hostname, port: url.port, method: "POST", path: "/v1/environments/studylab/production/wake", headers: { authorization: "Bearer operate-operate-operate", host: url.host, ...headers } }, (r) => { r.resume(); r.on("end", () => resolve(r.statusCode)); });
        request.on("error", reject);
        request.end();
      });
    assert.equal(await ask({ host: "evil.example" }), 403);
    assert.equal(await ask({ origin: "http://evil.example" }), 403);
    assert.equal(await ask({ origin: "null" }), 403);
    assert.equal(await ask({ authorization: "" }), 401);
    assert.match(edge.cli("routes"), /asleep/);
  });
});

/** Sends `n` requests over a few connections. */
async function flood(edge, n) {
  const [host, port] = edge.listen.split(":");
  const agent = new http.Agent({ keepAlive: true, maxSockets: 16 });
  let left = n;
  let sent = 0;
  const one = () =>
    new Promise((resolve, reject) => {
      http.get({ host, port, path: "/readyz", agent, headers: { host: HOST } }, (r) => { r.resume(); r.on("end", resolve); }).on("error", reject);
    });
  await Promise.all(Array.from({ length: 16 }, async () => {
    while (left-- > 0) {
      await one();
      sent += 1;
    }
  }));
  agent.destroy();
  return sent;
}

/** WCAG 2.2's contrast ratio of two `#rrggbb`. */
function contrast(a, b) {
  const light = (hex) => {
    const [r, g, b] = [1, 3, 5].map((i) => Number.parseInt(hex.slice(i, i + 2), 16) / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
  return (x + 0.05) / (y + 0.05);
}
