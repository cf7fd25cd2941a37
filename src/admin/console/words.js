/** How values are written for people. */

/** @typedef {import("./api.js").Trace} Trace */

/** @param {number} us microseconds */
export function ms(us) {
  if (us < 1000) return `${us} µs`;
  if (us < 10_000) return `${(us / 1000).toFixed(1)} ms`;
  if (us < 1_000_000) return `${Math.round(us / 1000)} ms`;
  return `${(us / 1_000_000).toFixed(1)} s`;
}

/** @param {number | null | undefined} n milliseconds */
export function duration(n) {
  if (n === null || n === undefined) return "never";
  if (n < 1000) return `${n} ms`;
  const s = Math.round(n / 1000);
  if (s < 120) return `${s} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  if (s < 172_800) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86_400)} days`;
}

/** @param {number} n */
export function bytes(n) {
  if (n < 1024) return `${n} B`;
  if (n < 1 << 20) return `${(n / 1024).toFixed(1)} KiB`;
  return `${(n / (1 << 20)).toFixed(1)} MiB`;
}

/** @param {string} at RFC 3339 */
export function clock(at) {
  const date = new Date(at);
  const today = new Date().toDateString() === date.toDateString();
  const time = date.toLocaleTimeString([], { hour12: false });
  return today ? time : `${date.toLocaleDateString()} ${time}`;
}

/** @param {string} digest */
export const short = (digest) => digest.replace(/^sha256:/, "").slice(0, 12);

/**
 * @param {number} n
 * @param {string} one
 * @param {string} [many]
 */
export const count = (n, one, many) => `${n.toLocaleString()} ${n === 1 ? one : (many ?? `${one}s`)}`;

/** Outcomes that are the app's own answer. */
const ANSWERED = new Set(["hot", "woken", "held", "asset", "preview"]);

/** @param {string} outcome */
export function outcomeTone(outcome) {
  if (outcome === "woken" || outcome === "held") return "amber";
  if (ANSWERED.has(outcome)) return "green";
  if (outcome === "client-left" || outcome === "open") return "grey";
  return "red";
}

/** @param {string} risk */
export const riskTone = (risk) => (risk.startsWith("low") ? "green" : risk.startsWith("medium") ? "amber" : "red");

/** @param {string} state */
export function stateTone(state) {
  if (state === "hot" || state === "ready") return "green";
  if (state === "failed") return "red";
  if (state === "asleep" || state === "draining" || state === "frozen") return "grey";
  return "amber";
}

/**
 * What kind of request this was, as the seven traces are named.
 * @param {Pick<Trace, "class" | "outcome" | "method" | "steps">} t
 */
export function title(t) {
  const woke = t.steps.some((s) => s.truth === "Operation table" || s.truth === "Wake operation");
  const when = woke ? "While Cold" : "While Hot";
  switch (t.class) {
    case "page":
      return `${t.method} Page While ${woke ? "Sleeping" : "Hot"}`;
    case "action":
      return `${t.method} Action ${when}`;
    case "webhook":
      return `Webhook ${when}`;
    case "live":
      return "WebSocket Reconnect";
    case "asset":
      return "Immutable Asset Request";
    case "none":
      return "Request That Nobody Owns";
    default:
      return `${t.method} ${t.class}`;
  }
}
