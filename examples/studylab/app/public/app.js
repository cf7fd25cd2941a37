// The dashboard's two moving parts: saving with an idempotency key, and the live counter.
"use strict";

const $ = (id) => document.getElementById(id);
const wait = (ms) => new Promise((done) => setTimeout(done, ms));

function tell(element, text, kind = "") {
  element.textContent = text;
  element.dataset.kind = kind;
}

// randomUUID needs a secure context; this app also runs on plain HTTP.
function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
}

// Saving. One key for one intent: every retry of it carries the same key, so that a save whose
// answer was lost is not made twice.
const MAX_TRIES = 5;

async function save(text, key) {
  for (let attempt = 1; ; attempt += 1) {
    let why = "No answer";
    let after = 0;
    try {
      const answer = await fetch("/actions/save", {
        method: "POST",
        headers: { "Content-Type": "application/json", "Idempotency-Key": `"${key}"` },
        body: JSON.stringify({ text }),
      });
      if (answer.ok) {
        const repeat = answer.headers.get("Studylab-Repeat") ?? answer.headers.get("Idempotent-Replayed");
        return { note: await answer.json(), repeat: repeat === "true" };
      }
      const problem = await answer.json().catch(() => ({}));
      why = problem.detail ?? problem.title ?? `HTTP ${answer.status}`;
      const header = answer.headers.get("Retry-After");
      // The app keeps the key, so that an unknown outcome (502, 504) may be asked for again. What
      // names no time otherwise is final: a reused key, a bad text.
      const again = header !== null || answer.status >= 502;
      if (!again) throw Object.assign(new Error(why), { final: true });
      after = Number(header) * 1000 || 1000;
    } catch (error) {
      if (error.final) throw error;
    }
    if (attempt === MAX_TRIES) throw new Error(`${why}; gave up after ${attempt} tries`);
    const pause = Math.max(after, 400 * 2 ** attempt) * (1 + Math.random() / 4);
    tell($("save-status"), `${why}. Trying again in ${Math.ceil(pause / 1000)} s with the same key.`, "warn");
    await wait(pause);
  }
}

function show(note) {
  if (document.querySelector(`#notes li[data-id="${Number(note.id)}"]`)) return;
  const item = document.createElement("li");
  const text = document.createElement("p");
  const about = document.createElement("small");
  item.dataset.id = note.id;
  item.className = "new";
  text.textContent = note.text;
  about.textContent = `#${note.id} · just now · ${note.allocation}`;
  item.append(text, about);
  $("notes").prepend(item);
  $("notes-total").textContent = Number(note.id).toLocaleString("en");
}

$("save").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.currentTarget;
  const button = form.querySelector("button");
  const key = newKey();
  button.disabled = true;
  tell($("save-status"), "Saving…");
  try {
    const { note, repeat } = await save($("text").value, key);
    show(note);
    form.reset();
    tell($("save-status"), repeat ? "Saved; an earlier try had arrived." : `Saved by ${note.allocation}.`, "good");
  } catch (error) {
    tell($("save-status"), `Not saved: ${error.message}`, "bad");
  } finally {
    button.disabled = false;
  }
});

// The live counter. Any end of the socket is a reason to come back, later each time and never
// together with every other tab; but for 1013, "try again later, upon user action": the app sleeps, and
// an open tab that is not looked at must not wake it.
const FIRST_PAUSE = 400;
const LAST_PAUSE = 15000;
const ASLEEP = 1013;
let socket = null;
let waiting = 0;
let failures = 0;
let connects = 0;
let lastAllocation = null;

function state(name) {
  $("live").dataset.state = name;
  $("live").textContent = name;
  $("inc").disabled = name !== "connected" && name !== "asleep";
}

function add() {
  socket.send(JSON.stringify({ type: "inc" }));
}

// A user is there.
function wake() {
  if ($("live").dataset.state !== "asleep") return;
  state("waking");
  connect();
}

function greeted(hello) {
  failures = 0;
  connects += 1;
  state("connected");
  $("count").textContent = hello.count;
  $("live-session").textContent = hello.session.slice(0, 8);
  $("live-session").title = hello.session;
  $("live-allocation").textContent = hello.allocation;
  $("live-reconnects").textContent = connects - 1;
  const verdict = hello.verdict ?? (hello.resumed ? "resumed" : "fresh");
  $("live-verdict").textContent = hello.reason ? `${verdict}: ${hello.reason}` : verdict;
  if (hello.resumed) {
    const moved = lastAllocation !== null && lastAllocation !== hello.allocation;
    const how = hello.state === "hydrated" ? ", and its counter was read from the session store." : ".";
    tell($("live-status"), moved ? `Your session moved to another allocation${how}` : `Your session was still here${how}`, "good");
  } else if (connects > 1) {
    tell($("live-status"), "Your session is gone; this is a fresh one.", "warn");
  } else {
    tell($("live-status"), "A fresh session, kept in this allocation's memory.");
  }
  lastAllocation = hello.allocation;
  for (; waiting > 0; waiting -= 1) add();
}

function connect() {
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  socket = new WebSocket(`${scheme}//${location.host}/vango/live`);
  socket.onmessage = (event) => {
    const message = JSON.parse(event.data);
    if (message.type === "hello") greeted(message);
    else if (message.type === "count") $("count").textContent = message.count;
    else if (message.type === "ping") socket.send(JSON.stringify({ type: "pong" }));
  };
  socket.onclose = (event) => {
    if (event.code === ASLEEP) {
      state("asleep");
      tell($("live-status"), "The app sleeps. It wakes when you do something here.");
      return;
    }
    failures += 1;
    const pause = Math.min(LAST_PAUSE, FIRST_PAUSE * 2 ** (failures - 1)) * (0.5 + Math.random());
    state("reconnecting");
    const why = event.reason ? ` (${event.reason})` : "";
    tell($("live-status"), `The socket closed with ${event.code}${why}. Trying again in ${(pause / 1000).toFixed(1)} s.`, "warn");
    setTimeout(connect, pause);
  };
}

$("inc").addEventListener("click", () => {
  if (socket.readyState === WebSocket.OPEN) return add();
  waiting += 1;
  wake();
});
$("save").addEventListener("submit", wake);
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") wake();
});

connect();
