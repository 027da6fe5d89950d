// The books of the page that are selected, and the bar that says so.

import { byId, countText, element } from "./elements.js";

const bar = byId("selection");
const all = byId("select-all");
// The checkboxes of the page, each with its book.
const boxes = new Map();

/** Return the checkbox of a book's row. */
export function checkboxFor(book) {
  const box = element("input", { type: "checkbox", ariaLabel: `Select ${book.name}`, onchange: showSelection });
  boxes.set(box, book);
  return box;
}

/** Replace the book of a checkbox by its new state. */
export function updateCheckbox(box, book) {
  box.ariaLabel = `Select ${book.name}`;
  boxes.set(box, book);
}

/** Return the selected books, in the order of the page. */
export function selectedBooks() {
  return [...boxes].filter(([box]) => box.checked).map(([, book]) => book);
}

/** Forget the books of the page, before another one is shown. */
export function clearSelection() {
  boxes.clear();
  showSelection();
}

function selectAll(isSelected) {
  for (const box of boxes.keys()) box.checked = isSelected;
  showSelection();
}

function showSelection() {
  const count = selectedBooks().length;
  all.checked = count > 0 && count === boxes.size;
  all.indeterminate = count > 0 && count < boxes.size;
  bar.querySelector("p").textContent = count ? `${countText(count, "book")} selected` : "";
  for (const each of bar.querySelectorAll("button")) each.hidden = !count;
}

all.addEventListener("change", () => selectAll(all.checked));
byId("clear-selection").addEventListener("click", () => {
  selectAll(false);
  byId("results").focus(); // the button is hidden now
});
