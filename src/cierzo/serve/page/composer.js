// Where questions are written. What is typed is kept until it is sent, also when the page is closed.

import { $ } from "./dom.js";
import { on, session } from "./session.js";
import { ask, stop } from "./turn.js";
import { editLast } from "./view.js";

const DRAFTS = "cierzo-drafts";
const area = $("question");
const touch = matchMedia("(pointer: coarse)");

const place = () => (session.conversation.title ? session.conversation.id : "new");
const drafts = () => JSON.parse(localStorage.getItem(DRAFTS) ?? "{}");

export function keepDraft() {
  const { [place()]: _, ...others } = drafts();
  localStorage.setItem(DRAFTS, JSON.stringify(area.value ? { ...others, [place()]: area.value } : others));
}

function grow() {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

function send() {
  const text = area.value;
  if (!text.trim() || session.turns.has(session.conversation.id)) return;
  area.value = "";
  keepDraft();
  grow();
  ask(session.conversation, text);
}


function turned() {
  const isRunning = session.turns.has(session.conversation.id);
  const had = document.activeElement === $("stop") || document.activeElement === $("send");
  $("send").hidden = isRunning;
  $("stop").hidden = !isRunning;
  if (had) area.focus();
}

export function start() {
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  $("stop").addEventListener("click", () => stop(session.conversation));
  area.addEventListener("input", () => (keepDraft(), grow()));
  area.addEventListener("keydown", (event) => {
    // Safari ends a composition before it tells of the key that ended it; 229 is that key.
    if (event.isComposing || event.keyCode === 229) return;
    if (event.key === "Enter" && !event.shiftKey && !touch.matches) {
      event.preventDefault();
      send();
    } else if (event.key === "ArrowUp" && !area.value && !session.turns.has(session.conversation.id)) {
      event.preventDefault();
      editLast();
    }
  });
  on("turn", turned);
  on("shown", () => {
    area.value = drafts()[place()] ?? "";
    grow();
    turned();
  });
}
