/** What apps print, as it comes. */

import { follow, get } from "./api.js";
import { fill, h } from "./dom.js";
import { clock, count } from "./words.js";

/** @typedef {import("./api.js").LogLine} Line */
/** @typedef {import("./api.js").LogBatch} LogBatch */
/** @typedef {import("./api.js").Environment} Environment */

/** Lines in the list: more than a person reads, few enough that a page never grows. */
const LINES = 2000;

/**
 * Where a page of output is.
 * @param {Record<string, string>} wanted
 */
export const address = (wanted) => `#/logs?${new URLSearchParams(wanted)}`;

/**
 * @param {HTMLElement} main
 * @param {AbortSignal} signal
 * @param {URLSearchParams} query
 */
export async function logs(main, signal, query) {
  const list = h("ol", { class: "output", tabindex: 0, "aria-label": "Lines, oldest first" });
  const status = h("p", { class: "quiet", role: "status" });
  const empty = h("p", { class: "empty" }, "Nothing that fits was printed, as far as it is kept.");
  const rows = /** @type {Environment[]} */ (await get("/v1/environments?limit=1000"));
  if (signal.aborted) return;
  const apps = [...new Set(rows.map((e) => e.environment.split("/")[0]))].sort();
  const choices = apps.flatMap((app) => {
    const all = rows.map((e) => e.environment).filter((e) => e.startsWith(`${app}/`)).sort();
    return all.length > 1 ? [app, ...all] : all;
  });
  const asked = query.get("of");
  // What it printed is kept longer than a preview is.
  if (asked && !choices.includes(asked)) choices.unshift(asked);
  let paused = false;
  let waiting = 0;
  let missed = false;
  let after = "";
  /** @type {AbortController | null} */
  let stream = null;

  const say = () => {
    const words = [];
    if (paused) words.push(`paused; ${count(waiting, "line")} since`);
    if (missed) words.push("lines were removed from the disk before they were shown");
    fill(status, words.join(" · "));
    empty.hidden = list.childElementCount > 0;
  };
  const take = (/** @type {LogBatch} */ batch, /** @type {string} */ id) => {
    missed ||= batch.missed;
    if (paused) {
      waiting += batch.rows.length;
      say();
      return;
    }
    after = id;
    // Who has scrolled up reads on undisturbed.
    const follows = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
    const of = wanted().get("of") ?? "";
    list.append(...batch.rows.slice(-LINES).map((line) => row(line, !of.includes("/"))));
    while (list.childElementCount > LINES) list.firstElementChild?.remove();
    say();
    if (follows) list.scrollTop = list.scrollHeight;
  };
  const path = () => {
    const out = new URLSearchParams();
    for (const [name, value] of wanted()) {
      if (name !== "of") out.set(name, value);
      else if (value.includes("/")) {
        const [app, environment] = value.split("/");
        out.set("app", app);
        out.set("environment", environment);
      } else out.set("app", value);
    }
    if (after) out.set("after", after);
    else out.set("tail", "500");
    return `/v1/logs/stream?${out}`;
  };
  const start = async () => {
    stream?.abort();
    stream = new AbortController();
    const stop = stream;
    signal.addEventListener("abort", () => stop.abort(), { once: true });
    waiting = 0;
    say();
    if (wanted().get("of")) await follow(path, take, stop.signal);
  };
  const restart = () => {
    fill(list);
    after = "";
    missed = false;
    history.replaceState(null, "", address(Object.fromEntries(wanted())));
    start().catch((e) => fill(status, e.message));
  };

  const choice = (/** @type {string} */ name, /** @type {string} */ label, /** @type {[string, string][]} */ values) =>
    h(
      "label",
      null,
      label,
      h("select", { name, onchange: restart }, values.map(([value, word]) => h("option", { value, selected: query.get(name) === value }, word))),
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
        // It goes on after the last line that is shown.
        if (paused) say();
        else start().catch((e) => fill(status, e.message));
      },
    },
    "Pause",
  );
  const filters = h(
    "form",
    { class: "filters", "aria-label": "Filters", onsubmit: (/** @type {Event} */ e) => e.preventDefault() },
    choice("of", "App", choices.map((c) => [c, c])),
    choice("stream", "Stream", [["", "any"], ["stdout", "stdout"], ["stderr", "stderr"], ["edge", "the edge’s own word"]]),
    typed("process", "Process", "any"),
    typed("allocation", "Allocation", "any"),
    pause,
  );
  const wanted = () => {
    const out = new URLSearchParams();
    for (const [name, value] of new FormData(filters)) if (value) out.set(name, String(value));
    return out;
  };

  fill(
    main,
    h("h1", null, "Logs"),
    h("p", { class: "lead" }, "What apps print, as it comes, over restarts and failed starts. The edge says between the lines what was started and how it ended."),
    filters,
    status,
    list,
    empty,
  );
  await start();
}

/**
 * @param {Line} line
 * @param {boolean} names
 */
function row(line, names) {
  const name = line.environment.split("/")[1];
  const from = `${names && name !== "production" ? `${name} ` : ""}${line.process}`;
  return h(
    "li",
    { class: line.stream },
    h("time", { class: "from", datetime: line.at, title: line.at }, clock(line.at)),
    h("span", { class: "from", title: `${line.allocation ?? ""} ${line.stream}` }, from),
    h("span", { class: line.partial ? "text goes-on" : "text" }, line.text),
  );
}
