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

/** Outcomes that are the app's own answer, now or once before, or its artifact's. */
const ANSWERED = new Set(["hot", "asset", "welcomed", "validated", "replayed", "duplicate"]);

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
  if (state === "hot" || state === "ready" || state === "up" || state === "healthy") return "green";
  if (state === "failed" || state === "rolled_back" || state === "down") return "red";
  if (state === "asleep" || state === "draining" || state === "frozen") return "grey";
  return "amber";
}

/** What each outcome that is not a problem's name means. */
const OUTCOMES = /** @type {Record<string, string>} */ ({
  hot: "answered by the app at once",
  woken: "answered by the app after it was woken",
  held: "answered by the app after waiting for a free place",
  asset: "answered from the artifact, without the app",
  welcomed: "let in to the preview, and sent on to the same address",
  validated: "a certificate authority was shown that the host is ours",
  replayed: "answered with the stored response of the first request with this key",
  duplicate: "answered from the record: the app accepted this event before",
  "client-left": "the client left before it was answered",
  "cut-off": "the answer broke off, and the connection was cut there",
  open: "not over yet",
});

/** @param {string} outcome */
export const outcomeMeans = (outcome) => OUTCOMES[outcome] ?? "answered by the edge, not by the app";

/** @param {string | null | undefined} environment */
export const isPreview = (environment) => environment != null && !environment.endsWith("/production");

/**
 * What kind of request this was, as the seven traces are named.
 * @param {Pick<Trace, "class" | "environment" | "method" | "outcome" | "steps">} t
 */
export function title(t) {
  const woke = t.steps.some((s) => s.truth === "Operation table" || s.truth === "Wake operation");
  const byApp = ["hot", "held", "client-left", "cut-off", "open"].includes(t.outcome);
  const when = woke ? " While Cold" : byApp ? " While Hot" : " Answered by the Edge";
  switch (t.class) {
    case "page":
      if (isPreview(t.environment)) return "Preview Deploy Request";
      return `${t.method} Page${woke ? " While Sleeping" : when}`;
    case "action":
      return `${t.method} Action${when}`;
    case "webhook":
      return `Webhook${when}`;
    case "live":
      return "WebSocket Reconnect";
    case "asset":
      return "Immutable Asset Request";
    case "none":
      return t.outcome === "no-route" ? "Request for No Environment" : "Request Refused at the Door";
    default:
      return `${t.method} ${t.class}`;
  }
}
