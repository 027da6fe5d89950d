// Imports a CSV file in batches, with idempotency keys that make retries safe.

import { call, Failure, newId, uuid } from "./api.js";
import { SETTABLE, bookOf, namesOf } from "./book-fields.js";
import { csvText, readCsv } from "./csv.js";
import { button, byId, countText, element, failureBox, listed, onClose, userText } from "./elements.js";

const REQUIRED = namesOf(SETTABLE.filter(({ isRequired }) => isRequired));
const OPTIONAL = namesOf(SETTABLE.filter(({ isRequired }) => !isRequired));
// The namespace of `bookstore import` too: a file imported by one is not stored again by the other.
const NAMESPACE = "5d0dbb0e-6d0c-4c53-8d4c-2f1f2bd4d9a7";
const BATCH_ROWS = 500;
// Well below the server's limit, even if every character takes six bytes of JSON.
const BATCH_CHARACTERS = 1_000_000;
const ATTEMPTS_MAX = 8;
const REJECTS_SHOWN = 100;

const dialog = byId("import-dialog");
const form = dialog.querySelector("form");
const input = byId("import-file");
const progress = byId("import-progress");
const [running, message, place, rejectedPart] = [".running", ".message", ".failure-place", ".rejected"].map((each) =>
  dialog.querySelector(each),
);
const close = dialog.querySelector(".close");
const submit = dialog.querySelector("[type=submit]");
byId("import-hint").append(
  "A UTF-8 file whose first line names the columns ",
  ...listed(REQUIRED, "conjunction", "code"),
  ...(OPTIONAL.length ? [", and optionally ", ...listed(OPTIONAL, "conjunction", "code")] : []),
  ", in any order; other columns are ignored.",
);

/** Open the dialog that imports files. Resolves when it is closed. */
export function importBooks() {
  let run;
  form.reset();
  clear();
  return new Promise((resolve) => {
    onClose(dialog, () => {
      run?.abort();
      resolve();
    });
    // Escape and the button stop a running import, and close the dialog otherwise.
    close.onclick = () => (run ? run.abort() : dialog.close());
    dialog.oncancel = (event) => {
      if (run && event.target === dialog) event.preventDefault();
      run?.abort();
    };
    input.onchange = clear;
    form.onsubmit = (event) => {
      event.preventDefault();
      const file = input.files[0];
      if (!run) file ? start(new Import(file)) : showMessage("Choose a file first.");
    };

    async function start(work) {
      run = new AbortController();
      clear();
      running.hidden = false;
      progress.value = work.at;
      close.textContent = "Stop";
      submit.hidden = input.disabled = true;
      addEventListener("beforeunload", keepOpen);
      try {
        await work.run(run.signal);
        showMessage(work.summary);
      } catch (error) {
        if (run.signal.aborted) {
          const again = work.isRepeatable ? "Import the same file again to continue: nothing is stored twice." : "";
          showMessage(`Stopped. ${work.summary} ${again}`);
        } else {
          showMessage(work.summary);
          place.replaceChildren(
            error instanceof Failure
              ? failureBox(
                  error,
                  button("Try again", () => start(work), { className: "again" }),
                )
              : element("p", { className: "error", role: "alert" }, error.message),
          );
        }
      } finally {
        offerRejected(work.rejected);
        run = undefined;
        close.textContent = "Close";
        submit.hidden = input.disabled = false;
        running.hidden = work.at < 1;
        removeEventListener("beforeunload", keepOpen);
        (place.querySelector(".again") ?? close).focus();
      }
    }
    dialog.showModal();
  });
}

/** The import of one file. After a failure, `run` continues where it stopped. */
class Import {
  stored = 0;
  created = 0;
  rejected = [];
  isRepeatable = Boolean(crypto.subtle);
  at = 0;
  #entries;
  #batch = [];
  #highestId;

  constructor(file) {
    this.file = file;
  }

