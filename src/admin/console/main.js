/** The console: which page is shown, and what stops when it is left. */

import { Refused } from "./api.js";
import { apps } from "./apps.js";
import { certificates } from "./certificates.js";
import { fill, h } from "./dom.js";
import { explain } from "./explain.js";
import { logs } from "./logs.js";
import { operations } from "./operations.js";
import { trace, traces } from "./traces.js";

/**
 * A page fills `main` and goes on until `signal` says that it was left.
 * @typedef {(main: HTMLElement, signal: AbortSignal, rest: string[], query: URLSearchParams) => Promise<void>} Page
 */

/** @type {Record<string, [string, Page]>} */
const PAGES = {
  traces: ["Traces", (main, signal, rest, query) => (rest[0] ? trace(main, rest[0]) : traces(main, signal, query))],
  explain: ["Explain", explain],
  apps: ["Apps", apps],
  logs: ["Logs", (main, signal, _rest, query) => logs(main, signal, query)],
  operations: ["Operations", operations],
  certificates: ["Certificates", certificates],
};

let left = new AbortController();

/** @param {string} part of an address; one that cannot be decoded is taken as it is */
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

async function show() {
  left.abort();
  left = new AbortController();
  const { signal } = left;
  const main = /** @type {HTMLElement} */ (document.getElementById("page"));
  const [path, query] = location.hash.slice(2).split("?");
  const [name, ...rest] = path.split("/").filter(Boolean).map(decoded);
  const known = Object.hasOwn(PAGES, name) ? name : "traces";
  const [title, page] = PAGES[known];
  const link = /** @type {HTMLElement} */ (document.getElementById("link"));
  delete link.dataset.state;
  fill(link);
  document.title = `${title} · vango-edge`;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === `#/${known}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  fill(main, h("p", { class: "quiet" }, "Loading…"));
  main.focus({ preventScroll: true });
  try {
    await page(main, signal, rest, new URLSearchParams(query));
  } catch (e) {
    if (signal.aborted) return;
    const why = e instanceof Refused ? e.message : `The console failed: ${e}`;
    fill(main, h("p", { class: "problem", role: "alert" }, why), h("button", { onclick: show }, "Try again"));
  }
}

addEventListener("hashchange", () => {
  // The link that skips to the page only moves the focus.
  if (location.hash !== "#page") show();
});
show();
