/** A request drawn as its trace: who did what, on which truth, and where the milliseconds went. */

import { badge, h } from "./dom.js";
import { ms, outcomeTone, riskTone } from "./words.js";

/** @typedef {import("./api.js").Step} Step */
/** @typedef {import("./api.js").Trace} Trace */

/** @param {string} actor */
const kind = (actor) => actor.toLowerCase().replaceAll(/[^a-z]+/g, "-");

/**
 * @param {Step[]} steps
 * @param {boolean} timed
 */
export function steps(steps, timed) {
  return h(
    "ol",
    { class: "steps" },
    steps.map((s) =>
      h(
        "li",
        { class: `step ${kind(s.actor)}` },
        h("div", { class: "who" }, h("span", { class: "actor" }, s.actor), timed && h("span", { class: "at" }, `+${ms(s.at_us)}`)),
        h("p", { class: "action" }, s.action),
        h(
          "p",
          { class: "truth" },
          h("span", { class: "name" }, "Truth: ", s.truth),
          h("code", null, s.value),
          s.detail && h("span", { class: "detail" }, s.detail),
        ),
      ),
    ),
  );
}

/**
 * @param {string} decision
 * @param {string} outcome
 * @param {string} risk
 * @param {import("./dom.js").Child} more
 */
export function verdict(decision, outcome, risk, more) {
  return h(
    "section",
    { class: "verdict", "aria-label": "Decision and outcome" },
    h("div", null, h("h3", null, "Decision"), h("p", null, decision)),
    h("div", null, h("h3", null, "Outcome"), h("p", { class: "row" }, badge(outcome, outcomeTone(outcome)), badge(risk, riskTone(risk)), more)),
  );
}

/** What went on until a step was taken, by the words of its action and detail. */
const UNTIL = /** @type {const} */ ([
  [/^Hold within wake budget/, "held while the app started", "runner"],
  [/^Hold until/, "held for a free place", "runner"],
  [/^Run |^Process once|^Keep live/, "waiting for the app's first byte", "allocation"],
  [/^Connect refused/, "connecting, refused", "allocation"],
  [/^Start allocation/, "held while the app started", "runner"],
  [/^(Create or attach|Wake if)/, "recording the wake", "control-plane"],
  [/^Serve bytes/, "reading the artifact store", "object-store"],
  [/^Check .* on disk/, "keeping the record on disk", "control-plane"],
  [/^Check|^Verify|^Find|^Attach/, "checking", "edge"],
]);

/** @param {Step} step */
function until(step) {
  const found = UNTIL.findIndex(([pattern]) => pattern.test(`${step.action} ${step.detail}`));
  return found < 0 ? UNTIL.length : found;
}

/**
 * @typedef {object} Part
 * @property {string} label
 * @property {string} kind
 * @property {number} us
 */

/**
 * Where a request's time went: what lies between two steps belongs to the later one; what is after
 * the last is the answer on its way to the client.
 * @param {Pick<Trace, "steps" | "total_us" | "status">} t
 * @returns {Part[]}
 */
export function parts(t) {
  /** @type {Part[]} */
  const out = [];
  const add = (/** @type {string} */ label, /** @type {string} */ kind, /** @type {number} */ us) => {
    const last = out.at(-1);
    if (last && last.label === label) last.us += us;
    else if (us > 0) out.push({ label, kind, us });
  };
  // Steps that were taken in one go share the time before them; the one that says most names it.
  const together = Math.max(100, t.total_us / 200);
  let from = 0;
  for (let i = 0; i < t.steps.length; ) {
    let end = i + 1;
    while (end < t.steps.length && t.steps[end].at_us - t.steps[end - 1].at_us < together) end += 1;
    const group = t.steps.slice(i, end);
    const best = Math.min(...group.map(until));
    const to = group[group.length - 1].at_us;
    if (best < UNTIL.length) add(UNTIL[best][1], UNTIL[best][2], to - from);
    else add("deciding", "edge", to - from);
    from = to;
    i = end;
  }
  const rest = t.status === 101 ? "the socket was open" : "sending the answer";
  add(rest, "edge-out", Math.max(0, t.total_us - from));
  return out;
}

/** @param {Pick<Trace, "steps" | "total_us" | "status">} t */
export function timeBar(t) {
  const all = parts(t);
  const total = Math.max(1, all.reduce((sum, p) => sum + p.us, 0));
  return h(
    "figure",
    { class: "time" },
    h("figcaption", null, `Where the ${ms(t.total_us)} went`),
    h(
      "div",
      { class: "bar", "aria-hidden": "true" },
      all.map((p) => {
        const part = h("span", { class: p.kind, title: `${p.label}: ${ms(p.us)}` });
        part.style.flexGrow = String(Math.max(p.us / total, 0.004));
        return part;
      }),
    ),
    h("ul", { class: "legend" }, all.map((p) => h("li", { class: p.kind }, p.label, " ", h("b", null, ms(p.us))))),
  );
}
