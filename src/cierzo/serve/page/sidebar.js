// The conversations of this browser: found, named, deleted, carried elsewhere.

import { $, announce, button, download, element, newId } from "./dom.js";
import { bytes, t } from "./i18n.js";
import { notice } from "./notice.js";
import { begin, emit, on, session, show } from "./session.js";
import * as store from "./store.js";
import { checked } from "./tree.js";

const FORMAT = "cierzo-conversations";
const wide = matchMedia("(min-width: 50rem)");
let chosen = null; // the head whose dialog is open

const isOpen = () => document.body.classList.contains("with-sidebar");

export function toggle(opens = !isOpen()) {
  document.body.classList.toggle("with-sidebar", opens);
  $("menu").setAttribute("aria-expanded", String(opens));
}

async function list() {
  const wanted = $("search").value.trim();
  const heads = await store.heads();
  const found = wanted ? await store.search(wanted) : null;
  const items = heads.filter(({ id }) => found?.has(id) ?? true).map(item);
  $("conversations").replaceChildren(...items);
  $("none-found").hidden = !found || items.length > 0;
  if (found) announce(t("found", { count: items.length }));
}

function item(head) {
  const open = async () => {
    await show(head.id);
    if (!wide.matches) toggle(false);
    $("question").focus();
  };
  const isCurrent = head.id === session.conversation?.id;
  return element("li", {},
    button(head.title, open, { class: "title", "aria-current": isCurrent ? "true" : null }),
    button("⋯", () => options(head), { class: "icon", "aria-label": t("options", { title: head.title }) }));
}

function options(head) {
  chosen = head;
  $("title").value = head.title;
  $("conversation").showModal();
}

async function rename() {
  const title = $("title").value.trim();
  if (!title) return;
  const whole = chosen.id === session.conversation.id ? session.conversation : await store.get(chosen.id);
  whole.title = title;
  await store.put(whole);
  $("conversation").close();
  emit("list");
}

async function remove() {
  if ($("delete").dataset.sure !== "yes") {
    $("delete").dataset.sure = "yes";
    $("delete").textContent = t("reallyDelete");
    return;
  }
  const turn = session.turns.get(chosen.id);
  if (turn) {
    turn.conversation.deleted = true; // its end must not save it again
    turn.controller.abort();
  }
  await store.remove(chosen.id);
  $("conversation").close();
  if (chosen.id === session.conversation.id) begin();
  emit("list");
  $("new").focus();
}

function save(conversations) {
  const name = conversations.length === 1 ? conversations[0].title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40) : "conversations";
  download(`${name || "conversation"}.json`, JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1));
}

async function read(file) {
  let found = [];
  try {
    const { format, version, conversations } = JSON.parse(await file.text());
    if (format === FORMAT && version === 1) found = conversations.map(checked);
  } catch {
    found = [];
  }
  if (!found.length || found.includes(null)) return notice(t("notImported", { name: file.name }));
  for (const conversation of found) {
    const known = await store.get(conversation.id);
    if (known && known.updated !== conversation.updated) conversation.id = newId(); // both are kept
    await store.put(conversation);
  }
  notice("");
  announce(t("imported", { count: found.length }));
  emit("list");
}

function memory() {
  const { server } = session;
  if (!server) return;
  const taken = server.models.reduce((sum, { state, weights, cache }) => sum + (state === "loaded" ? weights + cache : 0), 0);
  $("memory").textContent = t("memory", { taken: bytes(taken), free: bytes(server.free), version: server.version });
  if (server.guard) $("memory").append(element("br"), t("guardOn", { policy: server.guard.policy, mode: server.guard.mode }));
}

export function start() {
  toggle(wide.matches);
  $("menu").addEventListener("click", () => {
    toggle();
    if (isOpen() && !wide.matches) $("close-sidebar").focus();
  });
  const close = () => {
    toggle(false);
    $("menu").focus();
  };
  $("close-sidebar").addEventListener("click", close);
  $("sidebar").addEventListener("keydown", (event) => event.key === "Escape" && !wide.matches && close());
  document.querySelector("main").addEventListener("pointerdown", (event) => {
    if (isOpen() && !wide.matches && !$("menu").contains(event.target)) toggle(false);
  });
  $("new").addEventListener("click", () => {
    begin();
    if (!wide.matches) toggle(false);
    $("question").focus();
  });
  $("search").addEventListener("input", list);
  $("rename").addEventListener("click", rename);
  $("title").addEventListener("keydown", (event) => event.key === "Enter" && !event.isComposing && rename());
  $("delete").addEventListener("click", remove);
  $("export").addEventListener("click", async () => save([await store.get(chosen.id)]));
  $("export-all").addEventListener("click", async () => save(await store.all()));
  $("import").addEventListener("click", () => $("import-file").click());
  $("import-file").addEventListener("change", ({ target }) => {
    if (target.files.length) read(target.files[0]);
    target.value = "";
  });
  $("conversation").addEventListener("close", () => {
    $("delete").dataset.sure = "";
    $("delete").textContent = t("delete");
  });
  for (const event of ["list", "shown", "language"]) on(event, list);
  for (const event of ["server", "language"]) on(event, memory);
  store.watch(list);
}
