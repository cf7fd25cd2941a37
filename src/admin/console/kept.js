/** What is kept of unsafe requests: keys and webhook events, outcomes that nobody knows, the audit. */

import { get } from "./api.js";
import { badge, h, table } from "./dom.js";
import { clock, count, ms } from "./words.js";

/**
 * The ledger's and the audit's rows, as their resources describe them.
 * @typedef {{at: string, subject: string, environment: string, route: string, event?: string | null, key_hash: string, attempt: number, state: string, status?: number | null, changed: string}} Kept
 * @typedef {{at: string, request: string, environment: string, route: string, method: string, decision: string, forwarded: string, why: string, status?: number | null, event?: string | null, operation?: string | null, total_us: number}} Evidence
 */

/** @param {string} state */
const tone = (state) => (state === "completed" ? "green" : state === "unknown" ? "red" : state.startsWith("completed") ? "amber" : "grey");

/**
 * @param {boolean} ledger this edge keeps one
 * @param {boolean} audit this edge keeps one
 * @returns {Promise<HTMLElement>}
 */
export async function kept(ledger, audit) {
  const [unknown, records, evidence] = await Promise.all([
    /** @type {Promise<Kept[]>} */ (ledger ? get("/v1/ledger?state=unknown&limit=100") : Promise.resolve([])),
    /** @type {Promise<Kept[]>} */ (ledger ? get("/v1/ledger?limit=100") : Promise.resolve([])),
    /** @type {Promise<Evidence[]>} */ (audit ? get("/v1/audit?limit=100") : Promise.resolve([])),
  ]);
  return h(
    "div",
    null,
    ledger && h("h2", null, "Unknown outcomes"),
    ledger &&
      (unknown.length === 0
        ? h("p", { class: "empty" }, "None: each action and event that was forwarded was answered.")
        : [
            h("p", { class: "problem" }, `${count(unknown.length, "request")} reached an app that never answered. The edge will not send them again; somebody has to look whether they were carried out.`),
            records_table("Unknown outcomes", unknown),
          ]),
    ledger && h("h2", null, "Keys and webhook events"),
    ledger && (records.length === 0 ? h("p", { class: "empty" }, "No keyed action or webhook event yet.") : records_table("Keys and webhook events", records)),
    audit && h("h2", null, "Audit"),
    audit &&
      (evidence.length === 0
        ? h("p", { class: "empty" }, "No unsafe request yet.")
        : table(
            "Evidence of unsafe requests, newest first",
            ["Ended", "Request", "Environment", "Decision", "Forwarded", "Why", "Status", "Total"],
            evidence.map((e) => [
              clock(e.at),
              h("a", { href: `#/traces/${e.request}` }, `${e.method} ${e.route}`),
              e.environment,
              e.decision,
              e.forwarded,
              e.why,
              e.status ?? "–",
              ms(e.total_us),
            ]),
          )),
  );
}

/**
 * @param {string} caption
 * @param {Kept[]} rows
 */
function records_table(caption, rows) {
  return table(
    caption,
    ["Changed", "What", "Environment", "Route", "Event or key", "State", "Attempt", "Status"],
    rows.map((r) => [
      clock(r.changed),
      r.subject,
      r.environment,
      r.route,
      h("code", { title: r.at }, r.event ?? r.key_hash.slice(0, 12)),
      badge(r.state, tone(r.state)),
      r.attempt,
      r.status ?? "–",
    ]),
  );
}
