/** Promotion and roll back: what would move, and whether it may. */

import { get, post } from "./api.js";
import { confirmed } from "./dom.js";
import { count, short } from "./words.js";

/** @typedef {import("./api.js").Environment} Environment */
/** @typedef {import("./api.js").Evidence} Evidence */
/** @typedef {import("./api.js").Promotion} Promotion */

/** How routes move, the same both ways. */
const HOW =
  "An allocation of it is made ready first; where that fails, production stays as it is. Then new requests go to it; those in flight finish where they are, and live sockets stay until the contract’s drain_timeout, then they are told to reconnect.";

/** @param {Environment} e */
const app = (e) => e.environment.split("/")[0];

/**
 * Asks, moves, and says what came of it; `null` when it was not to be.
 * @param {Environment} e
 * @param {"promote" | "rollback"} verb
 * @returns {Promise<string | null>}
 */
export async function move(e, verb) {
  if (verb === "rollback") {
    const says = [
      `Production of ${app(e)} goes back to the artifact that served before ${short(e.digest)}, under a new epoch.`,
      HOW,
    ];
    if (!(await confirmed(`Roll back ${app(e)}?`, says, "Roll back"))) return null;
    return told(await post(`/v1/apps/${encodeURIComponent(app(e))}/rollback`));
  }
  const evidence = /** @type {Evidence} */ (await get(`/v1/environments/${e.environment}/evidence`));
  const checks = evidence.checks.map((c) => `${c.name} ${c.passed ? "passed" : "failed"}`).join(", ");
  const says = [
    `Production of ${app(e)} gets exactly the artifact ${short(evidence.digest)} that ${e.environment} runs, under a new epoch.`,
    HOW,
    `Its evidence: ${count(evidence.requests, "request")}, ${count(evidence.errors, "error")}${checks ? `; ${checks}` : ""}.`,
    evidence.satisfied ? "That satisfies the app’s policy." : `The app’s policy misses: ${evidence.missing.join("; ")}. It will be refused.`,
  ];
  if (!(await confirmed(`Promote ${e.environment}?`, says, "Promote"))) return null;
  const preview = e.environment.split("/")[1];
  return told(await post(`/v1/apps/${encodeURIComponent(app(e))}/promote`, { preview }));
}

/** @param {Promotion} p */
const told = (p) => `${p.state}${p.epoch == null ? "" : `, epoch ${p.epoch}`}, artifact ${short(p.digest)}${p.reason ? `: ${p.reason}` : ""}`;
