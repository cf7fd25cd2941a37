/** What apps print, as it comes. */

import { get } from "./api.js";
import { fill, h } from "./dom.js";
import { feed } from "./feed.js";
import { clock } from "./words.js";

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
  let missed = false;
  let after = "";
  let names = false;
  const { filters, status, start } = feed(signal, query, {
    page: "logs",
    noun: "line",
    fields: [
      { name: "of", label: "App", values: choices.map((c) => [c, c]) },
      { name: "stream", label: "Stream", values: [["", "any"], ["stdout", "stdout"], ["stderr", "stderr"], ["edge", "the edge’s own word"]] },
      { name: "process", label: "Process", hint: "any" },
      { name: "allocation", label: "Allocation", hint: "any" },
    ],
    path: (wanted) => {
      const of = wanted.get("of");
      if (!of) return null;
      names = !of.includes("/");
      const [app, environment] = of.split("/");
      wanted.delete("of");
      wanted.set("app", app);
      if (environment) wanted.set("environment", environment);
      if (after) wanted.set("after", after);
      else wanted.set("tail", "500");
      return `/v1/logs/stream?${wanted}`;
    },
    resumes: () => after !== "",
    clear: () => {
      fill(list);
      after = "";
      missed = false;
      empty.hidden = false;
    },
    take: (/** @type {LogBatch} */ batch) => {
      missed ||= batch.missed;
      return batch.rows.length;
    },
    show: (batch, id) => {
      after = id;
      // Who has scrolled up reads on undisturbed.
      const follows = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
      list.append(...batch.rows.slice(-LINES).map((line) => row(line, names)));
      while (list.childElementCount > LINES) list.firstElementChild?.remove();
      empty.hidden = list.childElementCount > 0;
      if (follows) list.scrollTop = list.scrollHeight;
    },
    words: () => (missed ? ["lines were removed from the disk before they were shown"] : []),
  });

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
