// The dialogs that add, edit and delete a book.

import { call, newId } from "./api.js";
import { SETTABLE, bookOf, namesOf } from "./book-fields.js";
import { button, byId, element, failureBox, onClose, quoted, userText, yearText } from "./elements.js";

const dialog = byId("book");
const form = dialog.querySelector("form");
const conflict = dialog.querySelector(".conflict");
form.querySelector(".failure-place").before(...SETTABLE.map(inputField));
const inputs = Object.fromEntries(namesOf(SETTABLE).map((name) => [name, form.elements[name]]));

/** Let the user enter a book, and store it. Returns it, or undefined when the dialog was cancelled. */
export function createBook() {
  let requestId, sent;
  return openForm({
    title: "Add a book",
    action: "Add",
    values: valuesOf({}),
    async store(values) {
      const body = bookOf(values, SETTABLE);
      // The idempotency key: a retry of the same book creates no second one; another book needs another key.
      if (JSON.stringify(body) !== sent) requestId = newId();
      sent = JSON.stringify(body);
      return call("POST", "books", { query: { requestId }, body });
    },
  });
}

/** Let the user edit a book, and store the changes. Returns the new state, or undefined when cancelled. */
export function editBook(book) {
  let known = book;
  return openForm({
    title: "Edit a book",
    action: "Save",
    values: valuesOf(book),
    async store(values) {
      const before = valuesOf(known);
      const changed = SETTABLE.filter(({ name }) => values[name] !== before[name]);
      if (!changed.length) return known;
      try {
        return await change(book.id, values, changed, known.etag);
      } catch (failure) {
        if (failure.reason !== "ETAG_MISMATCH") throw failure;
        const theirs = await call("GET", `books/${book.id}`);
        showConflict(theirs, values, changed, {
          takeTheirs() {
            known = theirs;
            fill(valuesOf(theirs));
          },
          // Fields that only the other user changed keep their values.
          keepMine() {
            known = theirs;
            fill({ ...valuesOf(theirs), ...Object.fromEntries(changed.map(({ name }) => [name, values[name]])) });
            form.requestSubmit();
          },
        });
      }
    },
  });
}

/** Delete a book after confirmation. Returns whether it is deleted. */
export function deleteBook(book) {
  const confirmation = byId("delete");
  const place = confirmation.querySelector(".failure-place");
  const submit = confirmation.querySelector("[type=submit]");
  const describe = (current, before = "") => {
    byId("delete-text").replaceChildren(
      before,
      quoted(current.name),
      " by ",
      userText(current.author),
      ` (${yearText(current.releaseYear)}). This cannot be undone.`,
    );
    submit.textContent = before ? "Delete it anyway" : "Delete";
  };
  let known = book;
  byId("delete-title").textContent = "Delete this book?";
  confirmation.querySelector(".close").textContent = "Keep it";
  describe(known);
  place.replaceChildren();
  return new Promise((resolve) => {
    let isDeleted = false;
    onClose(confirmation, () => resolve(isDeleted));
    confirmation.querySelector("form").onsubmit = submitHandler(submit, async () => {
      place.replaceChildren();
      try {
        await call("DELETE", `books/${book.id}`, { etag: known.etag });
      } catch (failure) {
        try {
          if (failure.reason !== "ETAG_MISMATCH") throw failure;
          known = await call("GET", `books/${book.id}`);
          describe(known, "Another user has changed it. It is now ");
          return;
        } catch (final) {
          if (final.status !== 404) return place.replaceChildren(failureBox(final));
        }
      }
      isDeleted = true;
      confirmation.close();
    });
    confirmation.showModal();
  });
}

function openForm({ title, action, values, store }) {
  const place = form.querySelector(".failure-place");
  const submit = form.querySelector("[type=submit]");
  byId("book-title").textContent = title;
  submit.textContent = action;
  conflict.hidden = true;
  place.replaceChildren();
  showViolations({});
  fill(values);
  return new Promise((resolve) => {
    let stored;
    onClose(dialog, () => resolve(stored));
    form.onsubmit = submitHandler(submit, async () => {
      place.replaceChildren();
      const { given, errors } = givenValues();
      if (showViolations(errors)) return;
      try {
        stored = await store(given);
        if (stored) dialog.close();
      } catch (failure) {
        const found = {};
        for (const { field, description } of failure.violations ?? []) {
          const path = field.replace(/^book\./, "");
          const known = SETTABLE.find(({ name, jsonName }) => path === name || path === jsonName);
          if (known) found[known.name] = description;
        }
        if (!showViolations(found)) place.replaceChildren(failureBox(failure));
      }
    });
    dialog.showModal();
    focusFirst();
  });
}

