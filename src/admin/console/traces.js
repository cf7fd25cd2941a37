/** The live list of requests, and one request as its trace. */

import { follow, get } from "./api.js";
import { badge, fill, h } from "./dom.js";
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
 * @param {HTMLElement} main
 * @param {AbortSignal} signal
 * @param {URLSearchParams} query
 */
export async function traces(main, signal, query) {
  const body = h("tbody", null);
  const status = h("p", { class: "quiet", role: "status" });
  const empty = h("p", { class: "empty" }, "No request yet that fits. Send one, and it appears here.");
  let paused = false;
  let waiting = 0;
  let leftOut = 0;
  /** @type {AbortController | null} */
  let stream = null;

  const say = () => {
    const words = [];
    if (paused) words.push(`paused; ${count(waiting, "request")} since`);
    if (leftOut > 0) words.push(`${count(leftOut, "request")} left out: more than can be read`);
    fill(status, words.join(" · "));
    empty.hidden = body.childElementCount > 0;
  };

  const take = (/** @type {TraceBatch} */ batch) => {
    batch.rows.forEach(remember);
    leftOut += batch.left_out;
    if (paused) {
      waiting += batch.rows.length + batch.left_out;
    } else {
      body.prepend(...batch.rows.map(row).reverse());
      while (body.childElementCount > ROWS) body.lastElementChild?.remove();
    }
    say();
  };

  const start = () => {
    stream?.abort();
    stream = new AbortController();
    const stop = stream;
    signal.addEventListener("abort", () => stop.abort(), { once: true });
    fill(body);
    leftOut = 0;
    waiting = 0;
    say();
    const query = wanted().toString();
    return follow(`/v1/traces/stream${query ? `?${query}` : ""}`, take, stop.signal);
  };
  const restart = () => {
    const query = wanted().toString();
    history.replaceState(null, "", `#/traces${query ? `?${query}` : ""}`);
    start().catch((e) => fill(status, e.message));
  };

  const choice = (/** @type {string} */ name, /** @type {string} */ label, /** @type {string[]} */ values) =>
    h(
      "label",
      null,
      label,
      h(
        "select",
        { name, onchange: restart },
        h("option", { value: "" }, "any"),
        values.map((v) => h("option", { value: v, selected: query.get(name) === v }, v)),
      ),
    );
  let typing = 0;
  const typed = (/** @type {string} */ name, /** @type {string} */ label, /** @type {string} */ hint) =>
    h(
      "label",
      null,
      label,
      h("input", {
        name,
        type: "search",
        placeholder: hint,
        value: query.get(name) ?? "",
        autocomplete: "off",
        spellcheck: "false",
        oninput: () => {
          clearTimeout(typing);
          typing = setTimeout(restart, 250);
        },
      }),
    );
  const pause = h(
    "button",
    {
      type: "button",
      "aria-pressed": "false",
      onclick: () => {
        paused = !paused;
        pause.setAttribute("aria-pressed", String(paused));
        fill(pause, paused ? "Go on" : "Pause");
        if (paused) say();
        else restart();
      },
    },
    "Pause",
  );
  const filters = h(
    "form",
    { class: "filters", "aria-label": "Filters", onsubmit: (/** @type {Event} */ e) => e.preventDefault() },
    typed("app", "App", "any"),
    choice("class", "Class", CLASSES),
    choice("method", "Method", METHODS),
    choice("outcome", "Outcome", OUTCOMES),
    typed("path", "Host or path has", "/dashboard"),
    pause,
  );
  const wanted = () => {
    const out = new URLSearchParams();
    for (const [name, value] of new FormData(filters)) if (value) out.set(name, String(value));
    return out;
  };

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
