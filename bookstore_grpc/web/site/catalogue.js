// The catalogue page. Filter, order and page are kept in the URL.

import { call } from "./api.js";
import { createBook, deleteBook, editBook } from "./book-dialogs.js";
import { FIELDS, namesOf } from "./book-fields.js";
import { rowOf, showRows } from "./book-rows.js";
import { showChanges, showHeldChanges } from "./changes.js";
import { button, byId, countText, element, failureBox, listed, notify, quoted, rangeText } from "./elements.js";
import { selectedBooks } from "./selection.js";

const ORDER = "id desc";
const SIZE = "50";
const TYPING_MS = 250;
// The most pages that "Previous" goes back; the browser's history goes further.
const TRAIL_MAX = 500;

const filter = byId("filter");
const results = byId("results");
const table = results.querySelector("table");
const [first, previous, next] = ["first", "previous", "next"].map(byId);

// The view on the screen, and the one being loaded. `trail` has, for each previous page, its token and the number of
// books before it. `total` is how many books there are on all pages, which the first page of them to be loaded tells.
let shown;
let wanted;
let nextToken = "";
let loading;
let typing;
// The id of the book in a dialog.
let opened;

/** Return the view that the URL describes. */
function viewFromAddress() {
  const query = new URLSearchParams(location.search);
  const { trail = [], before = 0 } = history.state ?? {};
  return {
    filter: query.get("filter") ?? "",
    order: query.get("order") ?? ORDER,
    size: query.get("size") ?? SIZE,
    page: query.get("page") ?? "",
    trail,
    before,
  };
}

function addressOf({ filter, order, size, page }) {
  const query = new URLSearchParams();
  if (filter) query.set("filter", filter);
  if (order !== ORDER) query.set("order", order);
  if (size !== SIZE) query.set("size", size);
  if (page) query.set("page", page);
  return `${location.pathname}${query.size ? `?${query}` : ""}`;
}

/** Load and show a view, then enter it into the history by the method `enter` ("pushState", "replaceState" or none). */
async function show(view, enter) {
  wanted = view;
  loading?.abort();
  const { signal } = (loading = new AbortController());
  results.ariaBusy = "true";
  let page;
  try {
    const query = { filter: view.filter, orderBy: view.order, pageSize: view.size, pageToken: view.page };
    if (!view.total) query.includeTotal = true;
    page = await call("GET", "books", { query, signal });
  } catch (failure) {
    if (signal.aborted) return false;
    wanted = shown;
    showFailure(failure, view, enter);
    return false;
  }
  if (signal.aborted) return false;
  const { books = [], nextPageToken = "", totalSize = 0, totalSizeExceeded = false } = page;
  view.total ??= { count: totalSize, isExceeded: totalSizeExceeded };
  shown = view;
  nextToken = nextPageToken;
  results.ariaBusy = null;
  const { trail, before, isTyped = false } = view;
  const address = addressOf(view);
  const isNew = address !== location.pathname + location.search;
  if (enter) history[isNew ? enter : "replaceState"]({ trail, before, isTyped }, "", address);
  document.title = view.filter ? `${view.filter} – Books` : "Books";
  byId("failure").replaceChildren();
  if (filter.value.trim() === view.filter) showFilterError();
  showOrder();
  showBooks(books);
  showChanges(view.filter, { isOpen: (id) => id === opened, reload });
  return true;
}

/** Show the first page with another filter, order or page size. */
function turnTo(changes, enter = "pushState") {
  const first = { page: "", trail: [], before: 0, total: undefined };
  return show({ ...(wanted ?? viewFromAddress()), isTyped: false, ...changes, ...first }, enter);
}

function search({ isTyped = false } = {}) {
  const text = filter.value.trim();
  if (isTyped && text === wanted?.filter) return showFilterError();
  // A search is one history entry, however many keystrokes it took.
  const enter = isTyped && history.state?.isTyped ? "replaceState" : "pushState";
  return turnTo({ filter: text, isTyped }, enter);
}

