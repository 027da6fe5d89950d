// Page elements: notices, dialogs, and formatted values of books.

export const byId = (id) => document.getElementById(id);

/** Create an element. Data is set as text and properties only, never as markup. */
export function element(tag, properties = {}, ...children) {
  const { dataset = {}, attributes = {}, ...rest } = properties;
  const made = Object.assign(document.createElement(tag), rest);
  Object.assign(made.dataset, dataset);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export function button(text, onclick, properties = {}) {
  return element("button", { type: "button", onclick, ...properties }, text);
}

/** Return an element for text of users, with its own writing direction. */
export function written(text, tag = "bdi") {
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
