// What the page must say plainly, and the question for a key.

import { key } from "./api.js";
import { $ } from "./dom.js";

export function notice(text) {
  if ($("notice").textContent !== text) $("notice").textContent = text;
}

let asking = null;

/** Ask for a key; whether one was given. `why`: what the server said to the last one. */
export function askKey(why) {
  asking ??= new Promise((resolve) => {
    const dialog = $("key");
    $("key-wrong").textContent = key.get() ? why : "";
    $("key-text").value = "";
    const use = () => {
      if (!$("key-text").value.trim()) return;
      key.set($("key-text").value.trim());
      dialog.close("used");
    };
    const typed = (event) => event.key === "Enter" && use();
    $("use-key").addEventListener("click", use);
    $("key-text").addEventListener("keydown", typed);
    dialog.returnValue = "";
    dialog.addEventListener(
      "close",
      () => {
        $("use-key").removeEventListener("click", use);
        $("key-text").removeEventListener("keydown", typed);
        asking = null;
        resolve(dialog.returnValue === "used");
      },
      { once: true },
    );
    dialog.showModal();
  });
  return asking;
}
