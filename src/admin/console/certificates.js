/** Certificates: which each host has, why it has none, and an order before its time. */

import { follow, get, post } from "./api.js";
import { badge, confirmed, fill, h, table } from "./dom.js";
import { clock } from "./words.js";

/** @typedef {import("./api.js").Certificate} Certificate */

/** Orders move without a revision of routing. */
const EVERY = 2000;

/**
 * @param {HTMLElement} main
 * @param {AbortSignal} signal
 */
export async function certificates(main, signal) {
  const said = h("p", { role: "status", class: "said" });
  const list = h("div", { class: "certificates" });
  let drawn = "";

  const draw = async () => {
    if (document.hidden || document.querySelector("dialog[open]")) return;
    const rows = /** @type {Certificate[]} */ (await get("/v1/certificates?limit=1000"));
    if (signal.aborted) return;
    // Drawn anew only when something shows: a button that has the focus keeps it.
    const now = JSON.stringify(rows);
    if (now === drawn) return;
    drawn = now;
    const focus = document.activeElement?.getAttribute("data-key");
    fill(list, rows.length === 0 ? h("p", { class: "empty" }, "No listener serves HTTPS: [[server.tls]] in edge.toml makes one.") : shown(rows, act));
    if (focus) /** @type {HTMLElement | null} */ (list.querySelector(`[data-key="${CSS.escape(focus)}"]`))?.focus();
  };

  const act = async (/** @type {Certificate} */ c) => {
    const good = isGood(c);
    if (!(await confirmed(`Order a certificate for ${c.name} now?`, says(c, good), "Order it"))) return;
    fill(said, `Ordering a certificate for ${c.name}…`);
    try {
      const row = /** @type {Certificate} */ (await post(`/v1/certificates/${encodeURIComponent(c.name)}/renew`, { force: good }));
      fill(said, `${c.name}: ${row.order ?? "no order"}${row.order === "failed" && row.error ? `: ${row.error}` : ""}`);
    } catch (x) {
      fill(said, x instanceof Error ? x.message : String(x));
    }
    await draw();
  };

  fill(
    main,
    h("h1", null, "Certificates"),
    h("p", { class: "lead" }, "From files, or ordered from the authority of [acme], each host by itself. What failed is tried again by itself, later each time; no other host waits for it."),
    said,
    list,
  );
  await draw();
  const again = setInterval(() => draw().catch(() => {}), EVERY);
  signal.addEventListener("abort", () => clearInterval(again), { once: true });
  await follow("/v1/changes/stream", () => draw().catch(() => {}), signal);
}

/** @param {Certificate} c */
const isGood = (c) => c.expires != null && new Date(c.expires) > new Date() && c.next != null && new Date(c.next) > new Date();

/**
 * @param {Certificate} c
 * @returns {[string, string]} the state in a word, and its colour
 */
function state(c) {
  const over = c.expires != null && new Date(c.expires) <= new Date();
  if (over) return ["ran out", "red"];
  if (c.order === "failed") return [c.expires ? "renewal failed" : "failed", c.expires ? "amber" : "red"];
  if (c.order && c.order !== "issued") return [c.order, "amber"];
  if (c.expires) return ["good", "green"];
  return c.source === "acme" ? ["not ordered yet", "amber"] : ["none", "grey"];
}

/**
 * @param {Certificate[]} rows
 * @param {(c: Certificate) => void} act
 */
function shown(rows, act) {
  return table(
    "Certificates by name",
    ["Host", "State", "From", "Good until", "Next try", "Why, or file", "Order"],
    rows.map((c) => {
      const [word, tone] = state(c);
      const goesOn = c.order != null && c.order !== "issued" && c.order !== "failed";
      return [
        h("b", null, c.name),
        badge(word, tone),
        c.source,
        c.expires ? clock(c.expires) : "–",
        c.next ? clock(c.next) : "–",
        h("span", { class: "quiet" }, c.error ?? c.file ?? ""),
        c.source === "acme" ? h("button", { class: "chip", "data-key": `${c.name} now`, disabled: goesOn, onclick: () => act(c) }, "Try now…") : "",
      ];
    }),
  );
}

/**
 * @param {Certificate} c
 * @param {boolean} good
 */
const says = (c, good) => [
  good && `Its certificate is good until ${clock(c.expires ?? "")} and is renewed by itself. Another one now counts against the authority’s limits.`,
  c.order === "failed" && c.error && `Its last order failed: ${c.error}`,
  "One order is placed with the authority. An order that is under way is joined, not doubled. What the authority said to wait and acme.orders_per_hour count all the same.",
];
