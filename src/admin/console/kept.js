/** What is kept of unsafe requests: keys and webhook events, outcomes that are not known, the audit. */

import { page, post } from "./api.js";
import { badge, h, table } from "./dom.js";
import { clock, count, ms } from "./words.js";

/** @typedef {import("./api.js").Kept} Kept */
/** @typedef {import("./api.js").Audited} Audited */

/**
 * @template T
 * @typedef {{rows: T[], more: boolean}} List
 */
const NONE = Promise.resolve({ rows: [], more: false });

/** @param {string} state */
const tone = (state) => (state === "completed" ? "green" : state === "unknown" ? "red" : state.startsWith("completed") ? "amber" : "grey");

/** Rows at first and more at a time, and at most: beyond it the command line has them all. */
const ROWS = 100;
const MOST = 1000;

/** How many rows of each list are shown, as long as the page is open. */
export class Shown {
  ledger = ROWS;
  audit = ROWS;
}

/**
 * @param {boolean} ledger this edge keeps one
 * @param {boolean} audit this edge keeps one
 * @param {Shown} shown
 * @param {(said?: string) => void} again draws anew; told what came of a resolution, if there was one
 * @returns {Promise<{waiting: HTMLElement, some: boolean, kept: HTMLElement}>} what waits for an operator, and whether
 *   there is any; and the rest
 */
export async function kept(ledger, audit, shown, again) {
  const [unknown, records, evidence] = await Promise.all([
    /** @type {Promise<List<Kept>>} */ (ledger ? page(`/v1/ledger?state=unknown&limit=${ROWS}`) : NONE),
    /** @type {Promise<List<Kept>>} */ (ledger ? page(`/v1/ledger?limit=${shown.ledger}`) : NONE),
    /** @type {Promise<List<Audited>>} */ (audit ? page(`/v1/audit?limit=${shown.audit}`) : NONE),
  ]);
  const further = (/** @type {"ledger" | "audit"} */ which, /** @type {boolean} */ more) => {
    if (!more) return false;
    if (shown[which] >= MOST) return h("p", { class: "quiet" }, "More rows: ", h("code", null, `vango-edge ${which} -n 100000`));
    const next = () => {
      shown[which] += ROWS;
      again();
    };
    return h("button", { "data-key": `more ${which}`, onclick: next }, `Show ${ROWS} more`);
  };
  const waiting = h(
    "div",
    null,
    ledger && h("h2", null, "Unknown outcomes"),
    ledger &&
      (unknown.rows.length === 0
        ? h("p", { class: "empty" }, "None: each action and event that was forwarded was answered.")
        : [
            h("p", { class: "problem" }, `${count(unknown.rows.length, "request")}${unknown.more ? " and more" : ""} reached an app that never answered. The edge sends nothing again by itself. Look up in the app’s own records whether it was carried out, and say so here: until then a repeat of an action is refused, and an event that its provider delivers again is given to the app once more.`),
            h("div", { class: "unknown" }, records_table("Unknown outcomes", unknown.rows, (r) => h("button", { class: "chip", "data-key": `${r.at} resolve`, onclick: () => resolve(r, again) }, "Resolve…"))),
          ]),
  );
  const kept = h(
    "div",
    null,
    ledger && h("h2", null, "Keys and webhook events"),
    ledger && (records.rows.length === 0 ? h("p", { class: "empty" }, "No keyed action or webhook event yet.") : records_table("Keys and webhook events", records.rows)),
    ledger && further("ledger", records.more),
    audit && h("h2", null, "Audit"),
    audit &&
      (evidence.rows.length === 0
        ? h("p", { class: "empty" }, "No unsafe request yet.")
        : table(
            "Evidence of unsafe requests, newest first",
            ["Ended", "Request", "Environment", "Decision", "Forwarded", "Why", "Status", "Total"],
            evidence.rows.map((e) => [
              clock(e.at),
              h("a", { href: `#/traces/${e.request}` }, `${e.method} ${e.route}`),
              e.environment,
              e.decision,
              e.forwarded,
              e.why,
              e.status ?? "–",
              h("span", { class: "num" }, ms(e.total_us)),
            ]),
          )),
    audit && further("audit", evidence.more),
  );
  return { waiting, some: unknown.rows.length > 0, kept };
}

