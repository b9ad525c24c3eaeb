// Requests to this server, relative to the page: answers, streams of events, errors in its words.

const ATTEMPTS = 5;
const UNREACHABLE_S = 3;

/** An error as the server tells it (RFC 9457), or that it cannot be reached (status 0). */
export class ApiError extends Error {
  constructor(problem, retryAfterS) {
    super(problem.detail || problem.title || "The server failed");
    this.status = problem.status ?? 500;
    this.code = problem.code ?? "";
    this.param = problem.param ?? null;
    this.retryAfterS = retryAfterS ?? problem.retry_after_s ?? null;
  }
}

let key = null;
let askForKey = null;
let asking = null;

/** An API key for a server that needs one: the kept one, and `ask(words)` for another. */
export function useKey(kept, ask) {
  key = kept;
  askForKey = ask;
}

export async function get(path) {
  return (await send(path, {})).json();
}

export async function post(path, body, signal) {
  return (await send(path, ofJson(body, signal))).json();
}

/** The events of a stream. */
export async function* stream(path, body, signal) {
  const response = await send(path, ofJson({ ...body, stream: true }, signal));
  for await (const data of lines(response.body)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new ApiError(event.error);
    yield event;
  }
  throw new ApiError({ detail: "The answer ended too early.", status: 0 });
}

/** Any request; `options` are those of fetch. Throws an ApiError, or an AbortError. */
export async function send(path, options) {
  let response;
  try {
    const headers = key ? { ...options.headers, Authorization: `Bearer ${key}` } : options.headers;
    response = await fetch(path, { ...options, headers, credentials: "same-origin", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError({ detail: "The server cannot be reached.", status: 0 }, UNREACHABLE_S);
  }
  if (response.ok) return response;
  const after = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  let problem = { status: response.status };
  try {
    problem = { ...problem, ...(await response.json()) };
  } catch {
    problem.detail = `The server answered ${response.status} ${response.statusText}.`;
  }
  if (response.status === 401 && askForKey && (await newKey(problem.detail))) return send(path, options);
  throw new ApiError(problem, Number.isNaN(after) ? null : after);
}

/** Asks once, however many requests were refused; false if there is none. */
async function newKey(words) {
  asking ??= askForKey(words).finally(() => (asking = null));
  const given = await asking;
  if (given) key = given;
  return Boolean(given);
}

/**
 * Runs `work`; while the server is overloaded or away it waits as long as the server asks for and
 * tries again. `waiting` is told what happened and for how long.
 */
export async function persist(work, signal, waiting) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await work();
    } catch (error) {
      const again = error instanceof ApiError && [0, 429, 503].includes(error.status);
      if (!again || attempt >= ATTEMPTS || error.retryAfterS === null) throw error;
      waiting(error, error.retryAfterS);
      await pause(error.retryAfterS * 1000, signal);
    }
  }
}

export function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    };
    if (signal?.aborted) return stop();
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, milliseconds);
    signal?.addEventListener("abort", stop, { once: true });
  });
}

function ofJson(body, signal) {
  const headers = { "Content-Type": "application/json" };
  return { method: "POST", headers, body: JSON.stringify(body), signal };
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError({ detail: "The connection was lost.", status: 0 }, UNREACHABLE_S);
    }
    if (part.done) return;
    const events = (rest + part.value).split("\n\n");
    rest = events.pop();
    for (const event of events) if (event.startsWith("data: ")) yield event.slice(6);
  }
}
