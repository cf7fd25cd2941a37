/** Elements, as few lines as will do. Text always becomes text: nothing a request carried can be markup. */

/** @typedef {Node | string | number | null | undefined | false} Child */

/**
 * An element. `on…` properties are listeners, `class` and other names are attributes; `null` and
 * `false` leave an attribute out.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, any> | null} [props]
 * @param {...(Child | Child[])} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function h(tag, props, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...present(children));
  return element;
}

/**
 * @param {(Child | Child[])[]} children
 * @returns {(Node | string)[]}
 */
function present(children) {
  return children
    .flat()
    .filter((c) => c !== null && c !== undefined && c !== false)
    .map((c) => (c instanceof Node ? c : String(c)));
}

/**
 * Puts `children` in the place of what is in `parent`.
 * @param {Element} parent
 * @param {...(Child | Child[])} children
 */
export function fill(parent, ...children) {
  parent.replaceChildren(...present(children));
}

/**
 * A word with a colour that says the same again.
 * @param {string} word
 * @param {string} tone
 * @param {string} [means] in more words, for who points at it
 */
export const badge = (word, tone, means) => h("span", { class: `badge ${tone}`, title: means }, word);

/**
 * A small table whose cells carry their column's name, so that a narrow screen can stack them.
 * @param {string} caption
 * @param {string[]} columns
 * @param {Child[][]} rows
 */
export function table(caption, columns, rows) {
  return h(
    "table",
    null,
    h("caption", { class: "unseen" }, caption),
    h("thead", null, h("tr", null, columns.map((c) => h("th", { scope: "col" }, c)))),
    h(
      "tbody",
      null,
      rows.map((cells) => h("tr", null, cells.map((c, i) => h("td", { "data-label": columns[i] }, c)))),
    ),
  );
}

/**
 * Asks before something is changed; resolves to whether it may be.
 * @param {string} title
 * @param {Child[]} says what will happen, a paragraph each
 * @param {string} verb
 * @returns {Promise<boolean>}
 */
export function confirmed(title, says, verb) {
  return new Promise((resolve) => {
    const dialog = h(
      "dialog",
      { "aria-labelledby": "asks", onclose: () => { dialog.remove(); resolve(dialog.returnValue === "yes"); } },
      h("h2", { id: "asks" }, title),
      says.filter(Boolean).map((s) => h("p", null, s)),
      h(
        "form",
        { method: "dialog", class: "row end" },
        h("button", { value: "no" }, "Cancel"),
        h("button", { value: "yes", class: "primary" }, verb),
      ),
    );
    document.body.append(dialog);
    dialog.showModal();
  });
}
