/** The live list of requests, and one request as its trace. */

import { get } from "./api.js";
import { badge, fill, h } from "./dom.js";
import { feed } from "./feed.js";
import { steps, timeBar, verdict } from "./steps.js";
import { clock, count, ms, outcomeMeans, outcomeTone, riskTone, title } from "./words.js";

/** @typedef {import("./api.js").Trace} Trace */
/** @typedef {import("./api.js").TraceBatch} TraceBatch */

/** Rows in the list: more than a person reads, few enough that a page never grows. */
const ROWS = 200;

/** Traces seen in this tab, so that one can be opened after the edge's ring has let it go. */
/** @type {Map<string, Trace>} */
const seen = new Map();
const SEEN = 1000;

/** @param {Trace} t */
function remember(t) {
  seen.set(t.request, t);
  for (const oldest of seen.keys()) {
    if (seen.size <= SEEN) break;
    seen.delete(oldest);
  }
}

const METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];
const CLASSES = ["page", "action", "webhook", "live", "asset", "none"];
const OUTCOMES = ["hot", "woken", "held", "asset", "replayed", "duplicate", "welcomed", "validated", "refused", "client-left", "cut-off"];

/**
 * @param {string} name
 * @param {string} label
 * @param {string[]} values
 */
const choice = (name, label, values) => ({ name, label, values: ["", ...values].map((v) => /** @type {[string, string]} */ ([v, v || "any"])) });

/**
 * @param {HTMLElement} main
 * @param {AbortSignal} signal
 * @param {URLSearchParams} query
 */
export async function traces(main, signal, query) {
  const body = h("tbody", null);
  const empty = h("p", { class: "empty" }, "No request yet that fits. Send one, and it appears here.");
  let leftOut = 0;
  const { filters, status, start } = feed(signal, query, {
    page: "traces",
    noun: "request",
    fields: [
      { name: "app", label: "App", hint: "any" },
      choice("class", "Class", CLASSES),
      choice("method", "Method", METHODS),
      choice("outcome", "Outcome", OUTCOMES),
      { name: "path", label: "Host or path has", hint: "/dashboard" },
    ],
    path: (wanted) => `/v1/traces/stream?${wanted}`,
    resumes: () => false,
    clear: () => {
      fill(body);
      leftOut = 0;
      empty.hidden = false;
    },
    take: (/** @type {TraceBatch} */ batch) => {
      const fresh = batch.rows.filter((t) => !seen.has(t.request)).length + batch.left_out;
      batch.rows.forEach(remember);
      leftOut += batch.left_out;
      return fresh;
    },
    show: (batch) => {
      body.prepend(...batch.rows.map(row).reverse());
      while (body.childElementCount > ROWS) body.lastElementChild?.remove();
      empty.hidden = body.childElementCount > 0;
    },
    words: () => (leftOut > 0 ? [`${count(leftOut, "request")} left out: more than can be read`] : []),
  });

  fill(
    main,
    h("h1", null, "Traces"),
    h("p", { class: "lead" }, "Requests as they end, newest first. Open one to see what the edge decided, step by step, and why."),
    filters,
    status,
    h(
      "table",
      { class: "traces" },
      h("caption", { class: "unseen" }, "Requests, newest first"),
      h("thead", null, h("tr", null, ["Ended", "Request", "Class", "Outcome", "Status", "Risk", "Total", "Held"].map((c) => h("th", { scope: "col" }, c)))),
      body,
    ),
    empty,
  );
  await start();
}

/** @param {Trace} t */
function row(t) {
  const href = `#/traces/${t.request}`;
  return h(
    "tr",
    { onclick: (/** @type {Event} */ e) => { if (!(e.target instanceof HTMLAnchorElement)) location.hash = href; } },
    h("td", { class: "when" }, clock(t.at)),
    h("td", { class: "what" }, h("a", { href }, h("b", null, t.method), " ", t.path || "(unreadable)"), h("span", { class: "host" }, t.host)),
    h("td", { "data-label": "Class" }, t.class),
    h("td", { "data-label": "Outcome" }, badge(t.outcome, outcomeTone(t.outcome), outcomeMeans(t.outcome))),
    h("td", { "data-label": "Status" }, t.status ?? "–"),
    h("td", { "data-label": "Risk" }, badge(t.risk.replace(" risk", ""), riskTone(t.risk))),
    h("td", { "data-label": "Total", class: "num" }, ms(t.total_us)),
    h("td", { "data-label": "Held", class: "num" }, t.held_us > 0 ? ms(t.held_us) : "–"),
  );
}

/**
 * @param {HTMLElement} main
 * @param {string} id
 */
export async function trace(main, id) {
  const found = /** @type {Trace[]} */ (await get(`/v1/traces?limit=1&request=${encodeURIComponent(id)}`));
  const t = found[0] ?? seen.get(id);
  const back = h("p", null, h("a", { href: "#/traces" }, "← Traces"));
  if (!t) {
    fill(
      main,
      back,
      h("h1", null, "Trace"),
      h("p", { class: "problem" }, `The edge no longer keeps request ${id}: it keeps the last trace.ring of them.`),
    );
    return;
  }
  fill(
    main,
    back,
    h("h1", { class: "row" }, title(t), badge(t.risk, riskTone(t.risk))),
    h("p", { class: "line" }, h("b", null, t.method), " ", h("span", { class: "host" }, t.host), t.path),
    h(
      "dl",
      { class: "facts" },
      fact("Status", t.status ?? "none sent"),
      fact("Ended", clock(t.at)),
      fact("Environment", t.environment ?? "none"),
      fact("Class", t.class),
      t.operation && fact("Operation", h("a", { href: `#/operations?operation=${t.operation}` }, t.operation)),
      fact("Request", h("code", null, t.request)),
    ),
    timeBar(t),
    steps(t.steps, true),
    t.dropped_steps > 0 && h("p", { class: "quiet" }, `${count(t.dropped_steps, "step")} more were not kept.`),
    verdict(t.decision, t.outcome, t.risk, h("span", { class: "quiet" }, `${outcomeMeans(t.outcome)}, in ${ms(t.total_us)}`)),
  );
}

/**
 * @param {string} name
 * @param {import("./dom.js").Child} value
 */
export const fact = (name, value) => h("div", null, h("dt", null, name), h("dd", null, value));