function fillFilter(text) {
  clearTimeout(typing);
  filter.value = text;
}

function showFailure(failure, view, enter) {
  results.ariaBusy = null;
  if (failure.reason === "INVALID_FILTER" || failure.violations?.some(({ field }) => field === "filter")) {
    showFilterError(failure, view.filter);
    return;
  }
  const isPermanent = failure.status === 400; // the URL is invalid
  const action = isPermanent
    ? button("Show the whole catalogue", () => reset({}))
    : button("Try again", () => show(view, enter));
  byId("failure").replaceChildren(failureBox(failure, action));
}

/** Show the first page of the catalogue, ignoring the URL, with `changes` only. */
function reset(changes) {
  fillFilter(changes.filter ?? "");
  return turnTo({ filter: "", order: ORDER, size: SIZE, ...changes });
}

/** Show the error of a filter and its position, or clear it without a failure. */
function showFilterError(failure, text) {
  const place = byId("filter-error");
  filter.ariaInvalid = failure ? "true" : null;
  if (!failure) return place.replaceChildren();
  const characters = Array.from(text);
  const column = Number(failure.metadata.column) - 1;
  const parts = [element("p", {}, failure.message)];
  if (column >= 0) {
    const from = Math.max(0, column - 60);
    const mark = element("mark", {}, characters[column] ?? "\u00a0");
    const around = [characters.slice(from, column).join(""), mark, characters.slice(column + 1, column + 60).join("")];
    parts.push(element("p", { className: "where", attributes: { "aria-hidden": "true" } }, ...around));
  }
  const literally = button("Search for this exact text", () => {
    fillFilter(`"${text.replace(/["\\*]/g, "\\$&")}"`);
    search();
    filter.focus();
  });
  place.replaceChildren(...parts, element("p", {}, literally));
}

function showOrder() {
  const [field, direction = "asc"] = shown.order.split(/\s+/);
  for (const head of table.tHead.rows[0].cells) {
    head.ariaSort = head.dataset.field === field ? (direction === "asc" ? "ascending" : "descending") : null;
  }
  byId("order").value = `${field}${direction === "desc" ? " desc" : ""}`;
  const size = byId("size");
  if (![...size.options].some((option) => option.value === shown.size)) size.append(element("option", {}, shown.size));
  size.value = shown.size;
}

function showBooks(books) {
  showRows(books, { edit, remove });
  table.hidden = byId("pager").hidden = !books.length;
  byId("empty").hidden = books.length > 0;
  byId("empty").replaceChildren(...(books.length ? [] : emptyContent()));
  const { page, trail } = shown;
  byId("range").textContent = rangeText({ ...shown, count: books.length, isLast: !nextToken });
  first.ariaDisabled = String(!page);
  previous.ariaDisabled = String(!trail.length);
  next.ariaDisabled = String(!nextToken);
  shown.count = books.length;
  byId("results-title").textContent = byId("found").textContent = books.length ? byId("range").textContent : "No books";
}

function emptyContent() {
  if (shown.filter) {
    return [
      element("p", { className: "large" }, "No book matches this search."),
      button("Show all books", () => reset({})),
    ];
  }
  if (shown.page)
    return [
      element("p", { className: "large" }, "This page has no books."),
      button("Go to the first page", () => turnTo({})),
    ];
  return [
    element("p", { className: "large" }, "The catalogue is empty."),
    element("p", {}, "Add a book, or import a CSV file."),
    element(
      "div",
      { className: "buttons" },
      button("Add the first book", create, { className: "primary" }),
      button("Import a CSV file", importFile),
    ),
  ];
}

async function create() {
  const book = await createBook();
  if (!book) return;
  notify(
    "Added ",
    quoted(book.name),
    ". ",
    button("Show it", () => reset({ filter: `id = ${book.id}` })),
  );
  await refresh();
  // The button of the empty catalogue had the focus and is removed.
  if (document.activeElement === document.body) focusRow(book.id);
}

