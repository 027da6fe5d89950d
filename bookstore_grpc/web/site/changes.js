// The changes that others make while the page is open. They are shown in the rows of their books, without moving
// anything, and new books in a line. Without a stream of changes the page works as it does without this module.

import { isOwnChange, isWriting, openStream } from "./api.js";
import { bookOf, markDeleted, rowOf, updateRow } from "./book-rows.js";
import { byId, countText } from "./elements.js";

// Changes are shown together after the first time, and told to screen readers after the second.
const SHOW_MS = 500;
const SAY_MS = 5_000;
// The server sends something every 15 seconds at least. After this time the connection must be lost.
const SILENCE_MS = 45_000;
// A stream that starts later than this after its list has missed changes.
const LATE_MS = 5_000;
const [RETRY_FIRST_MS, RETRY_MAX_MS] = [1_000, 60_000];
const [RECEIVED_MAX, CREATED_MAX] = [10_000, 1_000];

const results = byId("results");
const line = byId("changes");
const heard = byId("changes-heard");

// What catalogue.js does with the list, and the ids of the books that others have changed since it was loaded.
let list;
let found;
// Changes that are not shown yet; and by id, the last ones of books that are in use.
const received = [];
const held = new Map();
let showing, saying;
let sentence = "";
// The filter whose changes are followed, what ends that, and whether the server has no stream of changes.
let followed, following;
let isUnsupported = false;

/** Show the changes of a list that was just loaded: whether a dialog of a book `isOpen(id)`, and how to `reload()`. */
export function showChanges(filter, { isOpen, reload }) {
  list = { isOpen, reload };
  found = { created: new Set(), changed: new Set(), deleted: new Set(), isIncomplete: false };
  held.clear();
  showLine();
  if (filter === followed || isUnsupported) return;
  following?.abort();
  following = new AbortController();
  followed = filter;
  received.length = 0;
  follow(filter, following.signal);
}

/** Show the changes of books that were in use before, such as one whose dialog was open. */
export function showHeldChanges() {
  for (const change of [...held.values()]) update(change);
}

/** Receive changes until `signal` is aborted, or until the server rejects that for good. */
async function follow(filter, signal) {
  const listedAt = Date.now();
  let lastEventId = "";
  let retryMs = RETRY_FIRST_MS;
  for (let attempts = 1; ; attempts++) {
    await untilVisible();
    if (signal.aborted) return;
    const connection = new Connection(signal);
    try {
      const response = await openStream("books:watch", { query: { filter }, lastEventId, signal: connection.signal });
      const step = nextStep(response, lastEventId);
      if (step === "stop") return stopFollowing(response);
      if (step === "start anew") lastEventId = "";
      if (step !== "read") connection.close();
      for await (const { event, id, data } of eventsOf(response, connection)) {
        if (signal.aborted) return;
        if (event === "status") break; // the server shuts down, for example
        if (!data) continue; // a comment
        if (!lastEventId && (attempts > 1 || Date.now() - listedAt > LATE_MS)) missChanges();
        lastEventId = id;
        retryMs = RETRY_FIRST_MS;
        receive(JSON.parse(data).changes ?? []);
      }
    } catch {
      // The connection is lost, or was closed.
    } finally {
      connection.close();
    }
    if (document.hidden) continue;
    await delay(retryMs * (0.5 + Math.random()));
    retryMs = Math.min(2 * retryMs, RETRY_MAX_MS);
  }
}

/** Return what to do with a response: "read" it, "retry", "start anew" because changes are lost, or "stop". */
function nextStep({ ok, status, headers }, lastEventId) {
  if (ok) return headers.get("Content-Type")?.startsWith("text/event-stream") ? "read" : "stop";
  if (lastEventId && (status === 400 || status === 410)) return "start anew";
  return status === 429 || (status >= 500 && status !== 501) ? "retry" : "stop";
}

function stopFollowing({ status }) {
  // With another token, which the next list may bring, the server may have changes.
  if (status === 401 || status === 403) followed = undefined;
  else isUnsupported = true;
}

/** A connection, which is closed with `signal`, when the page is hidden, and when nothing is heard for long. */
class Connection {
  #closing = new AbortController();
  #timer;

