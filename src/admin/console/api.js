/** The admin API, and the token it may want. Types come from its OpenAPI document. */

import { fill, h } from "./dom.js";

/** @typedef {import("./schema.d.ts").components["schemas"]} Schemas */
/** @typedef {Schemas["TraceRow"]} Trace */
/** @typedef {Schemas["StepText"]} Step */
/** @typedef {Schemas["TraceBatch"]} TraceBatch */
/** @typedef {Schemas["LogRow"]} LogLine */
/** @typedef {Schemas["LogBatch"]} LogBatch */
/** @typedef {Schemas["EnvironmentRow"]} Environment */
/** @typedef {Schemas["OperationRow"]} Operation */
/** @typedef {Schemas["DeploymentRow"]} Deployment */
/** @typedef {Schemas["Explanation"]} Explanation */
/** @typedef {Schemas["LedgerRow"]} Kept */
/** @typedef {Schemas["AuditRow"]} Audited */
/** @typedef {Schemas["EvidenceRow"]} Evidence */
/** @typedef {Schemas["PromotionRow"]} Promotion */
/** @typedef {Schemas["CertificateRow"]} Certificate */
/** @typedef {Schemas["Done"]} Done */

/** The token lives as long as the tab. */
const TOKEN = "vango-edge-token";

/** An answer that is not the wanted one. Its message is the API's own. */
export class Refused extends Error {
  /**
   * @param {string} message
   * @param {number} status
   */
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** @returns {Record<string, string>} */
function headers() {
  const token = sessionStorage.getItem(TOKEN);
  return token ? { authorization: `Bearer ${token}` } : {};
}

/**
 * @param {string} path
 * @param {RequestInit} [init]
 * @returns {Promise<Response>}
 */
async function call(path, init = {}) {
  for (;;) {
    /** @type {Response} */
    let response;
    try {
      response = await fetch(path, { ...init, headers: { ...headers(), .../** @type {Record<string, string>} */ (init.headers) } });
    } catch (e) {
      if (e instanceof DOMException && e.name === "AbortError") throw e;
      throw new Refused("The edge does not answer.", 0);
    }
    if (response.ok) return response;
    if (response.status === 401) {
      await askToken(sessionStorage.getItem(TOKEN) !== null);
      continue;
    }
    const problem = await response.json().catch(() => null);
    throw new Refused(problem?.detail ?? `${response.status} ${response.statusText}`, response.status);
  }
}

/** @type {Promise<void> | null} */
let asking = null;

/**
 * One question, however many calls wait for its answer.
 * @param {boolean} wrong the token that was sent is not known
 */
function askToken(wrong) {
  asking ??= new Promise((resolve) => {
    const input = h("input", { type: "password", name: "token", id: "token", required: true, autocomplete: "off" });
    const dialog = h(
      "dialog",
      { "aria-labelledby": "asks", oncancel: (/** @type {Event} */ e) => e.preventDefault() },
      h("h2", { id: "asks" }, "This edge wants a token"),
      h("p", null, wrong ? "It does not know the one it was given." : "One of admin.tokens in its configuration. It is kept until this tab is closed."),
      h(
        "form",
        {
          onsubmit: (/** @type {Event} */ e) => {
            e.preventDefault();
            sessionStorage.setItem(TOKEN, input.value.trim());
            dialog.close();
            dialog.remove();
            asking = null;
            resolve();
          },
        },
        h("label", { for: "token" }, "Token"),
        input,
        h("div", { class: "row end" }, h("button", { class: "primary" }, "Use it")),
      ),
    );
    document.body.append(dialog);
    dialog.showModal();
  });
  return asking;
}

/** @type {Promise<Set<string>> | null} */
let resources = null;

/**
 * Whether this edge has a resource, by its OpenAPI document: a page shows what there is.
 * @param {string} path as in the document, `/v1/apps/{app}/promote`
 */
export async function offers(path) {
  resources ??= call("/v1/openapi.json").then(async (r) => new Set(Object.keys((await r.json()).paths)));
  return (await resources).has(path);
}

/**
 * @template T
 * @param {string} path
 * @returns {Promise<T>}
 */
export const get = async (path) => (await call(path)).json();

/**
 * A page of a list, and whether more rows follow it (RFC 8288).
 * @template T
 * @param {string} path
 * @returns {Promise<{rows: T[], more: boolean}>}
 */
export async function page(path) {
  const response = await call(path);
  const more = /rel="next"/.test(response.headers.get("link") ?? "");
  return { rows: await response.json(), more };
}

/**
 * @template T
 * @param {string} path
 * @param {unknown} [body]
 * @returns {Promise<T>}
 */
export const post = async (path, body = {}) =>
  (await call(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  })).json();

/**
 * Follows server-sent events until `signal` says to stop, and begins again when the edge was away.
 * `EventSource` cannot send a token; this reads the same format (WHATWG HTML, section 9.2.6).
 * @param {string | (() => string)} path asked for each time, so that it can go on where it was
 * @param {(data: any, id: string) => void} take the `id` of an event is the place to go on after
 * @param {AbortSignal} signal
 */
export async function follow(path, take, signal) {
  while (!signal.aborted) {
    try {
      const response = await call(typeof path === "string" ? path : path(), { signal });
      link("live");
      await read(response, take);
    } catch (e) {
      if (signal.aborted) return;
      if (e instanceof Refused && e.status >= 400 && e.status < 500) throw e;
    }
    if (signal.aborted) return;
    link("away");
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

/**
 * @param {Response} response
 * @param {(data: any, id: string) => void} take
 */
async function read(response, take) {
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += decoder.decode(value, { stream: true });
    const events = rest.split("\n\n");
    rest = events.pop() ?? "";
    for (const event of events) {
      const field = (/** @type {string} */ name) =>
        event.split("\n").filter((l) => l.startsWith(`${name}:`)).map((l) => l.slice(name.length + 1).trimStart());
      const data = field("data");
      if (data.length > 0) take(JSON.parse(data.join("\n")), field("id")[0] ?? "");
    }
  }
}

/** @param {"live" | "away"} state */
export function link(state) {
  const place = document.getElementById("link");
  if (!place || place.dataset.state === state) return;
  place.dataset.state = state;
  fill(place, state === "live" ? "live" : "edge away, trying again");
}
