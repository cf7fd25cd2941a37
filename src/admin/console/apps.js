/** Environments: who owns each, what runs, and the commands that change it, said before they are done. */

import { follow, get, offers, post } from "./api.js";
import { badge, confirmed, fill, h, table } from "./dom.js";
import { address } from "./logs.js";
import { move } from "./releases.js";
import { fact } from "./traces.js";
import { count, duration, outcomeMeans, outcomeTone, short, stateTone } from "./words.js";

/** @typedef {import("./api.js").Environment} Environment */

/** Counters move without a revision. */
const EVERY = 2000;

/**
 * @param {HTMLElement} main
 * @param {AbortSignal} signal
 */
export async function apps(main, signal) {
  const said = h("p", { role: "status", class: "said" });
  const list = h("div", { class: "cards" });
  let drawn = "";

  const draw = async () => {
    if (document.hidden || document.querySelector("dialog[open]")) return;
    const rows = /** @type {Environment[]} */ (await get("/v1/environments?limit=1000"));
    if (signal.aborted) return;
    // Drawn anew only when something shows: a button that has the focus keeps it.
    const now = JSON.stringify(rows.map((e) => ({ ...e, idle_ms: Math.round((e.idle_ms ?? 0) / 10_000) })));
    if (now === drawn) return;
    drawn = now;
    const focus = document.activeElement?.getAttribute("data-key");
    fill(list, rows.length === 0 ? h("p", { class: "empty" }, "Nothing is deployed: vango-edge deploy DIR") : rows.map((e) => card(e, moves, act)));
    if (focus) /** @type {HTMLElement | null} */ (list.querySelector(`[data-key="${CSS.escape(focus)}"]`))?.focus();
  };

  const moves = await offers("/v1/apps/{app}/promote");
  const act = async (/** @type {Environment} */ e, /** @type {Verb} */ verb) => {
    if (verb === "promote" || verb === "rollback") {
      try {
        const came = await move(e, verb);
        if (came !== null) fill(said, `${e.environment}: ${came}`);
      } catch (x) {
        fill(said, x instanceof Error ? x.message : String(x));
      }
      return draw();
    }
    const [title, says, word] = verb === "sleep" ? sleeping(e) : waking(e);
    if (!(await confirmed(title, says, word))) return;
    fill(said, verb === "sleep" ? `Putting ${e.environment} to sleep…` : `Waking ${e.environment}…`);
    try {
      const { done, operation } = /** @type {import("./api.js").Done} */ (await post(`/v1/environments/${e.environment}/${verb}`));
      fill(said, `${e.environment}: ${done}`, operation ? " (" : "", operation && h("a", { href: `#/operations?operation=${operation}` }, operation), operation ? ")" : "");
    } catch (x) {
      fill(said, x instanceof Error ? x.message : String(x));
    }
    await draw();
  };

  fill(
    main,
    h("h1", null, "Apps"),
    h("p", { class: "lead" }, "Each environment has one owner under an epoch that only grows. Only allocations of the owner’s epoch and artifact get requests."),
    said,
    list,
  );
  await draw();
  const again = setInterval(() => draw().catch(() => {}), EVERY);
  signal.addEventListener("abort", () => clearInterval(again), { once: true });
  await follow("/v1/changes/stream", () => draw().catch(() => {}), signal);
}

/** @typedef {"sleep" | "wake" | "promote" | "rollback"} Verb */

/**
 * @param {Environment} e
 * @param {boolean} moves this edge promotes
 * @param {(e: Environment, verb: Verb) => void} act
 */
