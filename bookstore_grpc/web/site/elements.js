// Page elements: notices, dialogs, and formatted values of books.

export const byId = (id) => document.getElementById(id);

/** Create an element. Data is set as text and properties only, never as markup. */
export function element(tag, properties = {}, ...children) {
  const { dataset = {}, attributes = {}, ...rest } = properties;
  const created = Object.assign(document.createElement(tag), rest);
  Object.assign(created.dataset, dataset);
  for (const [name, value] of Object.entries(attributes)) created.setAttribute(name, value);
  created.append(...children);
  return created;
}

export function button(text, onclick, properties = {}) {
  return element("button", { type: "button", onclick, ...properties }, text);
}

/** Return an element for text of users, with its own writing direction. */
export function userText(text, tag = "bdi") {
  return element(tag, { dir: "auto" }, text);
}

/** Return an element for a quoted title, with its own writing direction. */
export function quoted(text) {
  return element("q", { dir: "auto" }, text);
}

export function yearText(year) {
  return year < 0 ? `${-year} BCE` : String(year);
}

export function countText(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

/**
 * Return which of all books a page has, such as "Books 51 to 100 of 3,204, page 2 of 65". `before` is the number of books
 * before it, 0 if that is unknown, as on a `page` that was opened from a shared link.
 */
export function rangeText({ page, before, size, count, isLast, total }) {
  if (!page && isLast) return countText(count, "book");
  const last = before + count;
  const all = Math.max(total.count, last); // books may have been added since they were counted
  const allText = `${total.isExceeded ? "more than " : ""}${countText(all, "book")}`;
  if (page && !before) return allText[0].toUpperCase() + allText.slice(1);
  const [from, to] = [before + 1, last].map((each) => each.toLocaleString("en"));
  const range = `Books ${from} to ${to} of ${allText.replace(/ books?$/, "")}`;
  const number = before / size + 1;
  if (!Number.isInteger(number)) return range; // books so long that there are fewer on a page
  const pages = Math.max(number, Math.ceil(all / size)).toLocaleString("en");
  return `${range}, page ${number.toLocaleString("en")}${total.isExceeded ? "" : ` of ${pages}`}`;
}

/** Return the nodes of a list in a sentence, such as "a, b and c"; `type` is that of `Intl.ListFormat`. */
export function listed(texts, type, tag = "span") {
  const parts = new Intl.ListFormat("en-GB", { type }).formatToParts(texts);
  return parts.map(({ type, value }) => (type === "element" ? element(tag, {}, value) : value));
}

let fading;

/** Show a notice for some seconds, or while it has the focus. */
export function notify(...parts) {
  const place = byId("notice");
  const clear = () => place.replaceChildren();
  const fade = () => {
    clearTimeout(fading);
    fading = setTimeout(() => (place.contains(document.activeElement) ? fade() : clear()), 10_000);
  };
  place.replaceChildren(element("p", {}, ...parts), button("×", clear, { ariaLabel: "Close the notice" }));
  fade();
}

/** Return an element that describes a failure and offers `buttons`. */
export function failureBox(failure, ...buttons) {
  const box = element("div", { className: "failure", role: "alert" }, element("p", {}, failure.message));
  if (failure.status === 0 || failure.status >= 500) {
    box.append(
      element(
        "p",
        { className: "hint" },
        "Request id for the operator of this server: ",
        element("code", {}, failure.requestId),
      ),
    );
  }
  if (buttons.length) box.append(element("div", { className: "buttons" }, ...buttons));
  return box;
}

/** Make buttons of the class "close" close a dialog, and call `then` once when it is closed in any way. */
export function onClose(dialog, then) {
  for (const each of dialog.querySelectorAll("button.close")) each.onclick = () => dialog.close();
  dialog.onclose = () => {
    dialog.onclose = null;
    then?.();
  };
}
