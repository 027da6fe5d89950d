// Small pieces of the page: elements, notices, dialogs, and how books are written.

export const byId = (id) => document.getElementById(id);

/** Make an element. Data comes in as text and properties alone, never as markup. */
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

/** Text that somebody has written: in its own direction, whatever stands around it. */
export function written(text, tag = "bdi") {
  return element(tag, { dir: "auto" }, text);
}

/** "The Iliad" with its marks, as an isolated piece of a sentence. */
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

/** Tell what has happened, for some seconds, or for as long as the keyboard is in it. */
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

/** Answer what a person can know and do about a failure. */
export function failureBox(failure, ...buttons) {
  const box = element("div", { className: "failure", role: "alert" }, element("p", {}, failure.message));
  if (failure.status === 0 || failure.status >= 500) {
    box.append(
      element(
        "p",
        { className: "hint" },
        "The request, for whoever runs this server: ",
        element("code", {}, failure.requestId),
      ),
    );
  }
  if (buttons.length) box.append(element("div", { className: "buttons" }, ...buttons));
  return box;
}

/** Let buttons of the class "close" close a dialog, and do `then` once when it is closed in whatever way. */
export function onClose(dialog, then) {
  for (const each of dialog.querySelectorAll("button.close")) each.onclick = () => dialog.close();
  dialog.onclose = () => {
    dialog.onclose = null;
    then?.();
  };
}
