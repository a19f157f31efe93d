// System prompt, sampling, and how this page looks.

import { key } from "./api.js";
import { $, element } from "./dom.js";
import { language, setLanguage, t } from "./i18n.js";
import { emit, keep, kept, on, save, session } from "./session.js";

// Names as in the API; what is left empty is the server's to choose. Each has a label and a help text.
const FIELDS = [
  { name: "temperature", min: 0, max: 2, step: 0.05 },
  { name: "top_p", min: 0.01, max: 1, step: 0.01 },
  { name: "top_k", min: 0, max: 100000, step: 1 },
  { name: "min_p", min: 0, max: 1, step: 0.01 },
  { name: "repetition_penalty", min: 0.5, max: 2, step: 0.01 },
  { name: "max_tokens", min: 1, max: 1000000, step: 1 },
  { name: "seed", min: 0, max: Number.MAX_SAFE_INTEGER, step: 1 },
];

function field({ name, ...limits }) {
  const id = `sampling-${name}`;
  const input = element("input", { id, type: "number", ...limits, "aria-describedby": `${id}-help` });
  input.addEventListener("change", () => {
    if (!input.reportValidity()) return;
    const { [name]: _, ...others } = session.conversation.sampling;
    session.conversation.sampling = input.value === "" ? others : { ...others, [name]: input.valueAsNumber };
    changed();
  });
  return element("div", { class: "field" },
    element("label", { for: id, "data-name": name }),
    input,
    element("p", { id: `${id}-help`, class: "help", "data-help": name }));
}

function named() {
  for (const label of document.querySelectorAll("[data-name]")) label.textContent = t(label.dataset.name);
  for (const help of document.querySelectorAll("[data-help]")) help.textContent = t(`${help.dataset.help}-help`);
}

function changed() {
  const { system, sampling } = session.conversation;
  if ($("keep-settings").checked) keep({ system, sampling });
  save(session.conversation);
}

function fill() {
  const { system, sampling } = session.conversation;
  $("system").value = system;
  for (const { name } of FIELDS) $(`sampling-${name}`).value = sampling[name] ?? "";
  $("keep-settings").checked = false;
  $("forget-key").hidden = !key.get();
}

export function theme(name) {
  document.documentElement.dataset.theme = name;
}

export function start() {
  $("sampling").append(...FIELDS.map(field));
  named();
  $("open-settings").addEventListener("click", () => {
    fill();
    $("settings").showModal();
  });
  $("system").addEventListener("change", () => {
    session.conversation.system = $("system").value;
    changed();
  });
  $("keep-settings").addEventListener("change", changed);
  $("forget-key").addEventListener("click", () => {
    key.forget();
    $("forget-key").hidden = true;
  });
  $("language").value = language();
  $("language").addEventListener("change", ({ target }) => {
    keep({ language: target.value });
    setLanguage(target.value);
    emit("language");
  });
  $("theme").value = kept().theme ?? "";
  $("theme").addEventListener("change", ({ target }) => {
    keep({ theme: target.value });
    theme(target.value);
  });
  on("language", named);
}
