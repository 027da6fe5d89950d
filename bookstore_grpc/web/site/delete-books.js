// Deletes several books in one call, after confirmation.

import { call } from "./api.js";
import { submitHandler } from "./book-dialogs.js";
import { byId, countText, failureBox, onClose, quoted } from "./elements.js";

const TITLES_MAX = 5;

/** Delete books after confirmation, all or none. Returns how many, 0 when the dialog was cancelled. */
export function deleteBooks(books) {
  const dialog = byId("delete");
  const place = dialog.querySelector(".failure-place");
  const submit = dialog.querySelector("[type=submit]");
  const doomed = new Map(books.map((book) => [book.id, book]));
  byId("delete-title").textContent = `Delete ${countText(books.length, "book")}?`;
  dialog.querySelector(".close").textContent = books.length === 1 ? "Keep it" : "Keep them";
  byId("delete-text").replaceChildren(...titlesOf(books), ". This cannot be undone.");
  submit.textContent = "Delete";
  place.replaceChildren();
  return new Promise((resolve) => {
    let count = 0;
    onClose(dialog, () => resolve(count));
    dialog.querySelector("form").onsubmit = submitHandler(submit, async () => {
      place.replaceChildren();
      try {
        const changed = await deleteUnchanged(doomed);
        if (changed.length) {
          byId("delete-text").replaceChildren("Another user has changed ", ...titlesOf(changed), ".");
          submit.textContent = "Delete anyway";
          return;
        }
      } catch (failure) {
        return place.replaceChildren(failureBox(failure));
      }
      count = books.length; // those that other users have deleted are gone too
      dialog.close();
    });
    dialog.showModal();
  });
}

/** Delete the books in a map, less those that are already gone. If some have changed, update and return these only. */
async function deleteUnchanged(doomed) {
  while (doomed.size) {
    const requests = [...doomed.values()].map(({ id, etag }) => ({ id, etag }));
    try {
      await call("POST", "books:batchDelete", { body: { requests } });
      return [];
    } catch (failure) {
      const ids = failure.bookIds?.filter((id) => doomed.has(id)) ?? [];
      if (!ids.length) throw failure;
      if (failure.reason === "BOOK_NOT_FOUND") {
        for (const id of ids) doomed.delete(id);
      } else {
        const changed = (await Promise.all(ids.map(current))).filter(Boolean);
        for (const id of ids) doomed.delete(id);
        for (const book of changed) doomed.set(book.id, book);
        if (changed.length) return changed;
      }
    }
  }
  return [];
}

/** Return the current state of a book, or undefined if there is none. */
async function current(id) {
  try {
    return await call("GET", `books/${id}`);
  } catch (failure) {
    if (failure.status !== 404) throw failure;
  }
}

/** Return the nodes that name the first books, and how many more there are. */
function titlesOf(books) {
  const nodes = books.slice(0, TITLES_MAX).flatMap(({ name }) => [", ", quoted(name)]);
  const more = books.length - TITLES_MAX;
  return [...nodes.slice(1), ...(more > 0 ? [` and ${more.toLocaleString("en")} more`] : [])];
}