async function edit(book) {
  const changed = await whileOpen(book, editBook);
  if (changed && changed.etag !== book.etag) {
    notify("Saved ", quoted(changed.name), ".");
    await refresh();
  }
  focusRow(book.id);
}

async function remove(book) {
  const rows = [...table.tBodies[0].rows];
  const at = rows.findIndex((each) => each.dataset.id === book.id);
  if (await whileOpen(book, deleteBook)) {
    notify("Deleted ", quoted(book.name), ".");
    await refresh();
    focusRow((rows[at + 1] ?? rows[at - 1])?.dataset.id);
  }
}

/** Open a dialog for a book, during which its row is not changed. */
async function whileOpen(book, openDialog) {
  opened = book.id;
  try {
    return await openDialog(book);
  } finally {
    opened = undefined;
    showHeldChanges();
  }
}

async function removeSelected() {
  const { deleteBooks } = await import("./delete-books.js");
  const count = await deleteBooks(selectedBooks());
  if (!count) return;
  notify(`Deleted ${countText(count, "book")}.`);
  await refresh();
  results.focus();
}

async function importFile() {
  const { importBooks } = await import("./import.js");
  await importBooks();
  await refresh();
}

/** Reload the current view. */
function refresh() {
  return show({ ...(shown ?? viewFromAddress()), total: undefined });
}

/** Show the first page of the current view with the books that others have added. */
async function reload() {
  await turnTo({});
  results.focus();
}

function focusRow(id) {
  const found = id && rowOf(id)?.querySelector("button");
  (found || results).focus();
}

function step(control, view) {
  control.addEventListener("click", async () => {
    // Ignore clicks while another view is loading.
    if (control.ariaDisabled === "true" || wanted !== shown) return;
    if ((await show(view(), "pushState")) && results.getBoundingClientRect().top < 0) results.scrollIntoView();
  });
}

for (const { name, title, isOrderable, orders } of FIELDS) {
  const sort = () => turnTo({ order: shown?.order === name ? `${name} desc` : name });
  const heading = isOrderable ? button(title, sort) : element("span", {}, title);
  table.tHead.rows[0].append(element("th", { scope: "col", role: "columnheader", dataset: { field: name } }, heading));
  if (!isOrderable) continue;
  const options = [name, `${name} desc`].map((value, index) => element("option", { value }, orders[index]));
  byId("order").append(...options);
}
table.tHead.rows[0].append(
  element("th", { scope: "col", role: "columnheader" }, element("span", { className: "unseen" }, "Actions")),
);

step(first, () => ({ ...shown, page: "", trail: [], before: 0 }));
step(previous, () => ({ ...shown, trail: shown.trail.slice(0, -1), ...shown.trail.at(-1) }));
step(next, () => {
  const { page, before, trail, count } = shown;
  return { ...shown, page: nextToken, before: before + count, trail: [...trail, { page, before }].slice(-TRAIL_MAX) };
});
// The history is for views: do not add an entry for this link.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  results.focus();
});
byId("size").addEventListener("change", ({ target }) => turnTo({ size: target.value }));
byId("order").addEventListener("change", ({ target }) => turnTo({ order: target.value }));
byId("create").addEventListener("click", create);
byId("import").addEventListener("click", importFile);
byId("delete-selected").addEventListener("click", removeSelected);
byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(typing);
  search();
});
filter.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(search, TYPING_MS, { isTyped: true });
});
const searched = FIELDS.filter(({ isSearchable }) => isSearchable).map(({ title }) => title.toLowerCase());
byId("searched-fields").append(...listed(searched, "disjunction"));
byId("filter-fields").append(...listed(namesOf(FIELDS), "unit", "code"));
for (const example of document.querySelectorAll("[data-filter]")) {
  example.textContent = example.dataset.filter;
  example.addEventListener("click", () => {
    fillFilter(example.dataset.filter);
    search();
  });
}
addEventListener("popstate", () => {
  const view = viewFromAddress();
  fillFilter(view.filter);
  show(view);
});

fillFilter(viewFromAddress().filter);
show(viewFromAddress());