  get summary() {
    const stored = `${countText(this.stored, "book")} stored, ${this.created.toLocaleString("en")} of them new`;
    const summary = `${stored}; ${countText(this.rejected.length, "row")} rejected.`;
    return this.isRepeatable
      ? summary
      : `${summary} Without HTTPS, importing the same file again would store its books again.`;
  }

  async run(signal) {
    this.#highestId ??= await highestId(signal);
    this.#entries ??= await this.#open();
    while (await this.#fill()) {
      await this.#store(signal);
      progress.value = this.at;
      showMessage(`${countText(this.stored, "book")} stored so far.`);
      showRejected(this.rejected);
    }
    progress.value = this.at;
  }

  async #open() {
    const bytes = await this.file.arrayBuffer();
    const digest = this.isRepeatable && hex(await crypto.subtle.digest("SHA-256", bytes));
    let text;
    try {
      text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    } catch {
      throw new Error("The file is not UTF-8 text. Spreadsheets can save it as “CSV UTF-8”.");
    }
    return entries(text, digest, this.rejected);
  }

  /** Add rows to the next batch. Returns whether there are any. */
  async #fill() {
    let characters = 0;
    while (!this.#batch.length || (this.#batch.length < BATCH_ROWS && characters < BATCH_CHARACTERS)) {
      const { value: entry, done } = this.#entries.next();
      this.at = done ? 1 : entry.at;
      if (done) break;
      characters += entry.characters;
      this.#batch.push(entry);
    }
    await Promise.all(this.#batch.map(async (entry) => (entry.requestId ??= await requestId(entry.idText))));
    return this.#batch.length > 0;
  }

  /** Store the batch. Rows that the server rejects are recorded and removed, and the others are sent again. */
  async #store(signal) {
    let size = BATCH_ROWS;
    while (this.#batch.length) {
      const part = this.#batch.slice(0, size);
      const requests = part.map(({ book, requestId }) => ({ book, requestId }));
      try {
        const { books } = await withRetries(
          () => call("POST", "books:batchCreate", { body: { requests }, signal }),
          signal,
        );
        this.stored += books.length;
        this.created += books.filter((book) => BigInt(book.id) > this.#highestId).length;
        this.#batch.splice(0, part.length);
      } catch (failure) {
        const reasons = failure.status === 413 ? new Map([[0, failure.message]]) : reasonsByIndex(failure);
        if (!reasons.size) throw failure;
        if (failure.status === 413 && part.length > 1) {
          size = part.length >> 1;
          continue;
        }
        // The response may list only some violations of the last row: send it again.
        if (failure.metadata.omitted_count && reasons.size > 1) reasons.delete(Math.max(...reasons.keys()));
        for (const [index, reason] of reasons) this.#reject(part[index], reason);
        this.#batch = this.#batch.filter((_, index) => !reasons.has(index));
      }
    }
  }

  #reject({ line, values }, reason) {
    this.rejected.push({ line, values, reason });
  }
}

/** Yield the entries of a file that can be sent; other rows are rejected. */
function* entries(text, digest, rejected) {
  const rows = readCsv(text);
  const header = (rows.next().value?.cells ?? []).map((title) => title.trim().toLowerCase());
  const missing = REQUIRED.filter((name) => !header.includes(name));
  if (missing.length) {
    throw new Error(`The first line must name the columns ${REQUIRED.join(", ")}; missing: ${missing.join(", ")}.`);
  }
  const columns = SETTABLE.filter(({ name }) => header.includes(name));
  const texts = columns.filter(({ type }) => type === "text");
  let number = 0;
  for (const { line, cells, at } of rows) {
    const values = Object.fromEntries(header.map((title, index) => [title, cells[index] ?? ""]));
    const idText = digest && `${digest}:${number++}`;
    const reason =
      cells.length > header.length
        ? `has ${cells.length} columns, more than the header's ${header.length}`
        : integerProblem(values, columns);
    if (reason) {
      rejected.push({ line, values, reason });
      continue;
    }
    const characters = texts.reduce((sum, { name }) => sum + values[name].length, 0);
    yield { line, values, idText, at: at / text.length, characters, book: bookOf(values, columns) };
  }
}

