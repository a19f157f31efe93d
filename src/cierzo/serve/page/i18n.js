// Two languages. English texts that never change stand in index.html; the rest is here and in japanese.js.

import { JAPANESE } from "./japanese.js";

const ENGLISH = {
  you: "You",
  thinking: "Thinking…",
  loadingModel: "The model is being loaded…",
  answering: "Answering",
  answered: "Answered",
  stillAnswering: "An answer is still coming: stop it first.",
  stopped: "Stopped.",
  atLength: "The answer reached its greatest length.",
  guardEnded: "The guard ended this answer.",
  failed: "This did not work: {why}",
  busy: "The server is busy. Trying again in {seconds} s…",
  gone: "The server does not answer. Nothing is lost: it goes on when the server is back.",
  edit: "Edit",
  editQuestion: "Edit the question",
  again: "Again",
  continue: "Continue",
  copied: "Copied",
  copyCode: "Copy",
  code: "Code",
  table: "Table",
  branches: "Branches",
  branchBack: "Branch before",
  branchOn: "Next branch",
  branch: "Branch {at} of {of}",
  calls: "Calls {name}",
  resultOf: "Result of {name}",
  sendResults: "Send results",
  options: "Options of {title}",
  reallyDelete: "Really delete?",
  found: "{count} found",
  imported: "{count} imported",
  notImported: "{name} holds no conversations that this page can read.",
  memory: "Models take {taken}, {free} are free · Cierzo {version}",
  "model-loaded": "loaded",
  "model-loading": "loading…",
  "model-unloaded": "not loaded",
  "model-unloading": "leaving",
  context: "{used} of {limit} tokens of context used",
  contextEndless: "{used} tokens of context used, without a limit",
  window: "the sliding window sees the last {size} (the coloured part)",
  windowSome: "some layers see only the last {size} (the coloured part)",
  rate: "{rate} tokens/s",
  first: "first token after {seconds} s",
  tokens: "{count} tokens",
  temperature: "Temperature",
  "temperature-help": "How much chance there is: 0 always takes the likeliest word, above 1 gets wild. Empty: 0.7.",
  top_p: "Top p",
  "top_p-help": "Chooses only among the likeliest words that together have this probability. 1: all words.",
  top_k: "Top k",
  "top_k-help": "Chooses only among so many of the likeliest words. 0: all words.",
  min_p: "Min p",
  "min_p-help": "Leaves out words that are less likely than this part of the likeliest. 0: none.",
  repetition_penalty: "Repetition penalty",
  "repetition_penalty-help": "Above 1, words that occurred become less likely. 1.1 helps small models that go in circles.",
  max_tokens: "Longest answer",
  "max_tokens-help": "In tokens; an English word has about 1.3. Empty: as long as the context holds.",
  seed: "Seed",
  "seed-help": "The same number and question give the same answer again. Empty: another one each time.",
  notJson: "This is not JSON yet, so it is not used: {why}",
  notList: "This must be a list, [...], so it is not used.",
  notObject: "This must be an object, {...}, so it is not used.",
  "guard-input": "Guard, question:",
  "guard-output": "Guard, answer:",
  "guard-allow": "nothing found",
  "guard-log": "noted",
  "guard-warn": "careful",
  "guard-prompt": "the model was warned",
  "guard-refuse": "refused",
  guardOn: "Guard: {policy} ({mode})",
  noStore: "This browser keeps nothing for this page: conversations are lost when it is closed.",
};

const texts = { en: ENGLISH, ja: JAPANESE };
let current = "en";

// Attributes of the document that name a text, and what of the element it is.
const PLACES = { t: "textContent", tPlaceholder: "placeholder", tLabel: "ariaLabel" };
const marked = [...document.querySelectorAll("[data-t], [data-t-placeholder], [data-t-label]")];
for (const element of marked) {
  for (const [name, property] of Object.entries(PLACES)) {
    if (element.dataset[name]) ENGLISH[element.dataset[name]] ??= element[property];
  }
}

export const language = () => current;

/** The text `name` with `{values}` filled in. */
export const t = (name, values = {}) =>
  texts[current][name].replace(/\{(\w+)\}/g, (whole, key) => values[key] ?? whole);

export const number = (value, digits = 0) =>
  value.toLocaleString(current, { minimumFractionDigits: digits, maximumFractionDigits: digits });

export function bytes(size) {
  const [unit, name] = size >= 2 ** 30 ? [2 ** 30, "GiB"] : [2 ** 20, "MiB"];
  return `${number(size / unit, unit === 2 ** 30 ? 1 : 0)} ${name}`;
}

export function setLanguage(code) {
  current = code in texts ? code : "en";
  document.documentElement.lang = current;
  for (const element of marked) {
    for (const [name, property] of Object.entries(PLACES)) {
      if (element.dataset[name]) element[property] = t(element.dataset[name]);
    }
  }
}
