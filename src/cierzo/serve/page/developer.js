// For developers: the form of answers, tools, and the request as code.

import { key } from "./api.js";
import { $, announce, copy } from "./dom.js";
import { t } from "./i18n.js";
import { asCurl, asJson, asPython, bodyOf, parsed } from "./request.js";
import { save, session } from "./session.js";
import { path } from "./tree.js";

const FORMS = { curl: asCurl, python: asPython, json: asJson };

/** The request that Send would make now. */
function preview() {
  const nodes = path(session.conversation);
  const typed = $("question").value;
  if (typed.trim() || !nodes.length) nodes.push({ role: "user", content: typed });
  else if (nodes.at(-1).role === "assistant") nodes.pop();
  $("request").textContent = FORMS[$("request-form").value](bodyOf(session.conversation, nodes), Boolean(key.get()));
}

function typed({ target }) {
  const { wrong, why } = parsed(target.value, target.id === "tools");
  $(`${target.id}-wrong`).textContent = wrong ? t(wrong, { why }) : "";
  target.setAttribute("aria-invalid", String(Boolean(wrong)));
  session.conversation[target.id] = target.value;
  preview();
}

export function start() {
  $("open-developer").addEventListener("click", () => {
    const { schema, tools, toolChoice } = session.conversation;
    Object.assign($("schema"), { value: schema });
    Object.assign($("tools"), { value: tools });
    $("tool-choice").value = toolChoice;
    for (const id of ["schema", "tools"]) typed({ target: $(id) });
    $("developer").showModal();
  });
  for (const id of ["schema", "tools"]) $(id).addEventListener("input", typed);
  $("tool-choice").addEventListener("change", ({ target }) => {
    session.conversation.toolChoice = target.value;
    preview();
  });
  $("request-form").addEventListener("change", preview);
  $("copy-request").addEventListener("click", async () => {
    await copy($("request").textContent);
    announce(t("copied"));
  });
  $("developer").addEventListener("close", () => save(session.conversation));
}
