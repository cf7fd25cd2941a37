(function () {
  "use strict";
  // "go": a page that goes on by itself. "ask": a form, which its person sends again. "wait": a page that
  // only goes on once its app is up.
  var box = document.querySelector("[data-follow]");
  if (!box || !window.fetch) return;
  var mode = box.getAttribute("data-follow");
  var address = box.getAttribute("data-at");
  var least = 1, most = 5, slow = 30, patience = 900;
  var since = Date.now(), pause = least, state = "", timer = 0, ticking = 0, due = 0, asking = false, over = false, leaving = false, calling = false;

  function each(selector, act) {
    Array.prototype.forEach.call(document.querySelectorAll(selector), act);
  }
  // Half as long to half as long again: pages that were opened together do not ask together.
  function about(seconds) {
    return seconds * (0.5 + Math.random());
  }
  // How often this address was tried in a row, so that a crowd that is refused again comes more seldom.
  function tried(add) {
    try {
      var kept = JSON.parse(sessionStorage.getItem("vango-edge") || "{}");
      var same = kept.at === location.pathname && Date.now() - kept.when < 120000;
      var n = same ? kept.n : 0;
      if (add) sessionStorage.setItem("vango-edge", JSON.stringify({ at: location.pathname, when: Date.now(), n: n + 1 }));
      return n;
    } catch (e) {
      return 0;
    }
  }
  function show(now) {
    if (now !== state) {
      state = now;
      document.documentElement.setAttribute("data-state", now);
      each("[data-when]", function (e) {
        e.hidden = (" " + e.getAttribute("data-when") + " ").indexOf(" " + now + " ") < 0;
      });
    }
    clearInterval(ticking);
    ticking = now === "failed" ? setInterval(tick, 1000) : 0;
    tick();
  }
  function tick() {
    var left = Math.max(1, Math.ceil((due - Date.now()) / 1000));
    each("[data-seconds]", function (e) { e.textContent = left; });
  }
  function later(seconds) {
    clearTimeout(timer);
    due = Date.now() + seconds * 1000;
    timer = setTimeout(ask, seconds * 1000);
  }
  function go(within) {
    over = true;
    clearTimeout(timer);
    show("going");
    tried(true);
    setTimeout(function () {
      location.reload();
      // What came was no page: a download leaves this one where it is.
      setTimeout(function () { show("over"); }, 60000);
    }, Math.random() * within * 1000);
  }
  function answered(told) {
    var seen = !document.hidden;
    if (told.state === "ready") {
      if (mode !== "ask") return go(told.retry_after);
      // It may fall asleep again before its person is back.
      show("ready");
      return later(about(slow));
    }
    if (told.state === "asleep") {
      // The next request wakes it: that of a page that is looked at.
      if (mode === "go" && seen) return go(told.retry_after);
      show("asleep");
      return later(about(mode === "wait" ? slow / 3 : slow));
    }
    if (told.state === "failed") {
      // All come later than that.
      later(told.retry_after * (1 + Math.random() / 4) + 0.25);
      return show("failed");
    }
    show("starting");
    pause = Math.min(pause * 1.3, Date.now() - since < 120000 ? most : slow);
    later(about(Math.max(pause, told.retry_after)));
  }
  function ask() {
    if (over || asking) return;
    if (Date.now() - since > patience * 1000) return show("over");
    var stop = window.AbortController ? new AbortController() : null;
    var limit = setTimeout(function () { if (stop) stop.abort(); }, 10000);
    asking = true;
    fetch(address, { cache: "no-store", credentials: "same-origin", signal: stop ? stop.signal : undefined })
      .then(function (answer) {
        // Another owner, other rules, no token any more: a page finds that out by itself.
        if (!answer.ok && answer.status < 500 && answer.status !== 429) return { state: mode === "ask" ? "over" : "asleep", retry_after: 1 };
        if (!answer.ok) throw new Error(answer.status);
        return answer.json();
      })
      .then(function (told) {
        if (told.state === "over") { over = true; return show("over"); }
        answered(told);
      })
      .catch(function () {
        show("lost");
        pause = Math.min(pause * 1.3, most);
        later(about(pause));
      })
      .then(function () { clearTimeout(limit); asking = false; });
  }
  function look() {
    if (document.hidden || over) return;
    since = Date.now();
    pause = least;
    if (state !== "failed") later(Math.random());
  }

  each("[data-again]", function (e) {
    e.addEventListener("click", function () {
      e.disabled = true;
      over = true;
      clearTimeout(timer);
      show("going");
      calling = true;
      location.reload();
      calling = false;
      // The person may say no to the browser's question. Once it is on its way, a second click would send
      // it a second time.
      setTimeout(function () {
        if (leaving) return;
        e.disabled = over = false;
        show("over");
        later(least);
      }, 3000);
    });
  });
  window.addEventListener("beforeunload", function () { leaving = true; });
  // While reload() runs nothing is sent yet: what ends it then is the person's no. What ends it later may have arrived.
  if (window.navigation) window.navigation.addEventListener("navigateerror", function () { if (calling) leaving = false; });
  document.addEventListener("visibilitychange", look);
  window.addEventListener("online", look);
  show(box.getAttribute("data-begin"));
  var first = Number(box.getAttribute("data-after"));
  later(state === "failed" ? first : Math.min(about(least) * Math.pow(2, tried(false)), slow));
  tick();
})();