/** Return the entered values, and the errors of those that should be integers and are not. */
function givenValues() {
  const given = {};
  const errors = {};
  for (const { name, type } of SETTABLE) {
    given[name] = inputs[name].value;
    if (type === "text") continue;
    given[name] = given[name].trim().replace("−", "-");
    if (given[name] && !/^[+-]?\d{1,9}$/.test(given[name])) errors[name] = "is not a whole number";
  }
  return { given, errors };
}

/** Show the violation of each field and focus the first. Returns whether there is any. */
function showViolations(found) {
  for (const { name, title } of SETTABLE) {
    inputs[name].ariaInvalid = name in found ? "true" : null;
    byId(`book-${name}-error`).textContent = name in found ? `${title} ${found[name]}.` : "";
  }
  const first = SETTABLE.find(({ name }) => name in found);
  if (first) inputs[first.name].focus();
  return Boolean(first);
}

function showConflict(theirs, mine, changed, { takeTheirs, keepMine }) {
  const before = valuesOf(theirs);
  const rows = SETTABLE.map((field) => {
    const { name, title } = field;
    const isChanged = changed.includes(field);
    return element(
      "tr",
      { className: isChanged && mine[name] !== before[name] ? "differs" : "" },
      element("th", { scope: "row" }, title),
      userText(before[name], "td"),
      isChanged ? userText(mine[name], "td") : element("td", { className: "hint" }, "none"),
    );
  });
  const heads = ["", "Current", "Your change"].map((text) =>
    element(text ? "th" : "td", text ? { scope: "col" } : {}, text),
  );
  const resolveWith = (then) => () => {
    conflict.hidden = true;
    focusFirst();
    then();
  };
  conflict.replaceChildren(
    element("h3", { id: "conflict-title" }, "Another user has changed this book"),
    element("table", {}, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows)),
    element(
      "div",
      { className: "buttons" },
      button("Edit the current version", resolveWith(takeTheirs)),
      button("Overwrite with my change", resolveWith(keepMine), { className: "danger" }),
    ),
  );
  conflict.hidden = false;
  conflict.focus();
}

function change(id, values, fields, etag) {
  const updateMask = fields.map(({ jsonName }) => jsonName).join(",");
  return call("PATCH", `books/${id}`, { query: { updateMask }, body: bookOf(values, fields), etag });
}

function fill(values) {
  for (const name of namesOf(SETTABLE)) inputs[name].value = values[name];
}

function focusFirst() {
  inputs[SETTABLE[0].name].focus();
}

/** Return the texts that the form has for a book. */
function valuesOf(book) {
  return Object.fromEntries(SETTABLE.map(({ name, jsonName }) => [name, String(book[jsonName] ?? "")]));
}

/** Return a labelled input, with places for its error and its hint. */
function inputField({ name, type, label, hint, isRequired }) {
  const id = `book-${name}`;
  const input = element("input", {
    id,
    name,
    ...(type === "text" && { dir: "auto" }),
    autocomplete: "off",
    required: isRequired,
    attributes: { "aria-describedby": `${id}-error${hint && ` ${id}-hint`}` },
  });
  const field = element(
    "div",
    { className: "field" },
    element("label", { htmlFor: id }, label),
    input,
    element("p", { id: `${id}-error`, className: "error" }),
  );
  if (hint) field.append(element("p", { id: `${id}-hint`, className: "hint" }, hint));
  return field;
}

/** Ignore submits while one is running, and mark the button as busy. */
export function submitHandler(submit, work) {
  let busy = false;
  return async (event) => {
    event.preventDefault();
    if (busy) return;
    busy = true;
    submit.ariaBusy = "true";
    try {
      await work();
    } finally {
      busy = false;
      submit.ariaBusy = null;
    }
  };
}