function card(e, moves, act) {
  const move = e.environment.endsWith("/production") ? "rollback" : "promote";
  const runs = e.allocations.length > 0;
  const sleepsIn = e.sleep_after_ms != null && e.idle_ms != null ? Math.max(0, e.sleep_after_ms - e.idle_ms) : null;
  const served = Object.entries(e.served);
  return h(
    "article",
    { class: "card", "data-environment": e.environment },
    h(
      "header",
      { class: "row" },
      h("h2", null, e.environment),
      badge(e.state, stateTone(e.state)),
      h(
        "div",
        { class: "row end" },
        h("button", { "data-key": `${e.environment} sleep`, disabled: !runs, onclick: () => act(e, "sleep") }, "Sleep…"),
        h("button", { "data-key": `${e.environment} wake`, disabled: e.state === "hot", onclick: () => act(e, "wake") }, "Wake…"),
        moves && h("button", { "data-key": `${e.environment} ${move}`, onclick: () => act(e, move) }, move === "promote" ? "Promote…" : "Roll back…"),
      ),
    ),
    h("p", { class: "hosts" }, e.hosts.join(", ")),
    h(
      "dl",
      { class: "facts" },
      fact("Owner’s epoch", e.epoch),
      fact("Deployment", h("code", null, e.deployment)),
      fact("Artifact", h("code", { title: e.digest }, short(e.digest))),
      fact("Held now", count(e.held, "request")),
      fact("Sleeps after", e.sleep_after_ms == null ? "never" : `${duration(e.sleep_after_ms)} idle${runs && sleepsIn != null ? `, in ${duration(sleepsIn)}` : ""}`),
      fact("Holds at most", duration(e.wake_budget_ms)),
      e.typical_wake_ms != null && fact("Wakes in about", duration(e.typical_wake_ms)),
      e.operation && fact("Last wake", h("a", { href: `#/operations?operation=${e.operation}` }, e.operation)),
    ),
    e.failure && h("p", { class: "problem" }, `The last start failed: ${e.failure.detail} `, h("a", { href: address({ of: e.environment }) }, "What it printed")),
    h(
      "p",
      { class: "row served" },
      h("span", { class: "quiet" }, "Answered since the edge started:"),
      served.length === 0 && "none",
      served.map(([outcome, n]) => badge(`${outcome} ${n.toLocaleString()}`, outcomeTone(outcome), outcomeMeans(outcome))),
      h("a", { href: `#/traces?app=${encodeURIComponent(e.environment.split("/")[0])}` }, "its traces"),
      h("a", { href: address({ of: e.environment }) }, "its output"),
    ),
    runs &&
      table(
        `Allocations of ${e.environment}`,
        ["Allocation", "State", "Generation", "Epoch", "Address", "Process", "In flight", "Sockets", "Served", "Output"],
        e.allocations.map((a) => [
          h("code", null, a.id),
          badge(a.state, stateTone(a.state)),
          a.generation,
          a.epoch === e.epoch ? a.epoch : `${a.epoch} (old)`,
          a.address ?? "–",
          a.pid ?? "–",
          a.in_flight,
          a.sockets,
          a.total.toLocaleString(),
          h("a", { href: address({ of: e.environment, allocation: a.id }) }, "Show"),
        ]),
      ),
  );
}

/**
 * @param {Environment} e
 * @returns {[string, (string | false)[], string]}
 */
function sleeping(e) {
  const inFlight = e.allocations.reduce((n, a) => n + a.in_flight, 0);
  const sockets = e.allocations.reduce((n, a) => n + a.sockets, 0);
  const wakes = e.typical_wake_ms != null ? `; that took about ${duration(e.typical_wake_ms)} before` : "";
  return [
    `Put ${e.environment} to sleep?`,
    [
      `Its ${count(e.allocations.length, "allocation")} will take no new requests. ${inFlight === 0 ? "Nothing is in flight" : `${count(inFlight, "request")} in flight may finish within ${duration(e.drain_timeout_ms)}`}; then the processes are stopped, or kept frozen in memory where the contract says so.`,
      sockets > 0 && `${count(sockets, "live socket")} ${sockets === 1 ? "is" : "are"} closed with 1012 “reconnect”, and a client that comes back wakes it again; where a route cuts instead (socket_end), its tabs rest until their users send something.`,
      `The owner and its epoch stay. The next request wakes it${wakes}.`,
    ],
    "Put to sleep",
  ];
}

/**
 * @param {Environment} e
 * @returns {[string, string[], string]}
 */
function waking(e) {
  return [
    `Wake ${e.environment}?`,
    [
      `One allocation is started from the artifact ${short(e.digest)} under epoch ${e.epoch}. A wake that is going on already is joined, not doubled.`,
      `It ${e.sleep_after_ms == null ? "stays up" : `goes back to sleep after ${duration(e.sleep_after_ms)} without a request`}.`,
    ],
    "Wake",
  ];
}
