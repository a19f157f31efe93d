// An answer, from the request to its end: streamed, stopped, asked for again when the server was busy or gone.

import { Failure, chat, ready } from "./api.js";
import { announce, pause } from "./dom.js";
import { t } from "./i18n.js";
import { askKey, notice } from "./notice.js";
import { bodyOf } from "./request.js";
import { emit, refresh, save, session } from "./session.js";
import { add, path } from "./tree.js";

const SAVED = 2000; // milliseconds between copies of an answer that is coming

/** Put a question at the end of what is shown, and ask for its answer. */
export function ask(conversation, text) {
  const last = path(conversation).at(-1)?.id ?? "root";
  if (!conversation.title) conversation.title = [...text.trim().split("\n")[0]].slice(0, 60).join("");
  return answer(conversation, add(conversation, last, "user", text).id);
}

/** Ask with another text instead of `node`'s, beside it. */
export const edit = (conversation, node, text) => answer(conversation, add(conversation, node.parent, "user", text).id);

/** Ask for (another) answer after the node `after`. */
export function answer(conversation, after) {
  const node = add(conversation, after, "assistant", "", { calls: [], finish: null });
  emit("path");
  return run(conversation, node, false);
}

export const goOn = (conversation, node) => run(conversation, node, true);

export function stop(conversation) {
  session.turns.get(conversation.id)?.controller.abort(new DOMException("stopped", "AbortError"));
}

async function run(conversation, node, continued) {
  const turn = { conversation, node, controller: new AbortController(), began: performance.now(), first: 0, pieces: 0 };
  session.turns.set(conversation.id, turn);
  Object.assign(node, { finish: null, error: null });
  emit("turn", turn);
  announce(t("answering"));
  const loading = setInterval(() => turn.first || refresh().catch(() => {}), 1000);
  const saving = setInterval(() => save(conversation), SAVED);
  try {
    await save(conversation);
    await insist(turn, continued);
    announce(node.content || t("answered"));
  } catch (failure) {
    const stopped = turn.controller.signal.aborted;
    node.finish = stopped ? "stopped" : "failed";
    node.error = stopped ? null : failure.message;
    announce(stopped ? t("stopped") : t("failed", { why: failure.message }));
  }
  clearInterval(loading);
  clearInterval(saving);
  notice("");
  node.stats = measured(turn);
  session.turns.delete(conversation.id);
  emit("turn", turn);
  await save(conversation);
  await refresh().catch(() => {});
}

function measured({ node, began, first, last, pieces }) {
  if (!first) return null;
  const tokens = node.usage?.completion_tokens ?? pieces;
  const seconds = (last - first) / 1000;
  return { tokens, first: (first - began) / 1000, rate: seconds > 0 && tokens > 1 ? (tokens - 1) / seconds : null };
}

/** Try until there is an answer; what the server refuses is thrown. */
async function insist(turn, continued) {
  const { node, controller } = turn;
  for (;;) {
    try {
      await once(turn, continued);
      return;
    } catch (failure) {
      if (!(failure instanceof Failure) || failure.kind === "refused") throw failure;
      if (failure.kind === "key") {
        if (!(await askKey(failure.message))) throw failure;
      } else if (failure.kind === "busy") {
        await countDown(failure.after, controller.signal);
      } else {
        await back(failure.after, controller.signal);
      }
    }
    continued = Boolean(node.content) && !node.calls.length && !node.json;
    if (!continued) Object.assign(node, { content: "", calls: [] });
    emit("restarted", node);
  }
}

async function countDown(seconds, signal) {
  for (let left = seconds; left > 0; left--) {
    notice(t("busy", { seconds: left }));
    await pause(1000, signal);
  }
  notice("");
}

async function back(after, signal) {
  notice(t("gone"));
  for (let wait = Math.max(1, after); ; wait = Math.min(5, wait + 1)) {
    await pause(wait * 1000, signal);
    if (await ready()) break;
  }
  notice("");
}

async function once(turn, continued) {
  const { conversation, node, controller } = turn;
  const nodes = path(conversation, node.id);
  const verdicts = Boolean(session.server?.guard);
  const body = bodyOf(conversation, continued ? nodes : nodes.slice(0, -1), { continued, verdicts });
  Object.assign(node, { model: body.model, json: "response_format" in body, usage: null });
  emit("asked", node);
  for await (const chunk of chat({ ...body, stream: true, stream_options: { include_usage: true } }, controller.signal)) {
    node.model = chunk.model;
    if (chunk.usage) node.usage = chunk.usage;
    if (chunk.guard) node.guard = chunk.guard;
    const [choice] = chunk.choices;
    if (!choice) continue;
    const { content, tool_calls: calls = [] } = choice.delta;
    if (content || calls.length) {
      turn.last = performance.now();
      turn.first ||= turn.last;
      turn.pieces += 1;
      notice("");
    }
    for (const call of calls) {
      const known = (node.calls[call.index] ??= { id: call.id, name: call.function.name, arguments: "" });
      known.arguments += call.function.arguments ?? "";
    }
    if (content) node.content += content;
    if (content || calls.length) emit("delta", node, content ?? "");
    if (choice.finish_reason) node.finish = choice.finish_reason;
  }
}
