// The chat page: its parts, put together.

import { Failure, ready } from "./api.js";
import * as composer from "./composer.js";
import * as developer from "./developer.js";
import { $, pause } from "./dom.js";
import * as gauges from "./gauges.js";
import { setLanguage, t } from "./i18n.js";
import { askKey, notice } from "./notice.js";
import { begin, kept, refresh, session } from "./session.js";
import * as settings from "./settings.js";
import * as sidebar from "./sidebar.js";
import * as store from "./store.js";
import { stop } from "./turn.js";
import * as view from "./view.js";

settings.theme(kept().theme ?? "");
setLanguage(kept().language ?? navigator.language.slice(0, 2));
for (const part of [view, composer, sidebar, settings, developer, gauges]) part.start();

for (const close of document.querySelectorAll("[data-close]")) {
  close.addEventListener("click", () => close.closest("dialog").close());
}

document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.keyCode === 229) return;
  const command = event.ctrlKey || event.metaKey;
  const letter = event.key.toLowerCase();
  const open = document.querySelector("dialog[open]");
  if (event.key === "Escape" && !open && session.turns.has(session.conversation.id)) stop(session.conversation);
  else if (command && event.key === "/" && !open) $("help").showModal();
  else if (command && letter === "k" && !open) {
    sidebar.toggle(true);
    $("search").focus();
  } else if (command && event.shiftKey && letter === "o" && !open) $("new").click();
  else return;
  event.preventDefault();
});

async function meet() {
  for (;;) {
    try {
      await refresh();
      return notice("");
    } catch (failure) {
      if (!(failure instanceof Failure)) throw failure;
      if (failure.kind === "key" && !(await askKey(failure.message))) return notice(failure.message);
      if (failure.kind !== "key") {
        notice(failure.kind === "gone" ? t("gone") : failure.message);
        do await pause(2000);
        while (!(await ready()));
      }
    }
  }
}

begin();
if (!matchMedia("(pointer: coarse)").matches) $("question").focus(); // a phone would show its keyboard at once
store.heads().catch(() => notice(t("noStore")));
meet();
