// The rows of the table of books, and the books in them.

import { FIELDS } from "./book-fields.js";
import { button, byId, element, userText } from "./elements.js";
import { checkboxFor, clearSelection, updateCheckbox } from "./selection.js";

const body = byId("results").querySelector("tbody");
const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });
const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });
// By id, without those that were deleted since.
const books = new Map();

/** Show books. The buttons of a row call `edit` and `remove` with the book. */
export function showRows(found, { edit, remove }) {
  clearSelection();
  books.clear();
  body.replaceChildren(...found.map((book) => row(book, { edit, remove })));
}

/** Return the book of a row, or undefined if there is none. */
export function bookOf(id) {
  return books.get(id);
}

export function rowOf(id) {
  return body.querySelector(`tr[data-id="${id}"]`);
}

/** Show the new state of a book in its row. */
export function updateRow(book) {
  const row = rowOf(book.id);
  fillRow(row, book);
  updateCheckbox(row.querySelector("input"), book);
}

/** Keep the row of a book that was deleted, so that nothing moves, and its selection, whose bar moves the table. */
export function markDeleted(id) {
  const row = rowOf(id);
  row.classList.add("deleted");
  for (const each of row.querySelectorAll("button")) {
    each.ariaDisabled = "true"; // it may have the focus
    each.ariaLabel += " (deleted)";
  }
  books.delete(id);
}

function row(book, { edit, remove }) {
  const cell = (className, ...children) => element("td", { className, role: "cell" }, ...children);
  const action = (text, act) => button(text, () => books.has(book.id) && act(books.get(book.id)));
  const created = element(
    "tr",
    { role: "row", dataset: { id: book.id } },
    cell("select", checkboxFor(book)),
    ...FIELDS.map((field) => cell(`${field.type} ${field.name}`)),
    cell("actions", action("Edit", edit), action("Delete", remove)),
  );
  fillRow(created, book);
  return created;
}

function fillRow(row, book) {
  books.set(book.id, book);
  FIELDS.forEach((field, index) => row.cells[index + 1].replaceChildren(...contentOf(book, field)));
  for (const each of row.querySelectorAll("button")) each.ariaLabel = `${each.textContent} ${book.name}`;
}

/** Return the content of a cell: one node, or none where the book lacks the field. */
function contentOf(book, { jsonName, type, text }) {
  const value = book[jsonName] ?? "";
  if (value === "") return [];
  if (type === "text") return [userText(value)];
  if (type === "time") return [time(value)];
  return [element("data", { value }, text(value))];
}

function time(text) {
  const date = new Date(text);
  return element("time", { dateTime: text, title: moment.format(date) }, day.format(date));
}
