// The conversation as it is shown: one article a message.

import { $, announce, button, copy, element } from "./dom.js";
import { number, t } from "./i18n.js";
import { Writer, show } from "./markdown.js";
import { notice } from "./notice.js";
import { emit, on, save, session } from "./session.js";
import { add, choose, path, siblings } from "./tree.js";
import { answer, edit, goOn } from "./turn.js";

const NEAR = 80; // pixels from the end at which the view follows an answer
const articles = new Map(); // by node
const box = $("messages");
const thread = $("thread");
let follows = true;
let top = 0;

export function start() {
  box.addEventListener("scroll", () => {
    const isNear = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR;
    follows = isNear || (follows && box.scrollTop >= top); // only somebody who reads scrolls up
    top = box.scrollTop;
  });
  new ResizeObserver(scroll).observe(thread);
  on("shown", shown);
  on("path", reconcile);
  on("turn", turned);
  on("restarted", (node) => articles.has(node) && write(articles.get(node)));
  on("asked", asked);
  on("delta", grown);
  on("server", () => session.turns.forEach(({ node }) => articles.has(node) && refill(articles.get(node))));
  on("language", shown);
}

function shown() {
  articles.clear();
  thread.replaceChildren();
  follows = true;
  reconcile();
}

/** Show the nodes of the path; articles that are there already stay as they are. */
function reconcile() {
  const nodes = path(session.conversation);
  for (const [node, article] of articles) {
    if (nodes.includes(node)) continue;
    article.box.remove();
    articles.delete(node);
  }
  for (const node of nodes) {
    if (!articles.has(node)) begin(node);
    else refill(articles.get(node));
  }
  $("welcome").hidden = nodes.length > 0;
}

const visible = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const article = [...articles.values()].find(({ body }) => body === target);
    if (!isIntersecting || !article) continue;
    visible.unobserve(target);
    show(target, text(article.node));
  }
}, { root: box, rootMargin: "500px" });

const running = (node) => [...session.turns.values()].some((turn) => turn.node === node);
const text = (node) => (node.json ? `\`\`\`json\n${node.content}\n\`\`\`` : node.content);

function begin(node) {
  const who = element("h2", { class: "who", id: `who-${node.id}` });
  const body = element("div", { class: node.role === "assistant" ? "body" : "body plain", dir: "auto" });
  const foot = element("div", { class: "foot" });
  const whole = element("article", { class: node.role, "aria-labelledby": who.id }, who, body, foot);
  const article = { node, box: whole, who, body, foot, writer: null };
  articles.set(node, article);
  thread.append(whole);
  if (running(node)) write(article);
  else if (node.role !== "assistant" || !node.content) body.textContent = node.content;
  else {
    body.append(element("p", { class: "plain" }, node.content));
    visible.observe(body);
  }
  refill(article);
}

function write(article) {
  article.writer = new Writer(article.body);
  const { node } = article;
  const begun = node.json ? `\`\`\`json\n${node.content}` : node.content;
  if (begun) article.writer.append(begun);
}

function asked(node) {
  const article = articles.get(node);
  if (!article) return;
  if (node.json) write(article); // now it is known to be JSON
  refill(article);
}

function turned(turn) {
  const article = articles.get(turn.node);
  if (!article) return;
  if (running(turn.node)) {
    write(article);
    follows = true;
  } else {
    finish(article);
  }
  refill(article);
}

/** The answer is there; it is busy until all of it is shown. */
async function finish(article) {
  const { writer } = article;
  await writer?.finish();
  if (article.writer !== writer) return; // it goes on
  article.writer = null;
  article.box.setAttribute("aria-busy", "false"); // and no more: who stands on a button below stays there
}

function grown(node, piece) {
  const article = articles.get(node);
  if (!article) return;
  article.writer.append(piece);
  if (node.calls.length || node.content === piece) refill(article);
}

function scroll() {
  if (follows) box.scrollTop = box.scrollHeight;
}

function refill(article) {
  const { node, who, foot } = article;
  const isLast = path(session.conversation).at(-1) === node;
  article.box.setAttribute("aria-busy", String(running(node) || article.writer !== null));
  if (node.role === "user") {
    who.textContent = t("you");
    foot.replaceChildren(branches(node), copier(node), button(t("edit"), () => editor(article)));
  } else if (node.role === "tool") {
    who.textContent = t("resultOf", { name: node.name });
    foot.replaceChildren(copier(node));
  } else {
    who.textContent = node.model ?? session.conversation.model ?? "";
    fillAnswer(article, isLast);
  }
}

