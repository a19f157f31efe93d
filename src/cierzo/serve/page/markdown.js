// Markdown as it streams: the server makes HTML of the block that is still open; closed blocks are not touched again.

import { render } from "./api.js";
import { announce, button, copy, element, pause } from "./dom.js";
import { t } from "./i18n.js";

const INTERVAL = 60; // milliseconds between updates at least
const LONGEST = 100_000; // characters that the server renders at once
const REFERENCE = /^ {0,3}\[[^\]]+\]:/m; // a link's address, which may stand anywhere in a text

// The one way of HTML into this page: what /page/render gave, cleaned there. The policy of the page forbids others.
const trusted = window.trustedTypes?.createPolicy("cierzo", { createHTML: (html) => html });

function fragment(html) {
  const template = document.createElement("template");
  template.innerHTML = trusted ? trusted.createHTML(html) : html;
  template.content.querySelectorAll("pre").forEach(frameCode);
  template.content.querySelectorAll("table").forEach(frameTable);
  return template.content;
}

function frameCode(pre) {
  const language = pre.dataset.language ?? "";
  const copyCode = async (event) => {
    await copy(pre.textContent);
    event.target.textContent = t("copied");
    announce(t("copied"));
    setTimeout(() => (event.target.textContent = t("copyCode")), 1500);
  };
  const head = element("div", { class: "code-head" }, element("span", {}, language), button(t("copyCode"), copyCode));
  const frame = element("div", { class: "framed" }, head);
  pre.replaceWith(frame);
  frame.append(pre);
  pre.tabIndex = 0;
  pre.role = "region";
  pre.ariaLabel = `${t("code")} ${language}`;
}

function frameTable(table) {
  const frame = element("div", { class: "wide", tabindex: "0", role: "region", "aria-label": t("table") });
  table.replaceWith(frame);
  frame.append(table);
}

const plain = (text) => element("p", { class: "plain" }, text);

/** Show a whole text. */
export async function show(box, text) {
  try {
    if (text.length > LONGEST) throw new Error("too long");
    const { blocks } = await render(text);
    box.replaceChildren(...blocks.map(({ html }) => fragment(html)));
  } catch {
    box.replaceChildren(plain(text));
  }
}

/** Shows a text that grows. */
export class Writer {
  #box;
  #openBox = element("div", { class: "open" });
  #open = "";
  #whole = "";
  #stale = false;
  #failed = false;
  #work = null;

  constructor(box) {
    this.#box = box;
    box.replaceChildren(this.#openBox);
  }

  append(text) {
    const lines = text.replaceAll("\r", "");
    this.#open += lines;
    this.#whole += lines;
    this.#stale = true;
    this.#work ??= this.#loop();
  }

  /** Wait until everything is shown. */
  async finish() {
    await this.#work;
    if (this.#failed || REFERENCE.test(this.#whole)) await show(this.#box, this.#whole);
  }

  async #loop() {
    try {
      while (this.#stale) {
        this.#stale = false;
        await this.#update();
        await pause(INTERVAL);
      }
    } finally {
      this.#work = null;
    }
  }

  async #update() {
    let found;
    try {
      if (this.#open.length > LONGEST) throw new Error("too long");
      found = await render(this.#open);
      this.#failed = false;
    } catch {
      this.#failed = true;
      this.#openBox.replaceChildren(plain(this.#open));
      return;
    }
    const { blocks, closed } = found;
    const parts = blocks.map(({ html }) => fragment(html));
    this.#openBox.before(...parts.slice(0, closed));
    this.#openBox.replaceChildren(...parts.slice(closed));
    if (closed) this.#open = this.#open.split("\n").slice(blocks[closed].begin).join("\n");
  }
}
