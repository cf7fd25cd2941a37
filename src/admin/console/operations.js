/** Wakes with their phases, and deployments. */

import { follow, get, offers } from "./api.js";
import { badge, fill, h, table } from "./dom.js";
import { Shown, kept } from "./kept.js";
import { bytes, clock, ms, short, stateTone } from "./words.js";

/** @typedef {import("./api.js").Operation} Operation */
/** @typedef {import("./api.js").Deployment} Deployment */

/**
 * @param {HTMLElement} main
 * @param {AbortSignal} signal
 * @param {string[]} _rest
 * @param {URLSearchParams} query
 */
export async function operations(main, signal, _rest, query) {
  const chosen = query.get("operation");
  const wakes = h("section", { "aria-labelledby": "wakes" });
  const deployments = h("section", { "aria-labelledby": "deployments" });
  const waiting = h("section", null);
  const evidence = h("section", null);
  const [ledger, audit] = await Promise.all([offers("/v1/ledger"), offers("/v1/audit")]);

  const shown = new Shown();
  const said = h("p", { role: "status", class: "said" });
  const draw = async () => {
    // Who is asked something is not interrupted by a row that moves.
    if (document.querySelector("dialog[open]")) return;
    const [rows, made] = await Promise.all([
      /** @type {Promise<Operation[]>} */ (get("/v1/operations?limit=200")),
      /** @type {Promise<Deployment[]>} */ (get("/v1/deployments?limit=100")),
    ]);
    if (signal.aborted) return;
    fill(
      wakes,
      h("h2", { id: "wakes" }, "Wakes and promotions"),
      rows.length === 0 && h("p", { class: "empty" }, "Nothing was woken yet."),
      h("ul", { class: "wakes" }, rows.map((o) => wake(o, o.id === chosen))),
    );
    fill(
      deployments,
      h("h2", { id: "deployments" }, "Deployments"),
      made.length === 0
        ? h("p", { class: "empty" }, "Nothing is deployed: vango-edge deploy DIR")
        : table(
            "Deployments, newest first",
            ["Deployment", "Environment", "Artifact", "Made", "Files", "Size", "Owner"],
            made.map((d) => [
              h("code", null, d.id),
              d.environment,
              h("code", { title: d.digest }, short(d.digest)),
              clock(d.created),
              d.files,
              bytes(d.bytes),
              d.current ? badge("owns its hosts", "green") : "",
            ]),
          ),
    );
    if (!ledger && !audit) return;
    const found = await kept(ledger, audit, shown, told);
    if (signal.aborted) return;
    // What waits for an operator comes first; that nothing does is said below.
    fill(waiting, found.some && found.waiting);
    fill(evidence, !found.some && found.waiting, found.kept);
  };

  const told = (/** @type {string} */ words = "") => {
    fill(said, words);
    draw().catch(() => {});
  };

  fill(
    main,
    h("h1", null, "Operations"),
    h("p", { class: "lead" }, "What was woken and promoted: one operation with one executor, however many requests wait for it. Below, what is on record of requests that must not be carried out twice."),
    said,
    waiting,
    wakes,
    evidence,
    deployments,
  );
  await draw();
  document.querySelector(".wakes .chosen")?.scrollIntoView({ block: "center" });
  await follow("/v1/changes/stream", () => draw().catch(() => {}), signal);
}

const PHASES = /** @type {const} */ ([
  ["reserve_us", "reserve", "from the request to an executor", "control-plane"],
  ["artifact_us", "artifact", "the tree is checked, the allocation planned", "edge"],
  ["spawn_us", "start", "until the process runs", "runner"],
  ["ready_us", "ready", "until the app says that it is ready", "allocation"],
]);

/**
 * @param {Operation} o
 * @param {boolean} chosen
 */
function wake(o, chosen) {
  const phases = PHASES.flatMap(([key, name, says, kind]) => {
    const us = o.phases[key];
    return us == null ? [] : [{ name, says, kind, us }];
  });
  const total = phases.reduce((sum, p) => sum + p.us, 0);
  return h(
    "li",
    { class: chosen ? "wake chosen" : "wake" },
    h(
      "div",
      { class: "row" },
      h("b", null, o.environment),
      o.kind !== "wake" && badge(o.kind, "grey"),
      badge(o.state, stateTone(o.state)),
      h("span", null, total > 0 && `in ${ms(total)}`),
      h("span", { class: "quiet" }, clock(o.requested)),
      h("code", { class: "quiet" }, o.id),
      o.allocation && h("code", { class: "quiet" }, o.allocation),
      o.failures > 1 && badge(`${o.failures} failures in a row`, "red"),
    ),
    phases.length > 0 &&
      h(
        "div",
        { class: "bar thin", "aria-hidden": "true" },
        phases.map((p) => {
          const part = h("span", { class: p.kind, title: `${p.name}: ${p.says}` });
          part.style.flexGrow = String(Math.max(p.us / Math.max(1, total), 0.004));
          return part;
        }),
      ),
    phases.length > 0 &&
      h("ul", { class: "legend" }, phases.map((p) => h("li", { class: p.kind, title: p.says }, p.name, " ", h("b", null, ms(p.us))))),
    o.failure && h("p", { class: "problem" }, o.failure.detail),
  );
}