  constructor(signal) {
    this.signal = AbortSignal.any([signal, this.#closing.signal]);
    document.addEventListener("visibilitychange", () => this.close(), { signal: this.signal });
    this.hear();
  }

  hear() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.close(), SILENCE_MS);
  }

  close() {
    clearTimeout(this.#timer);
    this.#closing.abort();
  }
}

/** Yield the fields of each event of a response, by name. A comment has none of the known names. */
async function* eventsOf(response, connection) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    connection.hear();
    const blocks = (text + value).split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n").map((each) => each.match(/^(.*?): ?(.*)$/) ?? ["", each, ""]);
      yield Object.fromEntries(lines.map(([, name, field]) => [name, field]));
    }
  }
}

function delay(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

async function untilVisible() {
  while (document.hidden) {
    await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
  }
}

/** Show that changes were missed: those before the stream has started, or too many. */
function missChanges() {
  found.isIncomplete = true;
  showLine();
}

function receive(changes) {
  received.push(...changes);
  if (received.length > RECEIVED_MAX) {
    received.length = 0;
    missChanges();
  }
  if (changes.length) showing ??= setTimeout(showReceived, SHOW_MS);
}

function showReceived() {
  showing = undefined;
  // The next list may have these changes, and the response of a call tells which are those of this page.
  if (isWriting() || results.ariaBusy === "true") {
    showing = setTimeout(showReceived, SHOW_MS);
    return;
  }
  for (const change of received.splice(0)) if (!isOwnChange(change)) show(change);
  showLine();
}

function show(change) {
  const { type, book } = change;
  if (type === "CREATED" && !rowOf(book.id) && found.created.size < CREATED_MAX) found.created.add(book.id);
  if (type === "UPDATED") update(change);
  if (type === "DELETED") {
    held.delete(book.id);
    found.created.delete(book.id);
    if (!bookOf(book.id)) return;
    markDeleted(book.id);
    found.deleted.add(book.id);
  }
}

/** Show the new values of a book that is listed, or only mark its row while the book is in use. */
function update(change) {
  const { book, previousBook } = change;
  held.delete(book.id);
  const current = bookOf(book.id);
  // The list may have been read after the change.
  const isNewer = current && (previousBook?.etag === current.etag || timeOf(book) > timeOf(current));
  if (!isNewer || book.etag === current.etag) return;
  const row = rowOf(book.id);
  const isInUse = list.isOpen(book.id) || isSelected(row);
  row.classList.add("changed");
  row.classList.toggle("stale", isInUse);
  found.changed.add(book.id);
  if (isInUse) held.set(book.id, change);
  else updateRow(book);
}

/** Return the time of the last change as text that can be compared: RFC 3339 without the Z. */
function timeOf({ updateTime }) {
  return updateTime.slice(0, -1);
}

/** Whether text in a row is selected, perhaps to be copied. */
function isSelected(row) {
  const selection = getSelection();
  return !selection.isCollapsed && selection.containsNode(row, true);
}

/** Show whether there are new books, and tell screen readers what has changed, if anything has. */
function showLine() {
  const { created, changed, deleted, isIncomplete } = found;
  const parts = [];
  if (isIncomplete) parts.push("This list may have changed");
  else if (created.size) {
    parts.push(`${created.size < CREATED_MAX ? "" : "More than "}${countText(created.size, "new book")}`);
  }
  line.hidden = !parts.length;
  line.querySelector("span").textContent = parts.join();
  if (changed.size) parts.push(`${countText(changed.size, "book")} changed`);
  if (deleted.size) parts.push(`${countText(deleted.size, "book")} deleted`);
  sentence = parts.length ? `By others: ${parts.join(", ")}.` : "";
  saying ??= setTimeout(say, SAY_MS);
}

function say() {
  saying = undefined;
  heard.textContent = sentence;
}

line.querySelector("button").addEventListener("click", () => list.reload());
line.querySelector(".close").addEventListener("click", () => {
  found.created.clear();
  found.isIncomplete = false;
  showLine();
  results.focus({ preventScroll: true }); // the button is hidden now
});
document.addEventListener("selectionchange", () => held.size && showHeldChanges());
