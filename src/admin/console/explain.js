/** What would happen to a request now, without sending it. */

import { get, post } from "./api.js";
import { fill, h } from "./dom.js";
import { steps, verdict } from "./steps.js";
import { isPreview } from "./words.js";

/** @typedef {import("./api.js").Environment} Environment */
/** @typedef {import("./api.js").Explanation} Explanation */

/** Requests to begin with, on the sample app's paths; any can be changed. */
const EXAMPLES = /** @type {const} */ ([
  ["Page", "GET", "/dashboard", ""],
  ["Action with a key", "POST", "/actions/save", "Idempotency-Key: demo-1"],
  ["Action without", "POST", "/actions/save", ""],
  ["Live socket", "GET", "/vango/live", "Connection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: dmFuZ28tZWRnZS1rZXkhIQ=="],
  ["Webhook", "POST", "/webhooks/stripe", "Content-Type: application/json"],
  ["Asset", "GET", "/assets/app.css", ""],
]);

/**
 * @param {HTMLElement} main
 * @param {AbortSignal} _signal
 * @param {string[]} _rest
 * @param {URLSearchParams} query
 */
export async function explain(main, _signal, _rest, query) {
  const environments = /** @type {Environment[]} */ (await get("/v1/environments"));
  const hosts = environments.flatMap((e) => e.hosts);
  const host = environments.find((e) => !isPreview(e.environment))?.hosts[0] ?? hosts[0] ?? "app.example";
  const preview = environments.find((e) => isPreview(e.environment))?.hosts[0];
  const method = h(
    "select",
    { id: "method" },
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"].map((m) => h("option", { selected: query.get("method") === m }, m)),
  );
  const url = h("input", { id: "url", type: "text", inputmode: "url", required: true, spellcheck: "false", list: "hosts", value: query.get("url") ?? `http://${host}/dashboard` });
  const headers = h("textarea", { id: "headers", rows: 4, spellcheck: "false", placeholder: "Name: value, one a line" });
  const place = h("div", { "aria-live": "polite" });

  const ask = async () => {
    const lines = headers.value.split("\n").map((l) => l.trim()).filter(Boolean);
    const wrong = lines.find((l) => !l.includes(":"));
    if (wrong !== undefined) {
      fill(place, h("p", { class: "problem", role: "alert" }, `Expected “Name: value”, found “${wrong}”.`));
      return;
    }
    const pairs = lines.map((l) => [l.slice(0, l.indexOf(":")).trim(), l.slice(l.indexOf(":") + 1).trim()]);
    try {
      const found = /** @type {Explanation} */ (await post("/v1/explain", { method: method.value, url: url.value.trim(), headers: pairs }));
      fill(
        place,
        h("h2", null, `${method.value} ${url.value}`),
        steps(found.steps, false),
        verdict(found.decision, found.outcome, found.risk, null),
      );
    } catch (e) {
      fill(place, h("p", { class: "problem", role: "alert" }, e instanceof Error ? e.message : String(e)));
    }
  };

  const example = (/** @type {string} */ name, /** @type {string} */ m, /** @type {string} */ address, /** @type {string} */ lines) =>
    h(
      "button",
      {
        type: "button",
        class: "chip",
        onclick: () => {
          method.value = m;
          url.value = address;
          headers.value = lines;
          ask();
        },
      },
      name,
    );

  fill(
    main,
    h("h1", null, "Explain"),
    h("p", { class: "lead" }, "The steps a request would take now, found by the same decisions that serve it. Nothing is sent, woken or changed."),
    h(
      "form",
      { class: "explain", onsubmit: (/** @type {Event} */ e) => { e.preventDefault(); ask(); } },
      h(
        "div",
        { class: "row examples", role: "group", "aria-label": "Examples" },
        EXAMPLES.map(([name, m, path, lines]) => example(name, m, `http://${host}${path}`, lines)),
        preview !== undefined && example("Preview", "GET", `http://${preview}/dashboard`, ""),
      ),
      h("div", { class: "asked" }, h("label", { for: "method" }, "Method"), method, h("label", { for: "url" }, "URL"), url),
      h("label", { for: "headers" }, "Headers"),
      headers,
      h("datalist", { id: "hosts" }, hosts.map((name) => h("option", { value: `http://${name}/` }))),
      h("div", { class: "row" }, h("button", { class: "primary" }, "Explain")),
    ),
    place,
  );
  if (query.has("url")) await ask();
}
