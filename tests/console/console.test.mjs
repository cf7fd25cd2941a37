// The console in a headless Chromium, over a real edge with the sample app. What is sent has to be
// found as a trace, with the steps, the risk and the decision of the seed's own page, word for word.

import assert from "node:assert/strict";
import http from "node:http";
import { appendFileSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { chromium } from "playwright-core";
import { HOST, PREVIEW, signed, startEdge } from "./edge.mjs";

const PATIENCE = 15_000;
const LIVE = { connection: "Upgrade", upgrade: "websocket", "sec-websocket-version": "13", "sec-websocket-key": "dmFuZ28tZWRnZS1rZXkhIQ==" };

/** One of the seven traces, as the seed's page has it: its risk, its decision, and `[actor, action, truth]` of each step. */
function seed(title) {
  const lines = readFileSync(join(process.env.PROJECT, "tests/traces/seed.txt"), "utf8").split("\n").map((l) => l.trim()).filter(Boolean);
  const at = lines.indexOf(title);
  assert.ok(at >= 0, `the seed has ${title}`);
  const end = lines.indexOf("Decision", at);
  const steps = [];
  for (let i = at + 3; i < end; i += 3) steps.push([lines[i], lines[i + 1], lines[i + 2].replace(/^Truth: /, "")]);
  return { risk: lines[at + 2], decision: lines[end + 2], steps };
}

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
  /** The seed's steps of `title` are drawn, in its order, with its risk and its decision. */
  function asInSeed(title, { steps, text }) {
    const wanted = seed(title);
    inOrder(steps, wanted.steps);
    assert.ok(text.includes(wanted.decision) && text.includes(wanted.risk), `${wanted.risk}: ${wanted.decision}\n${text}`);
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

  const value = (steps, truth) => steps.find((s) => s[2] === truth)?.[3];

  test("a page while it sleeps", async () => {
    const found = await follow("GET", "/dashboard");
    assert.equal(found.answer.status, 200);
    assert.match(found.title, /^GET Page While Sleeping/);
    asInSeed("GET Page While Sleeping", found);
    inOrder(found.steps, [
      ["Edge", "Load route owner and current epoch.", "RouteOwner"],
      ["Allocation", "Run Vango route/render and return HTML or patches.", "Vango session loop"],
    ]);
    assert.match(value(found.steps, "RouteOwner"), /^studylab\/production epoch 1$/);
    assert.match(value(found.steps, "Operation table"), /^op-/);
    assert.match(value(found.steps, "Artifact digest"), /^sha256:/);
    assert.match(found.text, /held while the app started/);
  });

  test("a page while it is hot", async () => {
    const found = await follow("GET", "/dashboard");
    assert.match(found.title, /^GET Page While Hot/);
    asInSeed("GET Page While Hot", found);
    assert.match(value(found.steps, "Regional runtime registry"), /^al-/);
  });

  test("an action with a key while it is cold", async () => {
    edge.cli("sleep", "studylab");
    const found = await follow("POST", "/actions/save", { "content-type": "application/x-www-form-urlencoded", "idempotency-key": "console-1" }, "text=hello");
    assert.equal(found.answer.status, 200);
    assert.match(found.title, /^POST Action While Cold/);
    asInSeed("POST Action While Cold", found);
  });

  test("a webhook that is not believed wakes no app", async () => {
    edge.cli("sleep", "studylab");
    const body = '{"id":"evt_console","object":"event"}';
    const found = await follow("POST", "/webhooks/stripe", signed(body), body.replace("evt", "EVT"));
    assert.equal(found.answer.status, 403);
    assert.match(found.title, /^Webhook Answered by the Edge/);
    const wanted = seed("Payment Webhook While Cold");
    inOrder(found.steps, [wanted.steps[0], ["Edge", "Answer for the app.", "Route policy"]]);
    assert.equal(value(found.steps, "Webhook route contract"), "wrong");
    assert.ok(found.text.includes(wanted.decision) && found.text.includes(wanted.risk));
    assert.match(edge.cli("routes"), /asleep/);
    // The evidence of what was blocked is in the audit, with a way back to the trace.
    const { page, wrong, close } = await open(edge, "operations");
    const row = page.getByRole("table", { name: "Evidence of unsafe requests" }).locator("tbody tr", { hasText: "webhook-signature-invalid" }).first();
    await row.getByText("not forwarded", { exact: true }).waitFor();
    assert.equal(await row.getByRole("link").getAttribute("href"), `#/traces/${found.answer.headers["x-request-id"]}`);
    assert.deepEqual(wrong, []);
    await close();
  });

  test("a webhook while it is cold is verified, held and given to the app once", async () => {
    const body = '{"id":"evt_console","object":"event"}';
    const found = await follow("POST", "/webhooks/stripe", signed(body), body);
    assert.equal(found.answer.status, 200);
    assert.deepEqual(JSON.parse(found.answer.body), { received: true, first: true });
    assert.match(found.title, /^Webhook While Cold/);
    asInSeed("Payment Webhook While Cold", found);
    assert.equal(value(found.steps, "Webhook route contract"), "verified");
    assert.match(value(found.steps, "Operation/audit"), /^op-/);
    assert.equal(value(found.steps, "Product DB plus provider event id"), "status 200");

    const again = await follow("POST", "/webhooks/stripe", signed(body), body);
    assert.equal(again.answer.status, 200);
    assert.match(again.title, /^Webhook Answered by the Edge/);
    assert.equal(value(again.steps, "Idempotency store"), "accepted before");
    assert.match(again.text, /the app accepted this event before/);
  });

  test("a live socket", async () => {
    const found = await follow("GET", "/vango/live", LIVE);
    assert.equal(found.answer.status, 101);
    assert.match(found.title, /^WebSocket Reconnect/);
    asInSeed("WebSocket Reconnect", found);
  });

  test("an asset wakes no app", async () => {
    edge.cli("sleep", "studylab");
    const found = await follow("GET", "/assets/app.css");
    assert.equal(found.answer.status, 200);
    assert.match(found.title, /^Immutable Asset Request/);
    asInSeed("Immutable Asset Request", found);
    assert.match(edge.cli("routes"), /asleep/);
  });

  test("a preview is served by its own artifact, and the page says so", async () => {
    edge.preview("pr-7");
    const found = await follow("GET", "/dashboard", {}, undefined, PREVIEW);
    assert.equal(found.answer.status, 200);
    assert.match(found.title, /^Preview Deploy Request/);
    asInSeed("Preview Deploy Request", found);
    assert.match(value(found.steps, "Preview RouteOwner"), /^studylab\/pr-7 epoch 1$/);
    const routes = JSON.parse(edge.cli("routes", "--json"));
    const digest = (environment) => routes.find((r) => r.environment === environment).digest;
    assert.notEqual(digest("studylab/pr-7"), digest("studylab/production"));
    assert.ok(digest("studylab/pr-7").startsWith(value(found.steps, "Deployment/artifact identity")));
  });

  test("an address that names no page shows the first one", async () => {
    for (const hash of ["__proto__", "constructor", "nothing", "%", "%zz/%"]) {
      const { page, wrong, close } = await open(edge, hash);
      await page.waitForFunction(() => document.title.startsWith("Traces"));
      assert.equal(await page.getByText("The console failed").count(), 0, hash);
      assert.deepEqual(wrong, [], hash);
      await close();
    }
  });

  test("a request for no environment", async () => {
    const { answer, title, steps } = await follow("GET", "/", {}, undefined, "nobody.localhost");
    assert.equal(answer.status, 404);
    assert.match(title, /for No Environment/);
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

  test("what an app prints is shown as it comes, and as text", async () => {
    await edge.send("GET", "/dashboard");
    const { page, wrong, close } = await open(edge, "apps");
    const card = page.locator('[data-environment="studylab/production"]');
    await card.getByRole("link", { name: "its output" }).click();
    await page.locator("#link[data-state=live]").waitFor();
    const lines = page.locator(".output li");
    await lines.filter({ hasText: /^.*web.*started: artifact/ }).last().waitFor();
    const before = await lines.count();
    // As its process would: into its pipe.
    // Others may run beside it, in any order.
    const id = JSON.parse(edge.cli("ps", "--json")).find((/** @type {any} */ a) => a.environment === "studylab/production").id;
    const print = (/** @type {string} */ text) => appendFileSync(join(edge.dir, "state/run/allocations", id, "output"), `${text}\n`);
    print("<img src=x onerror=alert(1)>\u001b[31m");
    await lines.filter({ hasText: "<img src=x onerror=alert(1)>" }).waitFor();
    assert.equal(await page.locator(".output img").count(), 0);
    assert.equal(await lines.count(), before + 1, "a line is shown once");
    if (process.env.SHOTS) await page.screenshot({ path: join(process.env.SHOTS, "logs.png") });
    await page.getByRole("button", { name: "Pause" }).click();
    print("meanwhile");
    await page.getByText("paused; 1 line since").waitFor();
    assert.equal(await lines.filter({ hasText: "meanwhile" }).count(), 0);
    await page.getByRole("button", { name: "Go on" }).click();
    await lines.filter({ hasText: "meanwhile" }).waitFor();
    assert.equal(await lines.filter({ hasText: "meanwhile" }).count(), 1);
    await page.getByLabel("Stream").selectOption("edge");
    await lines.filter({ hasText: "started: artifact" }).first().waitFor();
    assert.equal(await lines.filter({ hasText: "meanwhile" }).count(), 0);
    assert.deepEqual(wrong, []);
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

  test("promote and roll back say what will move, and on which evidence", async () => {
    await edge.send("GET", "/dashboard", {}, undefined, PREVIEW);
    const { page, wrong, close } = await open(edge, "apps");
    const dialog = page.getByRole("dialog");
    const preview = page.locator('[data-environment="studylab/pr-7"]');
    const production = page.locator('[data-environment="studylab/production"]');
    const epoch = () => JSON.parse(edge.cli("routes", "--json")).find((r) => r.host === HOST).epoch;

    await production.getByRole("button", { name: "Roll back…" }).click();
    await dialog.getByRole("button", { name: "Roll back" }).click();
    await page.getByText("no earlier artifact to roll back to").waitFor();

    await preview.getByRole("button", { name: "Promote…" }).click();
    const asked = await dialog.innerText();
    assert.match(asked, /Production of studylab gets exactly the artifact [0-9a-f]{12} that studylab\/pr-7 runs, under a new epoch/);
    assert.match(asked, /Its evidence: [1-9]\d* requests?, 0 errors/);
    assert.match(asked, /That satisfies the app’s policy/);
    await dialog.getByRole("button", { name: "Cancel" }).click();
    assert.equal(epoch(), 1, "Cancel changes nothing");
    await preview.getByRole("button", { name: "Promote…" }).click();
    await dialog.getByRole("button", { name: "Promote" }).click();
    await page.getByText(/healthy, epoch 2, artifact/).waitFor();
    assert.equal(epoch(), 2);

    await production.getByRole("button", { name: "Roll back…" }).click();
    assert.match(await dialog.innerText(), /goes back to the artifact that served before/);
    await dialog.getByRole("button", { name: "Roll back" }).click();
    await page.getByText(/healthy, epoch 3, artifact/).waitFor();
    assert.equal(epoch(), 3);
    assert.deepEqual(wrong.filter((w) => !/status of 40[49]/.test(w)), []);
    await close();
  });

  test("sockets are counted at their allocation, and sleep says what becomes of them", async () => {
    const [host, port] = edge.listen.split(":");
    await edge.send("GET", "/dashboard");
    const socket = await new Promise((resolve, reject) => {
      http.get({ host, port, path: "/vango/live", agent: false, headers: { host: HOST, ...LIVE } }).on("upgrade", (_, s) => resolve(s)).on("error", reject);
    });
    const { page, wrong, close } = await open(edge, "apps");
    const card = page.locator('[data-environment="studylab/production"]');
    await card.locator('td[data-label="Sockets"]', { hasText: /^1$/ }).waitFor();
    await card.getByRole("button", { name: "Sleep…" }).click();
    assert.match(await page.getByRole("dialog").innerText(), /1 live socket is closed with 1012/);
    await page.getByRole("dialog").getByRole("button", { name: "Cancel" }).click();
    socket.destroy();
    await card.locator('td[data-label="Sockets"]', { hasText: /^0$/ }).waitFor();
    assert.deepEqual(wrong, []);
    await close();
  });

  test("operations show each wake's phases", async () => {
    const { page, wrong, close } = await open(edge, "operations");
    const text = await page.locator(".wake", { hasText: "reserve" }).first().innerText();
    assert.match(text, /reserve .*artifact .*start .*ready /s);
    await page.getByText("owns its hosts").first().waitFor();
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
    await page.getByLabel("Method").selectOption("POST");
    await page.waitForFunction(() => [...document.querySelectorAll("tbody .what b")].every((e) => e.textContent === "POST") && document.querySelector("tbody .what b"));
    await page.getByLabel("Method").selectOption("");
    // What is typed is asked for a moment later; the address says when.
    const typed = async (text) => {
      await page.getByLabel("Host or path has").fill(text);
      await page.waitForFunction((text) => new URLSearchParams(location.hash.split("?")[1]).get("path") === text, text);
      await page.waitForFunction((text) => document.querySelector("tbody .what") && [...document.querySelectorAll("tbody .what")].every((e) => e.textContent.includes(text)), text);
    };
    await typed("dashboard");
    await page.getByRole("button", { name: "Pause" }).click();
    const rows = await page.locator("tbody tr").count();
    await edge.send("GET", "/dashboard");
    await page.getByText(/paused; 1 request since/).waitFor();
    assert.equal(await page.locator("tbody tr").count(), rows);
    // A filter that changes while paused shows what fits until now, and counts from there.
    await typed("dash");
    await page.getByText(/paused; 0 requests since/).waitFor();
    assert.ok((await page.locator("tbody tr").count()) > rows);
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

describe("an outcome that is not known", () => {
  let edge;
  before(async () => {
    // The edge keeps the keys, and the app may be told to die over a request.
    const contract = (text) =>
      text.replace('idempotency = "app"', 'idempotency = "edge"\nprincipal = "cookie:vango_session"').replace("[process]", '[process]\nenv = { STUDYLAB_DEBUG = "1" }');
    edge = await startEdge({ contract });
  });
  after(() => edge?.stop());

  test("is resolved after saying what each word does", async () => {
    const save = (key, more = {}) => edge.send("POST", "/actions/save", { "idempotency-key": key, cookie: "vango_session=ada", "content-type": "application/x-www-form-urlencoded", ...more }, "text=tea");
    const ledger = async () => (await fetch(`${edge.admin}/v1/ledger`)).json();
    assert.equal((await edge.send("GET", "/dashboard")).status, 200);
    // One is with the app when another one ends it: the outcome of neither is known.
    const slow = save("k1", { "studylab-fault": "slow:60s" });
    await until("the first is with the app", async () => (await ledger()).some((r) => r.state === "forwarded"));
    const lost = await Promise.all([slow, save("k2", { "studylab-fault": "exit-before" })]);
    for (const answer of lost) assert.match(answer.body, /outcome-unknown/);
    const { page, wrong, close } = await open(edge, "operations");
    const rows = page.getByRole("table", { name: "Unknown outcomes" }).locator("tbody tr");
    await rows.nth(1).waitFor();
    const dialog = page.getByRole("dialog");

    await rows.first().getByRole("button", { name: "Resolve…" }).click();
    const asked = await dialog.innerText();
    assert.match(asked, /Attempt 1 of key [0-9a-f]{12} on \/actions\/\* of studylab\/production was sent to the app/);
    assert.match(asked, /answered 409 response-not-replayable/);
    assert.match(asked, /is given to the app, as attempt 2\. If it was carried out after all, it is then carried out twice/);
    await dialog.getByRole("button", { name: "Cancel" }).click();
    assert.equal(await rows.count(), 2, "Cancel changes nothing");
    await rows.first().getByRole("button", { name: "Resolve…" }).click();
    await dialog.getByRole("button", { name: "Record it" }).click();
    assert.ok(await dialog.isVisible(), "nothing is recorded before one of the two is chosen");
    await dialog.getByRole("radio", { name: /^It was not carried out/ }).check();
    await dialog.getByLabel("Note, kept with the record").fill("ada looked in the notes");
    await dialog.getByRole("button", { name: "Record it" }).click();
    await page.getByText(/not carried out; the record says released now/).waitFor();
    await page.waitForFunction(() => document.querySelectorAll(".unknown tbody tr").length === 1);

    await rows.first().getByRole("button", { name: "Resolve…" }).click();
    await dialog.getByRole("radio", { name: /^It was carried out/ }).check();
    await dialog.getByRole("button", { name: "Record it" }).click();
    await page.getByText(/: carried out; the record says completed_unreplayable now/).waitFor();
    await page.getByText("None: each action and event that was forwarded was answered.").waitFor();
    await page.getByText("said by operator: ada looked in the notes").waitFor();
    // What the dialog said is what happens.
    const answers = [];
    for (const key of ["k1", "k2"]) {
      // The app comes back after a pause of its own.
      await until(`${key} is answered`, async () => {
        const answer = await save(key);
        if (answer.status !== 503) answers.push(answer);
        return answer.status !== 503;
      });
    }
    assert.deepEqual(answers.map((a) => a.status).sort(), [200, 409], answers.map((a) => a.body).join());
    assert.deepEqual(wrong, []);
    await close();
  });
});

describe("certificates", () => {
  let edge;
  before(async () => {
    // No authority is there: what was ordered fails, and says why.
    const acme = '[[server.tls]]\nlisten = "127.0.0.1:0"\n[acme]\ndirectory = "https://127.0.0.1:9/dir"\nterms_agreed = true\nretry = { first = "1h", max = "2h" }\n';
    edge = await startEdge({ more: acme });
    writeFileSync(join(edge.dir, "apps/shop.toml"), 'app = "shop"\nhosts = ["shop.acme.test"]\n');
    edge.cli("reload");
  });
  after(() => edge?.stop());

  test("a host says why it has none, and an order before its time is asked about first", async () => {
    const { page, wrong, close } = await open(edge, "certificates");
    const row = page.locator("tbody tr", { hasText: "shop.acme.test" });
    await row.locator(".badge", { hasText: "failed" }).waitFor();
    assert.match(await row.innerText(), /127\.0\.0\.1:9/);
    await row.getByRole("button", { name: "Try now…" }).click();
    const dialog = page.getByRole("dialog");
    assert.match(await dialog.innerText(), /Its last order failed: .*joined, not doubled/s);
    await dialog.getByRole("button", { name: "Cancel" }).click();
    await row.getByRole("button", { name: "Try now…" }).click();
    await dialog.getByRole("button", { name: "Order it" }).click();
    await page.getByText(/its last order has just failed; the next one may begin at/).waitFor();
    const other = page.locator("tbody tr", { hasText: HOST });
    assert.equal(await other.getByRole("button").count(), 0, "nothing is ordered for it");
    assert.deepEqual(wrong.filter((w) => !/status of 409/.test(w)), []);
    await close();
  });

  test("the page fits a phone", async () => {
    const { page, close } = await open(edge, "certificates", { viewport: { width: 375, height: 740 } });
    await page.getByRole("button", { name: "Try now…" }).waitFor();
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "nothing is cut off");
    const current = await page.locator("nav a[aria-current]").evaluate((a) => a.getBoundingClientRect().right <= innerWidth);
    assert.ok(current, "the page's own link can be seen");
    await close();
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

/** Waits for a condition, within a deadline. */
async function until(what, holds) {
  const deadline = Date.now() + PATIENCE;
  while (!(await holds())) {
    assert.ok(Date.now() < deadline, what);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

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
