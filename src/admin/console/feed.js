/** A list that follows a stream of the edge: its filters, its pause, and the line that says where it stands. */

import { follow } from "./api.js";
import { fill, h } from "./dom.js";
import { count } from "./words.js";

/** @typedef {{ name: string, label: string, values: [string, string][] }} Choice one of several values, with the word for each */
/** @typedef {{ name: string, label: string, hint: string }} Typed what a person types */

/**
 * @template Batch
 * @typedef {object} List
 * @property {string} page its name in the address
 * @property {string} noun what a row is
 * @property {(Choice | Typed)[]} fields
 * @property {(wanted: URLSearchParams) => string | null} path of the stream; null when there is nothing to follow yet
 * @property {() => boolean} resumes whether the stream goes on after the last row that is shown
 * @property {() => void} clear forgets what is shown
 * @property {(batch: Batch) => number} take how many of its rows are new here
 * @property {(batch: Batch, id: string) => void} show
 * @property {() => string[]} words what else is to be said
 */

/**
 * The form, the line and what starts them.
 * @template Batch
 * @param {AbortSignal} signal
 * @param {URLSearchParams} query
 * @param {List<Batch>} list
 */
export function feed(signal, query, list) {
  const status = h("p", { class: "quiet", role: "status" });
  let paused = false;
  let waiting = 0;
  /**
   * The next batch is what was before. It is shown even while paused, and counts for nothing that came since:
   * a filter that changes while paused would leave an empty list.
   */
  let begins = true;
  /** @type {AbortController | null} */
  let stream = null;

  const say = () => fill(status, [...(paused ? [`paused; ${count(waiting, list.noun)} since`] : []), ...list.words()].join(" · "));

  const take = (/** @type {Batch} */ batch, /** @type {string} */ id) => {
    if (begins) list.clear();
    const fresh = list.take(batch);
    if (begins || !paused) list.show(batch, id);
    else waiting += fresh;
    begins = false;
    say();
  };

  const start = async () => {
    stream?.abort();
    const stop = (stream = new AbortController());
    signal.addEventListener("abort", () => stop.abort(), { once: true });
    waiting = 0;
    say();
    if (list.path(wanted()) === null) return;
    const path = () => {
      // After the edge was away the first batch repeats what was counted, or what is shown.
      if (list.resumes()) waiting = 0;
      else if (!paused) begins = true;
      return list.path(wanted()) ?? "";
    };
    await follow(path, take, stop.signal);
  };
  const goOn = () => start().catch((e) => fill(status, e.message));
  const restart = () => {
    list.clear();
    begins = true;
    const asked = wanted().toString();
    history.replaceState(null, "", `#/${list.page}${asked ? `?${asked}` : ""}`);
    goOn();
  };

  let typing = 0;
  const control = (/** @type {Choice | Typed} */ field) =>
    "values" in field
      ? h(
          "select",
          { name: field.name, onchange: restart },
          field.values.map(([value, word]) => h("option", { value, selected: query.get(field.name) === value }, word)),
        )
      : h("input", {
          name: field.name,
          type: "search",
          placeholder: field.hint,
          value: query.get(field.name) ?? "",
          autocomplete: "off",
          spellcheck: "false",
          oninput: () => {
            clearTimeout(typing);
            typing = setTimeout(restart, 250);
          },
        });
  const pause = h(
    "button",
    {
      type: "button",
      "aria-pressed": "false",
      onclick: () => {
        paused = !paused;
        pause.setAttribute("aria-pressed", String(paused));
        fill(pause, paused ? "Go on" : "Pause");
        if (paused) say();
        else if (list.resumes()) goOn();
        else restart();
      },
    },
    "Pause",
  );
  const filters = h(
    "form",
    { class: "filters", "aria-label": "Filters", onsubmit: (/** @type {Event} */ e) => e.preventDefault() },
    list.fields.map((field) => h("label", null, field.label, control(field))),
    pause,
  );
  const wanted = () => {
    const out = new URLSearchParams();
    for (const [name, value] of new FormData(filters)) if (value) out.set(name, String(value));
    return out;
  };
  return { filters, status, start };
}