/** Return the reason to reject a row whose value should be an integer and is not, if there is one. */
function integerProblem(values, columns) {
  for (const { name, type } of columns) {
    const given = values[name];
    if (type === "text" || !given) continue;
    const number = given.trim();
    if (!/^[+-]?[0-9]+$/.test(number)) return `${name}: is '${given.slice(0, 40)}', not a whole number`;
    if (Number(number) !== (Number(number) | 0)) return `${name}: is ${number.slice(0, 20)}, out of range`;
  }
}

/** Call `work`, and retry after the delay that the server asks for. */
async function withRetries(work, signal) {
  for (let attempts = 1; ; attempts++) {
    try {
      return await work();
    } catch (failure) {
      if (!failure.isRetryable || attempts === ATTEMPTS_MAX) throw failure;
      showMessage(`The server is busy. Retrying in ${countText(failure.retrySeconds, "second")}.`);
      await pause(failure.retrySeconds * 1_000, signal);
    }
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}

function reasonsByIndex(failure) {
  const reasons = new Map();
  for (const { field, description } of failure.violations ?? []) {
    const found = /^requests\[(\d+)\]\.(?:book\.)?(.+)$/.exec(field);
    if (!found) continue;
    const before = reasons.get(Number(found[1]));
    reasons.set(Number(found[1]), `${before ? `${before}; ` : ""}${found[2]}: ${description}`);
  }
  return reasons;
}

/** Return the highest id so far. Books stored from now on have higher ids. */
async function highestId(signal) {
  const { books = [] } = await call("GET", "books", { query: { orderBy: "id desc", pageSize: 1 }, signal });
  return BigInt(books[0]?.id ?? 0);
}

/** Derive the idempotency key of a row from its file and position (RFC 9562, version 5). */
async function requestId(text) {
  if (!text) return newId();
  const namespace = NAMESPACE.match(/[0-9a-f]{2}/g).map((byte) => parseInt(byte, 16));
  const named = new Uint8Array([...namespace, ...new TextEncoder().encode(text)]);
  return uuid(new Uint8Array(await crypto.subtle.digest("SHA-1", named)).slice(0, 16), 5);
}

function hex(buffer) {
  return Array.from(new Uint8Array(buffer), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Show the first of the rejected rows. */
function showRejected(rejected) {
  const count = rejected.length;
  rejectedPart.hidden = !count;
  const body = rejectedPart.querySelector("tbody");
  for (const { line, reason } of rejected.slice(body.rows.length, REJECTS_SHOWN)) {
    body.append(element("tr", {}, element("td", {}, line), userText(reason, "td")));
  }
  byId("rejected-title").textContent =
    `${countText(count, "row")} rejected${count > REJECTS_SHOWN ? `, the first ${REJECTS_SHOWN} are shown` : ""}`;
}

/** Offer all rejected rows as a download, in the format of `bookstore import --rejects`. */
function offerRejected(rejected) {
  // Rows that this page rejects come before those that the server rejects in the same batch.
  rejected.sort((one, other) => one.line - other.line);
  rejectedPart.querySelector("tbody").replaceChildren();
  showRejected(rejected);
  const link = rejectedPart.querySelector("a");
  const names = namesOf(SETTABLE);
  const rows = rejected.map(({ line, reason, values }) => [line, reason, ...names.map((name) => values[name] ?? "")]);
  URL.revokeObjectURL(link.href);
  link.hidden = false;
  link.href = URL.createObjectURL(new Blob([csvText([["line", "reason", ...names], ...rows])], { type: "text/csv" }));
}

function clear() {
  place.replaceChildren();
  rejectedPart.querySelector("tbody").replaceChildren();
  rejectedPart.hidden = rejectedPart.querySelector("a").hidden = running.hidden = true;
  progress.value = 0;
  showMessage("");
}

function showMessage(text) {
  message.textContent = text;
}

function keepOpen(event) {
  event.preventDefault();
}