function fillAnswer({ node, foot }, isLast) {
  const parts = (node.calls ?? []).map(callShown);
  if (running(node)) {
    const state = session.server?.models.find(({ name }) => name === node.model)?.state;
    if (!node.content && !parts.length) {
      parts.push(element("p", { class: "said" }, t(state && state !== "loaded" ? "loadingModel" : "thinking")));
    }
    foot.replaceChildren(...parts);
    return;
  }
  const told = { length: "atLength", stopped: "stopped", content_filter: "guardEnded" }[node.finish ?? "stopped"];
  if (told) parts.push(element("p", { class: "said" }, t(told)));
  if (node.error) parts.push(element("p", { class: "said wrong" }, t("failed", { why: node.error })));
  if (node.guard) parts.push(...verdicts(node.guard));
  if (isLast && node.finish === "tool_calls") parts.push(resultForm(node));
  const { conversation } = session;
  const actions = [branches(node)];
  if (node.content) actions.push(copier(node));
  actions.push(button(t("again"), () => free() && answer(conversation, node.parent)));
  const cut = node.content && !node.calls?.length && !node.json && node.finish !== "content_filter";
  if (isLast && cut) actions.push(button(t("continue"), () => free() && goOn(conversation, node)));
  if (node.stats) actions.push(element("span", { class: "stats" }, statsOf(node.stats)));
  foot.replaceChildren(...parts, element("div", { class: "actions" }, ...actions.filter(Boolean)));
}

function statsOf({ tokens, first, rate }) {
  const speed = rate ? `${t("rate", { rate: number(rate, 1) })} · ` : "";
  return `${speed}${t("first", { seconds: number(first, 2) })} · ${t("tokens", { count: number(tokens) })}`;
}

/** One answer at a time in a conversation. */
function free() {
  const isFree = !session.turns.has(session.conversation.id);
  if (!isFree) notice(t("stillAnswering"));
  return isFree;
}

function copier(node) {
  return button(t("copy"), async ({ target }) => {
    await copy(node.content);
    target.textContent = t("copied");
    announce(t("copied"));
    setTimeout(() => (target.textContent = t("copy")), 1500);
  });
}

/** Where a node has siblings: which one of them it is, and a way to the others. */
function branches(node) {
  const { conversation } = session;
  const all = siblings(conversation, node);
  if (all.length < 2) return "";
  const at = all.indexOf(node.id);
  const go = (step) => () => {
    if (!free()) return;
    choose(conversation, all[at + step]);
    save(conversation);
    emit("path");
    const there = articles.get(conversation.nodes[all[at + step]]);
    (there.foot.querySelector(step < 0 ? ".back:enabled" : ".on:enabled") ?? there.foot.querySelector("button:enabled")).focus();
    announce(t("branch", { at: at + step + 1, of: all.length }));
  };
  return element("span", { class: "branches", role: "group", "aria-label": t("branches") },
    button("‹", go(-1), { class: "back", "aria-label": t("branchBack"), disabled: at === 0 }),
    element("span", {}, `${at + 1} / ${all.length}`),
    button("›", go(1), { class: "on", "aria-label": t("branchOn"), disabled: at === all.length - 1 }));
}

function editor(article) {
  const { node, body, foot } = article;
  if (!free()) return;
  const area = element("textarea", { class: "edit", "aria-label": t("editQuestion"), value: node.content });
  const cancel = () => {
    body.textContent = node.content;
    refill(article);
    foot.querySelector("button:last-of-type").focus();
  };
  const send = () => area.value.trim() && edit(session.conversation, node, area.value);
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { event.stopPropagation(); cancel(); }
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send();
  });
  body.replaceChildren(area);
  foot.replaceChildren(button(t("send"), send, { class: "strong" }), button(t("cancel"), cancel));
  area.rows = Math.min(12, node.content.split("\n").length + 1);
  area.focus();
}

/** Edit the last question. */
export function editLast() {
  const last = path(session.conversation).findLast(({ role }) => role === "user");
  if (last) editor(articles.get(last));
}

function callShown({ name, arguments: text }) {
  return element("div", { class: "framed" },
    element("div", { class: "code-head" }, element("span", {}, t("calls", { name }))),
    element("pre", { tabindex: "0", role: "region", "aria-label": t("calls", { name }) }, text));
}

function resultForm(node) {
  const { conversation } = session;
  const areas = node.calls.map(({ name }) => element("textarea", { rows: 2, class: "code", "aria-label": t("resultOf", { name }), placeholder: t("resultOf", { name }) }));
  const send = () => {
    if (!free()) return;
    let last = node.id;
    node.calls.forEach(({ id, name }, index) => (last = add(conversation, last, "tool", areas[index].value, { call: id, name }).id));
    answer(conversation, last);
  };
  return element("div", { class: "results" }, ...areas, button(t("sendResults"), send, { class: "strong" }));
}

function verdicts(guard) {
  return ["input", "output"].filter((stage) => guard[stage]).map((stage) => {
    const { action, categories } = guard[stage];
    const worst = Object.entries(categories ?? {}).sort((one, other) => other[1] - one[1])[0];
    const why = worst && action !== "allow" ? ` (${worst[0]} ${number(worst[1], 2)})` : "";
    return element("p", { class: `badge ${action}` }, `${t(`guard-${stage}`)} ${t(`guard-${action}`)}${why}`);
  });
}
