// Talking with the server that this page came from.

const KEY = "cierzo-key";

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (text) => sessionStorage.setItem(KEY, text),
  forget: () => sessionStorage.removeItem(KEY),
};

/** What went wrong. `kind`: "gone" (no server), "busy" (try again after `after` seconds), "key", or "refused". */
export class Failure extends Error {
  constructor(kind, message, after = 0) {
    super(message);
    this.kind = kind;
    this.after = after;
  }
}

async function failureOf(response) {
  const told = await response.json().catch(() => null);
  const message = told?.error?.message ?? `${response.status} ${response.statusText}`;
  const after = Number(response.headers.get("retry-after")) || 1;
  if (response.status === 401) return new Failure("key", message);
  if (response.status === 429) return new Failure("busy", message, after);
  if ([502, 503, 504].includes(response.status)) return new Failure("gone", message, after);
  return new Failure("refused", message);
}

async function ask(path, { body, signal } = {}) {
  const headers = {};
  if (body) headers["content-type"] = "application/json";
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  const method = body ? "POST" : "GET";
  let response;
  try {
    response = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Failure("gone", String(error));
  }
  if (!response.ok) throw await failureOf(response);
  return response;
}

/** `/page/state`, and of `/health` what guards the answers, if something does. */
export async function pageState() {
  const [state, health] = await Promise.all([ask("/page/state"), fetch("/health").catch(() => null)]);
  const told = await health?.json().catch(() => null);
  return { ...(await state.json()), guard: told?.guard ?? null };
}

export const render = async (text) => (await ask("/page/render", { body: { text } })).json();
export const load = (model) => ask("/tokenize", { body: { model, prompt: "" } });

/** Whether the server is there and takes requests. */
export async function ready() {
  try {
    return (await fetch("/ready")).ok;
  } catch {
    return false;
  }
}

/** The chunks of a streamed chat. */
export async function* chat(body, signal) {
  const response = await ask("/v1/chat/completions", { body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new Failure("gone", String(error));
    }
    if (part.done) throw new Failure("gone", "the answer broke off");
    const events = (rest + part.value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue; // a comment that keeps the connection
      if (event === "data: [DONE]") return;
      const chunk = JSON.parse(event.slice(6));
      if (chunk.error) throw new Failure(chunk.error.code === "shutting_down" ? "gone" : "refused", chunk.error.message, 1);
      yield chunk;
    }
  }
}
