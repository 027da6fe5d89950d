// Calls of the JSON API, and their failures.

import { askForToken, token } from "./token.js";

const BASE = new URL("../v1/", import.meta.url);
// Longer than the server's default --max-call-seconds.
const TIMEOUT_MS = 40_000;
// The changes of this page that are remembered: more than arrive before the stream of changes has them.
const OWN_CHANGES_MAX = 10_000;
const ownChanges = new Set();
let writes = 0;

/** A failed call with the server's error; `status` is 0 without a response. */
export class Failure extends Error {
  constructor(status, error, requestId, retryAfter) {
    super(error.message || `The server returned the status ${status} without a message.`);
    const details = error.details ?? [];
    const detail = (type) => details.find((each) => each["@type"] === `type.googleapis.com/google.rpc.${type}`) ?? {};
    const { reason = "", metadata = {} } = detail("ErrorInfo");
    this.status = status;
    this.reason = reason;
    this.metadata = metadata;
    // The ids of the books that the failure is about, as many as the server names.
    this.bookIds = details.flatMap(({ resourceName }) => resourceName?.replace(/^books\//, "") ?? []);
    this.violations = detail("BadRequest").fieldViolations ?? [];
    this.requestId = detail("RequestInfo").requestId ?? requestId;
    this.retrySeconds = Number(retryAfter) || 1;
    if (metadata.scope && !this.message.includes(metadata.scope))
      this.message += ` The call requires the scope ${metadata.scope}.`;
  }

  /** Whether the call can be retried later. */
  get isRetryable() {
    return this.status === 429 || this.status === 503;
  }
}

/** Call the API and return its JSON. Throws `Failure`, or `AbortError` when `signal` is aborted. */
export async function call(verb, path, options = {}) {
  if (verb === "GET") return send(verb, path, options);
  writes += 1;
  try {
    const json = await send(verb, path, options);
    rememberChanges(path, options.body, json);
    return json;
  } finally {
    writes -= 1;
  }
}

/** Open a stream of events, after the event with the id `lastEventId`. Returns the response of `fetch`. */
export function openStream(path, { query = {}, lastEventId, signal } = {}) {
  const { url, headers } = requestTo(path, query);
  if (lastEventId) headers["Last-Event-ID"] = lastEventId;
  return fetch(url, { headers, signal, cache: "no-store" });
}

/** Whether calls are in progress whose changes cannot be recognized yet. */
export function isWriting() {
  return writes > 0;
}

/** Whether a call of this page made a change. */
export function isOwnChange({ type, book }) {
  return ownChanges.has(type === "DELETED" ? book.id : `${book.id} ${book.etag}`);
}

function rememberChanges(path, { requests = [] } = {}, { id, etag, books = [] }) {
  const stored = id ? [{ id, etag }] : books;
  const deleted = stored.length ? [] : [path.replace(/^books./, ""), ...requests.map((request) => request.id)];
  for (const change of [...stored.map((book) => `${book.id} ${book.etag}`), ...deleted]) ownChanges.add(change);
  for (const change of ownChanges) {
    if (ownChanges.size <= OWN_CHANGES_MAX) break;
    ownChanges.delete(change); // the oldest
  }
}

/** Return the URL of a path, and the headers of every request. */
function requestTo(path, query) {
  const given = Object.entries(query).filter(([, value]) => value !== "");
  const url = `${BASE}${path}${given.length ? `?${new URLSearchParams(given)}` : ""}`;
  // Chosen here, so that a call whose response is lost can be found in the server's log.
  const headers = { "X-Request-Id": newId() };
  if (token()) headers.Authorization = `Bearer ${token()}`;
  return { url, headers };
}

async function send(verb, path, { query = {}, body, etag, signal }) {
  const { url, headers } = requestTo(path, query);
  const requestId = headers["X-Request-Id"];
  if (body) headers["Content-Type"] = "application/json";
  if (etag) headers["If-Match"] = `"${etag}"`;
  let response, text;
  try {
    const timeout = AbortSignal.timeout(TIMEOUT_MS);
    response = await fetch(url, {
      method: verb,
      headers,
      body: body && JSON.stringify(body),
      signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
    });
    text = await response.text();
  } catch (error) {
    if (signal?.aborted) throw error;
    const isTimeout = error.name === "TimeoutError";
    throw new Failure(
      0,
      { message: isTimeout ? "The server is not responding." : "Could not connect to the server." },
      requestId,
    );
  }
  const json = parsed(text);
  if (response.ok) return json;
  const failure = new Failure(
    response.status,
    json,
    response.headers.get("X-Request-Id") ?? requestId,
    response.headers.get("Retry-After"),
  );
  if (response.status === 401 && (await askForToken(failure.message)))
    return send(verb, path, { query, body, etag, signal });
  throw failure;
}

/** Return a random UUID. `crypto.randomUUID` exists only over HTTPS and on localhost. */
export function newId() {
  return uuid(crypto.getRandomValues(new Uint8Array(16)), 4);
}

/** Return 16 bytes as a UUID of the given version (RFC 9562). */
export function uuid(bytes, version) {
  bytes[6] = (bytes[6] & 0x0f) | (version << 4);
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/(.{8})(.{4})(.{4})(.{4})(.{12})/, "$1-$2-$3-$4-$5");
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return {}; // perhaps from a proxy
  }
}
