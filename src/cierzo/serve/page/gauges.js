// The model and its memory; how much of the context is used, and what of it the sliding window still sees.

import { load } from "./api.js";
import { $, element } from "./dom.js";
import { bytes, number, t } from "./i18n.js";
import { notice } from "./notice.js";
import { modelState, on, refresh, save, session } from "./session.js";
import { path } from "./tree.js";

function models() {
  const { server, conversation } = session;
  if (!server) return;
  const options = server.models.map(({ name, state, weights, cache }) => {
    const size = weights ? `, ${bytes(weights + (cache ?? 0))}` : "";
    return element("option", { value: name }, `${name} (${t(`model-${state}`)}${size})`);
  });
  const shown = options.map((option) => option.textContent).join();
  if (shown !== [...$("model").options].map((option) => option.textContent).join()) $("model").replaceChildren(...options);
  $("model").value = conversation.model;
  const refusal = modelState(conversation.model)?.refusal;
  if (refusal) notice(refusal);
}

async function choose({ target }) {
  const { conversation } = session;
  conversation.model = target.value;
  save(conversation);
  context();
  if (modelState(target.value).state === "loaded") return;
  const polling = setInterval(() => refresh().catch(() => {}), 1000);
  try {
    await load(target.value);
    await refresh();
  } catch (failure) {
    notice(failure.message);
  }
  clearInterval(polling);
}

/** Tokens of what is shown, as far as answers have told; those of an answer that is coming are counted by pieces. */
function used() {
  const turn = session.turns.get(session.conversation.id);
  const told = path(session.conversation).findLast(({ usage }) => usage)?.usage;
  return (told ? told.prompt_tokens + told.completion_tokens : 0) + (turn && !turn.node.usage ? turn.pieces : 0);
}

function context() {
  const tokens = used();
  const model = modelState(session.conversation.model);
  const limit = model?.context ?? null;
  const sizes = (model?.windows ?? []).map(({ size }) => size).filter((size) => size !== null);
  const sees = sizes.length ? Math.min(tokens, ...sizes) : tokens;
  const scale = limit ?? Math.max(tokens, ...sizes, 1);
  const [past, seen] = $("bar").children;
  past.style.width = `${(100 * (tokens - sees)) / scale}%`;
  seen.style.width = `${(100 * sees) / scale}%`;
  const parts = [t(limit ? "context" : "contextEndless", { used: number(tokens), limit: number(limit ?? 0) })];
  if (sizes.length) {
    const all = model.windows.length > sizes.length;
    parts.push(t(all ? "windowSome" : "window", { size: number(Math.min(...sizes)) }));
  }
  $("context").textContent = parts.join(" · ");
  $("bar").setAttribute("aria-label", parts.join(" "));
}

export function start() {
  $("model").addEventListener("change", choose);
  for (const event of ["server", "shown", "language"]) {
    on(event, models);
    on(event, context);
  }
  for (const event of ["turn", "path", "delta"]) on(event, context);
}
