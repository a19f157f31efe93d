// What the page shows now, and who wants to know when it changes.

import * as api from "./api.js";
import { t } from "./i18n.js";
import { notice } from "./notice.js";
import * as store from "./store.js";
import { newConversation } from "./tree.js";

const KEPT = "cierzo-settings";
const listeners = {};

export const session = {
  conversation: null,
  /** What `/page/state` said last. */
  server: null,
  /** Answers that are coming, by conversation. */
  turns: new Map(),
};

export function on(event, told) {
  (listeners[event] ??= []).push(told);
}

/** "shown": another conversation; "path": other messages; "node": one changed; "delta": one grew; "turn", "server", "list". */
export function emit(event, ...about) {
  for (const told of listeners[event] ?? []) told(...about);
}

export const kept = () => JSON.parse(localStorage.getItem(KEPT) ?? "{}");
export const keep = (values) => localStorage.setItem(KEPT, JSON.stringify({ ...kept(), ...values }));

export function begin() {
  session.conversation = newConversation(session.conversation?.model ?? session.server?.default ?? null, kept());
  emit("shown");
}

/** A conversation may name a model that this server does not have. */
function fit() {
  if (session.server && !modelState(session.conversation.model)) session.conversation.model = session.server.default;
}

export async function show(id) {
  const found = session.turns.get(id)?.conversation ?? (await store.get(id));
  if (!found) return begin();
  session.conversation = found;
  fit();
  emit("shown");
}

export async function save(conversation) {
  conversation.updated = Date.now();
  if (conversation.deleted || Object.keys(conversation.nodes).length === 1) return; // or nothing was said yet
  try {
    await store.put(conversation);
  } catch {
    notice(t("noStore"));
    return;
  }
  emit("list");
}

/** Ask the server how it is; a failure is the caller's to show. */
export async function refresh() {
  session.server = await api.pageState();
  fit();
  emit("server");
}

export const modelState = (name) => session.server?.models.find((model) => model.name === name) ?? null;
