// Adding, editing and deleting a book.

import { call, newId } from "./api.js";
import { button, byId, element, failureBox, onClose, quoted, written, yearText } from "./elements.js";

const LABELS = { name: "Title", author: "Author", release_year: "Year" };
const FIELDS = Object.keys(LABELS);
// As JSON spells them.
const JSON_NAMES = { name: "name", author: "author", release_year: "releaseYear" };

const dialog = byId("book");
const form = dialog.querySelector("form");
const conflict = dialog.querySelector(".conflict");
const inputs = Object.fromEntries(FIELDS.map((field) => [field, form.elements[field]]));

/** Ask for a new book, store it, and answer it; undefined when the person gave up. */
export function createBook() {
  let requestId, sent;
  return openForm({
    title: "Add a book",
    action: "Add",
    values: { name: "", author: "", release_year: "" },
    async store(values) {
      const body = bodyOf(values, FIELDS);
      // A retry of the same book makes no second one; another book needs another id.
      if (JSON.stringify(body) !== sent) requestId = newId();
      sent = JSON.stringify(body);
      return call("POST", "books", { query: { requestId }, body });
    },
  });
}

/** Let a book be edited, store what changes, and answer the book as it then is; undefined when the person gave up. */
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
          // What only they have changed stays as they have it.
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

/** Ask whether a book is to be deleted, delete it, and answer whether it is gone. */
export function deleteBook(book) {
  const asked = byId("delete");
  const place = asked.querySelector(".failure-place");
  const submit = asked.querySelector("[type=submit]");
  const say = (current, before = "") => {
    byId("delete-text").replaceChildren(
      before,
      quoted(current.name),
      " by ",
      written(current.author),
      ` (${yearText(current.releaseYear)}). This cannot be undone.`,
    );
    submit.textContent = before ? "Delete it all the same" : "Delete";
  };
  let known = book;
  say(known);
  place.replaceChildren();
  return new Promise((resolve) => {
    let gone = false;
    onClose(asked, () => resolve(gone));
    asked.querySelector("form").onsubmit = busily(submit, async () => {
      place.replaceChildren();
      try {
        await call("DELETE", `books/${book.id}`, { etag: known.etag });
      } catch (failure) {
        try {
          if (failure.reason !== "ETAG_MISMATCH") throw failure;
          known = await call("GET", `books/${book.id}`);
          say(known, "Somebody has changed it meanwhile. It is now ");
          return;
        } catch (final) {
          if (final.status !== 404) return place.replaceChildren(failureBox(final));
        }
      }
      gone = true;
      asked.close();
    });
    asked.showModal();
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

/** Show at each field what is wrong with it, go to the first, and answer whether there was one. */
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
  const heads = ["", "Stored now", "Your change"].map((text) =>
    element(text ? "th" : "td", text ? { scope: "col" } : {}, text),
  );
  const settle = (then) => () => {
    conflict.hidden = true;
    inputs.name.focus();
    then();
  };
  conflict.replaceChildren(
    element("h3", { id: "conflict-title" }, "Somebody has changed this book meanwhile"),
    element("table", {}, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows)),
    element(
      "div",
      { className: "buttons" },
      button("Edit what is stored now", settle(takeTheirs)),
      button("Overwrite with my change", settle(keepMine), { className: "danger" }),
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

/** Do one thing at a time, and let the button show that it is being done. */
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
