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

/** What went on until a step of a kind was taken: a label and whose time it was. The first that a group has names it. */
const UNTIL = /** @type {const} */ ([
  ["hold", "held while the app started", "runner"],
  ["run", "waiting for the app's first byte", "allocation"],
  ["run-preview", "waiting for the app's first byte", "allocation"],
  ["process-once", "waiting for the app's first byte", "allocation"],
  ["pin", "waiting for the app's first byte", "allocation"],
  ["upstream-failed", "waiting for the app's first byte", "allocation"],
  ["broke-off", "waiting for the app's first byte", "allocation"],
  ["connect-failed", "connecting, refused", "allocation"],
  ["start", "held while the app started", "runner"],
  ["wake", "recording the wake", "control-plane"],
  ["serve-asset", "reading the artifact store", "object-store"],
  ["on-disk", "keeping the record on disk", "control-plane"],
  ["check-key", "checking", "edge"],
  ["check-event", "checking", "edge"],
  ["verify-signature", "checking", "edge"],
  ["find-session", "checking", "edge"],
  ["check-store", "checking", "edge"],
  ["check-access", "checking", "edge"],
  ["find-asset", "checking", "edge"],
  ["attach-evidence", "checking", "edge"],
  ["attach-retry", "checking", "edge"],
]);
/**
 * What went on until the step was taken, and how much it says beside others.
 * @param {Step} step
 * @returns {{ rank: number, label: string, kind: string }}
 */
function until(step) {
  const { verdict, state } = step.values;
  if (step.kind === "hold" && state === undefined) return { rank: 0, label: "held for a free place", kind: "runner" };
  const onDisk = step.kind.startsWith("check-") && (verdict === "reserved" || verdict === "forwarded");
  const rank = UNTIL.findIndex(([kind]) => kind === (onDisk ? "on-disk" : step.kind));
  return rank < 0 ? { rank: UNTIL.length, label: "deciding", kind: "edge" } : { rank, label: UNTIL[rank][1], kind: UNTIL[rank][2] };
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
    const best = group.map(until).reduce((a, b) => (b.rank < a.rank ? b : a));
    const to = group[group.length - 1].at_us;
    add(best.label, best.kind, to - from);
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
