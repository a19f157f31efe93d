// A conversation is a tree: editing a question or asking again makes a branch, and `chosen` says which one is shown.

import { newId } from "./dom.js";

export const ROOT = "root";

/** @param kept what new conversations begin with: `system`, `sampling` */
export function newConversation(model, kept) {
  const now = Date.now();
  return {
    id: newId(), title: "", created: now, updated: now, model,
    system: kept.system ?? "", sampling: { ...kept.sampling }, schema: "", tools: "", toolChoice: "auto",
    nodes: { [ROOT]: { id: ROOT, parent: null, children: [], chosen: null, content: "" } },
  };
}

/** Add a node below `parent` and show it. Roles as in OpenAI's API. */
export function add(conversation, parent, role, content, more = {}) {
  const node = { id: newId(), parent, role, content, children: [], chosen: null, ...more };
  conversation.nodes[node.id] = node;
  const above = conversation.nodes[parent];
  above.children.push(node.id);
  above.chosen = node.id;
  return node;
}

/** The nodes that are shown, or those that lead to the node `to`. */
export function path(conversation, to = null) {
  const { nodes } = conversation;
  const found = [];
  if (to) {
    for (let node = nodes[to]; node.id !== ROOT; node = nodes[node.parent]) found.unshift(node);
    return found;
  }
  for (let id = nodes[ROOT].chosen; id; id = nodes[id].chosen) found.push(nodes[id]);
  return found;
}

export const siblings = (conversation, node) => conversation.nodes[node.parent].children;

export function choose(conversation, id) {
  conversation.nodes[conversation.nodes[id].parent].chosen = id;
}

const isText = (value) => typeof value === "string";

/** A conversation of an exported file, if it is one. */
export function checked(value) {
  const nodes = value?.nodes;
  const whole =
    nodes && isText(value.id) && isText(value.title) && isText(value.system) && nodes[ROOT]?.parent === null &&
    Number.isFinite(value.updated) && typeof value.sampling === "object" && isText(value.schema) && isText(value.tools) &&
    Object.entries(nodes).every(
      ([id, node]) =>
        node?.id === id && isText(node.content) && Array.isArray(node.children) &&
        (id === ROOT || (["user", "assistant", "tool"].includes(node.role) && nodes[node.parent]?.children.includes(id))) &&
        node.children.every((child) => nodes[child]?.parent === id) &&
        (node.chosen === null ? !node.children.length : node.children.includes(node.chosen)),
    );
  return whole ? value : null;
}
