// The JSON API: calls, and what becomes of those that fail.

import { askForToken, token } from "./token.js";

const BASE = new URL("../v1/", import.meta.url);
// Longer than servers let a call take unless they are told otherwise.
const PATIENCE_MS = 40_000;

/** A call that failed, with what the server says of it; `status` is 0 where no answer came. */
export class Failure extends Error {
  constructor(status, error, requestId, retryAfter) {
    super(error.message || `The server answered with the status ${status}, and no more.`);
    const details = error.details ?? [];
    const detail = (type) => details.find((each) => each["@type"] === `type.googleapis.com/google.rpc.${type}`) ?? {};
    const { reason = "", metadata = {} } = detail("ErrorInfo");
    this.status = status;
    this.reason = reason;
    this.metadata = metadata;
    this.violations = detail("BadRequest").fieldViolations ?? [];
    this.requestId = detail("RequestInfo").requestId ?? requestId;
    this.retrySeconds = Number(retryAfter) || 1;
    if (metadata.scope && !this.message.includes(metadata.scope))
      this.message += ` It needs the scope ${metadata.scope}.`;
  }

  /** Whether the same call may succeed a little later. */
  get passes() {
    return this.status === 429 || this.status === 503;
  }
}

/** Call the API and answer its JSON. Throws `Failure`, and `AbortError` when `signal` says so. */
export async function call(verb, path, { query = {}, body, etag, signal } = {}) {
  const asked = Object.entries(query).filter(([, value]) => value !== "");
  const url = `${BASE}${path}${asked.length ? `?${new URLSearchParams(asked)}` : ""}`;
  // Named here already, so that a call whose answer is lost can be found in the server's log.
  const requestId = newId();
  const headers = { "X-Request-Id": requestId };
  if (token()) headers.Authorization = `Bearer ${token()}`;
  if (body) headers["Content-Type"] = "application/json";
  if (etag) headers["If-Match"] = `"${etag}"`;
  let answer, text;
  try {
    const ended = AbortSignal.timeout(PATIENCE_MS);
    answer = await fetch(url, {
      method: verb,
      headers,
      body: body && JSON.stringify(body),
      signal: signal ? AbortSignal.any([signal, ended]) : ended,
    });
    text = await answer.text();
  } catch (error) {
    if (signal?.aborted) throw error;
    const late = error.name === "TimeoutError";
    throw new Failure(
      0,
      { message: late ? "The server does not answer." : "The server cannot be reached." },
      requestId,
    );
  }
  const json = parsed(text);
  if (answer.ok) return json;
  const failure = new Failure(
    answer.status,
    json,
    answer.headers.get("X-Request-Id") ?? requestId,
    answer.headers.get("Retry-After"),
  );
  if (answer.status === 401 && (await askForToken(failure.message)))
    return call(verb, path, { query, body, etag, signal });
  throw failure;
}

/** Answer a random UUID. `crypto.randomUUID` is there over HTTPS and on localhost alone. */
export function newId() {
  return uuid(crypto.getRandomValues(new Uint8Array(16)), 4);
}

/** Answer 16 bytes as a UUID of a version (RFC 9562). */
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
    return {}; // of a proxy between here and the server, perhaps
  }
}
