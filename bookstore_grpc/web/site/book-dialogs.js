// The dialogs that add, edit and delete a book.

import { call, newId } from "./api.js";
import { button, byId, element, failureBox, onClose, quoted, written, yearText } from "./elements.js";

const LABELS = { name: "Title", author: "Author", release_year: "Year" };
const FIELDS = Object.keys(LABELS);
// Their names in JSON.
const JSON_NAMES = { name: "name", author: "author", release_year: "releaseYear" };

const dialog = byId("book");
const form = dialog.querySelector("form");
const conflict = dialog.querySelector(".conflict");
const inputs = Object.fromEntries(FIELDS.map((field) => [field, form.elements[field]]));

/** Let the user enter a book, and store it. Returns it, or undefined when the dialog was cancelled. */
export function createBook() {
  let requestId, sent;
  return openForm({
    title: "Add a book",
    action: "Add",
    values: { name: "", author: "", release_year: "" },
    async store(values) {
      const body = bodyOf(values, FIELDS);
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
      const changed = FIELDS.filter((field) => values[field] !== before[field]);
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
            fill({ ...valuesOf(theirs), ...Object.fromEntries(changed.map((field) => [field, values[field]])) });
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
  const say = (current, before = "") => {
    byId("delete-text").replaceChildren(
      before,
      quoted(current.name),
      " by ",
      written(current.author),
      ` (${yearText(current.releaseYear)}). This cannot be undone.`,
    );
    submit.textContent = before ? "Delete it anyway" : "Delete";
  };
  let known = book;
  say(known);
  place.replaceChildren();
  return new Promise((resolve) => {
    let gone = false;
    onClose(confirmation, () => resolve(gone));
    confirmation.querySelector("form").onsubmit = busily(submit, async () => {
      place.replaceChildren();
      try {
        await call("DELETE", `books/${book.id}`, { etag: known.etag });
      } catch (failure) {
        try {
          if (failure.reason !== "ETAG_MISMATCH") throw failure;
          known = await call("GET", `books/${book.id}`);
          say(known, "Another user has changed it. It is now ");
          return;
        } catch (final) {
          if (final.status !== 404) return place.replaceChildren(failureBox(final));
        }
      }
      gone = true;
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
    form.onsubmit = busily(submit, async () => {
      place.replaceChildren();
      showViolations({});
      const given = Object.fromEntries(FIELDS.map((field) => [field, inputs[field].value]));
      const year = given.release_year.trim().replace("−", "-");
      if (year && !/^[+-]?\d{1,9}$/.test(year)) {
        return showViolations({ release_year: "is not a whole number" });
      }
      try {
        stored = await store({ ...given, release_year: year });
        if (stored) dialog.close();
      } catch (failure) {
        const found = {};
        for (const { field, description } of failure.violations ?? []) {
          const name = field.replace(/^book\./, "").replace("releaseYear", "release_year");
          if (name in inputs) found[name] = description;
        }
        if (!showViolations(found)) place.replaceChildren(failureBox(failure));
      }
    });
    dialog.showModal();
    inputs.name.focus();
  });
}

/** Show the violation of each field and focus the first. Returns whether there is any. */
function showViolations(found) {
  for (const field of FIELDS) {
    inputs[field].ariaInvalid = field in found ? "true" : null;
    byId(`book-${field}-error`).textContent = field in found ? `${LABELS[field]} ${found[field]}.` : "";
  }
  const first = FIELDS.find((field) => field in found);
  if (first) inputs[first].focus();
  return Boolean(first);
}

function showConflict(theirs, mine, changed, { takeTheirs, keepMine }) {
  const before = valuesOf(theirs);
  const rows = FIELDS.map((field) => {
    const differs = changed.includes(field) && mine[field] !== before[field];
    const row = element("tr", { className: differs ? "differs" : "" }, element("th", { scope: "row" }, LABELS[field]));
    row.append(
      written(before[field], "td"),
      changed.includes(field) ? written(mine[field], "td") : element("td", { className: "hint" }, "none"),
    );
    return row;
  });
  const heads = ["", "Current", "Your change"].map((text) =>
    element(text ? "th" : "td", text ? { scope: "col" } : {}, text),
  );
  const resolveWith = (then) => () => {
    conflict.hidden = true;
    inputs.name.focus();
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
  const updateMask = fields.map((field) => JSON_NAMES[field]).join(",");
  return call("PATCH", `books/${id}`, { query: { updateMask }, body: bodyOf(values, fields), etag });
}

function bodyOf(values, fields) {
  const body = {};
  for (const field of fields) {
    if (field !== "release_year") body[JSON_NAMES[field]] = values[field];
    else if (values[field]) body[JSON_NAMES[field]] = Number(values[field]);
  }
  return body;
}

function fill(values) {
  for (const field of FIELDS) inputs[field].value = values[field];
}

function valuesOf(book) {
  return { name: book.name, author: book.author, release_year: String(book.releaseYear) };
}

/** Ignore submits while one is running, and mark the button as busy. */
function busily(submit, work) {
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