/**
 * What each word about an unknown outcome does.
 * @param {Kept} r
 */
const WORDS = (r) =>
  /** @type {const} */ ([
    [
      "carried-out",
      "It was carried out",
      r.subject === "event"
        ? "The event counts as accepted: when the provider delivers it again, it is answered 200 from the record, and the app is not asked."
        : "A repeat with this key is answered 409 response-not-replayable: it is done, and its response is not known. The app is not asked.",
    ],
    [
      "not-carried-out",
      "It was not carried out",
      `Nothing is sent now. The next ${r.subject === "event" ? "delivery of this event" : "repeat with this key"} is given to the app, as attempt ${r.attempt + 1}. If it was carried out after all, it is then carried out twice.`,
    ],
  ]);

/**
 * Asks what became of an attempt, and says before it is recorded what that does.
 * @param {Kept} r
 * @param {(said: string) => void} said
 */
function resolve(r, said) {
  const wrong = h("p", { class: "problem", role: "alert", hidden: true });
  const note = h("input", { id: "note", type: "text", name: "note", maxlength: 200, autocomplete: "off", placeholder: "who looked, and where" });
  const dialog = h(
    "dialog",
    { "aria-labelledby": "asks", onclose: () => dialog.remove() },
    h("h2", { id: "asks" }, "What became of it?"),
    h(
      "p",
      null,
      `Attempt ${r.attempt} of ${r.subject === "event" ? "event" : "key"} `,
      h("code", null, r.event ?? r.key_hash.slice(0, 12)),
      ` on ${r.route} of ${r.environment} was sent to the app at ${clock(r.changed)}, and no answer came. What you say is kept with the record and cannot be taken back.`,
    ),
    h(
      "form",
      {
        class: "choices",
        onsubmit: async (/** @type {SubmitEvent} */ e) => {
          e.preventDefault();
          const outcome = /** @type {string} */ (new FormData(/** @type {HTMLFormElement} */ (e.target)).get("outcome"));
          try {
            const now = /** @type {Kept} */ (await post(`/v1/ledger/${r.at}/resolve`, { attempt: r.attempt, outcome, note: note.value.trim() }));
            dialog.close();
            said(`${r.event ?? r.key_hash.slice(0, 12)} on ${r.route}: ${outcome === "carried-out" ? "carried out" : "not carried out"}; the record says ${now.state} now.`);
          } catch (x) {
            wrong.hidden = false;
            wrong.textContent = x instanceof Error ? x.message : String(x);
          }
        },
      },
      WORDS(r).map(([value, name, does]) =>
        h("label", { class: "choice" }, h("input", { type: "radio", name: "outcome", value, required: true }), h("span", null, h("b", null, name), h("span", null, does))),
      ),
      h("label", { for: "note" }, "Note, kept with the record"),
      note,
      wrong,
      h("div", { class: "row end" }, h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"), h("button", { class: "primary" }, "Record it")),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
}

/**
 * @param {string} caption
 * @param {Kept[]} rows
 * @param {(r: Kept) => HTMLElement} [act] a last cell, where something can be done about a row
 */
function records_table(caption, rows, act) {
  return table(
    caption,
    ["Changed", "What", "Environment", "Route", "Event or key", "State", "Attempt", "Status", ...(act ? ["Outcome"] : [])],
    rows.map((r) => [
      clock(r.changed),
      r.subject,
      r.environment,
      r.route,
      h("code", { title: r.at }, r.event ?? r.key_hash.slice(0, 12)),
      h("span", null, badge(r.state, tone(r.state)), r.resolved && h("span", { class: "quiet" }, ` said by ${r.resolved}`)),
      r.attempt,
      r.status ?? "–",
      ...(act ? [act(r)] : []),
    ]),
  );
}
